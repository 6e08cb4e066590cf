"""Adapters on whole models: which layers match, what trains, and that the model comes back."""

import copy
import math
import pickle
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import lora
import minigrad
from lora import LoRAConfig, LoRALayer, LoRAScaling, NF4Linear
from minigrad.nn import MLP, Buffer, Dropout, Embedding, Linear, Module, Parameter, Sequential
from minigrad.optim import Adam
from minigrad.training.trainer import Trainer
from tests.lora.models import layers_of, put_on, snapshot


class Pair(NamedTuple):
    first: Module
    second: Module


class Block(Module):
    def __init__(self, n, rng):
        self.q = Linear(n, n, dtype=np.float64, rng=rng)
        self.v = Linear(n, n, bias=False, dtype=np.float64, rng=rng)
        self.scale = Parameter(np.ones(n))

    def forward(self, x):
        return x + minigrad.tanh(self.q(x)) * self.scale + self.v(x)


class Net(Module):
    """Layers in a list, a tuple, a named tuple and a dict, and one that is used twice."""

    def __init__(self, rng):
        self.first = Linear(3, 4, dtype=np.float64, rng=rng)
        self.blocks = [Block(4, rng), Block(4, rng)]
        self.ways = (Linear(4, 4, dtype=np.float64, rng=rng), minigrad.tanh)
        self.pair = Pair(Linear(4, 6, dtype=np.float64, rng=rng), Linear(6, 4, dtype=np.float64))
        self.heads = {"eq": Linear(4, 2, dtype=np.float64, rng=rng), "deep": [self.blocks[0].q]}
        self.shared = self.first
        self.drop = Dropout(0.1)

    def forward(self, x):
        x = minigrad.tanh(self.first(x)) + self.shared(x)
        for block in self.blocks:
            x = block(x)
        x = self.ways[1](self.ways[0](x)) + self.pair.second(self.pair.first(x))
        return self.heads["eq"](x + self.heads["deep"][0](x))


LINEARS = [
    "first",
    "blocks.0.q",
    "blocks.0.v",
    "blocks.1.q",
    "blocks.1.v",
    "ways.0",
    "pair.0",
    "pair.1",
    "heads.eq",
]


def values(model):
    return {name: p.data.tobytes() for name, p in model.named_parameters()}


def draw(rng, shape=(5, 3), dtype=np.float64):
    return minigrad.tensor(rng.standard_normal(shape).astype(dtype))


def attached(rng, b=True, **options):
    """A Net with adapters, whose B are not zero unless b is False; and its base's output."""
    net, x = Net(rng), draw(rng)
    base = net.eval()(x).data
    lora.attach(net, LoRAConfig(**{"rank": 2, "alpha": 4.0, **options}), rng=rng)
    if b:
        for layer in layers_of(net).values():
            layer.lora_b = rng.standard_normal(layer.lora_b.shape)
    return net, x, base


# ----------------------------------------------------------------------------------------------
# Which layers
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("all-linear", LINEARS),
        (["first"], ["first"]),
        (["blocks.1.v"], ["blocks.1.v"]),
        (["q"], ["blocks.0.q", "blocks.1.q"]),
        (["0.q"], ["blocks.0.q"]),
        (["v", "first"], ["first", "blocks.0.v", "blocks.1.v"]),
        (("0",), ["ways.0", "pair.0"]),
        (["eq", "heads.eq"], ["heads.eq"]),
        (r"blocks\.\d\.(q|v)", ["blocks.0.q", "blocks.0.v", "blocks.1.q", "blocks.1.v"]),
        (r".*\.q", ["blocks.0.q", "blocks.1.q"]),
        ("first", ["first"]),
    ],
)
def test_layers_are_found_by_name_by_ending_or_by_pattern(rng, targets, names):
    net = Net(rng)
    report = lora.attach(net, LoRAConfig(rank=1, targets=targets))
    assert report.names == names
    assert list(layers_of(net)) == names


def test_the_report_says_by_which_pattern_each_layer_was_found_first(rng):
    report = lora.attach(Net(rng), LoRAConfig(rank=1, targets=["v", "blocks.0.v", "first"]))
    found = {match.name: match.pattern for match in report.matches}
    assert found == {"first": "first", "blocks.0.v": "v", "blocks.1.v": "v"}


