"""Losses: cross entropy row by row, and the sum of squared errors, without intermediate arrays.

With h the largest logit of a row and z = sum(e^(x - h)), the cross entropy of class y and its
gradient are

    log z - (x[y] - h)      dx = g (e^(x - h - log z) - [y])

float32 has loops; numpy computes float64.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.kernels import vector_math
from minigrad.kernels.fused import CURVE, LINE, elementwise, rows_of
from minigrad.kernels.jit import SINGLE, Array, Number, Read, Written, nothing
from minigrad.kernels.launch import for_each_dtype, kernel_for, span
from minigrad.kernels.reduction import SECONDS, STRETCH, greatest_and_log, sum_of

Labels = Annotated[Read.D1, types.int64]
Sums = Annotated[Written.D1, types.float64]


def label_weights(
    labels: Array, classes: int, ignored: int, class_weights: Array | None, dtype: np.dtype[Any]
) -> tuple[Array, float]:
    """Return the weight of each label, and the sum of the weights.

    A weight is that of the class, or 1; 0 if the label is `ignored`; nan if there is no such class.
    """
    kernel = _label_weights_loop.get(dtype)
    if kernel is not None and labels.dtype == np.int64:
        weights, total = np.empty(labels.shape, SINGLE), np.empty(1)
        known = nothing(SINGLE) if class_weights is None else class_weights.ravel()
        kernel.alone(labels.ravel(), classes, ignored, known, weights.ravel(), total)
        return weights, total.item()
    is_unknown = (labels < 0) | (labels >= classes)
    if class_weights is None:
        weights = np.ones(labels.shape, dtype)
    else:
        # For a single label, indexing returns a number.
        weights = np.asarray(class_weights.astype(dtype)[np.where(is_unknown, 0, labels)])
    weights[is_unknown] = np.nan
    weights[labels == ignored] = 0
    return weights, float(weights.sum(dtype=np.float64))


def cross_entropy(
    logits: Array, labels: Array, weights: Array, smoothing: float
) -> tuple[Array, Array]:
    """Compute the loss of each row, and the residuals h and log z.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)`, each in range where its weight is not 0.
        weights: `(n,)`; if a weight is 0, so is the loss of the row, whatever its logits are.
        smoothing: the part of the label's probability that is spread over all classes.

    Returns:
        `(n,)` and `(n, 2)`.
    """
    kernel = kernel_for(_cross_entropy_loop, logits)
    if kernel is not None and labels.dtype == np.int64:
        losses, sums = np.empty(len(logits), SINGLE), np.empty((len(logits), 2), SINGLE)
        operands = rows_of(logits), labels.ravel(), weights, smoothing
        kernel(logits.size * SECONDS, *operands, losses, sums)
        return losses, sums
    top = np.max(logits, axis=1)
    shifted = logits - top[:, None]
    logs = np.log(np.sum(np.exp(shifted), axis=1))
    chosen = shifted[np.arange(len(labels)), np.where(weights != 0, labels, 0)]
    losses = logs - (1 - smoothing) * chosen
    if smoothing:
        losses -= smoothing * np.mean(shifted, axis=1)
    losses = np.where(weights != 0, losses * weights, 0).astype(logits.dtype)
    return losses, np.stack([top, logs], axis=1)


def cross_entropy_gradient(
    g: Array, logits: Array, labels: Array, weights: Array, smoothing: float, sums: Array
) -> Array:
    """Compute the gradient of `cross_entropy`, from g of shape `(n,)`."""
    kernel = kernel_for(_cross_entropy_gradient_loop, g, logits)
    if kernel is not None and labels.dtype == np.int64:
        out = np.empty(logits.shape, SINGLE)
        operands = g.ravel(), rows_of(logits), labels.ravel(), weights, smoothing, sums
        kernel(logits.size * SECONDS, *operands, out)
        return out
    out = np.exp((logits - sums[:, :1]) - sums[:, 1:])
    out -= smoothing / logits.shape[1]
    out[np.arange(len(labels)), np.where(weights != 0, labels, 0)] -= 1 - smoothing
    return np.where(weights[:, None] != 0, out * (g * weights)[:, None], 0).astype(logits.dtype)


_ZERO, _ONE = np.float32(0), np.float32(1)
_, _sum_of_differences = sum_of(lambda x, highest, _: x - highest)
_sum_of_squares, _ = sum_of(lambda x, y, j: (x - y[j]) * (x - y[j]))


@for_each_dtype(SINGLE, threads=False)
def _label_weights_loop(
    _piece: int, _pieces: int, labels: Labels, classes: int, ignored: int, class_weights: Read.D1,
    weights: Written.D1, total: Sums,
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


@for_each_dtype(SINGLE)
def _cross_entropy_loop(
    piece: int, pieces: int, logits: Read.D2, labels: Labels, weights: Read.D1, smoothing: Number,
    losses: Written.D1, sums: Written.D2,
) -> None:  # fmt: skip
    for i in span(piece, pieces, len(logits)):
        row = logits[i]
        highest, log = greatest_and_log(row)
        sums[i, 0], sums[i, 1] = highest, log
        losses[i] = 0
        if weights[i] != 0:  # because 0 times an infinite loss would be nan
            loss = log - (_ONE - smoothing) * (row[labels[i]] - highest)
            if smoothing:
                loss -= smoothing * np.float32(_sum_of_differences(row, highest) / row.size)
            losses[i] = weights[i] * loss


@for_each_dtype(SINGLE)
def _cross_entropy_gradient_loop(
    piece: int, pieces: int, g: Read.D1, logits: Read.D2, labels: Labels, weights: Read.D1,
    smoothing: Number, sums: Read.D2, dx: Written.D2,
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


def squared_error(x: Array, y: Array) -> float:
    """Return the sum of (x - y)^2, for two arrays of the same shape and dtype."""
    kernel = kernel_for(_squared_error_loop, x, y)
    if kernel is None:
        return float(np.sum(np.square(x - y)))
    sums = np.empty(-(-x.size // STRETCH))
    kernel(x.size * LINE, x.ravel(), y.ravel(), sums)
    return sums.item() if sums.size == 1 else float(sums.sum())


@for_each_dtype(SINGLE)
def _squared_error_loop(piece: int, pieces: int, x: Read.D1, y: Read.D1, sums: Sums) -> None:
    for i in span(piece, pieces, sums.size):
        stretch = slice(i * STRETCH, (i + 1) * STRETCH)
        sums[i] = _sum_of_squares(x[stretch], y[stretch])


@elementwise(LINE, reference=lambda x, y, factor: (x - y) * factor, double=True)
def scaled_difference(x: Any, y: Any, factor: float) -> Any:
    """Compute (x - y) factor, which is the gradient of `squared_error` by x if factor is 2 g."""
    return (x - y) * factor


def _logistic_loss(x: Array, t: Array) -> Any:
    tail = np.log1p(np.exp(-np.abs(x)))
    return t * (np.maximum(-x, 0) + tail) + (1 - t) * (np.maximum(x, 0) + tail)


@elementwise(CURVE, reference=_logistic_loss)
def logistic_loss(x: Any, t: Any) -> Any:
    """Compute -t log s - (1 - t) log(1 - s) with s = sigmoid(x)."""
    tail = vector_math.log1p_series(vector_math.exp_below(-abs(x)))
    above, below = (_ZERO if x < 0 else x), (-x if x < 0 else _ZERO)
    return t * (below + tail) + (_ONE - t) * (above + tail)


def _logistic_slope(x: Array, t: Array) -> Any:
    e = np.exp(-np.abs(x))
    of_x, of_minus_x = np.where(x < 0, (e, np.ones_like(e)), (np.ones_like(e), e)) / (1 + e)
    return (1 - t) * of_x - t * of_minus_x


@elementwise(CURVE, reference=_logistic_slope)
def logistic_slope(x: Any, t: Any) -> Any:
    """Compute (1 - t) s - t (1 - s), the derivative of `logistic_loss` by x."""
    return (_ONE - t) * vector_math.sigmoid(x) - t * vector_math.sigmoid(-x)
