"""Which layers a configuration means, with which ranks and alphas, and what it refuses."""

import inspect
import re
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import lora
from lora import LoRAConfig, LoRALayer, LoRAScaling, patterns
from lora.attachment.targets import layer_index, select
from lora.variants.inits import INITS
from minigrad.nn import MLP, Embedding, Linear, Module

LINEAR = [f"blocks.{i}.{part}" for i in range(3) for part in ("q", "v", "mlp.up")] + ["head"]
LAYERS = dict.fromkeys(LINEAR, True) | {"embed": False}


def chosen(**options):
    return select(LoRAConfig(**options), LAYERS)


def names(**options):
    return [target.name for target in chosen(**options)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, LINEAR),
        ({"targets": ["q", "embed"]}, ["blocks.0.q", "blocks.1.q", "blocks.2.q", "embed"]),
        ({"targets": "embed|head"}, ["head", "embed"]),
        ({"targets": r"\w+"}, ["head", "embed"]),
        ({"targets": r"(?!blocks).*"}, ["head", "embed"]),
        ({"targets": ["q"], "layers_to_transform": np.int64(2)}, ["blocks.2.q"]),
        (
            {"layers_to_transform": np.arange(1), "targets": ["q", "v"]},
            ["blocks.0.q", "blocks.0.v"],
        ),
        ({"exclude": ["head", "mlp.up", "v"]}, ["blocks.0.q", "blocks.1.q", "blocks.2.q"]),
        ({"exclude": r"blocks\..*"}, ["head"]),
        (
            {"targets": ["q", "v"], "exclude": r".*\.v"},
            ["blocks.0.q", "blocks.1.q", "blocks.2.q"],
        ),
        ({"layers_to_transform": 1}, ["blocks.1.q", "blocks.1.v", "blocks.1.mlp.up"]),
        ({"targets": ["q"], "layers_to_transform": [0, 2]}, ["blocks.0.q", "blocks.2.q"]),
        (
            {"targets": ["q"], "layers_to_transform": (2,), "layers_pattern": "blocks"},
            ["blocks.2.q"],
        ),
        (
            {"targets": ["q", "v"], "exclude": ["blocks.1.v"], "layers_to_transform": 1},
            None,
        ),
    ],
)
def test_layers_are_chosen_by_targets_exclusions_and_indices(options, expected):
    if expected is None:
        with pytest.raises(ValueError, match="nothing is left of the targets 'v'"):
            names(**options)
    else:
        assert names(**options) == expected


@pytest.mark.parametrize(
    ("name", "after", "index"),
    [
        ("blocks.3.q", (), 3),
        ("experts.1.blocks.3.q", (), 1),
        ("experts.1.blocks.3.q", ("blocks",), 3),
        ("experts.1.blocks.3.q", ("h", "blocks"), 3),
        ("experts.1.blocks.3.q", ("h",), None),
        ("3.q", (), 3),
        ("head", (), None),
        ("q4.k", (), None),
    ],
)
def test_the_index_of_a_layer_is_the_first_number_of_its_name(name, after, index):
    assert layer_index(name, after) == index


def test_ranks_and_alphas_follow_the_first_pattern_that_matches():
    found = {
        t.name: (t.rank, t.alpha)
        for t in chosen(
            rank=4,
            alpha=8,
            targets=["q", "head"],
            rank_pattern={r"blocks\.0\.q": 2, "q": 3},
            alpha_pattern={"head": 1.5},
        )
    }
    assert found == {
        "blocks.0.q": (2, 8),
        "blocks.1.q": (3, 8),
        "blocks.2.q": (3, 8),
        "head": (4, 1.5),
    }


