"""Tests of minigrad.kernels.pooling."""

import numpy as np
import pytest

from minigrad.kernels.pooling import largest


def position(window, places):
    """The position that counts in a window, read by rows: of the last nan, or the first maximum."""
    is_nan = np.isnan(window)
    if is_nan.any():
        return places[np.flatnonzero(is_nan)[-1]]
    return places[np.argmax(window)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share_of_nan", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("step", [1, 2])
def test_ties_and_nan(step, share_of_nan, dtype, rng):
    x = rng.integers(0, 3, (5, 13, 11)).astype(dtype)
    x[rng.random(x.shape) < share_of_nan] = np.nan
    rows = np.array([[top, min(top + 4, 13), step] for top in range(0, 13, 3)])
    columns = np.array([[left, min(left + 5, 11), step] for left in range(0, 11, 2)])
    found = largest(x, rows, columns)
    places = np.arange(x.size).reshape(x.shape)
    for plane, (i, row), (j, column) in (
        (p, r, c) for p in range(5) for r in enumerate(rows) for c in enumerate(columns)
    ):
        window = plane, slice(*row), slice(*column)
        assert found[plane, i, j] == position(x[window].ravel(), places[window].ravel())
