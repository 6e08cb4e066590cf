"""lora.merge: its certificate holds for the layers as they are, and it refuses what it should."""

import copy
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lora
import minigrad
from lora import LoRAConfig, MergeError
from lora.certificate import certify, merging_of, round_to
from minigrad.nn import MLP, Embedding, Linear, Sequential
from tests.lora.models import TOKENS, TokenNet, one_layer, put_on, shake

FORMS = [
    {},
    {"use_dora": True},
    {"init": "pissa"},
    {"init": "pissa", "use_dora": True, "scaling": "rslora"},
    {"init": "orthogonal"},
]


def adapted(rng, kind, forms, dtype, size=0.3, width=(24, 16)):
    """A model of one layer with an adapter of each form, all active."""
    model = one_layer(kind, rng, dtype, width, block_size=8)
    for i, form in enumerate(forms):
        put_on(model, f"a{i}", rng, size, alpha=3.0, targets=["0"], **form)
    lora.switch(model, *[f"a{i}" for i in range(len(forms))])
    return model


def attacks(rng, layer, kind, change, dtype):
    """Inputs of norm 1 that are likely to show the largest change; or all tokens."""
    if kind == "embedding":
        return np.arange(layer.d_in)
    d_in = layer.d_in
    aligned = change / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-300)
    x = np.concatenate([rng.standard_normal((20, d_in)), np.eye(d_in), aligned, np.sign(change)])
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    return (x * (1 - 1e-6)).astype(dtype)  # rounded, it may be longer


def outputs(layer, x, kind, table):
    """What the layer would compute with a stored weight, in the dtype of `table`."""
    if kind == "embedding":
        return np.asarray(minigrad.functional.embedding(x, table))
    bias = layer.bias.data.astype(table.dtype)
    return np.asarray(minigrad.linear(x.astype(table.dtype), table, bias))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["dense", "nf4", "bfloat16", "embedding"])
@hypothesis.given(
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=3),
    size=st.sampled_from([1e-7, 1e-3, 0.3, 30.0]),
    some=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=25)
def test_no_output_changes_by_more_than_the_certificate_says(kind, dtype, forms, size, some, seed):
    rng = np.random.default_rng(seed)
    model = adapted(rng, kind, forms, dtype, size)
    layer, names = model[0], ["a0"] if some else None
    x_of = {}
    with minigrad.no_grad():
        exact = layer.weight.dense() + layer.update_rows(
            slice(None), layer.active[:1] if some else layer.active
        )
        exact = exact.T if kind == "embedding" else exact
        others = [n for n in layer.active if some and n != "a0"]
        for name in lora.certificate.DTYPES:
            stored = round_to(np.ascontiguousarray(exact), name)
            x_of[name] = attacks(rng, layer, kind, (stored - exact).reshape(exact.shape), dtype)
        before = {name: model(x).data.copy() for name, x in x_of.items()}
        certificate = lora.merge(model, names, progress=False)
        own = np.dtype(dtype).name
        for name, x in x_of.items():
            bound = certificate.of("0", name).bound
            if name == own:
                changed = model(x).data
            elif others:
                continue
            else:
                wide = np.result_type(dtype, np.float64 if name == "float64" else np.float32)
                changed = outputs(
                    layer, x, kind, round_to(np.ascontiguousarray(exact), name).astype(wide)
                )
            assert abs(changed.astype(np.float64) - before[name]).max() <= bound