def test_thousands_of_names_are_found_in_one_pass(monkeypatch):
    layers = [f"blocks.{i}.q" for i in range(3000)]
    taken_apart = []
    ends_of = patterns.ends_of
    monkeypatch.setattr(patterns, "ends_of", lambda name: taken_apart.append(name) or ends_of(name))
    found = select(LoRAConfig(targets=layers[::2], exclude=layers[:1]), dict.fromkeys(layers, True))
    assert [target.name for target in found] == layers[2::2]
    assert len(taken_apart) < 10 * len(layers)


def test_patterns_reach_the_layers_of_a_model():
    class Net(Module):
        def __init__(self):
            self.a, self.b = Linear(4, 4), Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x))

    net = Net()
    config = LoRAConfig(rank=2, alpha=3, rank_pattern={"b": 4}, alpha_pattern={"a": 5})
    report = lora.attach(net, config)
    assert [(m.name, m.rank, m.added) for m in report.matches] == [("a", 2, 16), ("b", 4, 32)]
    assert isinstance(net.a, LoRALayer)
    assert (net.a.scale, net.b.scale) == (5 / 2, 3 / 4)


def test_a_target_of_which_all_layers_are_excluded_is_in_the_report():
    net = MLP([4, 4, 4], rng=np.random.default_rng(0))
    report = lora.attach(net, LoRAConfig(2, targets=["0", "1"], exclude=["layers.1"]))
    assert report.names == ["layers.0"]
    assert report.emptied == ("1",)
    assert "1: all its layers are excluded" in repr(report)
    assert lora.attach(net, LoRAConfig(2, targets=["1"]), adapter="b").emptied == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "all_linear"}, r"'all_linear' \(did you mean 'all-linear'\?\)"),
        ({"exclude": ["heads"]}, r"exclude that match no layer: 'heads' \(did you mean 'head'\?\)"),
        ({"targets": ["q"], "exclude": ["v"]}, "exclude that match no layer: 'v'"),
        ({"targets": ["q"], "exclude": ["q"]}, "nothing is left of the targets 'q'"),
        ({"targets": ["q", "v"], "exclude": r".*[qv]"}, "nothing is left of the targets 'q', 'v' "),
        (
            {"targets": ["head", "q"], "layers_to_transform": 1, "exclude": ["blocks.0.q"]},
            "nothing is left of the targets 'head' ",
        ),
        ({"layers_to_transform": 3}, r"no target is in layer 3; their layers are 0, 1, 2"),
        ({"targets": ["head"], "layers_to_transform": 0}, "no name has an index of layers: head"),
        ({"layers_to_transform": 0, "layers_pattern": "h"}, "no target has an index after .h.;"),
        ({"targets": ["q"], "rank_pattern": {"v": 2}}, "rank_pattern .* no target: 'v'"),
        ({"rank_pattern": {"q": 3, r"blocks\.0\.q": 2}}, r"rank_pattern: 'blocks.* after .* first"),
        (
            {"layers_to_transform": 0, "layers_pattern": ["blocks", "block"]},
            r"layers_pattern: no target .* after 'block' \(did you mean 'blocks'\?\)",
        ),
        ({"alpha_pattern": {"hed": 2}}, r"alpha_pattern .* 'hed' \(did you mean 'head'\?\)"),
    ],
)
def test_a_pattern_in_vain_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        chosen(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ".*"}, ValueError, "matches every name there can be.*'all-linear'"),
        ({"targets": r"[\s\S]+"}, ValueError, "matches every name"),
        ({"targets": r"[\w.]+"}, ValueError, "matches every name"),
        ({"rank_pattern": {r"\w+": 1}}, ValueError, "matches every name"),
        ({"layers_to_transform": 2.5}, TypeError, "an integer, not 2.5"),
        ({"layers_to_transform": "12"}, TypeError, "an integer, not '12'"),
        ({"scaling": "rs"}, ValueError, "standard, rslora, not 'rs'"),
        ({"targets": ["q", ""]}, ValueError, "none may be empty"),
        ({"targets": {"q": 1}}, TypeError, "targets are names"),
        ({"exclude": ".*"}, ValueError, "exclude='.*' matches every name"),
        ({"exclude": "all-linear"}, ValueError, "leaves nothing"),
        ({"exclude": 3}, TypeError, "exclude are names"),
        ({"layers_to_transform": []}, ValueError, "None means all"),
        ({"layers_to_transform": [True]}, TypeError, "an integer, not True"),
        ({"layers_to_transform": -1}, ValueError, "must be an integer of at least 0, not -1"),
        ({"layers_pattern": "blocks"}, ValueError, "needs layers_to_transform"),
        ({"rank_pattern": {"q": 0}}, ValueError, r"rank_pattern\['q'\] must be a positive integer"),
        ({"rank_pattern": {"q": 2.5}}, TypeError, r"rank_pattern\['q'\] is an integer"),
        ({"rank_pattern": {"(": 1}}, ValueError, "not a regular expression"),
        ({"rank_pattern": {".*": 1}}, ValueError, "matches every name"),
        ({"rank_pattern": ["q"]}, TypeError, "a dict"),
        ({"alpha_pattern": {"q": -1.0}}, ValueError, r"alpha_pattern\['q'\] must be a"),
        ({"alpha_pattern": {3: 1.0}}, TypeError, "a dict"),
        ({"bias": "some"}, ValueError, "none, all, lora_only, not 'some'"),
        ({"bias": True}, ValueError, "not True"),
        (
            {"init": "zeros"},
            ValueError,
            "gaussian, kaiming, orthogonal, pissa, mica and .* not 'zeros'",
        ),
        ({"init": "pissa_niter_"}, ValueError, "pissa_niter_<rounds>, not 'pissa_niter_'"),
        ({"init": ["pissa"]}, ValueError, r"not \['pissa'\]"),
        ({"init": "mica", "use_dora": True}, ValueError, "take one of the two"),
        ({"use_dora": 1}, TypeError, "use_dora must be True or False, not 1"),
        ({"dora_norm_gradient": True}, ValueError, "needs use_dora=True"),
        ({"modules_to_save": None}, TypeError, "modules_to_save are names, not None"),
        ({"layers_pattern": 3}, TypeError, "layers_pattern are names, not 3"),
        ({"modules_to_save": "head"}, TypeError, r"\['head'\], not one string"),
        ({"dropout": "0.1"}, TypeError, "dropout"),
        (
            {"ranks": 3},
            TypeError,
            r"no field 'ranks' \(did you mean 'rank'\?\); .* rank, ",
        ),
        ({"r": 8}, TypeError, r"no field 'r' \(here it is rank\)"),
        ({"use_rslora": True}, TypeError, r"no field 'use_rslora' \(here it is scaling='rslora'\)"),
        (
            {"lora_alpha": 8, "target_modules": ["q"]},
            TypeError,
            r"fields 'lora_alpha' \(here it is alpha\), 'target_modules' \(here it is targets\);",
        ),
        ({"targets": ["q", "all-linear"]}, ValueError, "'all-linear' stands by itself"),
        ({"exclude": ["all-linear"]}, ValueError, "'all-linear' stands by itself"),
    ],
)
def test_an_impossible_or_contradictory_field_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        LoRAConfig(**options)


