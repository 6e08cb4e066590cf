"""Sums of adapters: the laws of vectors, in terms of what the layers compute; and extraction."""

import copy
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import lora
import minigrad
from lora import LoRAConfig, LoRAScaling
from lora.attachment.state import required_attachment
from lora.identities.trial import gamma
from lora.peft import AdapterFolder
from lora.spectra import Approximation
from minigrad.nn import Embedding, Linear, Module
from tests.lora.models import (
    TOKENS,
    TokenNet,
    adapters_of,
    batch_normed,
    put_on,
    snapshot,
    with_own_statistics,
)

LAYERS = ["table", "q", "v", "head"]
GAMMA = gamma(64, np.dtype(np.float64))


def made(rng, dtype=np.float64, **options):
    """A Net with the adapters a and b, and c on some layers only."""
    net = TokenNet(rng, dtype)
    put_on(net, "a", rng, **options)
    put_on(net, "b", rng, rank=1, alpha=3.0, **options)
    put_on(net, "c", rng, rank=3, targets=["q", "table"], scaling="rslora")
    return net.eval()


def term(adapter):
    """dW by its definition, and a size that rounding errors are relative to.

    With PiSSA a sum is made of (B - B_0) A + B_0 (A - A_0), so what rounds may be as large as the
    products across, B_0 A, of which dW itself has none.
    """
    a, b = adapter.lora_a.data, adapter.lora_b.data
    update, size = b @ a, abs(b) @ abs(a)
    if adapter.start is not None:
        first_a, first_b = (factor.data for factor in adapter.start)
        update = update - first_b @ first_a
        size = (abs(b) + abs(first_b)) @ (abs(a) + abs(first_a))
    return adapter.scale * update, abs(adapter.scale) * size


def update(net, name):
    """dW in every layer by its definition; 0 where there is none."""
    zeros = {place: np.zeros(net_shape(net, place)) for place in LAYERS}
    return zeros | {place: term(adapter)[0] for place, adapter in adapters_of(net, name).items()}


def net_shape(net, place):
    shape = dict(net.named_modules())[place]
    shape = (shape.base_weight if hasattr(shape, "adapters") else shape.weight).shape
    return shape[::-1] if place == "table" else shape


def expected(net, terms):
    """The sum of updates, and bounds of what may be lost by rounding on the way."""
    total = {place: np.zeros(net_shape(net, place)) for place in LAYERS}
    bound = {place: np.zeros(net_shape(net, place)) for place in LAYERS}
    for name, weight in terms:
        for place, adapter in adapters_of(net, name).items():
            dense, size = term(adapter)
            total[place] = total[place] + weight * dense
            bound[place] = bound[place] + abs(weight) * size
    # Products of up to 24 terms on either side, a weight, a scale, and a few additions.
    return total, {place: GAMMA * size + 1e-300 for place, size in bound.items()}


def assert_is_sum(net, name, terms):
    total, bound = expected(net, terms)
    found = update(net, name)
    for place in LAYERS:
        assert (abs(found[place] - total[place]) <= bound[place]).all(), place


def everything(adapter):
    """All that an adapter is, to the bit."""
    values = {key: p.data.tobytes() for key, p in adapter.contents() if hasattr(p, "dtype")}
    facts = ("scale", "alpha", "scaling", "init", "dropout", "dora_norm_gradient", "rank")
    return values, [getattr(adapter, fact) for fact in facts]


def bits(net, name):
    copies = required_attachment(net).adapters[name].copies
    whole = {c.name: (c.reason, c.own.data.tobytes()) for c in copies}
    return {place: everything(a) for place, a in adapters_of(net, name).items()}, whole


# ----------------------------------------------------------------------------------------------
# The laws
# ----------------------------------------------------------------------------------------------


