"""Sums, cumulative sums, logsumexp and softmax along rows, each in one pass over memory.

Elements are added up in float32 over a stretch of a row, and the sums of stretches in float64. So
the rounding error of a sum does not grow with its length.

A row is short enough to stay in the level-1 cache. So for a softmax it comes from memory once and
is read three times: for the largest element, for the sum of exponentials, and for the result. With
h the largest element of a row and z = sum(e^(x - h)):

    softmax = e^(x - h) / z         dx = out (g - sum(g out))
    log_softmax = x - h - log z     dx = g - e^out sum(g)

The result of a row with a nan or inf, or of a row with only -inf, is nan in every element, as in
numpy. float32 has loops, and numpy computes float64. `sum_rows` and `logsumexp` return None if
there is no loop for an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.kernels import vector_math
from minigrad.kernels.fused import CURVE, LINE, rows_of, rowwise
from minigrad.kernels.jit import SINGLE, Array, Read, Written, jit
from minigrad.kernels.launch import for_each_dtype, kernel_for, span
from minigrad.kernels.vector import greatest_of

SECONDS = 4e-10  # approximate seconds of an element of a softmax
STRETCH = 2048  # elements that are added up in float32; their sums are added up in float64

# LLVM may split a sum into as many sums as a vector has lanes. It adds these up at the end, in an
# order that depends only on the length of the row. A loop with a sum never writes to an array: LLVM
# would make two versions of it, with and without vectors, and choose by the distance of the arrays.
# Then the last digit of the sum would depend on their addresses.


def sum_of(term: Callable[[Any, Any, int], Any]) -> tuple[Any, Any]:
    """Return functions that add up `term(x, y, j)` over a stretch, and over a row of any length.

    x is element j, and y what the caller passes for all elements: a number, or in the sum of a
    stretch another row. Elements are added up in float32, and the sums of stretches in float64.
    """
    f = jit(inline="always")(term)

    @jit(fastmath={"contract", "reassoc"})
    def sum_of_stretch(row: Any, y: Any) -> Any:
        total = np.float32(0)
        for j in range(row.size):
            total += f(row[j], y, j)
        return total

    @jit(inline="always")
    def sum_of_row(row: Any, y: Any) -> Any:
        total = 0.0
        for start in range(0, row.size, STRETCH):
            total += sum_of_stretch(row[start : start + STRETCH], y)
        return total

    return sum_of_stretch, sum_of_row


sum_of_stretch, sum_of_row = sum_of(lambda x, _y, _j: x)
_, _sum_of_exponentials = sum_of(lambda x, highest, _: vector_math.exp_below(x - highest))
_sum_of_products, _ = sum_of(lambda x, row, j: x * row[j])


@jit(inline="always")
def greatest_and_log(row: Any) -> tuple[Any, Any]:
    """Return the largest element h of a row, and log(sum(e^(x - h)))."""
    highest = greatest_of(row)
    return highest, vector_math.log(np.float32(_sum_of_exponentials(row, highest)))


def sum_rows(x: Array) -> Array | None:
    """Compute the sum of each row of a contiguous matrix, in its dtype."""
    kernel = kernel_for(_sum_rows_loop, x)
    if kernel is None:
        return None
    sums = np.empty((len(x), -(-x.shape[1] // STRETCH)))
    kernel(x.size * LINE, x, sums)
    return (sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)).astype(x.dtype)


@for_each_dtype(SINGLE)
def _sum_rows_loop(
    piece: int, pieces: int, x: Read.D2, sums: Annotated[Written.D2, types.float64]
) -> None:
    stretches = sums.shape[1]
    for i in span(piece, pieces, sums.size):
        row, number = i // stretches, i % stretches
        start = number * STRETCH
        sums[row, number] = sum_of_stretch(x[row, start : start + STRETCH], 0)


def logsumexp(x: Array) -> Array | None:
    """Compute log(sum(e^x)) along the last axis; None if not finite: inf and nan take more code."""
    kernel = kernel_for(_logsumexp_loop, x)
    if kernel is None:
        return None
    rows = rows_of(x)
    out = np.empty(len(rows), x.dtype)
    kernel(x.size * CURVE, rows, out)
    return out.reshape(x.shape[:-1]) if np.isfinite(out).all() else None


@for_each_dtype(SINGLE)
def _logsumexp_loop(piece: int, pieces: int, x: Read.D2, out: Written.D1) -> None:
    for i in span(piece, pieces, len(x)):
        highest, log = greatest_and_log(x[i])
        out[i] = highest + log


@rowwise(10 * LINE, reference=lambda x: np.cumsum(x, -1, np.float64).astype(x.dtype))
def cumsum(row: Any, result: Any) -> None:
    """Compute the cumulative sums along the last axis, in float64, and round them at the end."""
    total = 0.0
    for j in range(row.size):
        total += row[j]
        result[j] = total


def _softmax(x: Array, axis: Any = -1) -> Any:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    e /= np.sum(e, axis=axis, keepdims=True)
    return e


@rowwise(SECONDS, reference=_softmax)
def softmax(row: Any, result: Any) -> None:
    """Compute e^x / sum(e^x) along the last axis; the reference takes any axes."""
    highest = greatest_of(row)
    total = 0.0
    for start in range(0, row.size, STRETCH):
        xs, outs = row[start : start + STRETCH], result[start : start + STRETCH]
        for j in range(xs.size):
            outs[j] = vector_math.exp_below(xs[j] - highest)
        total += sum_of_stretch(outs, 0)
    factor = np.float32(1.0 / total)
    for j in range(row.size):
        result[j] *= factor


@rowwise(SECONDS, reference=lambda g, out: out * (g - np.sum(g * out, -1, keepdims=True)))
def softmax_gradient(flow: Any, row: Any, result: Any) -> None:
    """Compute out (g - sum(g out)) along the last axis."""
    total = 0.0
    for start in range(0, row.size, STRETCH):
        stretch = slice(start, start + STRETCH)
        total += _sum_of_products(flow[stretch], row[stretch])
    mean = np.float32(total)
    for j in range(row.size):
        result[j] = row[j] * (flow[j] - mean)


def _log_softmax(x: Array, axis: Any = -1) -> Any:
    shifted = x - np.max(x, axis=axis, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return shifted


@rowwise(SECONDS, reference=_log_softmax)
def log_softmax(row: Any, result: Any) -> None:
    """Compute x - log(sum(e^x)) along the last axis; the reference takes any axes."""
    highest, log = greatest_and_log(row)
    for j in range(row.size):
        result[j] = (row[j] - highest) - log


@rowwise(SECONDS, reference=lambda g, out: g - np.exp(out) * np.sum(g, -1, keepdims=True))
def log_softmax_gradient(flow: Any, row: Any, result: Any) -> None:
    """Compute g - e^out sum(g) along the last axis."""
    total = np.float32(sum_of_row(flow, 0))
    for j in range(row.size):
        result[j] = flow[j] - vector_math.exp_below(row[j]) * total