def test_a_configuration_prints_its_rank_its_alpha_and_what_is_not_as_usual():
    assert repr(LoRAConfig(8)) == "LoRAConfig(rank=8, alpha=16.0)"
    config = LoRAConfig(4, targets=["q"], scaling="rslora", rank_pattern={"q": 2}, use_dora=True)
    assert repr(config) == (
        "LoRAConfig(rank=4, alpha=16.0, targets=('q',), scaling=LoRAScaling.RSLORA, "
        "rank_pattern={'q': 2}, use_dora=True)"
    )
    assert eval(repr(config), {"LoRAConfig": LoRAConfig, "LoRAScaling": LoRAScaling}) == config


def test_a_signature_has_the_fields():
    assert list(inspect.signature(LoRAConfig).parameters)[:3] == ["rank", "alpha", "targets"]


def test_what_a_configuration_was_made_of_may_change():
    ranks, targets = {"q": 2}, ["q"]
    config = LoRAConfig(targets=targets, rank_pattern=ranks, modules_to_save=targets)
    ranks["q"] = 5
    targets.append("v")
    assert config == LoRAConfig(targets=("q",), rank_pattern={"q": 2}, modules_to_save=("q",))


def test_a_configuration_of_numpy_scalars_can_be_saved(tmp_path):
    config = LoRAConfig(
        rank=np.int64(2),
        alpha=np.float64(3),
        dropout=np.float32(0.5),
        use_dora=np.True_,
        layers_to_transform=np.int64(0),
        rank_pattern={"0": np.int32(1)},
    )
    model = MLP([4, 4, 4])
    lora.attach(model, config)
    lora.save(model, tmp_path / "adapter")
    assert (config.rank, config.rank_pattern) == (2, {"0": 1})
    assert type(config.rank) is type(config.rank_pattern["0"]) is int


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", ["a", "table"])
def test_weights_that_are_not_finite_are_refused_by_name(layer, value):
    class Net(Module):
        def __init__(self):
            self.first, self.a, self.table = Linear(3, 3), Linear(3, 3), Embedding(3, 3)

    net = Net()
    getattr(net, layer).weight.data[1, 2] = value
    state = np.random.default_rng(0).bit_generator.state
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"{layer}: the weight has NaN or Inf"):
        lora.attach(net, LoRAConfig(rank=1, targets=["first", layer]), rng=rng)
    assert type(net.first) is Linear
    assert all(p.requires_grad for p in net.parameters())
    assert rng.bit_generator.state == state


