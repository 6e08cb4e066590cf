"""Losses: what a model is trained to make small."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minigrad.functional.composition import composition
from minigrad.functional.statistics import mean
from minigrad.ops import abs, getitem, log_softmax, softplus, sum, where
from minigrad.tensor import Array, Tensor, as_array

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber",
    "l1",
    "mse",
    "nll",
]

Reduction = Literal["mean", "sum", "none"]

# --------------------------------------------------------------------------------------------------
# Of numbers
# --------------------------------------------------------------------------------------------------


@composition
def mse(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The squared error (prediction - target)^2: its mean, its sum, or each.

    Raises:
        ValueError: if the shapes differ; they are not broadcast, that is a mistake too often.
    """
    difference = prediction - _like(prediction, target, "mse")
    return _reduced(difference * difference, reduction, "mse")


@composition
def l1(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The absolute error |prediction - target|: its mean, its sum, or each.

    Raises:
        ValueError: if the shapes differ; they are not broadcast, that is a mistake too often.
    """
    return _reduced(abs(prediction - _like(prediction, target, "l1")), reduction, "l1")


@composition
def huber(
    prediction: Array, target: Array, reduction: Reduction = "mean", delta: float = 1.0
) -> Tensor:
    """0.5 d^2 for an error |d| <= `delta`, and delta (|d| - 0.5 delta) beyond (Huber, 1964).

    Raises:
        ValueError: if the shapes differ, or `delta` is not positive.
    """
    if not delta > 0:
        raise ValueError(f"huber: delta must be positive, not {delta!r}")
    d = prediction - _like(prediction, target, "huber")
    size = abs(d)
    losses = where(size <= delta, 0.5 * d * d, delta * (size - 0.5 * delta))
    return _reduced(losses, reduction, "huber")


# --------------------------------------------------------------------------------------------------
# Of classes
# --------------------------------------------------------------------------------------------------


@composition
def cross_entropy(
    logits: Array,
    target: Array,
    reduction: Reduction = "mean",
    *,
    weight: Array = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(logits)[target]: its mean, its sum, or each.

    Args:
        logits: `(n, classes)`, `(classes,)`, or `(n, classes, ...)` with classes on axis 1.
        target: the integer class of each, of the shape of `logits` without its axis of classes; or
            floats of the shape of `logits`, the probability of each class.
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, how much each class counts. The mean of integer targets is one with
            these weights; that of probabilities is the sum over their number.
        ignore_index: targets of this value have no loss, and do not count in the mean.
        label_smoothing: this much of the probability is spread evenly over all classes (Szegedy
            et al., 2016).

    Raises:
        TypeError: if the targets are neither integers nor floats.
        ValueError: if the shapes do not match, a target is not among the classes, `label_smoothing`
            is not in [0, 1], or no target is left to take the mean of.
    """
    name = "cross_entropy"
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is in [0, 1], not {label_smoothing!r}")
    axis = _class_axis(name, logits)
    target = target if isinstance(target, Tensor) else as_array(target)
    if target.dtype.kind != "f" or target.shape != logits.shape:
        labels = _Labels(name, logits, target, weight, ignore_index)
        return labels.loss(log_softmax(logits, axis), reduction, label_smoothing)
    probabilities = _like(logits, target, name)
    if label_smoothing:
        share = label_smoothing / logits.shape[axis]
        probabilities = (1 - label_smoothing) * probabilities + share
    terms = log_softmax(logits, axis) * probabilities
    weights = _class_weights(name, weight, logits, axis)
    losses = -sum(terms if weights is None else terms * weights, axis)
    return _reduced(losses, reduction, name)


@composition
def nll(
    log_probabilities: Array,
    target: Array,
    reduction: Reduction = "mean",
    *,
    weight: Array = None,
    ignore_index: int = -100,
) -> Tensor:
    """-log_probabilities[target], the second half of `cross_entropy`: its mean, its sum, or each.

    Args:
        log_probabilities: `(n, classes)`, `(classes,)`, or `(n, classes, ...)`.
        target: the integer class of each, of that shape without the axis of classes.
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, how much each class counts; the mean is one with these weights.
        ignore_index: targets of this value have no loss, and do not count in the mean.

    Raises:
        TypeError: if the targets are not integers.
        ValueError: if the shapes do not match, a target is not among the classes, or no target is
            left to take the mean of.
    """
    labels = _Labels("nll", log_probabilities, target, weight, ignore_index)
    return labels.loss(log_probabilities, reduction, 0.0)


class _Labels:
    """The classes that are right, checked against the scores that they are to be found in."""

    def __init__(
        self, name: str, scores: Array, target: Array, weight: Array, ignore_index: int
    ) -> None:
        self.name = name
        self.axis = _class_axis(name, scores)
        self.classes = scores.shape[self.axis]
        self.class_weights = _class_weights(name, weight, scores, self.axis)
        labels = as_array(target)
        if labels.dtype.kind not in "iu":
            hint = f", or floats of shape {scores.shape}" if name == "cross_entropy" else ""
            raise TypeError(
                f"{name}: targets are integer classes{hint}, not {labels.dtype} of shape "
                f"{labels.shape}"
            )
        expected = scores.shape[: self.axis] + scores.shape[self.axis + 1 :]
        if labels.shape != expected:
            raise ValueError(
                f"{name}: targets for scores of shape {scores.shape} have shape {expected}, "
                f"not {labels.shape}"
            )
        self.counted = labels != ignore_index
        self.all_count = bool(self.counted.all())
        self.labels = labels if self.all_count else np.where(self.counted, labels, 0)
        if labels.size and not (self.labels.min() >= 0 and self.labels.max() < self.classes):
            raise ValueError(
                f"{name}: targets run from {self.labels.min()} to {self.labels.max()}, but there "
                f"are {self.classes} classes, 0 to {self.classes - 1}"
            )

    def loss(self, log_probabilities: Array, reduction: Reduction, smoothing: float) -> Tensor:
        """The weighted losses, those of ignored targets being 0."""
        places: list[Any] = list(np.indices(self.labels.shape, sparse=True))
        places.insert(self.axis, self.labels)
        losses = -getitem(log_probabilities, tuple(places))
        if self.class_weights is None and self.all_count and not smoothing:
            return _reduced(losses, reduction, self.name)
        weights = self._weights(log_probabilities.dtype)
        losses = where(weights == 0, 0.0, losses) * weights  # an infinite loss times 0 is 0 here
        if smoothing:
            terms = log_probabilities
            if self.class_weights is not None:
                terms = terms * self.class_weights
            spread = where(self.counted, -sum(terms, self.axis), 0.0)
            losses = (1 - smoothing) * losses + (smoothing / self.classes) * spread
        if reduction != "mean":
            return _reduced(losses, reduction, self.name)
        total = weights.sum()
        if total == 0:
            raise ValueError(
                f"{self.name}: no target counts, so there is no mean; see ignore_index"
            )
        return sum(losses) / float(total)

    def _weights(self, dtype: Any) -> NDArray[Any]:
        """How much each target counts."""
        counted: NDArray[Any] = self.counted.astype(dtype)
        if self.class_weights is not None:
            counted *= self.class_weights.reshape(-1)[self.labels]
        return counted


def _class_axis(name: str, scores: Array) -> int:
    if scores.ndim == 0:
        raise ValueError(f"{name}: scores have an axis of classes; a number has none")
    return 1 if scores.ndim > 1 else 0


def _class_weights(name: str, weight: Array, scores: Array, axis: int) -> NDArray[Any] | None:
    """The weights of the classes, shaped to be multiplied with the scores."""
    if weight is None:
        return None
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise TypeError(f"{name}: the weights of classes are constants; pass weight.detach()")
    values = as_array(weight).astype(scores.dtype)
    if values.shape != scores.shape[axis : axis + 1]:
        raise ValueError(
            f"{name}: there are {scores.shape[axis]} classes, but weights of shape {values.shape}"
        )
    return values.reshape((-1,) + (1,) * (scores.ndim - axis - 1))


@composition
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    reduction: Reduction = "mean",
    *,
    pos_weight: Array = None,
) -> Tensor:
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits): its mean, its sum, or each.

    It is computed as t softplus(-x) + (1 - t) softplus(x), which neither overflows nor rounds to 0.

    Args:
        logits: of any shape.
        target: t, of the same shape, in [0, 1].
        reduction: "mean", "sum" or "none".
        pos_weight: a factor for the first term, broadcast: above 1, it is worse to miss a positive.

    Raises:
        ValueError: if the shapes differ, or a target is not in [0, 1].
    """
    name = "binary_cross_entropy_with_logits"
    t = _like(logits, target, name)
    values = t.data if isinstance(t, Tensor) else t
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"{name}: targets are probabilities, from 0 to 1; these run from {values.min()} to "
            f"{values.max()}"
        )
    positive = t * softplus(-logits)
    if pos_weight is not None:
        factor = pos_weight if isinstance(pos_weight, Tensor) else as_array(pos_weight)
        if np.broadcast_shapes(factor.shape, t.shape) != t.shape:
            raise ValueError(
                f"{name}: pos_weight of shape {factor.shape} does not go with {t.shape}"
            )
        positive = positive * factor.astype(positive.dtype)
    return _reduced(positive + (1 - t) * softplus(logits), reduction, name)


# --------------------------------------------------------------------------------------------------
# What all share
# --------------------------------------------------------------------------------------------------


def _like(prediction: Array, target: Array, name: str) -> Array:
    """The target, checked, and in the prediction's dtype: data in float64 does not slow a model."""
    value = target if isinstance(target, Tensor) else as_array(target)
    if value.shape != np.shape(prediction):
        raise ValueError(
            f"{name}: the prediction has shape {np.shape(prediction)}, the target {value.shape}; "
            f"they must be the same"
        )
    dtype = getattr(prediction, "dtype", value.dtype)
    return value.astype(dtype) if value.dtype != dtype and dtype.kind == "f" else value


def _reduced(losses: Any, reduction: str, name: str) -> Tensor:
    if reduction == "none":
        return losses  # type: ignore[no-any-return]
    if reduction == "sum":
        return sum(losses)
    if reduction == "mean":
        return mean(losses)
    raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', not {reduction!r}")