@pytest.mark.parametrize(
    ("targets", "misses", "hints"),
    [
        (["frist"], ["frist"], ["first"]),
        (["q", "block.0.q", "frist"], ["block.0.q", "frist"], ["blocks.0.q", "first"]),
        (["ocks.0.q"], ["ocks.0.q"], ["blocks.0.q"]),
        (["blocks"], ["blocks"], []),
        (["drop"], ["drop"], []),
        ("q", ["q"], []),
        (r"blocks\.2\..*", [r"blocks\.2\..*"], []),
    ],
)
def test_every_target_must_match(rng, targets, misses, hints):
    net = Net(rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match="targets that match no layer") as caught:
        lora.attach(net, LoRAConfig(rank=1, targets=targets))
    message = str(caught.value)
    missed, listed = message.split("; the layers are ")
    assert listed == ", ".join(LINEARS)
    assert all(repr(miss) in missed for miss in misses)
    assert all(f"did you mean {hint!r}?" in missed for hint in hints)
    assert "'q'" not in missed or targets == "q"
    assert not any(f"{miss!r} (did you mean {miss!r}?)" in missed for miss in misses)
    assert snapshot(net) == before


def test_a_target_that_can_have_no_adapter_is_named_with_its_class(rng):
    message = (
        r"match no layer: 'drop' \(of class Dropout, which can have no adapter\), 'up'; the layers"
    )
    with pytest.raises(ValueError, match=message):
        lora.attach(Net(rng), LoRAConfig(rank=1, targets=["first", "drop", "up"]))


def test_an_expression_that_matches_no_entire_name_says_nothing_of_a_class(rng):
    message = r"match no layer: 'first' \(a string is a regular expression for an entire name"
    with pytest.raises(ValueError, match=message):
        lora.attach(Sequential(Net(rng)), LoRAConfig(rank=1, targets="first"))


def test_of_many_layers_the_ends_of_their_names_are_listed(rng):
    net = Sequential(*(Block(1, rng) for _ in range(100)), Linear(1, 1))
    message = "match no layer: 'q,v'; the layers are those whose names end in q, v, 100$"
    with pytest.raises(ValueError, match=message):
        lora.attach(net, LoRAConfig(rank=1, targets=["q,v"]))


def test_a_model_without_linear_layers_is_an_error():
    with pytest.raises(ValueError, match="no linear layer"):
        lora.attach(Sequential(minigrad.tanh), LoRAConfig())
    with pytest.raises(ValueError, match="the layers are none"):
        lora.attach(Sequential(minigrad.tanh), LoRAConfig(targets=["q"]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": []}, ValueError, "targets are empty"),
        ({"targets": ""}, ValueError, "targets are empty"),
        ({"targets": "layers.("}, ValueError, "not a regular expression"),
        ({"targets": [1]}, TypeError, "targets are names"),
        ({"targets": None}, TypeError, "targets"),
        ({"rank": 0}, ValueError, "rank must be a positive integer, not 0"),
        ({"rank": 1.5}, TypeError, r"rank is an integer, not 1\.5"),
        ({"alpha": 0.0}, ValueError, "alpha must be a positive number"),
        ({"alpha": math.nan}, ValueError, "alpha must be a positive number"),
        ({"alpha": "1"}, TypeError, "alpha must be a number"),
        ({"dropout": 1.1}, ValueError, "dropout is a probability"),
        ({"scaling": "rs"}, ValueError, "'rs'"),
    ],
)
def test_an_impossible_configuration_is_an_error(options, error, message):
    with pytest.raises(error, match=message):
        LoRAConfig(**options)


def test_a_configuration_is_a_value():
    names = ["q", "v"]
    config = LoRAConfig(targets=names, scaling="rslora")
    names.append("k")
    assert config == LoRAConfig(targets=("q", "v"), scaling=LoRAScaling.RSLORA)
    assert config.scaling is LoRAScaling.RSLORA
    with pytest.raises(AttributeError):
        config.rank = 3


# ----------------------------------------------------------------------------------------------
# Putting on
# ----------------------------------------------------------------------------------------------


def test_the_first_output_is_that_of_the_base_to_the_bit(rng):
    net, x, base = attached(rng, b=False)
    assert len(layers_of(net)) == 9
    assert np.array_equal(net(x).data, base)


def test_a_and_b_train_and_nothing_else(rng):
    net, _, _ = attached(rng)
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert names == {f"{layer}.lora_{letter}" for layer in LINEARS for letter in "ab"}


@pytest.mark.parametrize("rank", [1, 2])
def test_the_counts_of_the_report_are_those_of_closed_forms(rng, rank):
    net = Net(rng)
    before = net.count_parameters()
    report = lora.attach(net, LoRAConfig(rank=rank, targets=["first", "v", "pair.0", "eq"]))
    sizes = [(3, 4), (4, 4), (4, 4), (4, 6), (4, 2)]
    assert [(m.d_in, m.d_out) for m in report.matches] == sizes
    assert [m.added for m in report.matches] == [rank * (m + n) for m, n in sizes]
    assert all(m.rank == rank for m in report.matches)
    assert report.trainable == rank * sum(m + n for m, n in sizes)
    assert report.total == before + report.trainable
    assert net.count_parameters(trainable_only=True) == report.trainable


