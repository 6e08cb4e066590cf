"""Attention on loops of our own: edges of strips and panels, masks, layouts, bounds, threads."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import functional
from minigrad.kernels import attention
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import JIT_ENABLED
from tests.minigrad.kernels.oracle import in_numpy

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}  # relative to the largest number of a result
QKV = (True, True, True, False)


def operands(rng, lead, queries, keys, d, d_v, dtype=np.float32):
    """Query, key, value and a gradient of the result."""
    sizes = (queries, d), (keys, d), (keys, d_v), (queries, d_v)
    return [rng.standard_normal((*lead, *size)).astype(dtype) for size in sizes]


def both(q, k, v, g, allowed=None, added=None, causal=False, scale=0.4, needs_input_grad=QKV):
    """The result, lse and the gradients of the loops."""
    out, lse = attention.attention(q, k, v, allowed, added, causal, scale)
    gradients = attention.attention_gradients(
        g, q, k, v, allowed, added, causal, scale, out, lse, needs_input_grad
    )
    return [out, lse, *gradients]


def by_definition(q, k, v, g, allowed=None, added=None, causal=False, scale=0.4):
    """The same with all weights written out, in float64, and no function of the library."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    scores = scale * q @ k.swapaxes(-1, -2)
    if added is not None:
        scores = scores + added
    free = (
        np.ones(scores.shape, bool) if allowed is None else np.zeros(scores.shape, bool) | allowed
    )
    if causal:
        free &= np.tri(*scores.shape[-2:], dtype=bool)
    e = np.where(free, np.exp(scores), 0.0)
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    out = p @ v
    ds = p * (g @ v.swapaxes(-1, -2) - (g * out).sum(-1, keepdims=True))
    lse = np.log(np.where(total == 0, 1, total))[..., 0]
    back = ds.swapaxes(-1, -2)
    return [out, lse, scale * ds @ k, scale * back @ q, p.swapaxes(-1, -2) @ g, ds]


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", EDGES)
@pytest.mark.parametrize("queries", EDGES)
def test_edges_of_strips_and_panels(queries, keys, causal, rng):
    check(*operands(rng, (2, 2), queries, keys, 5, 3), causal=causal)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape", [(300, 700), (700, 300), (513, 513), (1, 1500), (1200, 1)], ids=str
)
def test_many_blocks_of_queries_and_keys(shape, causal, dtype, rng):
    check(*operands(rng, (1, 2), *shape, 8, 8, dtype), causal=causal)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("d_v", [1, 16, 33, 64])
@pytest.mark.parametrize("d", [1, 31, 32, 70])
def test_sizes_of_vectors(d, d_v, dtype, rng):
    check(*operands(rng, (2,), 40, 50, d, d_v, dtype), causal=True, scale=0.1)


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
@pytest.mark.parametrize("causal", [False, True])
def test_every_scale(scale, causal, rng):
    check(*operands(rng, (3,), 20, 60, 4, 4), scale=scale, causal=causal)


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
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", MASKS)
def test_masks(which, causal, dtype, rng):
    arrays, mask = operands(rng, (2, 3), 20, 45, 6, 5, dtype), MASKS[which](rng)
    if mask.shape[-2:] == (20, 45):
        mask[..., 7:9, :] = False  # queries that may attend to nothing
    added = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype)
    check(*arrays, allowed=mask, causal=causal)
    check(*arrays, added=added, causal=causal)
    out, _, *gradients = both(*arrays, added=added, causal=causal)
    free = np.broadcast_to(mask, (2, 3, 20, 45))
    nothing = ~(free & np.tri(20, 45, dtype=bool) if causal else free).any(-1)
    assert (out[nothing] == 0).all()
    assert (gradients[0][nothing] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(20, 45), (130, 300)], ids=str)
def test_the_gradient_of_a_mask_of_floats(shape, causal, rng):
    arrays = operands(rng, (2, 2), *shape, 6, 5, np.float64)
    options = {"added": rng.standard_normal(shape), "causal": causal}
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
    out, *_ = attention.attention(split, k, v, None, None, False, 1.0)
    assert out.swapaxes(1, 2).flags.c_contiguous  # so that joining the heads copies nothing
    one = [np.broadcast_to(x[:1, :1], x.shape) for x in (q, k, v, g)]
    check(*one)


def test_leading_axes_broadcast(rng):
    q, _, _, _ = operands(rng, (2, 1), 7, 9, 4, 3)
    _, k, v, _ = operands(rng, (3,), 7, 9, 4, 3)
    check(q, k, v, rng.standard_normal((2, 3, 7, 3)).astype(np.float32))


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
    plain = both(*arrays, allowed=mask, added=added, causal=True)
    amid = [surrounded(x) for x in arrays]
    spoilt = both(*amid, allowed=surrounded(mask, True), added=surrounded(added), causal=True)
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
        found = both(q, k, v, g, causal=True)
        expected, _ = in_numpy(attention.attention)(q, k, v, None, None, True, 0.4)
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


@pytest.mark.skipif(not JIT_ENABLED, reason="the reference has no threads")
@pytest.mark.parametrize("shape", [(3, 4, 90, 110), (1, 1, 700, 400)], ids=str)
def test_bits_do_not_depend_on_threads(shape, same_on_threads, rng):
    arrays = operands(rng, shape[:2], *shape[2:], 20, 12)
    same_on_threads(lambda: both(*arrays, causal=True)[:5])


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"added": True}, {"allowed": True}])
def test_the_references_are_the_same_functions(options, rng):
    q, k, v, g = (x[:, None] for x in operands(rng, (2,), 19, 23, 5, 4, np.float64))
    added = rng.standard_normal((19, 23)) if "added" in options else None
    allowed = rng.random((19, 23)) < 0.5 if "allowed" in options else None
    causal = "causal" in options
    expected = by_definition(q, k, v, g, allowed, added, causal)
    out, lse = in_numpy(attention.attention)(q, k, v, allowed, added, causal, 0.4)
    found = in_numpy(attention.attention_gradients)(
        g, q, k, v, allowed, added, causal, 0.4, out, lse, [True] * 4
    )
    for one, other in zip((out, lse, *found), expected, strict=True):
        assert_allclose(one, other, atol=1e-13)


def test_float32_is_as_exact_as_with_all_weights_in_memory(rng):
    arrays = operands(rng, (2, 2), 400, 400, 32, 32)
    exact = by_definition(*arrays, causal=True)
    q, k, v, g = (minigrad.Tensor(x, requires_grad=True) for x in arrays)
    composed = functional.neural.fused_attention.composition(q, k, v, None, None, True, 0.4)
    composed.backward(g.data)
    plain = [composed.data, q.grad.data, k.grad.data, v.grad.data]
    found = both(*arrays, causal=True)
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