@pytest.mark.parametrize(
    ("dora", "others", "expected"),
    [  # |w| = 2, |s B A| = 3, of the other adapter 2; m / n = 7 / 5
        (False, 0, {"spread": 3, "roundings": 1 + 1 + 8, "underflows": 1 + 3 * 0.5}),
        (False, 1, {"spread": 3 + 2, "roundings": 1 + 2 + 8, "underflows": 2.5 + 1 + 1.5 * 4}),
        # 1.4 (2 + 3) (2 + (2 + 3) / 5), without the w that is not counted
        (True, 0, {"spread": 21 - 2, "roundings": 1 + 1 + 16, "underflows": 1.4 * (2.5 + 1 + 2)}),
        # w once more, since it is taken off the DoRA's output
        (True, 1, {"spread": 21 + 2 + 2, "roundings": 1 + 2 + 24, "underflows": 1.4 * (9.5 + 3)}),
    ],
)
def test_the_terms_of_the_bound_are_those_of_the_layer(dora, others, expected):
    model = Sequential(Linear(1, 1, bias=False))
    model[0].weight.copy_([[2.0]])
    lora.attach(model, LoRAConfig(rank=1, use_dora=dora), adapter="a")
    lora.attach(model, LoRAConfig(rank=1), adapter="b")
    lora.switch(model, *["a", "b"][: 1 + others])
    for name, a, b, scale in (("a", 3.0, 0.5, 2.0), ("b", -1.0, 4.0, 0.5)):
        adapter = model[0].adapters[name]
        adapter.lora_a, adapter.lora_b, adapter.scale = [[a]], [[b]], scale
    if dora:
        model[0].adapters["a"].lora_magnitude = [7.0]
    part = merging_of("0", model[0], model[0].active)
    for name, value in expected.items():
        # Spreads and underflows are raised by a few roundings; m / n is 1.4 in float32.
        assert np.max(getattr(part, name)) == pytest.approx(value, rel=1e-6)
    assert part.peak == pytest.approx(1.4 * (expected["spread"] + 4) if dora else 6, rel=1e-6)


def clipped(values, dtype):
    """In a dtype, without its largest numbers."""
    most = float(np.finfo(dtype).max) / 4
    return np.clip(values, -most, most).astype(dtype)


power = st.floats(-25, 25)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["dense", "embedding"])
@hypothesis.given(
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=3),
    powers=st.lists(power, min_size=13, max_size=13),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.example([{}], [-30, 4, 30, 0, -44, *[0] * 8], 0)  # s has few digits in float32
@hypothesis.example([{}], [0, -7, 0, 0, 10, *[0] * 8], 0)  # s overflows float16
@hypothesis.example([{}], [0, 19, -35, 0, 20, *[0] * 8], 0)  # s x A^T overflows
@hypothesis.example([{}] * 2, [0, *[-30, 30, 0, 10] * 3], 0)  # s B does, where ranks are joined
@hypothesis.example([{}] * 2, [-30, *[30, -19, 0, -25] * 3], 0)  # s B has few digits
@hypothesis.example([{"use_dora": True}], [-42, 0, -45, -10, 0, *[0] * 8], 0)  # m / n x W^T
@hypothesis.example([{"use_dora": True}], [-25, 0, -25, 3, 0, *[0] * 8], 0)  # m / n overflows
@hypothesis.example([{"use_dora": True}], [-4, 2, 1, -4, 0, *[0] * 8], 0)  # m / n has few digits
@hypothesis.example([{"use_dora": True}], [0, 4, 4, -1, 0, *[0] * 8], 0)  # y, before m / n
@hypothesis.example([{"use_dora": True}], [20, 25, 0, 0, 0, *[0] * 8], 0)  # n overflows
@hypothesis.example([{"use_dora": True}], [-20, -21, 0, 0, 0, *[0] * 8], 0)  # W A^T in n underflows
@hypothesis.settings(max_examples=40)
def test_the_bound_holds_however_a_b_s_and_m_share_out_the_update(kind, dtype, forms, powers, seed):
    rng = np.random.default_rng(seed)
    layer = (Embedding if kind == "embedding" else Linear)(4, 2, rng=rng)
    model = Sequential(layer).astype(dtype)
    model[0].weight.copy_(
        clipped(10.0 ** powers[0] * rng.standard_normal(layer.weight.shape), dtype)
    )
    for i, form in enumerate(forms):
        lora.attach(model, LoRAConfig(rank=2, targets=["0"], **form), adapter=f"a{i}", rng=rng)
        adapter = model[0].adapters[f"a{i}"]
        logs = powers[4 * i + 1 :][:4]  # of A, B, m and s
        for part, log in zip(adapter.trained(), logs, strict=False):
            part.copy_(clipped(np.float64(10.0) ** log * rng.standard_normal(part.shape), dtype))
        adapter.scale = 1.5 * 10.0 ** logs[3]
    lora.switch(model, *[f"a{i}" for i in range(len(forms))])
    layer = model[0]
    own = np.dtype(dtype).name
    part = merging_of("0", layer, layer.active)
    bound = certify([part], [own], progress=False).of("0", own).bound
    with minigrad.no_grad(), np.errstate(all="ignore"):
        exact = layer.weight.dense() + layer.update_rows(slice(None), layer.active)
        x = attacks(rng, layer, kind, np.zeros((1, layer.d_in)), dtype)
        before = model(x).data.astype(np.longdouble)
        layer.merge()
        np.testing.assert_array_equal(layer.merged_weight().data, layer.stored(exact).astype(dtype))
        if np.isfinite(bound):
            assert abs(model(x).data.astype(np.longdouble) - before).max() <= bound


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", ["dense", "nf4", "bfloat16", "embedding"])
def test_the_bound_is_not_far_from_what_can_happen(kind, form):
    rng = np.random.default_rng(3)
    model = adapted(rng, kind, [form], np.float32)
    layer = model[0]
    exact = layer.weight.dense() + layer.update_rows(slice(None), layer.active)
    exact = np.ascontiguousarray(exact.T) if kind == "embedding" else exact
    with minigrad.no_grad():
        certificate = lora.merge(model, progress=False)
        lora.unmerge(model)
        for name in ("float16", "bfloat16", "nf4"):
            stored = round_to(exact, name)
            x = attacks(rng, layer, kind, stored - exact, np.float32)
            found = outputs(layer, x, kind, stored.astype(np.float32)) - model(x).data
            assert abs(found).max() > 0.3 * certificate.of("0", name).bound