def test_the_report_can_be_read(rng):
    report = lora.attach(MLP([100, 50, 1]), LoRAConfig(rank=1, targets=["layers.0"]))
    assert repr(report).splitlines() == [
        "layer     matched by  d_in -> d_out  rank  trains",
        "layers.0  layers.0    100 -> 50      1     150",
        "150 of 5,251 parameters train (2.86 %)",
    ]


def test_the_configuration_gets_to_the_layers(rng):
    options = {"rank": 2, "alpha": 3.0, "dropout": 0.25, "scaling": LoRAScaling.RSLORA}
    net, _, _ = attached(rng, **options)
    for layer in layers_of(net).values():
        assert (layer.rank, layer.alpha, layer.dropout) == (2, 3.0, 0.25)
        assert layer.scale == 3 / math.sqrt(2)
        assert layer.lora_a.dtype == np.float64
        assert not layer.training  # as the layer that was there


def test_a_layer_that_is_used_twice_gets_one_adapter_in_both_places(rng):
    net, _, _ = attached(rng)
    assert net.first is net.shared
    assert net.blocks[0].q is net.heads["deep"][0]
    assert isinstance(net.shared, LoRALayer)


def test_lists_and_dicts_that_others_hold_too_see_the_adapters(rng):
    net = Net(rng)
    deep, heads = net.heads["deep"], net.heads
    lora.attach(net, LoRAConfig(rank=1))
    assert net.heads is heads
    assert heads["deep"] is deep
    assert deep[0] is net.blocks[0].q
    assert isinstance(heads["eq"], LoRALayer)


def test_layers_in_a_named_tuple_get_adapters(rng):
    net, _, _ = attached(rng)
    assert type(net.pair) is Pair
    assert isinstance(net.pair.second, LoRALayer)
    assert type(net.ways) is tuple
    assert net.ways[1] is minigrad.tanh


class Steps(tuple):
    """A tuple of a class of its own."""

    def __call__(self, x):
        for step in self:
            x = step(x)
        return x


@dataclass(slots=True)
class Slots(Module):
    steps: Steps
    calls: Counter

    def forward(self, x):
        return self.steps(x)


@pytest.mark.parametrize("quantized", [False, True])
def test_only_layers_change_in_slots_counters_and_tuples_of_any_class(rng, quantized):
    steps = Steps([Linear(64, 4), minigrad.tanh])
    net = Sequential(Slots(steps, Counter(calls=3)))
    x = draw(rng, (2, 64), np.float32)
    if quantized:
        lora.quantize(net, targets="all-linear")
    base = net(x).data
    assert lora.attach(net, LoRAConfig(rank=1)).names == ["0.steps.0"]
    assert isinstance(net[0].steps[0], LoRALayer)
    lora.detach(net)
    assert np.array_equal(net(x).data, base)
    assert type(net[0].steps) is Steps
    assert net[0].calls == {"calls": 3}


def test_equal_seeds_give_equal_adapters_and_layers_differ():
    def first_a(seed):
        net = MLP([4, 4, 4, 4])
        lora.attach(net, LoRAConfig(rank=2), rng=np.random.default_rng(seed))
        return [layer.lora_a.data for layer in layers_of(net).values()]

    one, again, other = first_a(1), first_a(1), first_a(2)
    assert all(np.array_equal(x, y) for x, y in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[1], one[2])


def test_attaching_twice_is_an_error_and_changes_nothing(rng):
    net, _, _ = attached(rng, targets=["q"])
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"an adapter 'default' already; .*lora\.remove"):
        lora.attach(net, LoRAConfig(rank=1, targets=["v"]))
    assert snapshot(net) == before


def test_a_rank_too_large_for_one_layer_is_an_error_and_changes_nothing(rng):
    net = Net(rng)
    net.blocks[0].q.weight.requires_grad_(False)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"heads\.eq: rank 3 is larger than .* = 2"):
        lora.attach(net, LoRAConfig(rank=3))
    assert snapshot(net) == before
    assert len(lora.attach(net, LoRAConfig(rank=3, targets=["q", "v"])).matches) == 4


@pytest.mark.parametrize(
    ("layer", "advice"),
    [
        (Embedding(3, 3), "put it into a Sequential$"),
        (NF4Linear.from_linear(Linear(3, 3)), "put it into a Sequential$"),
    ],
)
def test_no_single_layer_has_a_place_for_an_adapter(layer, advice):
    before = dict(vars(layer))
    with pytest.raises(ValueError, match=f"a single {type(layer).__name__}, .*{advice}"):
        lora.attach(layer, LoRAConfig(rank=1, targets=["x"]))
    assert vars(layer) == before


def test_a_tuple_without_adapters_in_it_stays_the_very_tuple(rng):
    net = Net(rng)
    net.sizes = sizes = (1, (2, 3))
    lora.attach(net, LoRAConfig(rank=1), rng=rng)
    lora.detach(net)
    assert net.sizes is sizes


