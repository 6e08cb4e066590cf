"""Sums of rows, cumulative sums and logsumexp on loops of our own: digits, ends of the range."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad.core.blocked_sum import sum_over
from minigrad.kernels import losses, reduction
from minigrad.kernels.jit import JIT_ENABLED

SHAPES = [(1, 1), (64, 10), (3, 2048), (4, 2049), (1, 100_000), (5000, 3)]


@pytest.mark.skipif(not JIT_ENABLED, reason="there are no kernels without compilation")
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_add_up_as_in_float64(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    found, exact = reduction.sum_rows(x), x.sum(1, np.float64)
    assert found.dtype == np.float32
    # Each lane adds up at most 2048 / 4 numbers in float32, which rounds to 6e-8.
    assert_allclose(found, exact, rtol=0, atol=4e-6 * np.abs(x).sum(1, np.float64).max() ** 0.5)
    assert reduction.sum_rows(x.astype(np.float64)) is None
    assert reduction.sum_rows(x[:0]) is None


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (1, 2), (0, 2), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_over_any_axes_of_a_large_array(axis, keepdims, rng):
    x = rng.standard_normal((9, 33, 40)).astype(np.float32)
    given = x, x[:, ::-1], x.T, np.asfortranarray(x), np.broadcast_to(x[0], x.shape)
    for y in given:
        found = sum_over(y, axis, keepdims)
        exact = np.sum(y, axis, np.float64, keepdims=keepdims)
        assert np.shape(found) == exact.shape
        assert found.dtype == np.float32
        assert_allclose(found, exact, rtol=0, atol=2e-4)  # sums of up to 11,880 numbers near 1


def test_a_sum_of_millions_keeps_its_digits():
    x = np.full(3_000_001, 0.3, np.float32)
    # Equal numbers round in the same direction, and processors differ in the number of lanes. Added
    # up one by one, the numbers would give a sum that is wrong in its second digit.
    rtol = 1e-6 if JIT_ENABLED else 5e-6  # numpy before 2.3 adds up to 4e-6
    assert_allclose(minigrad.sum(x), x.size * float(x[0]), rtol=rtol)


def test_a_sum_with_numbers_that_are_not_finite():
    x = np.zeros((4, 5000), np.float32)
    x[0, 3], x[1, 4000], x[2, :2] = np.nan, -np.inf, [np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        assert_array_equal(minigrad.sum(x, 1), [np.nan, -np.inf, np.nan, 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [None, 0, -1, 1])
def test_cumulative_sums_are_those_of_float64_rounded_once(dtype, axis, rng):
    x = rng.standard_normal((5, 300)).astype(dtype)
    wide = np.float32 if dtype == np.float16 else np.float64
    for y in (x, x[:, ::-2], x.T, x[:, :0]):
        found = minigrad.cumsum(y, axis)
        assert found.dtype == dtype
        assert_array_equal(found, np.cumsum(y, axis, wide).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (64, 10), (2, 3, 33), (5, 2048), (4, 2049)])
def test_logsumexp_and_its_gradient(shape, dtype, rng):
    x = minigrad.tensor((3 * rng.standard_normal(shape)).astype(dtype), requires_grad=True)
    wide = x.data.astype(np.float64)
    exact = np.log(np.exp(wide).sum(-1))
    found = x.logsumexp(-1)
    assert found.dtype == dtype
    rtol = {np.float32: 1e-6, np.float64: 1e-14}[dtype]  # some units of the last digit
    assert_allclose(found.data, exact, rtol=rtol)
    g = rng.standard_normal(exact.shape).astype(dtype)
    found.backward(g)
    expected = g[..., None] * np.exp(wide - exact[..., None])
    assert x.grad.dtype == dtype
    assert_allclose(x.grad.data, expected, rtol=0, atol=10 * rtol)


def test_logsumexp_of_rows_that_are_not_all_finite():
    nan, inf = np.nan, np.inf
    rows = [[0, -inf, 1], [-inf] * 3, [inf, 0, 1], [nan, 0, 1], [nan, inf, 1], [1e30, -1e30, 0]]
    for dtype in (np.float32, np.float64):
        x = np.array([[v for v in row for _ in range(17)] for row in rows], dtype)
        with np.errstate(all="ignore"):
            found = minigrad.logsumexp(x, 1)
        expected = [1 + np.log(17 * (1 + np.exp(-1))), -inf, inf, nan, nan, 1e30]
        assert_allclose(found, expected, rtol=2e-6)  # float32 rounds to 6e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_loss_and_slope_keep_their_digits_far_out(dtype):
    x = np.concatenate([np.linspace(-80, 80, 4001), [0.0, -0.0, 300, -300]]).astype(dtype)
    rtol = {np.float32: 1e-6, np.float64: 1e-14}[dtype]  # some units of the last digit
    wide = x.astype(np.float64)
    above, below = np.logaddexp(0, wide), np.logaddexp(0, -wide)
    s = np.exp(-below), np.exp(-above)
    for t in (0.0, 1.0, 0.25):
        target = np.full_like(x, t)
        found = losses.logistic_loss(x, target)
        assert found.dtype == dtype
        assert_allclose(found, t * below + (1 - t) * above, rtol=rtol, atol=1e-37)
        expected, least = (1 - t) * s[0] - t * s[1], rtol * t * (1 - t)  # where it crosses 0
        assert_allclose(losses.logistic_slope(x, target), expected, rtol=rtol, atol=least + 1e-37)
