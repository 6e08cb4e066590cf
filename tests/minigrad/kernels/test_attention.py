"""Attention on loops of our own: edges of strips and panels, masks, layouts, bounds, threads."""

import itertools
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import functional
from minigrad.kernels import attention
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import JIT_ENABLED

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="ops compute it without kernels")

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}  # relative to the largest number of a result
QKV = (True, True, True, False)


def operands(rng, lead, queries, keys, d, d_v, dtype=np.float32):
    """Query, key, value and a gradient of the result."""
    sizes = (queries, d), (keys, d), (keys, d_v), (queries, d_v)
    return [rng.standard_normal((*lead, *size)).astype(dtype) for size in sizes]


def both(q, k, v, g, allowed=None, added=None, offset=None, scale=0.4, needs_input_grad=QKV):
    """The result, lse and the gradients of the loops."""
    out, lse = attention.attention(q, k, v, allowed, added, offset, scale)
    gradients = attention.attention_gradients(
        g, q, k, v, allowed, added, offset, scale, out, lse, needs_input_grad
    )
    return [out, lse, *gradients]


def by_definition(q, k, v, g, allowed=None, added=None, offset=None, scale=0.4):
    """The same with all weights written out, in float64, and no function of the library.

    Heads of k and v, if there is more than one, are repeated for the heads of q that use them.
    """
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    heads, counts = q.shape[-3] if q.ndim > 2 else 1, [x.shape[-3:-2] for x in (k, v)]
    k, v = (
        np.repeat(x, heads // n[0], -3) if n and 1 < n[0] < heads else x
        for x, n in zip((k, v), counts, strict=True)
    )
    scores = scale * q @ k.swapaxes(-1, -2)
    if added is not None:
        scores = scores + added
    free = (
        np.ones(scores.shape, bool) if allowed is None else np.zeros(scores.shape, bool) | allowed
    )
    if offset is not None:
        free &= np.tri(*scores.shape[-2:], offset, dtype=bool)
    e = np.where(free, np.exp(scores), 0.0)
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    out = p @ v
    ds = p * (g @ v.swapaxes(-1, -2) - (g * out).sum(-1, keepdims=True))
    lse = np.log(np.where(total == 0, 1, total))[..., 0]
    dk, dv = (
        x.reshape(*x.shape[:-3], *n, -1, *x.shape[-2:]).sum(-3) if n and 1 < n[0] < heads else x
        for x, n in zip(
            (scale * ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g), counts, strict=True
        )
    )
    return [out, lse, scale * ds @ k, dk, dv, ds]


def composed(q, k, v, allowed=None, added=None, offset=None, scale=0.4):
    """The same as ops, which compute it where there are no kernels."""
    return functional.neural.fused_attention.composition(q, k, v, allowed, added, offset, scale)


def check(q, k, v, g, **options):
    found, expected = both(q, k, v, g, **options), by_definition(q, k, v, g, **options)
    for one, other in zip(found[:5], expected[:5], strict=True):
        assert one.shape == other.shape
        # Of a sum that cancels, what each term rounds is left: some sqrt(terms) of it.
        terms = 0.1 * max(q.shape[-2], k.shape[-2]) ** 0.5
        bound = TOLERANCE[q.dtype.type] * max(1, terms, abs(other).max(initial=0))
        assert_allclose(one, other, rtol=0, atol=bound)


TILE = tile_shape(4)
EDGES = [1, 2, TILE.MR - 1, TILE.MR + 1, TILE.NR - 1, TILE.NR, TILE.NR + 1, 3 * TILE.MR + 5]


OFFSETS = [None, 0, 6]


def problems_of(check, *values):
    """The combinations of values that a check finds wrong, each with what it says."""
    found = []
    for row in itertools.product(*values):
        try:
            check(*row)
        except AssertionError as error:
            found.append((*row, str(error)))
    return found


@pytest.mark.parametrize("queries", EDGES)
def test_edges_of_strips_and_panels(queries, rng):
    def check_edge(keys, offset):
        check(*operands(rng, (2, 2), queries, keys, 5, 3), offset=offset)

    problems = problems_of(check_edge, EDGES, OFFSETS)
    assert not problems


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [None, 0, 6])
@pytest.mark.parametrize(
    "shape", [(300, 700), (700, 300), (513, 513), (1, 1500), (1200, 1)], ids=str
)
def test_many_blocks_of_queries_and_keys(shape, offset, dtype, rng):
    check(*operands(rng, (1, 2), *shape, 8, 8, dtype), offset=offset)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d_v", [1, 16, 33, 64])