def test_a_single_linear_has_no_place_for_an_adapter():
    with pytest.raises(ValueError, match=r"LoRALayer\.from_linear"):
        lora.attach(Linear(2, 2), LoRAConfig(rank=1))


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Noted(Linear):
    """A Linear with something of its own that the formula does not concern."""

    note = "kept"


def test_a_subclass_of_linear_with_its_own_forward_keeps_its_output(rng):
    net, x = Sequential(Doubled(3, 3), Noted(3, 3)), draw(rng, dtype=np.float32)
    base = net(x).data
    report = lora.attach(net, LoRAConfig(rank=1))
    assert report.names == ["1"]
    assert np.array_equal(net(x).data, base)
    with pytest.raises(ValueError, match="match no layer: '0'"):
        lora.attach(Sequential(Doubled(3, 3)), LoRAConfig(rank=1, targets=["0"]))


class Watched(Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


class Larger(Linear):
    def __init__(self, kind):
        super().__init__(3, 3)
        self.gain = kind(np.ones(3))


def test_a_layer_that_computes_or_holds_more_than_a_linear_does_is_left(rng):
    layers = Linear(3, 3), Watched(3, 3), Larger(Parameter), Larger(Buffer)
    net, x = Sequential(*layers), draw(rng, dtype=np.float32)
    patched = net[0]
    patched.forward = lambda x: 2 * Linear.forward(patched, x)
    net.last = Linear(3, 3)
    base = net(x).data
    assert lora.attach(net, LoRAConfig(rank=1)).names == ["last"]
    assert np.array_equal(net(x).data, base)
    assert net.state_dict().keys() > {"2.gain", "3.gain"}


def test_a_tied_weight_is_counted_once(rng):
    net = MLP([3, 4, 1])
    net.tied = net.layers[0].weight
    before = net.count_parameters()
    report = lora.attach(net, LoRAConfig(rank=1))
    assert report.total == before + report.trainable


# ----------------------------------------------------------------------------------------------
# Taking off
# ----------------------------------------------------------------------------------------------


def leave(net, rng):
    pass


def train(net, rng):
    optimizer = Adam(net.trainable_parameters(), lr=0.1)
    net(draw(rng)).sum().backward()
    optimizer.step()


def merge(net, rng):
    train(net, rng)
    lora.merge(net)


def unfreeze(net, rng):
    net.freeze(False)


@pytest.mark.parametrize("meanwhile", [leave, train, merge, unfreeze])
@pytest.mark.parametrize("targets", ["all-linear", ["q", "first"]])
def test_detach_gives_back_the_very_model_and_its_flags(rng, meanwhile, targets):
    net = Net(rng)
    net.blocks[1].freeze()
    net.first.bias.requires_grad_(False)
    before, x = snapshot(net), draw(rng)
    base = net(x).data
    lora.attach(net, LoRAConfig(rank=2, targets=targets), rng=rng)
    assert snapshot(net) != before
    meanwhile(net, rng)
    assert lora.detach(net) is net
    assert snapshot(net) == before
    assert np.array_equal(net(x).data, base)
    assert set(vars(net)) == set(vars(Net(rng)))


def test_a_model_can_be_attached_to_again_after_detach(rng):
    net, x, base = attached(rng)
    lora.detach(net)
    lora.attach(net, LoRAConfig(rank=1, targets=["first"]), rng=rng)
    assert list(layers_of(net)) == ["first"]
    assert np.array_equal(net(x).data, base)


def test_an_adapter_begins_from_the_model_without_what_another_trains_whole(rng):
    net = Net(rng)
    base = {name: p.data.copy() for name, p in net.named_parameters()}
    before = snapshot(net)
    whole = LoRAConfig(rank=1, targets=["first"], bias="all", modules_to_save=["pair.1"])
    lora.attach(net, whole, adapter="whole", rng=rng)
    for parameter in net.trainable_parameters():
        parameter.data = parameter.data + 1
    changed = net.pair.second.weight
    with pytest.raises(ValueError, match="rank 3 is larger"):
        lora.attach(net, LoRAConfig(rank=3, targets=["eq"]), adapter="late")
    assert net.pair.second.weight is changed
    late = LoRAConfig(rank=1, targets=["eq", "pair.0"], bias="lora_only", use_dora=True)
    lora.attach(net, late, adapter="late", rng=rng)
    for name, layer in (("heads.eq", net.heads["eq"]), ("pair.0", net.pair.first)):
        adapter = layer.adapters["late"]
        assert np.array_equal(layer.base_weight.data, base[f"{name}.weight"])
        assert np.array_equal(layer.bias.data, base[f"{name}.bias"])
        norms = np.linalg.norm(base[f"{name}.weight"], axis=1)
        np.testing.assert_allclose(adapter.lora_magnitude.data, norms, rtol=1e-12)
    lora.detach(net)
    assert snapshot(net) == before


def test_detach_keeps_the_mode(rng):
    for mode in (True, False):
        net, _, _ = attached(rng)
        net.train(mode)
        lora.detach(net)
        assert {m.training for m in net.modules()} == {mode}


def test_there_must_be_something_to_detach(rng):
    net, _, _ = attached(rng)
    lora.detach(net)
    with pytest.raises(ValueError, match="put no adapters on this model"):
        lora.detach(net)
    net, _, _ = attached(rng)
    lora.fold(net)
    with pytest.raises(ValueError, match="put no adapters on this model"):
        lora.detach(net)


@pytest.mark.parametrize("take_off", [lora.detach, lora.fold])
def test_an_adapter_that_is_gone_is_an_error_and_changes_nothing(rng, take_off):
    net, _, _ = attached(rng)
    adapter, net.first = net.first, Linear(3, 4, dtype=np.float64)
    net.shared = net.first
    before = snapshot(net)
    with pytest.raises(ValueError, match="adapters of first are no longer in the model"):
        take_off(net)
    assert snapshot(net) == before
    net.first = net.shared = adapter
    take_off(net)
    assert not layers_of(net)


@pytest.mark.parametrize("use", [lora.switch, lora.detach, lora.merge, lora.fold, lora.active])
def test_adapters_are_on_a_module(use):
    with pytest.raises(TypeError, match="only a Module has adapters, not None"):
        use(None)


def test_layers_that_have_changed_places_are_an_error_and_nothing_is_changed():
    net = MLP([4, 4, 4])
    lora.attach(net, LoRAConfig(rank=1))
    net.layers.reverse()
    before = [*net.layers]
    for take_off in (lora.detach, lora.fold, lambda net: lora.remove(net, "default")):
        with pytest.raises(ValueError, match=r"layers\.0, layers\.1 are no longer in"):
            take_off(net)
    assert net.layers == before
    net.layers.reverse()
    lora.detach(net)


def test_a_model_of_which_a_part_has_adapters_is_not_attached_to():
    net = Sequential(MLP([4, 4, 4]), Linear(4, 4))
    lora.attach(net[0], LoRAConfig(rank=1))
    with pytest.raises(ValueError, match=r"0\.layers\.0, 0\.layers\.1, .* to this whole model"):
        lora.attach(net, LoRAConfig(rank=1))


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_that_got_adapters_later_is_frozen_until_it_is_detached_too(rng, first):
    model = nested(rng)
    model[0][1].bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    lora.attach(model, LoRAConfig(rank=1, targets="1"), rng=rng)
    lora.attach(model[0], LoRAConfig(rank=1, targets=["0"]), rng=rng)
    parts = [model, model[0]]
    lora.detach(parts.pop(first))
    own = {id(p) for layer in layers_of(model).values() for p in layer.trainable_params()}
    frozen = [p for p in parts[0].parameters() if id(p) not in own]
    assert not any(p.requires_grad for p in frozen)
    lora.detach(parts[0])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_layer_with_adapters_knows_its_sizes_by_the_names_of_what_it_replaces():
    net = Sequential(Embedding(5, 3), Linear(3, 2))
    lora.attach(net, LoRAConfig(rank=1, targets=["0", "1"]))
    assert (net[0].num_embeddings, net[0].embedding_dim) == (5, 3)
    assert (net[1].in_features, net[1].out_features) == (3, 2)


def test_adapters_that_were_placed_by_hand_can_be_folded(rng):
    linear = Linear(3, 3, dtype=np.float64, rng=rng)
    net, x = Sequential(LoRALayer.from_linear(linear, 1, 1.0, rng=rng)), draw(rng)
    net[0].lora_b = np.ones((3, 1))
    out = net.eval()(x).data
    lora.fold(net)
    assert type(net[0]) is Linear
    assert not net[0].training
    np.testing.assert_allclose(net(x).data, out, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="or the methods of layers that were made by hand"):
        lora.detach(Sequential(LoRALayer.from_linear(linear, 1, 1.0)))


def test_astype_survives_detach(rng):
    net = MLP([3, 4, 1])
    lora.attach(net, LoRAConfig(rank=1, targets=["layers.0"]))
    lora.detach(net.astype(np.float64))
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float64)}


