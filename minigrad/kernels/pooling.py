"""Pooling of planes: the position of the largest element in each window, and means of windows.

A window is a rectangle of rows and columns. So its rows and its columns are described separately.
For each axis there is an array with a row of integers for each window: start, end, and step or
divisor.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.kernels.jit import Array, Read, Written, jit
from minigrad.kernels.launch import Kernel, for_each_dtype, kernel_for, span
from minigrad.kernels.vector import prefer_full_vectors

SECONDS = 5e-10  # approximate seconds of an element of a window

Windows = Annotated[Read.D2, types.int64]


def largest(x: Array, rows: Array, columns: Array) -> Array:
    """Find the largest element of each window: the first of equal elements, or the last nan.

    x is `(..., H, W)`, and rows `(h, 3)` and columns `(w, 3)` have starts, ends and steps. No
    window is empty. The result is `(..., h, w)`: positions in x, seen as one long row.
    """
    planes = _planes(x)
    out = np.empty((len(planes), len(rows), len(columns)), np.int64)
    if not _run(_largest_loop, planes, rows, columns, out):
        height, width = x.shape[-2:]
        for i, (top, bottom, down) in enumerate(rows):
            for j, (left, right, across) in enumerate(columns):
                window = planes[:, top:bottom:down, left:right:across]
                length, count = window.shape[1:]
                window = window.reshape(len(planes), length * count)
                is_nan = window != window
                last = length * count - 1 - np.argmax(is_nan[:, ::-1], 1)
                at = np.where(is_nan.any(1), last, np.argmax(window, 1))
                out[:, i, j] = (top + at // count * down) * width + left + at % count * across
        out += np.arange(len(planes))[:, None, None] * (height * width)
    return out.reshape(*x.shape[:-2], *out.shape[1:])


def means(x: Array, rows: Array, columns: Array) -> Array:
    """Compute the sum of each window, divided by the divisors of its row and its column.

    x is `(..., H, W)`, rows `(h, 3)` and columns `(w, 3)` have starts, ends and divisors, and the
    result is `(..., h, w)`.
    """
    planes = _planes(x)
    out = np.empty((len(planes), len(rows), len(columns)), x.dtype)
    if not _run(_means_loop, planes, rows, columns, out):
        for i, (top, bottom, height) in enumerate(rows):
            for j, (left, right, width) in enumerate(columns):
                window = planes[:, top:bottom, left:right]
                out[:, i, j] = window.sum((1, 2)) / (height * width)
    return out.reshape(*x.shape[:-2], *out.shape[1:])


def spread(g: Array, rows: Array, columns: Array, shape: tuple[int, ...]) -> Array:
    """Add up the parts of g that go to each element of x, of this shape: the VJP of `means`."""
    planes, out = _planes(g), np.zeros(shape, g.dtype)
    outs = _planes(out)
    if not _run(_spread_loop, planes, rows, columns, outs):
        for i, (top, bottom, height) in enumerate(rows):
            for j, (left, right, width) in enumerate(columns):
                parts = planes[:, i, j] / (height * width)
                outs[:, top:bottom, left:right] += parts[:, None, None]
    return out


def _planes(x: Array) -> Array:
    """Return x as a contiguous stack of planes, without a copy if x is contiguous."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _run(
    kernels: dict[np.dtype[Any], Kernel], planes: Array, rows: Array, columns: Array, out: Array
) -> bool:
    """Run the kernel for the dtype of some planes; return False if there is none."""
    kernel = kernel_for(kernels, planes)
    if kernel is not None:
        in_windows = [(windows[:, 1] - windows[:, 0]).sum() for windows in (rows, columns)]
        kernel(len(planes) * math.prod(in_windows) * SECONDS, planes, rows, columns, out)
    return kernel is not None


# First the largest element in each column of the windows is found, with vectors along the rows;
# then the largest of these, and then its position. There is no branch that depends on a comparison
# of elements, because the processor would often mispredict it.