def test_a_weight_that_is_off_by_more_than_rounding_breaks_the_bound():
    rng = np.random.default_rng(0)
    model = adapted(rng, "dense", [{}], np.float32)
    layer = model[0]
    exact = layer.weight.dense() + layer.update_rows(slice(None), layer.active)
    x = attacks(rng, layer, "dense", exact, np.float32)
    bound = lora.merge(model, progress=False).of("0", "bfloat16").bound
    lora.unmerge(model)
    wrong = round_to(exact, "bfloat16") * 1.01
    with minigrad.no_grad():
        assert (
            abs(outputs(layer, x, "dense", wrong.astype(np.float32)) - model(x).data).max() > bound
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "nf4"])
def test_the_certificate_speaks_of_a_model_that_is_folded_and_converted(dtype):
    rng = np.random.default_rng(0)
    model = adapted(rng, "dense", [{}], np.float32, width=(64, 32))
    x = rng.standard_normal((50, 64)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True) * (1 + 1e-6)
    with minigrad.no_grad():
        before = model(x).data.copy()
        certificate = lora.merge(model, progress=False)
        lora.fold(model)
        if dtype == "nf4":
            lora.quantize(model, double_quant=False, progress=False)
        elif dtype == "bfloat16":
            lora.quantize(model, format="bfloat16", progress=False)
        else:
            model[0].weight.data = model[0].weight.data.astype(np.float16).astype(np.float32)
        change = abs(model(x).data - before).max()
    bound = certificate.of("0", dtype).bound
    assert 0.05 * bound < change <= bound


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", ["dense", "nf4", "bfloat16", "embedding"])
def test_strips_change_neither_the_certificate_nor_the_merged_weight(monkeypatch, kind, form):
    model = adapted(np.random.default_rng(0), kind, [form, {}], np.float64)
    whole, weight = lora.merge(model).rows, model[0].merged_weight().data
    monkeypatch.setattr("lora.frozen.STRIP", 70)
    assert len(model[0].weight.strips()) > 4
    strips = lora.merge(model).rows
    for found, expected in zip(strips, whole, strict=True):
        assert (found.absorbed, found.ulp) == (expected.absorbed, expected.ulp)
        assert found.lost == pytest.approx(expected.lost, rel=1e-12)
        assert found.bound == pytest.approx(expected.bound, rel=1e-12)
    np.testing.assert_allclose(model[0].merged_weight().data, weight, rtol=1e-14, atol=1e-15)


