"""Sums over many rows keep their digits in float32, and float16 does not overflow on the way."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor
from minigrad.core.blocked_sum import sum_over

SHAPES = [
    ((5000, 3), 0),
    ((5000, 3), -2),
    ((50, 40, 3), (0, 1)),
    ((50, 40, 3), (1, 0)),
    ((3, 2049, 2), 1),
    ((2, 1023, 2), 1),
    ((2, 30, 40, 3), (1, 2)),
    ((2, 30, 40, 3), (1, 3)),
    ((5000, 3), 1),
    ((5000, 1), 0),
    ((5000, 3), (0, 1)),
    ((5000, 3), None),
    ((5000, 3), ()),
    ((1024, 0), 0),
    ((0, 1024), 0),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_value_shape_and_dtype_are_those_of_numpy(dtype, rng):
    for (shape, axis), keepdims in itertools.product(SHAPES, (False, True)):
        x = rng.integers(-3, 4, shape).astype(dtype)
        found = sum_over(x, axis, keepdims)
        expected = np.sum(x, axis=axis, keepdims=keepdims)
        row = f"{shape=} {axis=} {keepdims=}"
        assert found.dtype == expected.dtype, row
        assert_array_equal(found, expected, err_msg=row)


MANY = 10**6  # rows of 0.1; one after the other they add up to 1 % too much


def test_a_million_rows_keep_their_digits():
    x = Tensor(np.full((MANY, 2), 0.1, np.float32), requires_grad=True)
    assert_allclose(minigrad.sum(x, 0).data, 0.1 * MANY, rtol=1e-5)  # float32 rounds to 6e-8
    assert_allclose(minigrad.mean(x, 0).data, 0.1, rtol=1e-5)
    assert_allclose(minigrad.std(x, 0).data, 0, atol=1e-5)


def test_the_gradient_of_a_bias_keeps_its_digits():
    bias = minigrad.zeros(2, requires_grad=True)
    x = np.zeros((MANY, 2), np.float32)
    (gradient,) = minigrad.grad(x + bias, [bias], np.full((MANY, 2), 0.1, np.float32))
    assert_allclose(gradient.data, 0.1 * MANY, rtol=1e-5)  # float32 rounds to 6e-8


# Arrays in which the elements of a row or a column do not lie next to one another.
ARRANGED = [
    lambda x: x.T.copy().T,
    lambda x: x[::2],
    lambda x: x[:, ::2],
    np.flip,
    lambda x: np.broadcast_to(x[:1], x.shape),
    lambda x: np.broadcast_to(x[:, :1], x.shape),
    lambda x: np.broadcast_to(x[0, 0], x.shape),
    lambda x: x[:, None].transpose(0, 2, 1),
    lambda x: x[:, None],
    lambda x: x.reshape(-1, 2, x.shape[1]),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("arrange", ARRANGED)
def test_memory_in_another_order(arrange, rng):
    x = arrange(rng.integers(-3, 4, (5000, 3)).astype(np.float32))
    rows = arrange(np.full((MANY, 3), 0.1, np.float32))
    count = len(rows)
    for axis in (0, (0, x.ndim - 1), None):
        for keepdims in (False, True):
            expected = np.sum(x, axis=axis, keepdims=keepdims)
            assert_array_equal(sum_over(x, axis, keepdims), expected)
        many = count if axis == 0 else rows.size if axis is None else count * rows.shape[-1]
        assert_allclose(sum_over(rows, axis), 0.1 * many, rtol=1e-5)  # float32 rounds to 6e-8
        turned = sum_over(rows.T, -1 if axis == 0 else axis)
        assert_allclose(turned, 0.1 * many, rtol=1e-5)


def test_a_gradient_that_is_the_same_everywhere_keeps_its_digits():
    x = np.zeros((MANY, 3), np.float32)
    for function in (
        lambda b: (minigrad.Tensor(x) + b).mean(),
        lambda b: minigrad.linear(Tensor(x[:, :1]), np.zeros((3, 1), np.float32), b).mean(),
        lambda b: minigrad.broadcast_to(b, x.shape).mean(),
        lambda b: minigrad.tile(b, (MANY, 1)).mean(),
    ):
        b = minigrad.zeros(3, requires_grad=True)
        assert_allclose(minigrad.grad(function(b), b).data, 1 / 3, rtol=1e-5)


def test_half_precision_is_added_up_in_single():
    x = Tensor(np.full((5000, 2), 0.1, np.float16))
    assert_allclose(minigrad.sum(x, 0).data, 500, rtol=1e-3)  # float16 rounds to 5e-4
    assert minigrad.sum(x, 0).dtype == np.float16