@for_each_dtype()
def _largest_loop(
    piece: int, pieces: int, x: Read.D3, rows: Windows, columns: Windows,
    out: Annotated[Written.D3, types.int64],
) -> None:  # fmt: skip
    height, width = x.shape[1], x.shape[2]
    best, row_of_best = np.empty(width, x.dtype), np.empty(width, np.int32)
    for plane in span(piece, pieces, len(x)):
        for i in range(len(rows)):
            _largest_of_columns(x[plane], rows[i, 0], rows[i, 1], rows[i, 2], best, row_of_best)
            for j in range(len(columns)):
                left, right, across = columns[j, 0], columns[j, 1], columns[j, 2]
                out[plane, i, j] = _position_of_largest(
                    best, row_of_best, left, right, across, plane * height, (plane + 1) * height
                )


@jit(inline="always")
def _largest_of_columns(
    x: Any, top: int, bottom: int, down: int, best: Any, row_of_best: Any
) -> None:
    """Find the largest element of each column in the rows of a window, and its row."""
    prefer_full_vectors()
    for k in range(best.size):
        best[k], row_of_best[k] = x[top, k], top
    at = top + down
    while at < bottom:  # `range` with an unknown step would also count down
        xs, row = x[at], np.int32(at)
        for k in range(best.size):
            is_larger = (xs[k] > best[k]) | (xs[k] != xs[k])
            best[k] = xs[k] if is_larger else best[k]
            row_of_best[k] = row if is_larger else row_of_best[k]
        at += down


@jit(inline="always")
def _position_of_largest(
    best: Any, row_of_best: Any, left: int, right: int, across: int, first_row: int, last_row: int
) -> int:
    """Return the position of the largest of some columns; rows are counted through all planes."""
    width = best.size
    largest = best[left]
    k = left + across
    while k < right:
        value = best[np.uint64(k)]  # unsigned: numba need not check for k < 0
        largest = value if (value > largest) | (value != value) else largest
        k += across
    beyond = last_row * width
    first, last_nan, k = beyond, 0, left
    while k < right:
        value = best[np.uint64(k)]
        here = (first_row + row_of_best[np.uint64(k)]) * width + k
        first = min(first, here if value == largest else beyond)
        last_nan = max(last_nan, here if value != value else 0)
        k += across
    return first if largest == largest else last_nan


# The rows of windows beside each other are added up first, as vectors, and then their columns.


@for_each_dtype()
def _means_loop(
    piece: int, pieces: int, x: Read.D3, rows: Windows, columns: Windows, out: Written.D3
) -> None:
    sums = np.empty(x.shape[2], x.dtype)
    for plane in span(piece, pieces, len(x)):
        for i in range(len(rows)):
            sums[:] = 0
            for row in range(rows[i, 0], rows[i, 1]):
                xs = x[plane, row]
                for column in range(xs.size):
                    sums[column] += xs[column]
            for j in range(len(columns)):
                total = x.dtype.type(0)
                for column in range(columns[j, 0], columns[j, 1]):
                    total += sums[column]
                out[plane, i, j] = total / (rows[i, 2] * columns[j, 2])


@for_each_dtype()
def _spread_loop(
    piece: int, pieces: int, g: Read.D3, rows: Windows, columns: Windows, out: Written.D3
) -> None:
    parts = np.empty(out.shape[2], g.dtype)
    for plane in span(piece, pieces, len(g)):
        for i in range(len(rows)):
            parts[:] = 0
            for j in range(len(columns)):
                part = g[plane, i, j] / (rows[i, 2] * columns[j, 2])
                for column in range(columns[j, 0], columns[j, 1]):
                    parts[column] += g.dtype.type(part)
            for row in range(rows[i, 0], rows[i, 1]):
                outs = out[plane, row]
                for column in range(outs.size):
                    outs[column] += parts[column]