def test_what_is_merged_is_rounded_once():
    rng = np.random.default_rng(0)
    model = adapted(rng, "dense", [{}, {}], np.float32)
    layer = model[0]
    exact = layer.base_weight.data.astype(np.float64)
    for adapter in layer.adapters.values():
        a, b = (part.data.astype(np.float64) for part in adapter.factors())
        exact = exact + adapter.scale * (b @ a)
    np.testing.assert_array_equal(layer.merged_weight().data, exact.astype(np.float32))


def net(rng, size=0.3):
    model = MLP([8, 16, 4], rng=rng)
    put_on(model, "default", rng, size)
    return model


def test_a_line_for_each_layer_and_dtype():
    certificate = lora.merge(net(np.random.default_rng(0)))
    assert certificate.layers == ["layers.0", "layers.1"]
    assert certificate.dtypes == ["float64", "float32", "float16", "bfloat16", "nf4"]
    lost = [certificate.worst(dtype).lost for dtype in certificate.dtypes]
    assert lost == sorted(lost)
    assert 0 <= lost[0] < 1e-12 < lost[1] < 1e-6 < lost[2] < 1e-2 < lost[4]
    assert "layers.1" in repr(certificate)
    assert "nf4" in certificate._repr_html_()
    few = lora.merge(net(np.random.default_rng(0)), dtypes=["nf4"])
    assert few.dtypes == ["nf4"]
    assert lora.merge(net(np.random.default_rng(0)), dtypes="nf4").dtypes == ["nf4"]


def test_a_layer_without_the_merged_adapters_is_not_merged():
    rng = np.random.default_rng(0)
    model = MLP([8, 16, 4], rng=rng)
    for place in ("layers.0", "layers.1"):
        lora.attach(model, LoRAConfig(rank=2, targets=[place]), adapter=place[-1], rng=rng)
    lora.switch(model, "0", "1")
    shake(model.layers[0], rng, "0", 0.3)
    shake(model.layers[1], rng, "1", 0.3)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    with minigrad.no_grad():
        before = model(x).data
        for name, expected in (("0", [True, False]), ("1", [False, True])):
            assert lora.merge(model, name).layers == [f"layers.{name}"]
            assert [layer.merged for layer in model.layers] == expected
            np.testing.assert_allclose(model(x).data, before, rtol=1e-4, atol=1e-5)  # of float32


def test_an_update_that_is_lost_is_reported():
    certificate = lora.merge(net(np.random.default_rng(0), size=1e-5))
    assert certificate.worst("float32").absorbed < 0.5
    assert certificate.worst("bfloat16").absorbed > 0.7
    assert certificate.worst("bfloat16").lost > 1


def test_too_much_loss_is_refused_and_nothing_is_merged():
    model = net(np.random.default_rng(0), size=1e-4)
    with pytest.raises(MergeError, match=r"2 of 2 layers would lose more than 0\.1.*unmerged"):
        lora.merge(model, limit=0.1, dtype="bfloat16")
    assert not any(layer.merged for layer in model.layers)
    with pytest.raises(MergeError):
        lora.merge(model, limit=0.0)
    lora.merge(model, limit=1e-2)
    assert all(layer.merged for layer in model.layers)


def test_without_a_dtype_the_limit_is_that_of_each_layer_in_its_own():
    rng = np.random.default_rng(0)
    model = Sequential(Linear(8, 8, rng=rng), Linear(8, 8, dtype=np.float64, rng=rng))
    lora.attach(model, LoRAConfig(rank=2), rng=rng)
    shake(model[0], rng, "default", 0.3)
    shake(model[1], rng, "default", 1e-9)
    lora.merge(model, limit=1e-5)
    lora.unmerge(model)
    with pytest.raises(MergeError, match=r"stored in float32, 1 of 2 layers"):
        lora.merge(model, limit=1e-5, dtype="float32")
    with pytest.raises(MergeError, match=r"stored in float32, 1 of 1 layer"):
        lora.merge(model, limit=1e-12)
    assert not model[1].merged


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_merged_weight_that_is_not_finite_is_refused_by_name(value):
    model = net(np.random.default_rng(0))
    model.layers[1].lora_b.data[1, 0] = value
    model.layers[1].scale = 1e3
    with pytest.raises(ValueError, match=r"not be finite in 'layers\.1'.*nothing was merged"):
        lora.merge(model)
    assert not any(layer.merged for layer in model.layers)


