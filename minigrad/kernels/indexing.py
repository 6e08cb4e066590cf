"""Adding rows to a table, several of them to the same row.

`np.add.at` is the reference. It uses a general iterator, and takes about a hundred times as long
for the gradient of an embedding (2048 rows of 128 numbers: 1.6 ms against 16 us).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.kernel import NUMBERS


def add_rows(
    table: NDArray[np.floating[Any]], rows: NDArray[np.integer[Any]], values: NDArray[Any]
) -> None:
    """Compute table[rows[i]] += values[i] for each i, in this order; `(n, d)`, `(m,)`, `(m, d)`.

    Raises:
        IndexError: if there is no such row; negative ones do not count from the end.
    """
    if rows.size and not (rows.min() >= 0 and rows.max() < len(table)):
        raise IndexError(f"rows run from {rows.min()} to {rows.max()}, of {len(table)}")
    served = table.dtype == values.dtype and table.dtype in NUMBERS
    if JIT_ENABLED and served and values.shape == (rows.size, table.shape[1]):
        _add_rows(table, rows.astype(np.int64, copy=False), values)
    else:
        np.add.at(table, rows, values)


@jit()
def _add_rows(table: Any, rows: Any, values: Any) -> None:
    for i in range(rows.size):
        row = rows[i]
        for j in range(table.shape[1]):
            table[row, j] += values[i, j]
