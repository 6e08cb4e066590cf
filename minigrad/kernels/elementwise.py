"""`where`, dropout, and adding rows to a table, each in one pass over memory."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.fused import LINE
from minigrad.kernels.jit import Array, Read, Strided, Written
from minigrad.kernels.launch import for_each_dtype, kernel_for, part

SECONDS = 2e-10  # approximate seconds of an element of dropout

Booleans = Annotated[Read.D1, types.boolean]
Words = Annotated[Read.D1, types.uint16]
Rows = Annotated[Strided.D1, types.int64]
Threshold = Annotated[Any, types.uint32]


def where(condition: Array, x: Any, y: Any) -> Array:
    """Compute the same as `np.where`, ten times as fast for a mask without a pattern."""
    arrays = [v for v in (x, y) if isinstance(v, np.ndarray)]
    kernel = None
    if arrays and condition.dtype == np.bool_ and {v.shape for v in arrays} == {condition.shape}:
        kernel = kernel_for(_where_loop, *arrays)
    if kernel is None or not {x.__class__, y.__class__} <= {float, np.ndarray}:
        return np.asarray(np.where(condition, x, y))
    out = np.empty(condition.shape, arrays[0].dtype)
    rows = (np.asarray(v, out.dtype).ravel() for v in (x, y))
    kernel(out.size * LINE, condition.ravel(), *rows, out.ravel())
    return out


@for_each_dtype()
def _where_loop(
    piece: int, pieces: int, condition: Booleans, x: Read.D1, y: Read.D1, out: Written.D1
) -> None:
    """Choose from two arrays, or from an array and a number, which is then an array of size 1."""
    chosen, outs = part(piece, pieces, condition), part(piece, pieces, out)
    xs, ys, x0, y0 = part(piece, pieces, x), part(piece, pieces, y), x[0], y[0]
    for i in range(chosen.size):
        one, other = xs[i] if x.size > 1 else x0, ys[i] if y.size > 1 else y0
        outs[i] = one if chosen[i] else other


def drop(x: Array, words: NDArray[np.uint16], threshold: int, scale: float) -> Array:
    """Return x times `scale` where the random word is at least `threshold`, or else x times 0.

    There is a word for each element, in row-major order; the threshold is from 0 to 2^16.
    """
    kernel = kernel_for(_drop_loop, x)
    if kernel is not None:
        out = np.empty(x.shape, x.dtype)
        kernel(out.size * SECONDS, x.ravel(), words, threshold, scale, out.ravel())
        return out
    factors = np.where(words >= threshold, scale, 0.0).astype(x.dtype)
    return np.asarray(x * factors.reshape(x.shape))


@for_each_dtype()
def _drop_loop(
    piece: int, pieces: int, x: Read.D1, words: Words, threshold: Threshold, scale: float,
    out: Written.D1,
) -> None:  # fmt: skip
    factor, zero = x.dtype.type(scale), x.dtype.type(0)
    xs, outs = part(piece, pieces, x), part(piece, pieces, out)
    drawn = part(piece, pieces, words)
    for i in range(xs.size):
        outs[i] = xs[i] * (factor if drawn[i] >= threshold else zero)


def add_rows(
    table: NDArray[np.floating[Any]], rows: NDArray[np.integer[Any]], values: NDArray[Any]
) -> None:
    """Compute table[rows[i]] += values[i] for each i, in this order; `(n, d)`, `(m,)`, `(m, d)`.

    `np.add.at` is the reference. It uses a general iterator, and takes about a hundred times as
    long for the gradient of an embedding (2048 rows of 128 numbers: 1.6 ms against 16 us).

    Raises:
        IndexError: if an index is negative or not below n.
    """
    if rows.size and not (rows.min() >= 0 and rows.max() < len(table)):
        raise IndexError(f"rows run from {rows.min()} to {rows.max()}, of {len(table)}")
    kernel = _add_rows_loop.get(table.dtype)
    if kernel and values.dtype == table.dtype and values.shape == (rows.size, table.shape[1]):
        kernel.alone(table, rows.astype(np.int64, copy=False), values)
    else:
        np.add.at(table, rows, values)


@for_each_dtype(threads=False)
def _add_rows_loop(
    _piece: int, _pieces: int, table: Written.Anywhere2, rows: Rows, values: Strided.D2
) -> None:
    for i in range(rows.size):
        row = rows[i]
        for j in range(table.shape[1]):
            table[row, j] += values[i, j]