@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_what_is_folded_must_be_finite(value):
    model = net(np.random.default_rng(0))
    model.layers[1].lora_b.data[1, 0] = value
    model.layers[1].scale = 1e3
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"not be finite in 'layers\.1'.*nothing was changed"):
        lora.fold(model)
    assert list(model.modules()) == before
    assert lora.active(model) == ("default",)


def test_there_must_be_something_active_to_merge():
    model = net(np.random.default_rng(0))
    lora.switch(model)
    with pytest.raises(ValueError, match="no adapter is active"):
        lora.merge(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": ["default", 3]}, r"the name of an adapter is a string, not 3"),
        ({"adapters": [["default"]]}, r"the name of an adapter is a string, not \['default'\]"),
        ({"adapters": 3}, r"adapters are names, as in \['a', 'b'\], not 3"),
        ({"limit": "0.1"}, "limit must be a number, not '0.1'"),
        ({"radius": "1"}, "radius must be a number, not '1'"),
        ({"radius": True}, "radius must be a number, not True"),
        ({"dtype": "int8", "limit": 1.0}, "int8.*float64"),
        ({"dtypes": ["float8"]}, "float8"),
        ({"dtypes": "float8"}, "cannot store weights in 'float8'"),
        ({"dtypes": ()}, "no dtypes"),
        ({"radius": 0.0}, "radius"),
        ({"limit": -1.0}, "limit"),
        ({"adapters": "other"}, "no adapter 'other'"),
        ({"adapters": []}, "adapters are empty; None means all"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    model = net(np.random.default_rng(0))
    with pytest.raises((TypeError, ValueError), match=message):
        lora.merge(model, **options)
    assert not any(layer.merged for layer in model.layers)


def test_a_merged_adapter_can_be_merged_anew_after_a_change():
    rng = np.random.default_rng(0)
    model = net(rng)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    lora.merge(model)
    shake(model.layers[0], rng, "default", 0.1)
    lora.merge(model)
    with minigrad.no_grad():
        merged = model(x).data.copy()
        lora.unmerge(model)
        np.testing.assert_allclose(model(x).data, merged, rtol=1e-4, atol=1e-5)


def test_fold_names_the_layer_that_was_changed_since_it_was_merged():
    model = net(np.random.default_rng(0))
    lora.merge(model)
    before = list(model.modules())
    model.layers[1].lora_b = model.layers[1].lora_b.data + 1
    with pytest.raises(RuntimeError, match=r"layers\.1: lora_b changed since merge\(\)"):
        lora.fold(model)
    assert list(model.modules()) == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_merged_model_notices_what_the_original_does(duplicate):
    rng = np.random.default_rng(0)
    model = TokenNet(rng)
    lora.attach(model, lora.LoRAConfig(rank=2, targets=["q"]), rng=rng)
    lora.merge(model, progress=False)
    same = duplicate(model)
    with minigrad.no_grad():
        assert_array_equal(same(TOKENS), model(TOKENS))
        for changed in (same, model):
            changed.q.base_weight.copy_(np.zeros((4, 5)))
            for each in (changed, duplicate(changed)):
                with pytest.raises(RuntimeError, match="base_weight changed since merge"):
                    each(TOKENS)


def test_adapters_of_layers_that_were_made_by_hand_have_names_too(rng):
    layer = lora.LoRALayer.from_linear(Linear(4, 3, rng=rng), 2, 4.0, rng=rng)
    shake(layer, rng)
    model = Sequential(layer)
    lora.merge(model, ["default"], progress=False)
    assert layer.merged_adapters == ("default",)
    lora.unmerge(model)
    with pytest.raises(ValueError, match=r"no adapter 'other'; the adapters are 'default'"):
        lora.merge(model, "other", progress=False)
    with pytest.raises(TypeError, match="a string, not 3"):
        lora.merge(model, [3], progress=False)
    layer.use([])
    with pytest.raises(
        ValueError, match=r"'default' is not active; .* layer\.use\(\['default'\]\)"
    ):
        lora.merge(model, "default", progress=False)
