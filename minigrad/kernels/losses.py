"""Losses: cross entropy row by row, and the sum of squared errors, without intermediate arrays.

With h the largest element of a row and z = sum(e^(x - h)), the cross entropy of class y and its
gradient are

    log z - (x[y] - h)      dx = g (e^(x - h - log z) - [y])

float32 has loops; float64 is left to the references in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from minigrad.kernels import vector_math
from minigrad.kernels.fused import LINE, elementwise, rows_of
from minigrad.kernels.jit import JIT_ENABLED, SINGLE, Array, jit, read, written
from minigrad.kernels.launch import Kernel, span
from minigrad.kernels.softmax import SECONDS, STRETCH, highest_of, sum_of_exponentials


def _served(*arrays: Array) -> bool:
    """Return whether the loops take these arrays."""
    if not JIT_ENABLED:
        return False
    for x in arrays:  # all() takes longer
        if x.dtype != SINGLE or not x.ndim:
            return False
    return bool(arrays[0].size)


# --------------------------------------------------------------------------------------------------
# Cross entropy
# --------------------------------------------------------------------------------------------------


def label_weights(
    labels: Array, classes: int, ignored: int, class_weights: Array | None, dtype: np.dtype[Any]
) -> tuple[Array, float]:
    """Return the weight of each label, and the sum of the weights.

    It is the weight of its class, or 1; 0 if the label is `ignored`; nan if there is no such class.
    """
    if not JIT_ENABLED or labels.dtype != np.int64 or dtype != SINGLE:
        return label_weights_reference(labels, classes, ignored, class_weights, dtype)
    weights, total = np.empty(labels.size, SINGLE), np.empty(1)
    known = _NO_WEIGHTS if class_weights is None else class_weights
    _LABEL_WEIGHTS(0.0, labels.ravel(), classes, ignored, known, weights, total)
    return weights, total.item()


def cross_entropy(
    logits: Array, labels: Array, weights: Array, smoothing: float
) -> tuple[Array, Array]:
    """Compute the loss of each row, and its h and log z, which the gradient needs.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)`, each in range where its weight is not 0.
        weights: `(n,)`; where one is 0 the loss is, whatever the logits are.
        smoothing: the part of the label's probability that is spread over all classes.

    Returns:
        `(n,)` and `(n, 2)`.
    """
    if not _served(logits) or labels.dtype != np.int64:
        return cross_entropy_reference(logits, labels, weights, smoothing)
    losses, sums = np.empty(len(logits), SINGLE), np.empty((len(logits), 2), SINGLE)
    _CROSS_ENTROPY(
        logits.size * SECONDS, rows_of(logits), labels.ravel(), weights, smoothing, losses, sums
    )
    return losses, sums


def cross_entropy_gradient(
    g: Array, logits: Array, labels: Array, weights: Array, smoothing: float, sums: Array
) -> Array:
    """Compute the gradient of `cross_entropy`, from g of shape `(n,)`."""
    if not _served(g, logits) or labels.dtype != np.int64:
        return cross_entropy_gradient_reference(g, logits, labels, weights, smoothing, sums)
    out = np.empty(logits.shape, SINGLE)
    operands = g.ravel(), rows_of(logits), labels.ravel(), weights, smoothing, sums
    _CROSS_ENTROPY_GRADIENT(logits.size * SECONDS, *operands, out)
    return out


def label_weights_reference(
    labels: Array, classes: int, ignored: int, class_weights: Array | None, dtype: np.dtype[Any]
) -> tuple[Array, float]:
    """Compute `label_weights` in numpy."""
    there = (labels >= 0) & (labels < classes)
    if class_weights is None:
        weights = np.ones(labels.shape, dtype)
    else:
        weights = class_weights.astype(dtype)[np.where(there, labels, 0)]
    weights = np.where(there, weights, np.nan)
    weights = np.where(labels == ignored, 0, weights).astype(dtype)
    return weights, float(weights.sum(dtype=np.float64))


def cross_entropy_reference(
    logits: Array, labels: Array, weights: Array, smoothing: float
) -> tuple[Array, Array]:
    """Compute `cross_entropy` in numpy."""
    top = np.max(logits, axis=1)
    shifted = logits - top[:, None]
    logs = np.log(np.sum(np.exp(shifted), axis=1))
    chosen = shifted[np.arange(len(labels)), np.where(weights != 0, labels, 0)]
    losses = logs - (1 - smoothing) * chosen
    if smoothing:
        losses -= smoothing * np.mean(shifted, axis=1)
    losses = np.where(weights != 0, losses * weights, 0).astype(logits.dtype)
    return losses, np.stack([top, logs], axis=1)


def cross_entropy_gradient_reference(
    g: Array, logits: Array, labels: Array, weights: Array, smoothing: float, sums: Array
) -> Array:
    """Compute `cross_entropy_gradient` in numpy."""
    out = np.exp((logits - sums[:, :1]) - sums[:, 1:])
    out -= smoothing / logits.shape[1]
    out[np.arange(len(labels)), np.where(weights != 0, labels, 0)] -= 1 - smoothing
    return np.where(weights[:, None] != 0, out * (g * weights)[:, None], 0).astype(logits.dtype)


_ONE = np.float32(1)


def _label_weights_loop(
    _piece: int, _pieces: int, labels: Any, classes: int, ignored: int, class_weights: Any,
    weights: Any, total: Any,
) -> None:  # fmt: skip
    sums = 0.0
    for i in range(labels.size):
        label = labels[i]
        weight: Any = _ONE
        if label == ignored:
            weight = np.float32(0)
        elif not 0 <= label < classes:
            weight = np.float32(np.nan)
        elif class_weights.size:
            weight = class_weights[label]
        weights[i] = weight
        sums += weight
    total[0] = sums


def _cross_entropy_loop(
    piece: int, pieces: int, logits: Any, labels: Any, weights: Any, smoothing: Any, losses: Any,
    sums: Any,
) -> None:  # fmt: skip
    for i in span(piece, pieces, len(logits)):
        row = logits[i]
        highest = highest_of(row)
        log = vector_math.log(sum_of_exponentials(row, highest))
        sums[i, 0], sums[i, 1] = highest, log
        losses[i] = 0
        if weights[i] != 0:  # where it is 0 an infinite loss does not count
            loss = log - (_ONE - smoothing) * (row[labels[i]] - highest)
            if smoothing:
                spread = 0.0
                for start in range(0, row.size, STRETCH):
                    spread += _sum_differences(row[start : start + STRETCH], highest)
                loss -= smoothing * np.float32(spread / row.size)
            losses[i] = weights[i] * loss


@jit(fastmath={"contract", "reassoc"})
def _sum_differences(row: Any, highest: Any) -> Any:
    total = np.float32(0)
    for j in range(row.size):
        total += row[j] - highest
    return total


def _cross_entropy_gradient_loop(
    piece: int, pieces: int, g: Any, logits: Any, labels: Any, weights: Any, smoothing: Any,
    sums: Any, dx: Any,
) -> None:  # fmt: skip
    for i in span(piece, pieces, len(logits)):
        row, result = logits[i], dx[i]
        if weights[i] == 0:
            result[:] = 0
        else:
            factor, highest, log = weights[i] * g[i], sums[i, 0], sums[i, 1]
            share = smoothing / np.float32(row.size)
            for j in range(row.size):
                result[j] = factor * (vector_math.exp_below((row[j] - highest) - log) - share)
            result[labels[i]] -= factor * (_ONE - smoothing)


_READ, _WRITTEN = read(types.float32, 2), written(types.float32, 2)
_READ_ROW, _WRITTEN_ROW = read(types.float32, 1), written(types.float32, 1)
_LABELS, _SUMS = read(types.int64, 1), written(types.float64, 1)
_NO_WEIGHTS = np.empty(0, SINGLE)

_LABEL_WEIGHTS = Kernel(
    _label_weights_loop,
    (_LABELS, types.intp, types.intp, _READ_ROW, _WRITTEN_ROW, _SUMS),
    threads=False,
)
_CROSS_ENTROPY = Kernel(
    _cross_entropy_loop, (_READ, _LABELS, _READ_ROW, types.float32, _WRITTEN_ROW, _WRITTEN)
)
_CROSS_ENTROPY_GRADIENT = Kernel(
    _cross_entropy_gradient_loop,
    (_READ_ROW, _READ, _LABELS, _READ_ROW, types.float32, _READ, _WRITTEN),
)

# --------------------------------------------------------------------------------------------------
# Squared error
# --------------------------------------------------------------------------------------------------


def squared_error(x: Array, y: Array) -> float:
    """Return the sum of (x - y)^2, of two arrays of one shape and dtype."""
    if not _served(x, y):
        return squared_error_reference(x, y)
    sums = np.empty(-(-x.size // STRETCH))
    _SQUARED_ERROR(x.size * LINE, x.ravel(), y.ravel(), sums)
    return sums.item() if sums.size == 1 else float(sums.sum())


def squared_error_reference(x: Array, y: Array) -> float:
    """Compute `squared_error` in numpy."""
    return float(np.sum(np.square(x - y)))


@jit(fastmath={"contract", "reassoc"})
def _sum_squares(x: Any, y: Any) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        difference = x[i] - y[i]
        total += difference * difference
    return total


def _squared_error_loop(piece: int, pieces: int, x: Any, y: Any, sums: Any) -> None:
    for i in span(piece, pieces, sums.size):
        stretch = slice(i * STRETCH, (i + 1) * STRETCH)
        sums[i] = _sum_squares(x[stretch], y[stretch])


_SQUARED_ERROR = Kernel(_squared_error_loop, (_READ_ROW, _READ_ROW, _SUMS))


@elementwise(
    LINE, reference=lambda x, y, factor: np.asarray((x - y) * factor), operands=2, double=True
)
def scaled_difference(x: Any, y: Any, factor: Any) -> Any:
    """Compute (x - y) factor, which is the gradient of `squared_error` by x if factor is 2 g."""
    return (x - y) * factor