@pytest.mark.parametrize("d", [1, 31, 32, 70])
def test_sizes_of_vectors(d, d_v, dtype, rng):
    check(*operands(rng, (2,), 40, 50, d, d_v, dtype), offset=0, scale=0.1)


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
@pytest.mark.parametrize("offset", [None, 0, 6])
def test_every_scale(scale, offset, rng):
    check(*operands(rng, (3,), 20, 60, 4, 4), scale=scale, offset=offset)


def test_the_greatest_score_may_come_in_any_block(rng):
    # Each later block of keys has greater scores, then each earlier one: sums are shrunk, or not.
    q, k, v, g = operands(rng, (), 30, 2000, 4, 4, np.float64)
    q[..., 0] = 1
    for slope in (np.linspace(0, 30, 2000), np.linspace(30, 0, 2000)):
        k[:, 0] = slope
        check(q, k, v, g, scale=1.0)


MASKS = {  # of (2, 3, 20, 45)
    "all": lambda rng: rng.random((2, 3, 20, 45)) < 0.5,
    "queries and keys": lambda rng: rng.random((20, 45)) < 0.5,
    "keys": lambda rng: rng.random((2, 1, 1, 45)) < 0.5,
    "one row": lambda rng: rng.random(45) < 0.5,
    "queries": lambda rng: rng.random((3, 20, 1)) < 0.5,
    "nothing": lambda rng: np.zeros((20, 45), bool),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [None, 0, 6])
@pytest.mark.parametrize("which", MASKS)
def test_masks(which, offset, dtype, rng):
    arrays, mask = operands(rng, (2, 3), 20, 45, 6, 5, dtype), MASKS[which](rng)
    if mask.shape[-2:] == (20, 45):
        mask[..., 7:9, :] = False  # queries that may attend to nothing
    added = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype)
    check(*arrays, allowed=mask, offset=offset)
    check(*arrays, added=added, offset=offset)
    out, _, *gradients = both(*arrays, added=added, offset=offset)
    free = np.broadcast_to(mask, (2, 3, 20, 45)) & np.tri(
        20, 45, 45 if offset is None else offset, dtype=bool
    )
    nothing = ~free.any(-1)
    assert (out[nothing] == 0).all()
    assert (gradients[0][nothing] == 0).all()


@pytest.mark.parametrize("offset", [None, 0, 6])
@pytest.mark.parametrize("shape", [(20, 45), (130, 300)], ids=str)
def test_the_gradient_of_a_mask_of_floats(shape, offset, rng):
    arrays = operands(rng, (2, 2), *shape, 6, 5, np.float64)
    options = {"added": rng.standard_normal(shape), "offset": offset}
    found = both(*arrays, **options, needs_input_grad=(False, False, False, True))
    assert found[2:5] == [None] * 3
    assert_allclose(found[5], by_definition(*arrays, **options)[5], atol=1e-13)


@pytest.mark.parametrize("dtype", FLOATS)
def test_heads_as_views_of_one_array_and_other_layouts(dtype, rng):
    """(batch, length, heads, d) with heads second, reversed, transposed and repeated."""
    q, k, v, g = operands(rng, (2, 3), 20, 45, 6, 6, dtype)
    right = both(q, k, v, g)
    layouts = [
        lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        lambda x: np.asfortranarray(x),
        lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
        lambda x: np.repeat(x, 2, -1)[..., ::2],
    ]
    for layout in layouts:
        for found, expected in zip(both(*map(layout, (q, k, v, g))), right, strict=True):
            if expected is not None:
                assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * 10)
    split = layouts[0](q)
    out, *_ = attention.attention(split, k, v, None, None, None, 1.0)
    assert out.swapaxes(1, 2).flags.c_contiguous  # so that joining the heads copies nothing
    one = [np.broadcast_to(x[:1, :1], x.shape) for x in (q, k, v, g)]
    check(*one)


def test_leading_axes_broadcast(rng):
    q, _, _, _ = operands(rng, (2, 1), 7, 9, 4, 3)
    _, k, v, _ = operands(rng, (3,), 7, 9, 4, 3)
    check(q, k, v, rng.standard_normal((2, 3, 7, 3)).astype(np.float32))