def held(value):
    module = Module()
    module.held = value
    return module


@st.composite
def trees(draw):
    """Linear layers in containers of all kinds, with some of them in two places."""
    layers = [Linear(2, 2) for _ in range(draw(st.integers(1, 4)))]
    leaf = st.sampled_from(layers)
    nested = st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
            inner.map(held),
        ),
        max_leaves=6,
    )
    net = Module()
    net.tree = draw(nested)
    names = [name for name, m in net.named_modules() if isinstance(m, Linear)]
    return net, draw(st.lists(st.sampled_from(names), min_size=1, unique=True))


@hypothesis.given(trees())
@hypothesis.settings(max_examples=60)
def test_any_nesting_can_be_attached_to_and_comes_back(tree):
    net, targets = tree
    before = snapshot(net)
    was = {name: id(m) for name, m in net.named_modules()}
    report = lora.attach(net, LoRAConfig(rank=1, targets=targets))
    assert set(targets) <= set(report.names)
    assert list(layers_of(net)) == report.names
    for name, module in net.named_modules():
        assert isinstance(module, LoRALayer) == (name in report.names)
        assert (id(module) == was[name]) == (name not in report.names)
    lora.detach(net)
    assert snapshot(net) == before


# ----------------------------------------------------------------------------------------------
# Merging and folding
# ----------------------------------------------------------------------------------------------


