"""Loops over windows of planes, beside numpy; and what no bit of them may depend on."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from minigrad.kernels import pooling
from tests.minigrad.kernels.oracle import in_numpy

FLOATS = [np.float32, np.float64]
ROWS = np.array([[0, 2, 1], [1, 5, 2], [6, 7, 3]])  # start, end, and step or divisor
COLUMNS = np.array([[0, 19, 3], [2, 3, 1], [5, 30, 2], [29, 31, 1]])
PLANES = [(0,), (1,), (3, 40), ()]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("leading", PLANES, ids=str)
def test_largest_elements_are_those_of_numpy(leading, dtype, rng):
    x = rng.integers(0, 9, (*leading, 7, 31)).astype(dtype)  # with many ties
    x[rng.random(x.shape) < 0.05] = np.nan
    x[rng.random(x.shape) < 0.05] = -np.inf
    found = pooling.largest(x, ROWS, COLUMNS)
    assert found.shape == (*leading, 3, 4)
    assert_array_equal(found, in_numpy(pooling.largest)(x, ROWS, COLUMNS))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("leading", PLANES, ids=str)
def test_means_and_their_transpose_are_those_of_numpy(leading, dtype, rng):
    x = rng.standard_normal((*leading, 7, 31)).astype(dtype)
    g = rng.standard_normal((*leading, 3, 4)).astype(dtype)
    tolerance = {"rtol": 0, "atol": 4e-6 if dtype == np.float32 else 1e-14}
    for function, arguments in (
        (pooling.means, (x, ROWS, COLUMNS)),
        (pooling.spread, (g, ROWS, COLUMNS, x.shape)),
    ):
        found, expected = function(*arguments), in_numpy(function)(*arguments)
        assert found.dtype == dtype
        assert_allclose(found, expected, **tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_windows(bad):
    x = np.zeros((1, 7, 31), np.float32)
    x[0, 1, 2] = bad
    touched = np.zeros((1, 3, 4), bool)
    touched[0, :2, :2] = True
    assert_array_equal(~np.isfinite(pooling.means(x, ROWS, COLUMNS)), touched)


def test_planes_may_lie_anywhere_in_memory(rng):
    x = rng.standard_normal((31, 7, 4)).astype(np.float32).T[::-2]
    for function in (pooling.largest, pooling.means):
        assert_array_equal(function(x, ROWS, COLUMNS), function(x.copy(), ROWS, COLUMNS))