GROUPS = [(6, 2, 2), (6, 3, 6), (4, 1, 1), (3, 3, 1), (9, 3, 3)]  # heads of query, key and value


SEVERAL_SIZES = [
    [(1, 45), (20, 45), (70, 33)],
    pytest.param([(300, 300)], marks=pytest.mark.full),
]


@pytest.mark.parametrize("several_sizes", SEVERAL_SIZES, ids=["small", "large"])
@pytest.mark.parametrize("heads", GROUPS, ids=str)
def test_groups_of_heads_share_keys_and_values(heads, several_sizes, rng):
    def check_group(sizes, offset, dtype):
        q, k, v, g = operands(rng, (2, heads[0]), *sizes, 8, 5, dtype)
        k, v = k[:, : heads[1]], v[:, : heads[2]]
        check(q, k, v, g, offset=offset)

    problems = problems_of(check_group, several_sizes, OFFSETS, FLOATS)
    assert not problems


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("which", ["all", "keys", "heads", "queries"])
def test_masks_of_groups(which, queries, rng):
    q, k, v, g = operands(rng, (2, 6), queries, 40, 8, 5)
    shape = {"all": (2, 6, queries, 40), "keys": (2, 1, 1, 40), "heads": (6, 1, 40)}
    mask = rng.random(shape.get(which, (queries, 40))) < 0.6
    added = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(np.float32)
    for options in ({"allowed": mask}, {"added": added}, {"added": added, "offset": 4}):
        check(q, k[:, ::3], v[:, ::3], g, **options)


def test_the_queries_of_a_group_have_the_same_bits_alone_and_beside_others(rng):
    q, k, v, _ = operands(rng, (2, 6), 2, 200, 40, 40)
    k, v = k[:, ::3], v[:, ::3]
    two, _ = attention.attention(q, k, v, None, None, 150, 1.0)
    one, _ = attention.attention(q[:, :, 1:], k, v, None, None, 151, 1.0)
    assert_array_equal(one, two[:, :, 1:])


@pytest.mark.parametrize("axes", range(6))
def test_any_leading_axes(axes, rng):
    lead = (2, 1, 3, 2, 4)[5 - axes :]
    q, k, v, g = operands(rng, lead, 7, 9, 4, 3, np.float64)
    check(q, k, v, g, offset=1)
    masks = [rng.random((*lead, 7, 9)) < 0.7, rng.random((*lead[:1], *[1] * axes, 9)) < 0.7]
    for mask in masks:
        check(q, k, v, g, allowed=mask)
    if axes > 1:
        k, v = k[..., ::2, :, :], v[0]
        check(*(x.swapaxes(-3, -2).copy().swapaxes(-3, -2) for x in (q, k[..., :1, :, :], v)), g)