@st.composite
def models(draw):
    """A model, of floats or partly in four bits, with one to three adapters of all but DoRA."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    net = TokenNet(rng)
    if draw(st.booleans()):
        lora.quantize(net, ["q", "v"], block_size=4, progress=False)
    names = draw(st.sampled_from([["a"], ["a", "b"], ["b", "a", "c"]]))
    for name in names:
        targets = draw(st.lists(st.sampled_from(LAYERS), min_size=1, unique=True))
        init = draw(st.sampled_from(["gaussian", "pissa", "orthogonal"]))
        rank = 2 if init == "orthogonal" else draw(st.integers(1, 3))
        pattern = {targets[0]: 2 if init == "orthogonal" else draw(st.integers(1, 3))}
        put_on(
            net,
            name,
            rng,
            rank=rank,
            alpha=draw(st.sampled_from([1.0, 3.0, 16.0])),
            scaling=draw(st.sampled_from(LoRAScaling)),
            targets=targets,
            rank_pattern=pattern,
            alpha_pattern={targets[-1]: draw(st.sampled_from([0.3, 8.0]))},
            init=init,
        )
    return net, names


weight = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5]), st.integers(-4000, 4000).map(lambda n: n / 1000)
)


def weighted(data, names, min_size=1):
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=min_size, max_size=4))
    return [(name, data.draw(weight)) for name in chosen]


def combined(net, terms, name, **options):
    return lora.combine(net, [n for n, _ in terms], [w for _, w in terms], name, **options)


laws = hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.too_slow])


@laws
@hypothesis.given(models(), st.data())
def test_the_sum_is_the_sum_of_the_updates(model, data):
    net, names = model
    before, terms = update(net, names[0]), weighted(data, names)
    report = combined(net, terms, "sum")
    assert_is_sum(net, "sum", terms)
    assert all(row.error == row.relative_error == 0 for row in report.layers)
    now = update(net, names[0])
    assert all(np.array_equal(before[place], now[place]) for place in LAYERS)


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_the_order_has_no_influence_on_any_bit(model, data):
    net, names = model
    terms = weighted(data, names)
    other = data.draw(st.permutations(terms))
    rank = data.draw(st.sampled_from([None, 1, 2]))
    combined(net, terms, "one", rank=rank)
    combined(net, other, "other", rank=rank)
    assert bits(net, "one") == bits(net, "other")


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_a_sum_of_sums_is_the_sum(model, data):
    net, names = model
    first, second = weighted(data, names), weighted(data, names)
    x, y = data.draw(weight), data.draw(weight)
    combined(net, first, "first")
    combined(net, second, "second")
    combined(net, [("first", x), ("second", y)], "nested")
    assert_is_sum(net, "nested", [(n, x * w) for n, w in first] + [(n, y * w) for n, w in second])


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_weights_of_one_adapter_add_up(model, data):
    net, names = model
    name, x, y = data.draw(st.sampled_from(names)), data.draw(weight), data.draw(weight)
    combined(net, [(name, x), (name, y)], "twice")
    combined(net, [(name, math.fsum([x, y]))], "once")
    assert bits(net, "twice") == bits(net, "once")
    combined(net, [(name, x)], "x")
    combined(net, [(name, y)], "y")
    combined(net, [("x", 1), ("y", 1)], "apart")
    assert_is_sum(net, "apart", [(name, x), (name, y)])


@laws
@hypothesis.given(models(), st.data())
def test_one_times_an_adapter_is_the_adapter_to_the_bit(model, data):
    net, names = model
    name = data.draw(st.sampled_from(names))
    combined(net, [(name, 1.0)], "same")
    assert bits(net, "same") == bits(net, name)


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_minus_an_adapter_is_its_mirror_to_the_bit(model, data):
    net, names = model
    name = data.draw(st.sampled_from(names))
    combined(net, [(name, -1.0)], "minus")
    for place, negative in adapters_of(net, "minus").items():
        a, b = adapters_of(net, name)[place].factors()
        assert np.array_equal(negative.lora_a.data, a.data)
        assert np.array_equal(negative.lora_b.data, -b.data)
        assert negative.scale == adapters_of(net, name)[place].scale


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_a_weight_of_zero_is_as_if_the_adapter_were_not_named(model, data):
    net, names = model
    terms = weighted(data, names)
    hypothesis.assume(any(math.fsum(w for n, w in terms if n == name) for name in names))
    combined(net, terms, "without")
    combined(net, [*terms, (names[0], 0.0)], "with")
    assert bits(net, "without") == bits(net, "with")


@laws
@hypothesis.given(models())
def test_a_sum_of_nothing_is_zero_and_can_learn(model):
    net, names = model
    report = combined(net, [(name, 0.0) for name in names] + [(names[0], 2), (names[0], -2)], "o")
    assert {place for name in names for place in adapters_of(net, name)} == set(
        adapters_of(net, "o")
    )
    for adapter in adapters_of(net, "o").values():
        assert adapter.rank == 1
        assert not adapter.lora_b.data.any()
        assert adapter.lora_a.data.any()
    assert {row.note for row in report.layers} == {"zero"}


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa"])
@pytest.mark.parametrize("place", ["table", "q"])
def test_a_sum_of_nothing_learns_where_the_adapter_has_not_yet(rng, place, init):
    net = TokenNet(rng)
    before = net(TOKENS).data
    lora.attach(net, LoRAConfig(rank=2, targets=[place], init=init), adapter="a", rng=rng)
    combined(net, [("a", 0.0)], "o")
    lora.switch(net, "o")
    assert np.array_equal(net(TOKENS).data, before)
    (net(TOKENS) ** 2).sum().backward()
    assert any(abs(p.grad.data).max() > 1e-6 for p in net.trainable_parameters())


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data(), st.integers(1, 4))
def test_of_a_lower_rank_the_sum_is_the_best_there_is(model, data, rank):
    net, names = model
    terms = weighted(data, names)
    report = combined(net, terms, "low", rank=rank)
    total, _ = expected(net, terms)
    rng = np.random.default_rng(0)
    for row in report.layers:
        right, found = total[row.name], update(net, "low")[row.name]
        assert row.rank <= max(rank, 1)
        left = np.linalg.svd(right, compute_uv=False)[rank:]
        size = np.linalg.norm(
            [
                abs(w) * np.linalg.norm(term(adapters_of(net, n)[row.name])[1])
                for n, w in terms
                if row.name in adapters_of(net, n)
            ]
        )
        small = 1e-13 * size + 1e-300
        assert abs(row.error - np.linalg.norm(left)) <= small
        assert abs(row.error - np.linalg.norm(found - right)) <= small
        if np.linalg.norm(right) > 1e3 * small:
            assert row.relative_error == pytest.approx(
                row.error / np.linalg.norm(right), rel=1e-6, abs=1e-9
            )
        for _ in range(5):
            other = rng.standard_normal((right.shape[0], rank))
            nearest = other @ np.linalg.lstsq(other, right, rcond=None)[0]
            assert np.linalg.norm(nearest - right) >= row.error - small


@pytest.mark.full
@laws
@hypothesis.given(models(), st.data())
def test_nothing_is_lost_at_the_full_rank_of_the_layer(model, data):
    net, names = model
    terms = weighted(data, names)
    for row in combined(net, terms, "full", rank=5).layers:
        total, bound = expected(net, terms)
        # The decomposition's own rounding is one of the norm, not of each element.
        small = 1e-13 * np.linalg.norm(bound[row.name]) / GAMMA
        assert abs(update(net, "full")[row.name] - total[row.name]).max() <= small
        assert row.error <= small


@laws
@hypothesis.given(models())
def test_the_sum_computes_what_all_adapters_do_together(model):
    net, names = model
    net.eval()
    combined(net, [(name, 1.0) for name in names], "sum")
    lora.switch(net, *names)
    together, folded = net(TOKENS).data, copy.deepcopy(net)
    lora.switch(net, "sum")
    np.testing.assert_allclose(net(TOKENS).data, together, rtol=1e-9, atol=1e-9)
    lora.merge(net)
    lora.remove(folded, "sum")
    lora.fold(folded)
    with minigrad.no_grad():
        merged = net(TOKENS).data
    np.testing.assert_allclose(merged, folded(TOKENS).data, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------
# One by one
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers_of_two_are_exact(rng, dtype):
    net = TokenNet(rng, dtype)
    put_on(net, "a", rng, rank=2, alpha=3.0)
    put_on(net, "b", rng, rank=2, alpha=3.0)
    combined(net, [("a", 0.5), ("b", -4)], "sum")
    for place, found in adapters_of(net, "sum").items():
        a, b = adapters_of(net, "a")[place], adapters_of(net, "b")[place]
        assert found.scale == a.scale
        assert np.array_equal(found.lora_a.data, np.concatenate([a.lora_a.data, b.lora_a.data]))
        columns = [a.lora_b.data / 2, b.lora_b.data * -4]
        assert np.array_equal(found.lora_b.data, np.concatenate(columns, axis=1))
        assert found.lora_a.dtype == dtype


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
@pytest.mark.parametrize("alpha", [3.0, 5.0])
def test_alpha_and_the_rank_reproduce_the_scale_in_force(rng, scaling, alpha):
    net = TokenNet(rng)
    put_on(net, "a", rng, rank=3, alpha=alpha, scaling=scaling)
    put_on(net, "b", rng, rank=1, alpha=3.0, scaling=scaling)
    combined(net, [("a", 0.3), ("b", 2)], "sum")
    for found in adapters_of(net, "sum").values():
        assert found.scaling is LoRAScaling(scaling)
        assert found.rank == 4
        assert found.scaling.scale(found.alpha, 4) == pytest.approx(found.scale, rel=1e-15)


def test_a_scale_that_was_assigned_counts(rng):
    net = made(rng)
    for layer, scale in zip(("q", "v", "head"), (0.0, -2.0, 7.0), strict=True):
        adapters_of(net, "a")[layer].scale = scale
    combined(net, [("a", 2)], "twice")
    combined(net, [("a", 1), ("b", 1)], "sum")
    assert_is_sum(net, "twice", [("a", 2)])
    assert_is_sum(net, "sum", [("a", 1), ("b", 1)])


def test_a_scale_that_alpha_gives_but_for_rounding_is_kept_to_the_bit(rng):
    net = TokenNet(rng)
    put_on(net, "a", rng, rank=3)
    for adapter in adapters_of(net, "a").values():
        adapter.scale = 0.7
    assert 0.7 * 3 / 3 != 0.7
    combined(net, [("a", 2)], "twice")
    assert {adapter.scale for adapter in adapters_of(net, "twice").values()} == {0.7}


def test_the_new_adapter_is_not_active_and_trains_when_it_is(rng):
    net = made(rng)
    before = lora.active(net), net(TOKENS).data
    trainable = {id(p) for p in net.trainable_parameters()}
    combined(net, [("a", 1), ("b", 2)], "sum")
    assert lora.active(net) == before[0]
    assert np.array_equal(net(TOKENS).data, before[1])
    assert {id(p) for p in net.trainable_parameters()} == trainable
    lora.switch(net, "sum")
    parts = [p for a in adapters_of(net, "sum").values() for p in a.trained()]
    assert {id(p) for p in net.trainable_parameters()} == {id(p) for p in parts}
    net(TOKENS).sum().backward()
    assert all(p.grad is not None for p in parts)
    lora.switch(net, "a")
    assert not any(p.requires_grad for p in parts)
    lora.remove(net, "sum")
    assert not adapters_of(net, "sum")


def test_an_adapter_that_is_merged_can_be_read(rng):
    net = made(rng)
    lora.switch(net, "a", "b")
    lora.merge(net)
    with minigrad.no_grad():
        before = net(TOKENS).data
        combined(net, [("a", 1), ("b", 1)], "sum")
        assert np.array_equal(net(TOKENS).data, before)
    assert_is_sum(net, "sum", [("a", 1), ("b", 1)])


def test_a_copy_shares_nothing_and_is_of_the_same_configuration(rng):
    net = made(rng, dropout=0.25, bias="all", modules_to_save=["norm"])
    combined(net, [("a", 1)], "same")
    assert bits(net, "same") == bits(net, "a")
    record = required_attachment(net).adapters
    assert record["same"].config is record["a"].config
    before = bits(net, "a")
    assert len(net.trainable_parameters()) == 4  # of c, which is active
    lora.switch(net, "same")
    assert len(net.trainable_parameters()) == 10  # three pairs, two biases, the norm's two
    for parameter in net.trainable_parameters():
        parameter.data = parameter.data + 1
    for adapter in adapters_of(net, "same").values():
        adapter.dropout = 0.5
    lora.switch(net)
    assert bits(net, "a") == before
    assert bits(net, "same") != before


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("init", ["gaussian", "pissa"])
def test_dora_can_be_copied_and_nothing_else(rng, rank, init):
    net = TokenNet(rng)
    put_on(net, "d", rng, use_dora=True, dora_norm_gradient=True, rank=1, init=init)
    put_on(net, "p", rng, targets=["v"], rank=2)
    combined(net, [("d", 1), ("p", 0)], "same", rank=rank)
    mine = bits(net, "d")
    assert bits(net, "same") == mine
    for adapter in adapters_of(net, "same").values():
        for _, part in adapter.contents():
            part.copy_(part.data + 1)
    assert bits(net, "d") == mine
    before = snapshot(net)
    for terms in ([("d", 2)], [("d", -1)], [("d", 1), ("p", 1)]):
        with pytest.raises(ValueError, match=r"(q|v|head): adapter 'd' is DoRA.*lora\.extract"):
            combined(net, terms, "sum", rank=rank)
    assert snapshot(net) == before


def test_dora_of_a_lower_rank_is_refused(rng):
    net = TokenNet(rng)
    put_on(net, "d", rng, use_dora=True, rank=2)
    with pytest.raises(ValueError, match=r"is DoRA.* a lower rank of it"):
        combined(net, [("d", 1)], "low", rank=1)


def test_where_only_one_adapter_of_weight_one_is_the_layer_has_a_copy(rng):
    net = TokenNet(rng)
    put_on(net, "d", rng, targets=["q"], use_dora=True)
    put_on(net, "p", rng, targets=["v"], init="pissa")
    combined(net, [("d", 1), ("p", 1)], "sum")
    both = bits(net, "d")[0] | bits(net, "p")[0]
    assert bits(net, "sum")[0] == both


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0.5, 2), (1, 1), (-1, 0)])
@pytest.mark.parametrize("active", ["a", "b"])
def test_what_is_trained_whole_moves_by_the_sum_of_moves(rng, x, y, active):
    net = TokenNet(rng)
    start = {name: p.data.copy() for name, p in net.named_parameters()}
    put_on(net, "a", rng, targets=["q", "v"], bias="all", modules_to_save=["norm"])
    put_on(net, "b", rng, targets=["q", "head"], bias="lora_only")
    moved = {}
    for name in ("a", "b"):
        lora.switch(net, name)
        moved[name] = {
            "q.bias": net.q.bias.data.copy(),
            "norm.weight": net.norm.weight.data.copy(),
            "norm.bias": net.norm.bias.data.copy(),
            "head.bias": net.head.bias.data.copy(),
        }
    lora.switch(net, active)
    report = combined(net, [("a", x), ("b", y)], "sum")
    whole = ["norm.weight", "norm.bias", "q.bias", "head.bias"]
    assert [copy.name for copy in report.copies] == whole
    lora.switch(net, "sum")
    found = {
        "q.bias": net.q.bias,
        "norm.weight": net.norm.weight,
        "norm.bias": net.norm.bias,
        "head.bias": net.head.bias,
    }
    for name, value in found.items():
        shift = x * (moved["a"][name] - start[name]) + y * (moved["b"][name] - start[name])
        np.testing.assert_allclose(value.data, start[name] + shift, rtol=1e-12, atol=1e-12)
        if (x, y) == (1, 0):
            assert np.array_equal(value.data, moved["a"][name])
    lora.detach(net)
    assert all(np.array_equal(p.data, start[name]) for name, p in net.named_parameters())


def test_running_statistics_are_summed_as_what_is_trained_whole(rng):
    model = with_own_statistics(rng, "a", passes=3)
    own = {name: b.data.copy() for name, b in model[1].named_buffers()}
    combined(model, [("a", 1)], "same")
    lora.switch(model, "same")
    for name, buffer in model[1].named_buffers():
        assert np.array_equal(buffer.data, own[name])
    combined(model, [("a", 0.5)], "half")
    lora.switch(model, "half")
    np.testing.assert_allclose(model[1].running_mean.data, own["running_mean"] / 2)
    np.testing.assert_allclose(model[1].running_var.data, (1 + own["running_var"]) / 2)
    assert model[1].num_batches_tracked.dtype == np.int64
    assert model[1].num_batches_tracked == 2  # 1.5
    with pytest.raises(ValueError, match=r"1\.running_var would be below 0"):
        combined(model, [("a", -9)], "less")
    assert "less" not in required_attachment(model).adapters


def test_one_times_what_is_trained_whole_is_that_to_the_bit(rng):
    net = TokenNet(rng)
    put_on(net, "a", rng, targets=["q"], bias="lora_only", modules_to_save=["norm"])
    net.norm.weight.data = np.full(5, 1e-20)
    net.q.bias.data = np.full(4, 1e-20)
    combined(net, [("a", 1)], "same")
    assert bits(net, "same") == bits(net, "a")
    assert net.norm.weight.data[0] == 1e-20


def test_pissa_counts_with_the_rank_of_its_difference(rng):
    net = TokenNet(rng)
    put_on(net, "p", rng, init="pissa", rank=2, targets=["q"])
    right = update(net, "p")["q"]
    (row,) = combined(net, [("p", 1)], "low", rank=3).layers
    assert (row.rank, row.ranks) == (3, (4,))
    assert row.error == pytest.approx(np.linalg.svd(right, compute_uv=False)[3], rel=1e-9)
    (row,) = combined(net, [("p", 1)], "same", rank=4).layers
    assert (row.rank, row.ranks, row.note) == (2, (4,), "copy")


def test_dropout_is_kept_where_all_terms_have_it(rng):
    net = TokenNet(rng)
    put_on(net, "a", rng, dropout=0.25)
    put_on(net, "b", rng, dropout=0.25)
    put_on(net, "c", rng, dropout=0.5, targets=["q"])
    combined(net, [("a", 1), ("b", 1)], "same")
    assert {adapter.dropout for adapter in adapters_of(net, "same").values()} == {0.25}
    report = combined(net, [("a", 1), ("c", 1)], "other")
    assert adapters_of(net, "other")["q"].dropout == 0
    assert {row.name: row.note for row in report.layers}["q"].startswith("no dropout")
    expected = lora.switch(net.eval(), "a")(TOKENS).data
    combined(net, [("a", 1)], "copy")
    np.testing.assert_array_equal(lora.switch(net, "copy")(TOKENS).data, expected)
    assert not np.array_equal(net.train()(TOKENS).data, expected)


def test_the_report_can_be_read(rng):
    net = TokenNet(rng)
    put_on(net, "a", rng, targets=["q", "head"])
    put_on(net, "b", rng, targets=["q"], rank=3, modules_to_save=["norm"])
    report = combined(net, [("b", 0.5), ("a", 1)], "sum")
    assert repr(report).splitlines() == [
        "layer        rank  ranks of the terms  error  relative",
        "q            5     2 + 3               0      0         rank above min(d_out, d_in) = 4",
        "head         2     2                   0      0         copy",
        "norm.weight                                             in full",
        "norm.bias                                               in full",
        "sum = 1 a + 0.5 b",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a", "x"], [1, 1], "n"), ValueError, "no adapter 'x'; the adapters are 'a', 'b', 'c'"),
        (([], [], "n"), ValueError, "no adapters to combine"),
        (("a", [1], "n"), TypeError, "list of names"),
        (([1], [1], "n"), TypeError, "name of an adapter is a string, not 1"),
        *(((["a"], w, "n"), TypeError, "weights are a list") for w in (1.0, np.float64(1), None)),
        ((["a"], [1, 2], "n"), ValueError, "1 adapters and 2 weights"),
        ((["a", "b"], [1, math.nan], "n"), ValueError, "weight of 'b' must be a finite.* nan"),
        ((["a"], [-math.inf], "n"), ValueError, "weight of 'a' must be a finite"),
        ((["a"], [True], "n"), TypeError, "weight of 'a' must be a number, not True"),
        ((["a"], ["1"], "n"), TypeError, "weight of 'a' must be a number, not '1'"),
        ((["a", "a"], [1e308, 1e308], "n"), ValueError, "sum of the weights"),
        ((["a"], [1e200], "n"), ValueError, "q: the sum is too large for float32"),
        ((["a"], [1], "b"), ValueError, "an adapter 'b' already"),
        ((["a"], [1], "b.c"), ValueError, r"letters, digits, - and _ only, not 'b\.c'"),
        ((["a"], [1], None), TypeError, "name of an adapter is a string, not None"),
        ((["a"], [1], "n", 0), ValueError, "rank must be a positive integer, not 0"),
        ((["a"], [1], "n", 1.0), TypeError, r"rank is an integer, not 1\.0"),
        ((["a"], [1], "n", True), TypeError, "rank is an integer, not True"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_changes_nothing(rng, arguments, error, message):
    net = made(rng, np.float32)
    before = snapshot(net)
    *given, rank = arguments if len(arguments) == 4 else (*arguments, None)
    with pytest.raises(error, match=message):
        lora.combine(net, *given, rank=rank)
    assert snapshot(net) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_that_is_not_finite_spreads(rng, value):
    net = made(rng, bias="all", modules_to_save=["norm"])
    adapter = adapters_of(net, "b")["v"]
    adapter.lora_b = np.full(adapter.lora_b.shape, value)
    with pytest.raises(ValueError, match="v: lora_b of adapter 'b' has NaN or Inf"):
        combined(net, [("a", 1), ("b", 1)], "sum")
    adapter.lora_b = np.ones(adapter.lora_b.shape)
    required_attachment(net).adapters["b"].copies[0].own.data[:] = value
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"norm\.weight, which is trained in full, would have NaN"):
        combined(net, [("a", 1), ("b", 1)], "sum")
    assert snapshot(net) == before


@pytest.mark.parametrize("rank", [None, 1])
def test_a_sum_beyond_float64_is_refused(rng, rank):
    net = made(rng, np.float32)
    adapter = adapters_of(net, "b")["q"]
    adapter.lora_b = np.full(adapter.lora_b.shape, 1e10)
    with pytest.raises(ValueError, match="q: the sum is too large for float32"):
        lora.combine(net, ["a", "b"], [1, 1e305], "sum", rank=rank)


def test_adapters_that_are_disabled_cannot_be_combined(rng):
    net = made(rng)
    with lora.disabled(net), pytest.raises(RuntimeError, match=r"lora\.disabled"):
        combined(net, [("a", 1)], "sum")
    with pytest.raises(ValueError, match="has put no adapters"):
        combined(TokenNet(rng), [("a", 1)], "sum")


@pytest.mark.parametrize(("d_out", "d_in", "wide"), [(9, 4, 3), (4, 9, 3), (3, 4, 8), (1, 1, 2)])
def test_the_approximation_of_a_product_is_that_of_the_matrix(rng, d_out, d_in, wide):
    a, b = rng.standard_normal((wide, d_in)), rng.standard_normal((d_out, wide))
    for rank in range(1, min(d_out, d_in, wide) + 1):
        best = Approximation.of_product(a, b, rank)
        right = Approximation.of_decomposition(
            *np.linalg.svd(b @ a, full_matrices=False), rank=rank
        )
        np.testing.assert_allclose(best.b @ best.a, right.b @ right.a, rtol=1e-12, atol=1e-12)
        assert best.a.shape == (rank, d_in)
        shared = np.linalg.norm(best.a, axis=1), np.linalg.norm(best.b, axis=0)
        np.testing.assert_allclose(*shared, rtol=1e-12)  # each has the roots of singular values
        assert best.error == pytest.approx(right.error, rel=1e-12, abs=1e-13)
        assert best.norm == pytest.approx(np.linalg.norm(b @ a), rel=1e-12)
        assert best.energy + best.relative_error**2 == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e200])
def test_errors_neither_vanish_nor_overflow(rng, size):
    a, b = rng.standard_normal((2, 5)), rng.standard_normal((4, 2))
    usual, best = (Approximation.of_product(a, factor * b, 1) for factor in (1.0, size))
    assert best.error == pytest.approx(size * usual.error, rel=1e-9)
    assert best.relative_error == pytest.approx(usual.relative_error, rel=1e-9)


# ----------------------------------------------------------------------------------------------
# Extraction
# ----------------------------------------------------------------------------------------------


def pair(rng, dtype=np.float64, **options):
    """A base, the same with an adapter of rank 2 merged into it, and the updates."""
    base = TokenNet(rng, dtype)
    tuned = copy.deepcopy(base)
    put_on(tuned, "a", rng, **{"rank": 2, "targets": LAYERS, **options})
    updates = update(tuned, "a")
    return base, lora.fold(tuned), updates


@pytest.mark.parametrize("as_state", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6)])
def test_what_was_merged_is_found_again(rng, dtype, tolerance, as_state):
    base, tuned, updates = pair(rng, dtype)
    before = base.state_dict()
    given = tuned.state_dict() if as_state else tuned
    report = lora.extract(base, given, 2, targets=LAYERS)
    assert lora.active(base) == ("default",)
    for row in report.layers:
        found = adapters_of(base, "default")[row.name]
        assert (found.rank, found.scale, found.alpha) == (2, 1.0, 2.0)
        assert found.lora_a.dtype == dtype
        size = abs(updates[row.name]).max()
        # In float32 the merged weight and both factors are rounded: a few times 6e-8.
        assert abs(term(found)[0] - updates[row.name]).max() <= tolerance * max(size, 1)
        assert row.relative_error <= tolerance
    np.testing.assert_allclose(
        base.eval()(TOKENS).data, tuned.eval()(TOKENS).data, rtol=tolerance, atol=10 * tolerance
    )
    lora.detach(base)
    after = base.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_an_extraction_draws_nothing(rng, monkeypatch):
    base, tuned, _ = pair(rng)
    monkeypatch.setattr("lora.adapter.draw", None)
    lora.extract(base, tuned, 2, targets=LAYERS)
    np.testing.assert_allclose(base.eval()(TOKENS).data, tuned.eval()(TOKENS).data, atol=1e-12)


def test_an_extracted_adapter_is_saved_without_a_seed(rng, tmp_path):
    base, tuned, _ = pair(rng)
    lora.extract(base, tuned, 2, targets=LAYERS)
    lora.save(base, tmp_path)
    with AdapterFolder(tmp_path) as files:
        assert files.facts.seed is None


@pytest.mark.parametrize("rank", [1, 2, 3, 9])
def test_the_error_of_an_extraction_is_what_singular_values_leave(rng, rank):
    base, tuned = TokenNet(rng), TokenNet(rng)
    report = lora.extract(
        base, tuned, rank, targets=LAYERS, bias="all", modules_to_save=["norm"], adapter="x"
    )
    for row in report.layers:
        layer = dict(base.named_modules())[row.name]
        change = dict(tuned.named_modules())[row.name].weight.data - layer.base_weight.data
        change = change.T if row.name == "table" else change
        s = np.linalg.svd(change, compute_uv=False)
        assert row.rank == min(rank, len(s)) == layer.adapters["x"].rank
        assert row.error == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-12, abs=1e-14)
        assert row.relative_error == pytest.approx(row.error / np.linalg.norm(s))
        assert row.energy == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum())
        found = term(layer.adapters["x"])[0]
        assert np.linalg.norm(found - change) == pytest.approx(row.error, rel=1e-9, abs=1e-13)
    assert np.array_equal(base.head.bias.data, tuned.head.bias.data)
    if rank == 9:
        np.testing.assert_allclose(
            base.eval()(TOKENS).data, tuned.eval()(TOKENS).data, rtol=1e-12, atol=1e-12
        )


def test_dora_and_sums_with_it_can_be_approximated(rng):
    net = TokenNet(rng)
    base = copy.deepcopy(net)
    put_on(net, "d", rng, use_dora=True)
    tuned = lora.fold(net.eval())
    lora.extract(base, tuned, 4)
    np.testing.assert_allclose(base.eval()(TOKENS).data, tuned(TOKENS).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("as_state", [False, True])
def test_of_a_base_in_four_bits_what_these_lose_is_extracted_too(rng, as_state):
    tuned = TokenNet(rng)
    base = copy.deepcopy(tuned)
    lora.quantize(base, ["q", "v"], block_size=4, progress=False)
    held = [base.q.weight, base.v.weight]
    change = {name: getattr(tuned, name).weight.data for name in ("q", "v")}
    change = {name: w - getattr(base, name).weight.dense(np.float64) for name, w in change.items()}
    report = lora.extract(base, tuned.state_dict() if as_state else tuned, 2)
    assert [(row.name, row.rank) for row in report.layers] == [("q", 2), ("v", 2), ("head", 0)]
    for row in report.layers[:2]:
        s = np.linalg.svd(change[row.name], compute_uv=False)
        assert row.error == pytest.approx(np.linalg.norm(s[2:]), rel=1e-10)
        found = term(adapters_of(base, "default")[row.name])[0]
        assert np.linalg.norm(found - change[row.name]) == pytest.approx(row.error, rel=1e-9)
    lora.detach(base)
    assert [base.q.weight, base.v.weight] == held
    lora.extract(base, tuned, 9)
    np.testing.assert_allclose(base(TOKENS).data, tuned(TOKENS).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_an_update_beyond_the_dtype_of_the_base_is_refused(rng, part):
    base = TokenNet(rng).astype(np.float16)
    tuned = copy.deepcopy(base).astype(np.float32)
    tuned.q.weight.data[0] += 1.0
    getattr(tuned.q, part).data[...] = 1e10
    before = {name: p.data.copy() for name, p in base.named_parameters()}
    with pytest.raises(ValueError, match=r"overflow the dtype of the base in q.*astype"):
        lora.extract(base, tuned, 2, bias="all")
    after = dict(base.named_parameters())
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name].data, before[name]) for name in before)


def test_two_models_in_four_bits_differ_where_their_codes_do(rng):
    base = TokenNet(rng)
    lora.quantize(base, ["q", "v"], block_size=4, progress=False)
    tuned = copy.deepcopy(base)
    tuned.v = Linear(4, 5, bias=False, dtype=np.float64, rng=rng)
    lora.quantize(tuned, ["v"], block_size=4, progress=False)
    tuned.head.weight.data = tuned.head.weight.data + 1
    with pytest.raises(ValueError, match=r"would not have: v\.weight;"):
        lora.extract(base, tuned, 4, targets=["q", "head"])
    lora.extract(base, tuned, 4)
    assert list(adapters_of(base, "default")) == ["v", "head"]
    np.testing.assert_allclose(base(TOKENS).data, tuned(TOKENS).data, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"missing: q\.weight \(4, 5\)"):
        lora.extract(lora.detach(base), tuned.state_dict(), 4)


def test_a_layer_that_does_not_differ_gets_no_adapter(rng):
    base, tuned, _ = pair(rng, targets=["q"])
    report = lora.extract(base, tuned, 1)
    assert list(adapters_of(base, "default")) == ["q"]
    assert [(row.name, row.rank) for row in report.layers] == [("q", 1), ("v", 0), ("head", 0)]
    assert repr(report).splitlines()[2:] == [
        "v      0                               does not differ",
        "head   0                               does not differ",
    ]


def test_names_that_end_alike_are_not_confused(rng):
    base = Module()
    base.q, base.inner = Linear(6, 2, rng=rng), Module()
    base.inner.q = Linear(6, 6, rng=rng)
    base.inner.inner = {"q": Linear(6, 6, rng=rng)}
    tuned = copy.deepcopy(base)
    for layer in (tuned.q, tuned.inner.q):
        layer.weight.data = layer.weight.data + 1 + rng.random(layer.weight.shape)
    lora.extract(base, tuned, 4)
    ranks = {place: adapter.rank for place, adapter in adapters_of(base, "default").items()}
    assert ranks == {"q": 2, "inner.q": 4}


def test_nothing_that_differs_is_lost_without_a_word(rng):
    base, tuned, _ = pair(rng, targets=["q"])
    tuned.norm.bias.data = tuned.norm.bias.data + 1
    tuned.table.weight.data = tuned.table.weight.data + 1
    tuned.head.bias.data = tuned.head.bias.data + 1
    tuned.q.bias.data = tuned.q.bias.data + 1
    before = [(name, id(p), p.data.tobytes()) for name, p in base.named_parameters()]

    def lost(**options):
        with pytest.raises(ValueError, match="would not have") as caught:
            lora.extract(base, tuned, 1, **options)
        assert [(name, id(p), p.data.tobytes()) for name, p in base.named_parameters()] == before
        return str(caught.value).split("not have: ")[1].split("; make")[0].split(", ")

    assert lost() == ["table.weight", "q.bias", "norm.bias", "head.bias"]
    assert lost(bias="lora_only") == ["table.weight", "norm.bias", "head.bias"]
    assert lost(bias="all") == ["table.weight"]
    assert lost(targets=["q", "table"], modules_to_save=["norm"]) == ["q.bias", "head.bias"]
    report = lora.extract(base, tuned, 1, targets=["q", "table"], bias="all")
    assert [copy.name for copy in report.copies] == ["q.bias", "norm.bias", "head.bias"]
    assert np.array_equal(base.norm.bias.data, tuned.norm.bias.data)
    assert np.array_equal(base.q.bias.data, tuned.q.bias.data)


def test_running_statistics_are_part_of_the_difference(rng):
    base, tuned = batch_normed().eval(), batch_normed().eval()
    tuned[0].weight.data = tuned[0].weight.data + 1
    lora.extract(base, tuned, 2)
    x = rng.standard_normal((5, 4))
    np.testing.assert_allclose(base(x).data, tuned(x).data, rtol=1e-12, atol=1e-12)
    lora.detach(base)
    tuned.train()(x)
    tuned.eval()
    statistics = "1.running_mean, 1.running_var, 1.num_batches_tracked"
    with pytest.raises(ValueError, match=f"would not have: {statistics};"):
        lora.extract(base, tuned, 2)
    lora.extract(base, tuned, 2, modules_to_save=["1"])
    np.testing.assert_allclose(base(x).data, tuned(x).data, rtol=1e-12, atol=1e-12)


def test_all_that_does_not_fit_is_listed_at_once(rng):
    base, tuned, _ = pair(rng)
    state = tuned.state_dict()
    state["heads.weight"] = state.pop("head.weight")
    state["q.bias"] = state["q.bias"][:2]
    state["v.weight"] = np.full_like(state["v.weight"], np.nan)
    state["norm.bias"] = ["x"] * 5
    with pytest.raises(ValueError, match="does not fit the base; nothing was changed") as caught:
        lora.extract(base, state, 1)
    message = str(caught.value)
    for part in (
        "unexpected: 'heads.weight' (did you mean 'head.weight'?)",
        "missing: head.weight (3, 5)",
        "mis-shaped: q.bias is (2,), in the base (4,)",
        "not finite: v.weight has NaN or Inf",
        "unusable: norm.bias",
    ):
        assert part in message
    assert not any(hasattr(m, "adapters") for m in base.modules())


def test_a_tie_that_was_cut_by_folding_can_be_extracted(rng):
    base = Module()
    base.table = Embedding(6, 4, dtype=np.float64, rng=rng)
    base.head = Linear(4, 6, bias=False, dtype=np.float64, rng=rng)
    base.head.weight = base.table.weight
    tuned = copy.deepcopy(base)
    put_on(tuned, "a", rng, targets=["head"])
    change = term(adapters_of(tuned, "a")["head"])[0]
    lora.fold(tuned)
    lora.extract(base, tuned, 2)
    found = term(adapters_of(base, "default")["head"])[0]
    np.testing.assert_allclose(found, change, rtol=1e-12, atol=1e-12)
    lora.detach(base)
    tuned.table.weight.data = tuned.head.weight.data
    with pytest.raises(ValueError, match=r"would not have: table\.weight;"):
        lora.extract(base, tuned, 2)
    tied = {"table.weight": tuned.table.weight.data}
    with pytest.raises(ValueError, match=r"would not have: table\.weight;"):
        lora.extract(base, tied, 2)
    lora.extract(base, tied, 2, targets=["head", "table"])
    updates = {place: term(a)[0] for place, a in adapters_of(base, "default").items()}
    np.testing.assert_allclose(updates["table"].T, updates["head"], rtol=1e-12, atol=1e-12)


def test_what_is_tied_can_be_taken_over_whole(rng):
    base = TokenNet(rng)
    base.head = Linear(5, 7, bias=False, dtype=np.float64, rng=rng)
    base.head.weight = base.table.weight
    tuned = copy.deepcopy(base)
    for layer in (tuned.q, tuned.table):
        layer.weight.data = layer.weight.data + 1
    report = lora.extract(base, tuned, 1, targets=["q"], modules_to_save=["table", "head"])
    assert [copy.name for copy in report.copies] == ["table.weight"]
    assert base.head.weight is base.table.weight
    np.testing.assert_allclose(base(TOKENS).data, tuned(TOKENS).data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be a positive integer"),
        ({"rank": None}, TypeError, "rank is an integer, not None"),
        ({"targets": ["k"]}, ValueError, "match no layer: 'k'"),
        ({"targets": ["v"], "exclude": ["v"]}, ValueError, "nothing is left"),
        ({"targets": ["v"]}, ValueError, "none of the targets differs from the base.*: v"),
        ({"adapter": "a.b"}, ValueError, "letters, digits"),
        ({"bias": "some"}, ValueError, "bias is one of"),
        (
            {"modules_to_save": ["q"]},
            ValueError,
            "q is to be trained in full, but q has an",
        ),
        ({"finetuned": 3}, TypeError, "extract takes a Module, and a Module or a state_dict"),
    ],
)
def test_what_cannot_be_extracted_is_refused_and_changes_nothing(rng, options, error, message):
    base, tuned, _ = pair(rng, targets=["q"])
    before = [(name, id(p), p.data.tobytes()) for name, p in base.named_parameters()]
    given = {"finetuned": tuned, "rank": 1, **options}
    with pytest.raises(error, match=message):
        lora.extract(base, **given)
    assert [(name, id(p), p.data.tobytes()) for name, p in base.named_parameters()] == before


def test_models_with_adapters_are_not_extracted_from(rng):
    base, tuned, _ = pair(rng)
    put_on(tuned, "b", rng)
    with pytest.raises(ValueError, match=r"model has adapters, in q, v, head; lora\.fold"):
        lora.extract(base, tuned, 1)
    with pytest.raises(ValueError, match=r"base has adapters already.*lora\.detach"):
        lora.extract(tuned, base, 1)
