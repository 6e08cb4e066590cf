"""Softmax and the losses on loops of our own: digits, ends of the range, threads, refused input."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad.functional.losses import label_cross_entropy, squared_error
from minigrad.kernels import losses, reduction
from minigrad.kernels.jit import JIT_ENABLED
from tests.minigrad.kernels.oracle import in_numpy

ROUNDING = {np.float32: 2e-6, np.float64: 1e-13}  # of sums of some hundred numbers near 1
SHAPES = [(1,), (7,), (64, 10), (3, 1), (2, 3, 33), (5, 2048), (4, 2049), (1, 100_000)]


def both(name, *arrays):
    """What the loop makes of arrays, and the reference of the same in float64."""
    wide = [x.astype(np.float64) for x in arrays]
    return getattr(reduction, name)(*arrays), getattr(reduction, name).reference(*wide)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_and_its_logarithm(shape, dtype, rng):
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    g = rng.standard_normal(shape).astype(dtype)
    for name in ("softmax", "log_softmax"):
        found, exact = both(name, x)
        assert found.shape == shape
        assert found.dtype == dtype
        assert found.flags.owndata
        assert_allclose(found, exact, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * exact.min() ** 2)
        found, exact = both(f"{name}_gradient", g, found)
        assert_allclose(found, exact, rtol=0, atol=20 * ROUNDING[dtype] * np.abs(exact).max())


def test_numbers_far_apart_and_far_out():
    far = [[0, -100, 3e38], [1e5, 1e5 + 1, -1e5], [-87, 0, -88.5], [-1000, -1, -500], [-9, -9, -9]]
    x = np.array(far, np.float32)
    for name in ("softmax", "log_softmax"):
        found, exact = both(name, x)
        assert_allclose(found, exact, rtol=1e-6, atol=1.2e-38)  # below, results are 0


def test_a_long_row_adds_up():
    """In float32 alone the last of millions would hardly count."""
    x = np.full((1, 3_000_001), 0.3, np.float32)
    x[0, 0] = 1.0
    found, exact = both("softmax", x)
    rtol = 2e-6 if JIT_ENABLED else 5e-6  # float32 rounds to 6e-8; numpy before 2.3 adds up to 4e-6
    assert_allclose(found, exact, rtol=rtol)
    ones = np.ones_like(x)
    expected = x.size * float(np.float32(0.7)) ** 2
    assert_allclose(losses.squared_error(ones, ones - np.float32(0.7)), expected, rtol=rtol / 2)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_rows_that_are_no_ordinary_numbers(name):
    nan, inf = np.nan, np.inf
    rows = [[0, -inf, 1], [-inf] * 3, [inf, 0, 1], [nan, 0, 1], [0, -nan, 1], [inf, inf, -inf]]
    x = np.array([[v for v in row for _ in range(17)] for row in rows], np.float32)
    with np.errstate(all="ignore"):
        found, exact = both(name, x)
    assert_array_equal(np.isnan(found).all(1), [False, *[True] * 5])
    assert_allclose(found, exact, rtol=2e-6)  # float32 rounds to 6e-8


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_any_layout(name, rng):
    x = rng.standard_normal((6, 5, 8)).astype(np.float32)
    x.flags.writeable = False
    for given in (x.T, x[::-1, ::2, ::-1], x[:, :0], x[..., :0, :], np.broadcast_to(x[0], x.shape)):
        found, exact = both(name, given)
        assert found.shape == given.shape
        assert_allclose(found, exact, rtol=2e-6)  # float32 rounds to 6e-8


def labelled(rng, n, classes, dtype=np.float32):
    logits = (3 * rng.standard_normal((n, classes))).astype(dtype)
    labels = rng.integers(0, classes, n)
    labels[::5] = -100
    class_weights = rng.uniform(0.5, 2, classes).astype(dtype)
    weights, total = losses.label_weights(labels, classes, -100, class_weights, logits.dtype)
    return logits, labels, weights, total


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 3, 10, 3000])
def test_cross_entropy_is_that_of_the_reference_and_of_its_composition(
    classes, dtype, smoothing, rng
):
    logits, labels, weights, total = labelled(rng, 21, classes, dtype)
    assert_allclose(total, weights.sum(), rtol=ROUNDING[dtype])
    assert_array_equal(weights == 0, labels == -100)
    g = rng.standard_normal(21).astype(dtype)
    found, sums = losses.cross_entropy(logits, labels, weights, smoothing)
    wide, wide_weights, wide_g = (v.astype(np.float64) for v in (logits, weights, g))
    exact, wide_sums = in_numpy(losses.cross_entropy)(wide, labels, wide_weights, smoothing)
    assert found.dtype == dtype
    assert_allclose(found, exact, rtol=0, atol=20 * ROUNDING[dtype])
    composition = label_cross_entropy.composition
    assert_allclose(
        exact, composition(wide, labels, wide_weights, smoothing, None), rtol=1e-12, atol=1e-14
    )
    found = losses.cross_entropy_gradient(g, logits, labels, weights, smoothing, sums)
    exact = in_numpy(losses.cross_entropy_gradient)(
        wide_g, wide, labels, wide_weights, smoothing, wide_sums
    )
    assert found.dtype == dtype
    assert_allclose(found, exact, rtol=0, atol=20 * ROUNDING[dtype])
    x = minigrad.tensor(wide, requires_grad=True)
    composition(x, labels, wide_weights, smoothing, None).backward(wide_g)
    assert_allclose(exact, x.grad.data, rtol=1e-12, atol=1e-14)


def test_labels_are_weighed_and_none_is_used_that_is_not_there():
    labels = np.array([0, 2, 3, -1, -100, 1, 2**40, -(2**63)])
    class_weights = np.float32([0.5, 0, 2])
    for given, expected in (
        (class_weights, [0.5, 2, np.nan, np.nan, 0, 0, np.nan, np.nan]),
        (None, [1, 1, np.nan, np.nan, 0, 1, np.nan, np.nan]),
    ):
        weights, total = losses.label_weights(labels, 3, -100, given, np.dtype(np.float32))
        assert_array_equal(weights, np.float32(expected))
        assert np.isnan(total)
        weights, total = losses.label_weights(labels[:2], 3, 0, given, np.dtype(np.float32))
        assert_array_equal(weights, np.float32([0, expected[1]]))
        assert total == expected[1]


def test_where_the_weight_is_0_nothing_is_read_and_nothing_comes_back():
    logits = np.array([[np.nan, 0], [0, -np.inf], [0, 1]], np.float32)
    labels, weights = np.array([-100, 1, 0]), np.float32([0, 0, 2])
    for loss, gradient in (
        (losses.cross_entropy, losses.cross_entropy_gradient),
        (in_numpy(losses.cross_entropy), in_numpy(losses.cross_entropy_gradient)),
    ):
        found, sums = loss(logits, labels, weights, 0.0)
        expected = 2 * np.log1p(np.e)
        assert_allclose(found, [0, 0, expected], rtol=1e-6)  # float32 rounds to 6e-8
        found = gradient(np.ones(3, np.float32), logits, labels, weights, 0.0, sums)
        assert_array_equal(found[:2], 0)
        share = 2 / (1 + np.exp(-1))
        assert_allclose(found[2], [-share, share], rtol=1e-6)  # float32 rounds to 6e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (64, 10), (2048,), (2049,), (300, 401)])
def test_squared_error(shape, dtype, rng):
    x, y = rng.standard_normal((2, *shape)).astype(dtype)
    x, y = np.asarray(x), np.asarray(y)
    exact = np.sum(np.square(x.astype(np.float64) - y))
    assert_allclose(losses.squared_error(x, y), exact, rtol=ROUNDING[dtype])
    assert_allclose(losses.squared_error(x.T, y.T), exact, rtol=ROUNDING[dtype])
    found = losses.scaled_difference(x, y, 0.3)
    assert found.dtype == dtype
    assert found.shape == shape
    assert_allclose(found, losses.scaled_difference.reference(x, y, 0.3), rtol=2e-7, atol=1e-15)


@pytest.mark.skipif(not JIT_ENABLED, reason="the references have no threads")
def test_bits_do_not_depend_on_threads(same_on_threads, rng):
    logits, labels, weights, _ = labelled(rng, 700, 1003)
    g, other = rng.standard_normal((2, 700, 1003)).astype(np.float32)
    _, sums = losses.cross_entropy(logits, labels, weights, 0.1)

    def results():
        yield reduction.softmax(logits)
        yield reduction.log_softmax(logits)
        yield reduction.softmax_gradient(g, other)
        yield reduction.log_softmax_gradient(g, -np.abs(other))
        yield from losses.cross_entropy(logits, labels, weights, 0.1)
        yield losses.cross_entropy_gradient(g[:, 0], logits, labels, weights, 0.1, sums)
        yield losses.squared_error(np.tile(g, (3, 1)), np.tile(other, (3, 1)))

    same_on_threads(results)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer_dtype(dtype, rng):
    logits = rng.standard_normal((4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1], dtype)
    expected = minigrad.cross_entropy(logits.astype(np.float64), labels.astype(np.int64))
    assert_allclose(minigrad.cross_entropy(logits, labels), expected, rtol=1e-6)  # float32: 6e-8


def test_second_derivatives_of_the_fused_losses_go_through_the_composition(rng):
    logits, labels, weights, _ = labelled(rng, 4, 3, np.float64)
    p, t = rng.standard_normal((2, 4, 3))
    for function, operands in (
        (lambda x: label_cross_entropy(x, labels, weights, 0.1, 3.0), [logits]),
        (lambda x: label_cross_entropy(x, labels, weights, 0.1, None), [logits]),
        (lambda x, y: squared_error(x, y, 5.0), [p, t]),
    ):
        minigrad.assert_gradients(function, *operands)
        inputs = [minigrad.tensor(x, requires_grad=True) for x in operands]
        out = function(*inputs).sum()
        recorded = minigrad.grad(out, inputs, create_graph=True)
        for one, other in zip(recorded, minigrad.grad(out, inputs), strict=True):
            assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-15)