def test_merged_and_unmerged_models_agree(rng):
    net, x, base = attached(rng)
    unmerged, before = net(x).data, values(net)
    assert abs(unmerged - base).max() > 0.1
    assert lora.merge(net).layers == LINEARS
    assert all(layer.merged for layer in layers_of(net).values())
    with minigrad.no_grad():
        np.testing.assert_allclose(net(x).data, unmerged, rtol=1e-12, atol=1e-12)
    assert lora.unmerge(net) == LINEARS
    assert not any(layer.merged for layer in layers_of(net).values())
    assert np.array_equal(net(x).data, unmerged)
    assert values(net) == before


def test_a_merged_model_refuses_to_train(rng):
    net, x, _ = attached(rng)
    lora.merge(net)
    with pytest.raises(RuntimeError, match=r"unmerge\(\)"):
        net(x)


def test_fold_leaves_plain_layers_with_the_merged_output(rng):
    net, x, _ = attached(rng)
    names = [name for name, _ in Net(rng).named_parameters()]
    unmerged = net(x).data
    assert lora.fold(net) is net
    assert not layers_of(net)
    assert {type(net.first), type(net.pair.second), type(net.heads["eq"])} == {Linear}
    assert net.first is net.shared
    np.testing.assert_allclose(net(x).data, unmerged, rtol=1e-12, atol=1e-12)
    assert [name for name, _ in net.named_parameters()] == names
    assert set(vars(net)) == set(vars(Net(rng).eval()))


def test_folding_what_is_merged_gives_the_same_bits(rng):
    one, x, _ = attached(rng)
    two = copy.deepcopy(one)
    lora.merge(two)
    with minigrad.no_grad():
        merged = two(x).data
    assert np.array_equal(lora.fold(one)(x).data, merged)
    assert np.array_equal(lora.fold(two)(x).data, merged)


def test_fold_restores_the_flags_and_the_mode(rng):
    net = Net(rng)
    net.blocks[1].freeze()
    net.first.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    lora.attach(net, LoRAConfig(rank=2), rng=rng)
    net.eval()
    lora.fold(net)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert not any(m.training for m in net.modules())


def nested(rng):
    inner = Sequential(Linear(4, 8, rng=rng), Linear(8, 3, rng=rng))
    return Sequential(inner, Linear(3, 3, rng=rng))


def test_fold_of_a_larger_model_folds_the_parts_that_have_adapters(rng):
    model, x = nested(rng), rng.standard_normal((5, 4))
    model[0][1].bias.requires_grad_(False)
    put_on(model[0], "a", rng, targets=["0"], modules_to_save=["1"])
    y = model(x).data
    lora.fold(model)
    np.testing.assert_allclose(model(x).data, y, rtol=1e-5, atol=1e-6)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert flags == {
        "0.0.weight": True,
        "0.0.bias": True,
        "0.1.weight": True,
        "0.1.bias": False,
        "1.weight": True,
        "1.bias": True,
    }
    lora.attach(model, LoRAConfig(rank=2, targets=["0.0"]))


def test_fold_of_a_part_of_the_attached_model_is_an_error_and_changes_nothing(rng):
    model, x = nested(rng), rng.standard_normal((5, 4))
    put_on(model, "a", rng, targets=["0.0", "1"])
    y = model(x).data
    with pytest.raises(
        ValueError, match=r"of 0, 1 .*call this with the model that lora\.attach was"
    ):
        lora.fold(model[0])
    assert np.array_equal(model(x).data, y)
    np.testing.assert_allclose(lora.fold(model)(x).data, y, rtol=1e-5, atol=1e-6)


def test_fold_lets_the_base_weights_go(rng):
    net = MLP([3, 4, 1])
    weights = [weakref.ref(layer.weight) for layer in net.layers]
    arrays = [weakref.ref(layer.weight.data) for layer in net.layers]
    lora.attach(net, LoRAConfig(rank=1))
    lora.merge(net)
    assert all(r() is not None for r in weights)
    lora.fold(net)
    assert all(r() is None for r in weights + arrays)


