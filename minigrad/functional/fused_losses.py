"""The two losses that most models are trained with, each as one op.

They are parts of `mse` and `cross_entropy`, which check their arguments, and use a composition for
rarer cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.ops import getitem, log_softmax, sum, where


def _squared_error(prediction: Array, target: Array, divisor: float = 1.0) -> Array:
    difference = prediction - target
    return sum(difference * difference) / divisor


@op(composition=_squared_error)
def squared_error(prediction: Array, target: Array, divisor: float = 1.0) -> Array:
    """sum((prediction - target)^2) / `divisor`, of floats of one shape and dtype.

    The gradients are 2 g (prediction - target) / divisor and the negative of that.
    """
    total = kernels.losses.squared_error(prediction, target)
    return prediction.dtype.type(total / divisor)


@squared_error.vjp("prediction")
def _squared_error_prediction(g: Array, prediction: Array, target: Array, divisor: float) -> Array:
    if isinstance(g, Tensor):
        return (2 / divisor) * g * (prediction - target)
    return kernels.losses.scaled_difference(prediction, target, 2 * float(g) / divisor)


@squared_error.vjp("target")
def _squared_error_target(g: Array, prediction: Array, target: Array, divisor: float) -> Array:
    return _squared_error_prediction(g, target, prediction, divisor)


def _label_loss(
    logits: Array, labels: Array, weights: Array, smoothing: float, divisor: float | None
) -> Any:
    counted = weights != 0
    scores = log_softmax(logits)
    losses = (smoothing - 1) * getitem(scores, (np.arange(len(labels)), labels * counted))
    if smoothing:
        losses = losses - (smoothing / logits.shape[1]) * sum(scores, 1)
    losses = where(counted, losses, 0.0) * weights  # an infinite loss times 0 is 0 here
    return losses if divisor is None else sum(losses) / divisor


@op(composition=_label_loss, replayed=True, returns_residuals=True, fresh=("weights",))
def label_loss(
    logits: Array, labels: Array, weights: Array, smoothing: float, divisor: float | None
) -> Any:
    """The cross entropy of softmax(logits) and integer classes.

    Its gradient is softmax(logits) minus the probabilities of the labels, times their weights.

    Args:
        logits: `(n, classes)`, of float32 or float64.
        labels: `(n,)`, int64.
        weights: `(n,)`, in the dtype of `logits`; where one is 0 the label need not exist.
        smoothing: how much of the label's probability is spread over all classes.
        divisor: a number that the sum of the losses is divided by; None for no sum.
    """
    losses, sums = kernels.losses.cross_entropy(logits, labels, weights, smoothing)
    if divisor is None:
        return losses, sums
    return np.add.reduce(losses) / divisor, sums


@label_loss.vjp("logits", cost=lambda logits: 4 * logits.size)
def _label_loss_logits(
    g: Array,
    logits: Array,
    labels: Array,
    weights: Array,
    smoothing: float,
    divisor: float | None,
    residuals: Array,
) -> Array:
    if divisor is not None:
        g = np.full(len(labels), g / divisor, logits.dtype)
    return kernels.losses.cross_entropy_gradient(g, logits, labels, weights, smoothing, residuals)
