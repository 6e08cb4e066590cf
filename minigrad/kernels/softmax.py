"""Softmax along rows, each in one pass over memory.

A row is short enough to stay in the level-1 cache. So it comes from memory once and is read three
times: for the largest element, for the sum of exponentials, and for the result. With h the largest
element of a row and z = sum(e^(x - h)):

    softmax = e^(x - h) / z         dx = out (g - sum(g out))
    log_softmax = x - h - log z     dx = g - e^out sum(g)

float32 has loops; numpy computes float64. The result of a row with a nan or inf, or of a row with
only -inf, is nan in every element, as in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels import vector_math
from minigrad.kernels.fused import rowwise
from minigrad.kernels.jit import Array, jit
from minigrad.kernels.reduction import (
    STRETCH,
    sum_of,
    sum_of_exponentials,
    sum_of_row,
    sum_of_stretch,
)
from minigrad.kernels.vector import greatest_of

SECONDS = 4e-10  # approximate seconds of an element


@jit(fastmath={"contract"})
def _exponentials(row: Any, highest: Any, out: Any) -> None:
    """Write e^(x - highest) to `out`."""
    for j in range(row.size):
        out[j] = vector_math.exp_below(row[j] - highest)


_sum_of_products, _ = sum_of(lambda x, row, j: x * row[j])


def _softmax(x: Array, axis: Any = -1) -> Array:
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    e /= np.sum(e, axis=axis, keepdims=True)
    return np.asarray(e)


@rowwise(SECONDS, reference=_softmax)
def softmax(row: Any, result: Any) -> None:
    """Compute e^x / sum(e^x) along the last axis; the reference takes any axes."""
    highest = greatest_of(row)
    total = 0.0
    for start in range(0, row.size, STRETCH):
        stretch = slice(start, start + STRETCH)
        _exponentials(row[stretch], highest, result[stretch])
        total += sum_of_stretch(result[stretch], 0)
    factor = np.float32(1.0 / total)
    for j in range(row.size):
        result[j] *= factor


def _softmax_gradient(g: Array, out: Array) -> Array:
    return np.asarray(out * (g - np.sum(g * out, axis=-1, keepdims=True)))


@rowwise(SECONDS, reference=_softmax_gradient)
def softmax_gradient(flow: Any, row: Any, result: Any) -> None:
    """Compute out (g - sum(g out)) along the last axis."""
    total = 0.0
    for start in range(0, row.size, STRETCH):
        stretch = slice(start, start + STRETCH)
        total += _sum_of_products(flow[stretch], row[stretch])
    mean = np.float32(total)
    for j in range(row.size):
        result[j] = row[j] * (flow[j] - mean)


def _log_softmax(x: Array, axis: Any = -1) -> Array:
    shifted = x - np.max(x, axis=axis, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return np.asarray(shifted)


@rowwise(SECONDS, reference=_log_softmax)
def log_softmax(row: Any, result: Any) -> None:
    """Compute x - log(sum(e^x)) along the last axis; the reference takes any axes."""
    highest = greatest_of(row)
    log = vector_math.log(np.float32(sum_of_exponentials(row, highest)))
    for j in range(row.size):
        result[j] = (row[j] - highest) - log


def _log_softmax_gradient(g: Array, out: Array) -> Array:
    return np.asarray(g - np.exp(out) * np.sum(g, axis=-1, keepdims=True))


@rowwise(SECONDS, reference=_log_softmax_gradient)
def log_softmax_gradient(flow: Any, row: Any, result: Any) -> None:
    """Compute g - e^out sum(g) along the last axis."""
    total = np.float32(sum_of_row(flow, 0))
    for j in range(row.size):
        result[j] = flow[j] - vector_math.exp_below(row[j]) * total