def test_a_folded_model_trains_and_can_be_attached_to_again(rng):
    net, x, _ = attached(rng)
    lora.fold(net)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert len(lora.attach(net, LoRAConfig(rank=1)).matches) == 9


def test_a_single_adapter_can_be_merged_disabled_and_folded(rng):
    linear = Linear(3, 4, dtype=np.float64, rng=rng)
    layer, x = LoRALayer.from_linear(linear, 2, 4.0, rng=rng), draw(rng)
    layer.lora_b = np.ones((4, 2))
    out = layer(x).data
    with lora.disabled(layer):
        assert np.array_equal(layer(x).data, linear(x).data)
    assert lora.merge(layer).layers == [""]
    folded = lora.fold(layer)
    assert type(folded) is Linear
    np.testing.assert_allclose(folded(x).data, out, rtol=1e-12, atol=1e-12)
    assert layer.merged


@pytest.mark.parametrize(
    "use", [lora.merge, lora.unmerge, lora.fold, lambda net: lora.disabled(net).__enter__()]
)
def test_without_adapters_there_is_nothing_to_do_that_with(rng, use):
    with pytest.raises(ValueError, match=r"no adapters; lora\.attach"):
        use(Net(rng))


# ----------------------------------------------------------------------------------------------
# Switching off
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [True, False])
def test_disabled_gives_the_output_of_the_base_to_the_bit(rng, merged):
    net, x, base = attached(rng)
    adapted = net(x).data
    if merged:
        lora.merge(net)
    with minigrad.no_grad():
        before = net(x).data
        with lora.disabled(net) as inside:
            assert inside is net
            assert np.array_equal(net(x).data, base)
        assert np.array_equal(net(x).data, before)
    lora.unmerge(net)
    assert np.array_equal(net(x).data, adapted)


def test_disabled_drops_nothing_even_in_training(rng):
    net, x = MLP([3, 4, 1], dtype=np.float64, rng=rng), draw(rng)
    base = net(x).data
    lora.attach(net, LoRAConfig(rank=1, dropout=0.5), rng=rng)
    with lora.disabled(net):
        assert np.array_equal(net(x).data, base)


def test_adapters_are_switched_on_again_after_an_error(rng):
    net, x, _ = attached(rng)
    adapted = net(x).data
    with pytest.raises(ZeroDivisionError), lora.disabled(net):
        raise ZeroDivisionError
    assert np.array_equal(net(x).data, adapted)


def test_disabled_blocks_can_be_nested(rng):
    net, x, base = attached(rng)
    with lora.disabled(net):
        with lora.disabled(net):
            pass
        assert np.array_equal(net(x).data, base)
    assert not np.array_equal(net(x).data, base)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_disabled_model_is_neither_copied_nor_pickled(rng, copied):
    by_hand = Sequential(LoRALayer(np.ones((3, 4)), 3, 4, 2, 4))
    model = nested(rng)
    lora.attach(model, LoRAConfig(rank=2, targets=["0.0"], modules_to_save=["0.1"]))
    for each in (by_hand, model):
        with lora.disabled(each), pytest.raises(RuntimeError, match=r"lora\.disabled.*first"):
            copied(each)
        copied(each)


def test_an_adapter_that_was_off_stays_off(rng):
    net, x, _ = attached(rng)
    net.first.enabled = False
    before = net(x).data
    with lora.disabled(net):
        pass
    assert not net.first.enabled
    assert np.array_equal(net(x).data, before)