PARTS = st.sampled_from(["q", "v", "up", "0", "1", "blocks", "head"])
NAMES = st.lists(
    st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=8, unique=True
)


@hypothesis.given(NAMES, st.data())
def test_a_name_matches_itself_and_every_end_of_it(all_names, data):
    name = data.draw(st.sampled_from(all_names))
    end = name.split(".", data.draw(st.integers(0, name.count("."))))[-1]
    found = [t.name for t in select(LoRAConfig(targets=[end]), dict.fromkeys(all_names))]
    assert name in found
    assert found == [n for n in all_names if re.search(rf"(^|\.){re.escape(end)}$", n)]


def test_every_init_is_known():
    assert set(INITS) == {"gaussian", "kaiming", "orthogonal", "pissa", "mica"}


HUGE = 10**400  # no float is so large


@pytest.mark.parametrize(
    "use",
    [
        lambda: LoRAConfig(alpha=HUGE),
        lambda: LoRALayer(np.ones((3, 3)), 3, 3, 2, HUGE),
        lambda: setattr(LoRALayer(np.ones((3, 3)), 3, 3, 2, 1.0), "scale", HUGE),
    ],
)
def test_an_integer_that_is_no_float_is_refused_as_infinity_is(use):
    with pytest.raises(ValueError, match=r"must be a (positive|finite) number"):
        use()


def test_targets_may_be_an_array_of_names():
    assert LoRAConfig(targets=np.array(["q", "v"])).targets == ("q", "v")


@pytest.mark.parametrize(
    "options",
    [
        {"rank": np.int8(2)},
        {"dropout": Fraction(1, 2)},
        {"rank_pattern": {"layers.0": np.uint8(1)}, "alpha_pattern": {"layers.0": np.float32(3)}},
        {"layers_to_transform": np.arange(1)},
    ],
)
def test_what_a_configuration_accepts_can_be_saved(options, tmp_path):
    model = MLP((4, 4, 4))
    lora.attach(model, LoRAConfig(**{"rank": 2, **options}))
    lora.save(model, tmp_path / "adapter")
    lora.load(MLP((4, 4, 4)), tmp_path / "adapter", check_base=False)
