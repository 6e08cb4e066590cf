"""Adding elements in: the compiled path of large `scatter_add`s against `np.add.at`."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, kernels
from minigrad.ops.shape import COMPILED_FROM


def added(values, index, shape):
    out = np.zeros(shape, values.dtype)
    np.add.at(out, index, values)
    return out


INDICES = {
    "rows": ((50, 40), lambda rng: rng.integers(0, 50, 200)),
    "rows from the end": ((50, 40), lambda rng: rng.integers(-50, 50, 200)),
    "a list of rows": ((50, 40), lambda rng: rng.integers(0, 50, 200).tolist()),
    "2-d rows": ((50, 40), lambda rng: rng.integers(0, 50, (10, 20))),
    "rows of matrices": ((50, 5, 8), lambda rng: rng.integers(0, 50, 200)),
    "pairs": ((90, 70), lambda rng: tuple(rng.integers(0, 70, (2, 5000)))),
    "pairs, broadcast": ((90, 70), lambda rng: (np.arange(90)[:, None], rng.integers(0, 70, 60))),
    "pairs of 8 and 64 bits": (
        (90, 70),
        lambda rng: (rng.integers(0, 70, 5000).astype(np.uint8), rng.integers(-70, 70, 5000)),
    ),
    "a number and rows": ((3, 50, 40), lambda rng: (-1, rng.integers(0, 50, 200))),
    "a slice and columns": ((90, 70), lambda rng: (slice(None), rng.integers(0, 70, 60))),
    "a mask": ((90, 70), lambda rng: rng.random((90, 70)) < 0.9),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("name", INDICES)
def test_large_sums_at_places_are_those_of_numpy(name, dtype, rng):
    shape, make = INDICES[name]
    index = make(rng)
    values = (8 * rng.standard_normal(np.empty(shape)[index].shape)).astype(dtype)
    assert values.size >= COMPILED_FROM
    found = minigrad.scatter_add(values, index, shape)
    assert found.dtype == dtype
    if dtype == np.float16:  # summed in float32
        right = added(values.astype(np.float32), index, shape)
        assert_allclose(found, right, rtol=1e-3, atol=1e-3)  # float16 rounds to 5e-4
    else:
        assert_allclose(found, added(values, index, shape), rtol=1e-5, atol=1e-5)  # float32, 6e-8


def test_one_value_is_spread_over_all_positions():
    index = np.arange(6000) % 7
    found = minigrad.scatter_add(np.ones((6000, 1)), index, (7, 4))
    assert_array_equal(found[:, 0], np.bincount(index))
    assert (found == found[:, :1]).all()


@pytest.mark.parametrize("place", [7, -8])
def test_a_place_out_of_bounds_is_refused_before_anything_is_written(place):
    index = np.full(6000, 3)
    index[17] = place
    with pytest.raises(IndexError, match=r"indices run from .* out of bounds for axis 0"):
        minigrad.scatter_add(np.ones(6000), index, (7,))


def test_the_kernel_checks_its_rows():
    table = np.zeros((3, 2))
    for rows in ([0, 3], [-1, 0]):
        with pytest.raises(IndexError, match="rows run from"):
            kernels.elementwise.add_rows(table, np.array(rows), np.ones((2, 2)))
    assert not table.any()


def test_rows_of_strided_arrays(rng):
    table = np.zeros((9, 30))[:, ::3]
    rows = rng.integers(0, 9, 50)
    values = rng.standard_normal((10, 50)).T
    kernels.elementwise.add_rows(table, rows, values)
    assert_allclose(table, added(values, rows, table.shape), rtol=1e-12)


def test_gradient_of_an_embedding_adds_up_what_is_repeated(rng):
    weight = minigrad.randn(11, 32, requires_grad=True)
    places = rng.integers(0, 11, 300)
    cotangent = rng.standard_normal((300, 32)).astype(np.float32)
    found = minigrad.grad(minigrad.embedding(places, weight), weight, cotangent)
    one_hot = np.equal.outer(np.arange(11), places).astype(np.float64)
    assert_allclose(found.data, one_hot @ cotangent, rtol=1e-4, atol=1e-5)  # float32 rounds to 6e-8


@pytest.mark.parametrize("axis", [0, 1])
def test_the_last_value_at_a_place_remains_however_indices_lie_in_memory(axis, rng):
    x, src = np.zeros((40, 50)), rng.standard_normal((40, 50))
    indices = rng.integers(0, 3, (40, 50))
    expected = x.copy()
    for place in np.ndindex(*indices.shape):
        target = list(place)
        target[axis] = indices[place]
        expected[tuple(target)] = src[place]
    for arranged in (indices, np.asfortranarray(indices), indices[::-1].copy()[::-1]):
        assert_array_equal(minigrad.scatter(x, axis, arranged, src), expected)


@pytest.mark.parametrize("number", [300, -1])
def test_scatter_refuses_a_number_that_does_not_fit(number):
    x = minigrad.tensor(np.uint8([1, 200]))
    with pytest.raises(ValueError, match=f"scatter: {number} does not fit into uint8"):
        minigrad.scatter(x, 0, [0], number)
    for values in (np.array([number]), Tensor(np.array([number, 0]))):
        with pytest.raises(ValueError, match=f"scatter: {number} does not fit into uint8"):
            minigrad.scatter(x, 0, [0], values)
    assert minigrad.scatter(x, 0, [0], [7, number]).tolist() == [7, 200]  # only 7 is written
    assert minigrad.scatter(x, 0, [0], 7).tolist() == [7, 200]
