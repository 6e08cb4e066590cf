"""Norms of channels on loops of our own, beside numpy in float64: digits, shapes, layouts."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minigrad.kernels import channel_norm
from tests.minigrad.kernels.oracle import in_numpy

ROUNDING = {np.float32: 4e-6, np.float64: 1e-13}
# Channels of one element, of short rows, which are joined, of long ones, and of several stretches.
SHAPES = [(4, 6), (3, 6, 15), (3, 6, 16), (2, 6, 5, 7), (1, 6, 1100)]


def norm_and_gradients(x, g, weight, bias, num_groups, fixed=None, called=lambda f: f):
    moments = called(channel_norm.moments)(x, num_groups) if fixed is None else fixed
    out = called(channel_norm.norm)(x, moments, weight, bias, 1e-3, num_groups)
    gradients = called(channel_norm.norm_gradients)(
        g, x, moments, weight, 1e-3, num_groups, fixed is not None, (True, True, True)
    )
    return [moments, out, *gradients]


def operands(rng, shape, dtype, offset=0.0):
    x, g = rng.normal(offset, 1, shape), rng.standard_normal(shape)
    return [v.astype(dtype) for v in (x, g, rng.standard_normal(6), rng.standard_normal(6))]


def check(arrays, num_groups, fixed=None):
    tolerance = ROUNDING[arrays[0].dtype.type]
    found = norm_and_gradients(*arrays, num_groups, fixed)
    wide = [None if array is None else array.astype(np.float64) for array in arrays]
    expected = norm_and_gradients(*wide, num_groups, fixed, in_numpy)
    for one, right in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == arrays[0].dtype
        scale = max(1, abs(right).max())
        assert_allclose(one, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("num_groups", [None, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape, num_groups, dtype, rng):
    x, g, weight, bias = operands(rng, shape, dtype)
    check((x, g, weight, bias), num_groups)
    check((x, g, None, None), num_groups)
    if num_groups is None:
        check((x, g, weight, bias), None, fixed=rng.uniform(0.5, 2, (2, 1, 6)))


@pytest.mark.parametrize("fixed", [None, np.ones((2, 1, 6))])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_own_their_memory(shape, fixed, rng):
    _, *found = norm_and_gradients(*operands(rng, shape, np.float32)[:3], None, None, fixed)
    assert all(array.flags.owndata for array in found)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True)])
@pytest.mark.parametrize("is_fixed", [True, False])
def test_gradients_that_are_not_needed_change_no_others(is_fixed, needed, rng):
    x, g, weight, _ = operands(rng, (3, 6, 20), np.float32)
    arguments = g, x, channel_norm.moments(x, None), weight, 1e-3, None, is_fixed
    every = channel_norm.norm_gradients(*arguments, (True, True, True))
    some = channel_norm.norm_gradients(*arguments, needed)
    for is_needed, one, right in zip(needed, some, every, strict=True):
        if is_needed:
            assert_array_equal(one, right)
    if not needed[0] or is_fixed:
        assert any(one is None for one in some)


@pytest.mark.parametrize("num_groups", [None, 2])
@pytest.mark.parametrize("offset", [3, 1e3, 1e5])
def test_digits_do_not_go_with_the_mean(offset, num_groups, rng):
    check(operands(rng, (3, 6, 200), np.float32, offset), num_groups)


def test_moments_are_those_of_numpy(rng):
    x = rng.normal(1e3, 1, (3, 6, 40))
    for num_groups, groups, axes in ((None, x, (0, 2)), (2, x.reshape(3, 2, 120), 2)):
        mean, variance = channel_norm.moments(x, num_groups)
        assert_allclose(mean.ravel(), groups.mean(axes).ravel(), rtol=1e-14)
        assert_allclose(variance.ravel(), groups.var(axes).ravel(), rtol=1e-9)


def test_a_constant_channel_has_no_variance():
    x = np.full((2, 6, 20), 1 / 3, np.float32)
    assert_array_equal(channel_norm.moments(x, None)[1], np.zeros((1, 6)))


@pytest.mark.parametrize("num_groups", [None, 2])
def test_nan_stays_in_its_channel_or_group(num_groups, rng):
    x, g, weight, bias = operands(rng, (2, 6, 20), np.float32)
    x[1, 4, 3] = np.nan
    _, out, *_ = norm_and_gradients(x, g, weight, bias, num_groups)
    expected = np.zeros(x.shape, bool)
    expected[(slice(None), 4) if num_groups is None else (1, slice(3, 6))] = True
    assert_array_equal(np.isnan(out), expected)


def test_arrays_may_lie_anywhere_in_memory(rng):
    x, g, weight, bias = operands(rng, (20, 6, 4), np.float32)
    strided = (x.T, g.T, weight, bias)
    copied = (x.T.copy(), g.T.copy(), weight, bias)
    for one, other in zip(
        norm_and_gradients(*strided, None), norm_and_gradients(*copied, None), strict=True
    ):
        assert_array_equal(one, other)