def surrounded(x, by=np.nan):
    """The array amid others of a number, so that a read beyond it spoils the result."""
    room = np.full([n + 6 for n in x.shape], by, x.dtype)
    inside = room[(slice(3, -3),) * x.ndim]
    inside[...] = x
    return inside


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", [(5, 7, 3, 2), (33, 31, 17, 40), (15, 65, 32, 16)], ids=str)
def test_nothing_around_the_operands_matters(sizes, dtype, rng):
    arrays = operands(rng, (2, 2), *sizes, dtype)
    mask = rng.random(sizes[:2]) < 0.6
    added = rng.standard_normal(sizes[:2]).astype(dtype)
    plain = both(*arrays, allowed=mask, added=added, offset=0)
    amid = [surrounded(x) for x in arrays]
    spoilt = both(*amid, allowed=surrounded(mask, True), added=surrounded(added), offset=0)
    for found, expected in zip(spoilt, plain, strict=True):
        if expected is not None:
            assert_allclose(found, expected, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_numbers_that_are_none_go_where_they_would(which, bad, rng):
    q, k, v, g = operands(rng, (), 40, 40, 4, 4, np.float64)
    place = ["query", "key", "value"].index(which)
    (q, k, v)[place][20, 1] = bad
    with np.errstate(all="ignore"):
        found = both(q, k, v, g, offset=0)
        expected = composed(q, k, v, offset=0).data
    before = found[0][:20]
    if which != "value":
        assert_array_equal(np.isnan(found[0]), np.isnan(expected))
        assert np.isfinite(before).all()
    else:
        assert not np.isfinite(found[0][20:, 1]).any()


def test_scores_that_are_all_minus_infinity_are_not_taken_for_a_mask():
    q, k, v = np.full((2, 1), -np.inf), np.ones((3, 1)), np.ones((3, 1))
    with np.errstate(invalid="ignore"):
        assert np.isnan(both(q, k, v, v[:2])[0]).all()
        allowed = np.array([[True] * 3, [False] * 3])
        assert_array_equal(np.isnan(both(q, k, v, v[:2], allowed=allowed)[0]), [[True], [False]])


@pytest.mark.skipif(not JIT_ENABLED, reason="numpy computes exp, also where it is subnormal")
def test_a_weight_is_0_rather_than_subnormal():
    q, k = np.ones((1, 20, 1), np.float32), np.float32([0, -87, -88, -100]).reshape(1, 4, 1)
    for key, is_normal in ((1, True), (2, False), (3, False)):
        v = np.zeros((1, 4, 1), np.float32)
        v[0, key] = 3e37
        out, _ = attention.attention(q, k, v, None, None, None, 1.0)
        assert_array_equal(out > 0, np.full(out.shape, is_normal))


def test_the_gradients_that_are_not_needed_are_none(rng):
    arrays = operands(rng, (2,), 9, 8, 4, 4)
    every = both(*arrays)[2:]
    for n in range(3):
        needs_input_grad = tuple(n == i for i in range(4))
        for i, (one, other) in enumerate(
            zip(both(*arrays, needs_input_grad=needs_input_grad)[2:], every, strict=True)
        ):
            assert (one is None) == (i != n)
            if i == n:
                assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(3, 4, 90, 110), (1, 1, 700, 400)], ids=str)
def test_bits_do_not_depend_on_threads(shape, same_on_threads, rng):
    q, k, v, g = operands(rng, shape[:2], *shape[2:], 20, 12)
    same_on_threads(lambda: both(q, k, v, g, offset=0)[:5])
    same_on_threads(lambda: both(q, k[:, :1], v[:, :1], g, offset=3)[:5])
    same_on_threads(lambda: both(q[:, :, :1], k[:, :1], v[:, :1], g[:, :, :1])[:5])


@pytest.mark.parametrize(
    "options", [{}, {"offset": 0}, {"offset": 3}, {"added": True}, {"allowed": True}]
)
def test_the_composition_is_the_same_function(options, rng):
    q, k, v, g = operands(rng, (2, 6), 19, 23, 5, 4, np.float64)
    k, v = k[:, ::2], v[:, ::3]
    added = rng.standard_normal((19, 23)) if "added" in options else None
    allowed = rng.random((19, 23)) < 0.5 if "allowed" in options else None
    offset = options.get("offset")
    out, _, *expected = by_definition(q, k, v, g, allowed, added, offset)
    leaves = [minigrad.Tensor(x, requires_grad=True) for x in (q, k, v)]
    found = composed(*leaves, allowed, added, offset)
    assert_allclose(found.data, out, atol=1e-13)
    for one, other in zip(minigrad.grad(found, leaves, g), expected[:3], strict=True):
        assert_allclose(one.data, other, atol=1e-13)


def test_float32_is_as_exact_as_with_all_weights_in_memory(rng):
    arrays = operands(rng, (2, 2), 400, 400, 32, 32)
    exact = by_definition(*arrays, offset=0)
    q, k, v, g = (minigrad.Tensor(x, requires_grad=True) for x in arrays)
    out = composed(q, k, v, offset=0)
    out.backward(g.data)
    plain = [out.data, q.grad.data, k.grad.data, v.grad.data]
    found = both(*arrays, offset=0)
    for one, other, right in zip(
        [found[0], *found[2:5]], plain, [exact[0], *exact[2:5]], strict=True
    ):
        ours, theirs = (np.sqrt(np.mean((x - right) ** 2)) for x in (one, other))
        assert ours < 1.35 * theirs  # of dq and dk the scale is taken last


def test_neither_scores_nor_weights_are_kept(rng):
    q, k, v = (minigrad.Tensor(rng.standard_normal((50, 3)), requires_grad=True) for _ in range(3))
    out = minigrad.scaled_dot_product_attention(q, k, v, is_causal=True)
    saved = [x for edge in out.node.edges for x in edge[3:] if isinstance(x, np.ndarray)]
    assert max(x.size for x in saved) == 150