def test_nothing_trains_while_disabled(rng):
    net, x, _ = attached(rng)
    with lora.disabled(net):
        assert not net(x).requires_grad


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", LoRAScaling)
def test_training_changes_a_and_b_only_and_lowers_the_loss(rng, scaling):
    net, x, base = attached(rng, b=False, scaling=scaling)
    target = base + rng.standard_normal(base.shape)
    before = values(net)
    optimizer = Adam(net.trainable_parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = minigrad.mse(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    changed = {name for name, value in values(net).items() if value != before[name]}
    assert changed == {f"{layer}.lora_{letter}" for layer in LINEARS for letter in "ab"}
    grads = {name for name, p in net.named_parameters() if p.grad is not None}
    assert grads == changed
    with lora.disabled(net):
        assert np.array_equal(net(x).data, base)


def test_a_frozen_parameter_of_an_attached_model_cannot_be_handed_to_an_optimiser(rng):
    net, _, _ = attached(rng)
    with pytest.raises(ValueError, match="frozen"):
        Adam(net.parameters())


def adapting(seed, **options):
    """A trainer of adapters that drop, all of whose randomness comes from `seed`."""
    net = MLP([3, 8, 1], rng=np.random.default_rng(0))
    lora.attach(net, LoRAConfig(rank=1, dropout=0.3), rng=np.random.default_rng(seed))
    optimizer = Adam(net.trainable_parameters(), lr=0.05)
    options = {"rng": np.random.default_rng(seed), "progress": False, **options}
    return Trainer(net, optimizer, minigrad.mse, **options)


def test_a_run_with_adapters_resumes_to_the_bit(rng, tmp_path):
    x = rng.standard_normal((40, 3))
    data = x, x[:, :1] * x[:, 1:2]
    whole = adapting(1)
    whole.fit(data, epochs=4)
    adapting(1, checkpoint=tmp_path / "run").fit(data, epochs=2)
    second = adapting(2)
    second.load(tmp_path / "run")
    second.fit(data, epochs=2)
    assert values(second.model) == values(whole.model)
    assert second.history["loss"] == whole.history["loss"]
    assert values(whole.model) != values(adapting(1).model)


def test_a_trainer_knows_the_generators_of_adapters_that_drop(rng):
    x = rng.standard_normal((40, 3))

    def fitted(draws):
        def loss(prediction, target):
            layer.rng.random(draws)  # which the next micro-batch does not depend on
            return minigrad.mse(prediction, target)

        trainer = adapting(1)
        trainer.loss, layer = loss, trainer.model.layers[0]
        trainer.fit((x, x[:, :1]), epochs=2)
        return values(trainer.model)

    assert fitted(0) == fitted(3)


# ----------------------------------------------------------------------------------------------
# States and copies
# ----------------------------------------------------------------------------------------------


def test_a_state_has_base_and_adapters_and_can_be_loaded(rng):
    net, x, _ = attached(rng)
    other, _, _ = attached(rng)
    state = net.state_dict()
    assert {"first.base_weight", "first.bias", "first.lora_a", "first.lora_b"} <= set(state)
    other.load_state_dict(state)
    assert np.array_equal(other(x).data, net(x).data)


@pytest.mark.parametrize("merged", [True, False])
def test_a_deep_copy_is_equal_and_independent(rng, merged):
    net, x, base = attached(rng)
    if merged:
        lora.merge(net)
    twin = copy.deepcopy(net)
    before = values(net)
    with minigrad.no_grad():
        adapted = net(x).data
        assert np.array_equal(twin(x).data, adapted)
    assert twin.first is twin.shared
    assert twin.blocks[0].q is twin.heads["deep"][0]
    lora.unmerge(twin)
    train(twin, rng)
    lora.detach(twin)
    assert np.array_equal(twin(x).data, base)
    with minigrad.no_grad():
        assert np.array_equal(net(x).data, adapted)
    assert values(net) == before
    lora.detach(net)
    assert np.array_equal(net(x).data, base)


def test_detach_of_a_deep_copy_gives_back_what_it_used(rng):
    net, x, _ = attached(rng)
    twin = copy.deepcopy(net)
    twin.load_state_dict({name: value + 1 for name, value in twin.state_dict().items()})
    with lora.disabled(twin):
        expected = twin(x).data
    assert np.array_equal(lora.detach(twin)(x).data, expected)


def test_loading_a_base_into_an_attached_model_survives_detach(rng):
    net, x, _ = attached(rng)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    with lora.disabled(net):
        expected = net(x).data
    assert np.array_equal(lora.detach(net)(x).data, expected)


@pytest.mark.parametrize(
    "after",
    [
        lambda model: lora.attach(model, LoRAConfig(rank=2), adapter="other"),
        lambda model: lora.switch(model),
        lora.detach,
    ],
)
def test_a_trainer_whose_optimiser_can_change_nothing_of_the_model_says_so(after):
    rng = np.random.default_rng(0)
    model = MLP([3, 4, 2], rng=rng)
    lora.attach(model, LoRAConfig(rank=2), rng=rng)
    optimizer = Adam(model.trainable_parameters())
    trainer = Trainer(model, optimizer, minigrad.mse, progress=False)
    data = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    after(model)
    with pytest.raises(
        ValueError, match=r"nothing would train; .* model\.trainable_parameters\(\)"
    ):
        trainer.fit(data, epochs=1)
    assert len(trainer.history.epochs) == 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"rank": 3}, r"rank 3 is larger than min\(d_out, d_in\) = 2"),
        ({"rank_pattern": {"layers.1": 1}, "init": "orthogonal"}, "must be even, not 1"),
    ],
)
def test_a_rank_that_does_not_suit_a_layer_says_how_to_go_on(options, fault):
    advice = "; change rank, or rank_pattern for this layer, or leave it out with exclude$"
    with pytest.raises(ValueError, match=rf"^attach: layers\.1: .*{fault}.*{advice}"):
        lora.attach(MLP([3, 4, 2]), LoRAConfig(**{"rank": 2, **options}))