@pytest.mark.parametrize("step", [1, 7])
def test_queries_after_cached_keys_are_those_of_the_whole_sequence(step, rng):
    q, k, v, _ = operands(rng, (2, 6), 60, 60, 16, 16)
    k, v = k[:, ::3], v[:, ::3]
    whole = minigrad.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    for start in range(0, 60, step):
        end = min(60, start + step)
        part = minigrad.scaled_dot_product_attention(
            q[:, :, start:end],
            k[:, :, :end],
            v[:, :, :end],
            is_causal=True,
            enable_gqa=True,
            causal_offset=start,
        )
        assert_allclose(part, whole[:, :, start:end], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axes", range(1, 5))
def test_gradients_of_groups_are_those_with_repeated_keys(axes, dtype, rng):
    lead = (2, 1, 3, 6)[4 - axes :]
    q, k, v, g = operands(rng, lead, 9, 12, 4, 3, dtype)
    few = [q, k[..., ::2, :, :], v[..., ::3, :, :]]
    results = []
    for enable_gqa in (True, False):
        leaves = [minigrad.Tensor(x, requires_grad=True) for x in few]
        query, key, value = leaves
        if not enable_gqa:
            key, value = (minigrad.repeat(x, 6 // x.shape[-3], -3) for x in (key, value))
        out = minigrad.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=enable_gqa, causal_offset=2
        )
        first = minigrad.grad(out, leaves, g, create_graph=True)
        second = minigrad.grad(sum((x * x).sum() for x in first), leaves)
        results.append([out, *first, *second])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        bound = 10 * TOLERANCE[dtype] * max(1, abs(expected.data).max())
        assert_allclose(found.data, expected.data, rtol=0, atol=bound)


def test_neither_keys_nor_masks_are_repeated_in_memory(rng):
    """The memory of a call is that of its result and of panels: repeated keys are 8 times k."""
    q = rng.standard_normal((2, 3, 8, 1, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 3, 1, 4096, 16)).astype(np.float32)
    mask = rng.random((2, 1, 1, 1, 4096)) < 0.5
    tracemalloc.start()
    minigrad.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * k.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mask", [None, "bool"])
def test_a_nan_before_the_other_keys_stays(rng, dtype, mask):
    q, k, v = (rng.standard_normal((n, 8)).astype(dtype) for n in (2, 300, 300))
    allowed = None
    k[:256] = np.nan
    if mask is not None:
        allowed = np.zeros((2, 300), np.bool_)
        allowed[:, 255:] = True
        k[:255] = 0
    out = minigrad.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    assert np.isnan(out).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_key_that_a_float_mask_excludes_counts_for_nothing(rng, dtype):
    q, k, v = (rng.standard_normal((n, 8)).astype(dtype) for n in (2, 300, 300))
    allowed = np.ones((2, 300), np.bool_)
    allowed[:, 255] = False
    expected = minigrad.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    k[255] = np.nan
    added = np.where(allowed, 0, -np.inf).astype(dtype)
    found = minigrad.scaled_dot_product_attention(q, k, v, attn_mask=added)
    assert_allclose(found, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("queries", [1, 20])
def test_huge_scores_choose_one_key(dtype, queries, rng):
    """The rounding of a score is far more than 1 there, and is the same wherever it is used."""
    keys, chosen = 30, 17
    k = -np.abs(rng.standard_normal((keys, 1))).astype(dtype) - 1
    k[chosen] = np.abs(k[chosen]) * 0.7
    v = rng.standard_normal((keys, 3)).astype(dtype)
    g = rng.standard_normal((queries, 3)).astype(dtype)
    for size in (1e6, 1e8, 1e12, 1e17, 1e25, 1e36):
        q = (size * rng.uniform(1, 2, (queries, 1))).astype(dtype)
        inputs = [minigrad.Tensor(x, requires_grad=True) for x in (q, k, v)]
        out = minigrad.scaled_dot_product_attention(*inputs, scale=0.3)
        assert_array_equal(out.data, np.broadcast_to(v[chosen], (queries, 3)))
        dq, _, dv = (x.data for x in minigrad.grad(out, inputs, g))
        expected = np.zeros((keys, 3))
        expected[chosen] = g.sum(0)
        assert_allclose(dv, expected, rtol=1e-4, atol=1e-6)
        assert not dq.any()
