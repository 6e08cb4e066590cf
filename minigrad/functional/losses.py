"""Loss functions, which training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels, ops
from minigrad.checks import check_above_0, check_integer, check_positive, check_probability
from minigrad.core.grad_mode import is_grad_enabled, observed
from minigrad.core.observers import is_differentiated
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.compositions import composition, narrowed, widened
from minigrad.functional.indexing import as_integers, check_below
from minigrad.ops.products import as_rows, check_linear, stored_linear
from minigrad.ops.shape import fits

Reduction = Literal["mean", "sum", "none"]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NO_LOSSES = "there are no losses in shape {}, so there is no mean"
_NO_MEAN = "no target counts, so there is no mean; see ignore_index"
_NEGATIVE_TARGETS = (
    "targets of floats are probabilities, and some of these are negative; "
    "has a softmax been forgotten?"
)
_STRIP = 16  # rows of logits whose gradient is computed at a time

# --------------------------------------------------------------------------------------------------
# Regression
# --------------------------------------------------------------------------------------------------


@composition
def mse(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The squared error (prediction - target)^2: its mean, its sum, or each value.

    Raises:
        ValueError: if the shapes differ. They are not broadcast, because that is usually a mistake.
            Also if the reduction is unknown, or there is nothing to average.
    """
    wide, target = _alike(prediction, target, reduction)
    if reduction != "none" and wide.dtype in _FLOATS and wide.size:
        loss = squared_error(wide, target, float(wide.size) if reduction == "mean" else 1.0)
    else:
        difference = wide - target
        loss = _reduced(difference * difference, reduction)
    return narrowed(loss, prediction)


@composition
def l1(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The absolute error |prediction - target|: its mean, its sum, or each value.

    Where the error is 0, the gradient is 0.

    Raises:
        ValueError: as in `mse`.
    """
    wide, target = _alike(prediction, target, reduction)
    return narrowed(_reduced(ops.abs(wide - target), reduction), prediction)


@composition
def huber(
    prediction: Array, target: Array, reduction: Reduction = "mean", delta: float = 1.0
) -> Tensor:
    """0.5 d^2 if the error |d| is at most `delta`, else delta (|d| - 0.5 delta) (Huber, 1964).

    The result is the mean of these losses, their sum, or each of them. d is prediction - target.

    Raises:
        ValueError: as in `mse`, or if `delta` is not positive.
        TypeError: if `delta` is not a number.
    """
    check_above_0("delta", delta)
    wide, target = _alike(prediction, target, reduction)
    d = wide - target
    near = ops.clip(d, -delta, delta)
    return narrowed(_reduced(near * (d - 0.5 * near), reduction), prediction)


# --------------------------------------------------------------------------------------------------
# Classification
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
    """The cross entropy -log softmax(logits)[target]: its mean, its sum, or each value.

    Args:
        logits: `(n, classes)`, `(classes,)`, or `(n, classes, ...)` with classes on axis 1.
        target: class indices, integers with the shape of `logits` without the axis of classes; or
            class probabilities, floats with the shape of `logits`.
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, the weight of each class. For class indices, the mean is weighted by
            them; for probabilities, the sum is divided by the number of targets.
        ignore_index: targets of this value have no loss, and do not count in the mean.
        label_smoothing: the share of the probability that is spread evenly over all classes
            (Szegedy et al., 2016).

    Raises:
        TypeError: if targets are not integers or floats, `ignore_index` is not an integer,
            `label_smoothing` is not a number, or `weight` requires a gradient.
        ValueError: if the shapes do not match, a target is not among the classes, a probability or
            a weight is negative, `label_smoothing` is not in [0, 1], the reduction is unknown, or
            no target counts in a mean. Also if an `ignore_index` of at least 0 is given for class
            probabilities.
    """
    check_reduction("reduction", reduction)
    check_ignore_index("ignore_index", ignore_index)
    check_probability("label_smoothing", label_smoothing)
    label_smoothing = float(label_smoothing)
    given, logits = logits, widened(logits)
    axis, weights = _classes(logits, weight)
    if target.dtype.kind == "f" and target.shape == logits.shape:
        if ignore_index >= 0:
            raise ValueError("ignore_index is for integer targets, and these are probabilities")
        _, probabilities = _alike(logits, target, reduction)
        observed(check_not_negative, as_array(target), _NEGATIVE_TARGETS)
        if label_smoothing:
            share = label_smoothing / logits.shape[axis]
            probabilities = ops.add(ops.multiply(1 - label_smoothing, probabilities), share)
        terms = ops.log_softmax(logits, axis) * probabilities
        if weights is not None:
            terms = terms * _along(axis, weights, logits.ndim)
        return narrowed(_reduced(-ops.sum(terms, axis), reduction), given)
    labels, classes = _labels(target, logits, axis), logits.shape[axis]
    options = ignore_index, weights, logits.dtype, reduction
    counts, divisor = observed(label_weights, labels, classes, *options)
    smoothed = labels, counts, label_smoothing, divisor
    if weights is None or not label_smoothing:
        if logits.ndim == 2 and logits.size and logits.dtype in _FLOATS:
            losses = label_cross_entropy(logits, *smoothed)
        else:
            scores = ops.log_softmax(logits, axis)
            losses = _label_losses(scores, *smoothed, axis=axis, is_weighted=weights is not None)
        return narrowed(losses, given)
    scores = ops.log_softmax(logits, axis)
    # What smoothing spreads over the classes has their weights, and not those of the labels.
    counted = observed(np.not_equal, labels, ignore_index)
    spread = ops.sum(scores * _along(axis, weights, scores.ndim), axis)
    losses = (1 - label_smoothing) * _label_losses(scores, labels, counts, 0.0, None, axis)
    losses = losses - (label_smoothing / classes) * ops.where(counted, spread, 0.0)
    return narrowed(losses if divisor is None else ops.sum(losses) / divisor, given)


@composition
def linear_cross_entropy(
    x: Array,
    weight: Any,
    target: Array,
    reduction: Reduction = "mean",
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk: int = 256,
) -> Tensor:
    """`cross_entropy` of the logits x W^T. If W is frozen, it keeps only part of them in memory.

    With a frozen W, only the gradient with respect to x is needed. The forward pass computes it,
    `chunk` rows at a time, if a gradient is required. Ignored rows cost nothing. If W is trained,
    the function is `cross_entropy(linear(x, weight), target)`.

    Args:
        x: `(..., d)`.
        weight: W, `(classes, d)`; also a matrix in few bits, which `bfloat16_linear` accepts.
        target: the class index of each vector of x, `(...)`.
        reduction: "mean", "sum" or "none".
        ignore_index: as in `cross_entropy`.
        label_smoothing: as in `cross_entropy`.
        chunk: the number of rows of logits in memory. W is packed once for each chunk. With 256
            rows the product hides this cost; with 128 rows the loss takes a sixth more time.

    Raises:
        TypeError: if the targets or `ignore_index` are not integers, `label_smoothing` is not a
            number, or the weight is not an array.
        ValueError: if the shapes do not match, a target is not among the classes, an option has an
            impossible value, or no target counts in a mean.
    """
    check_reduction("reduction", reduction)
    check_ignore_index("ignore_index", ignore_index)
    check_probability("label_smoothing", label_smoothing)
    check_positive("chunk", chunk)
    if isinstance(weight, (list, tuple)):  # `composition` converts only arguments marked Array
        weight = as_array(weight, x.dtype if x.dtype.kind == "f" else None)
    if not hasattr(weight, "ndim"):
        raise TypeError(f"the weight is a matrix, not {weight!r:.60}")
    check_linear(x, weight, None)
    rows, given = as_rows(x), as_integers("targets", target)
    if given.shape != x.shape[:-1]:
        raise ValueError(
            f"targets for x of shape {x.shape} have shape {x.shape[:-1]}, not {given.shape}"
        )
    smoothing = float(label_smoothing)
    labels = as_array(ops.reshape(given, -1), np.int64)  # for which kernels exist
    same_floats = x.dtype in _FLOATS and getattr(weight, "dtype", x.dtype) == x.dtype
    if is_differentiated(weight) or not same_floats:
        options: Any = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        losses = cross_entropy(stored_linear(rows, weight), labels, reduction, **options)
    else:
        counts, divisor = observed(
            label_weights, labels, weight.shape[0], ignore_index, None, x.dtype, reduction
        )
        differentiated = is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad
        losses = linear_label_cross_entropy(
            rows, weight, labels, counts, smoothing, divisor, chunk, differentiated
        )
    return ops.reshape(losses, target.shape) if reduction == "none" else losses


@composition
def nll(
    log_probabilities: Array,
    target: Array,
    reduction: Reduction = "mean",
    *,
    weight: Array = None,
    ignore_index: int = -100,
) -> Tensor:
    """The negative log-likelihood -log_probabilities[target]: its mean, its sum, or each value.

    It is `cross_entropy` without the softmax. Arguments are as in `cross_entropy` with class
    indices.

    Raises:
        TypeError, ValueError: as in `cross_entropy`.
    """
    check_reduction("reduction", reduction)
    check_ignore_index("ignore_index", ignore_index)
    scores = widened(log_probabilities)
    axis, weights = _classes(scores, weight)
    labels = _labels(target, scores, axis)
    options = scores.shape[axis], ignore_index, weights, scores.dtype, reduction
    counts, divisor = observed(label_weights, labels, *options)
    losses = _label_losses(scores, labels, counts, 0.0, divisor, axis, weights is not None)
    return narrowed(losses, log_probabilities)


@composition
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    reduction: Reduction = "mean",
    *,
    weight: Array = None,
    pos_weight: Array = None,
) -> Tensor:
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits): its mean, its sum, or each value.

    It is computed as t softplus(-x) + (1 - t) softplus(x), which does not overflow or round to 0.

    Args:
        logits: x, of any shape.
        target: t, of the same shape, in [0, 1].
        reduction: "mean", "sum" or "none".
        weight: a factor for each loss, broadcast; the mean still divides by the number of losses.
        pos_weight: a factor for the first term, broadcast. If it is above 1, a missed positive
            costs more.

    Raises:
        ValueError: if the shapes differ, a weight is negative or cannot be broadcast to them, a
            target is not in [0, 1], the reduction is unknown, or there is nothing to average.
    """
    x, t = _alike(logits, target, reduction)
    observed(check_from_0_to_1, t._data if isinstance(t, Tensor) else t)
    weight, pos_weight = _factor("weight", weight, t), _factor("pos_weight", pos_weight, t)
    if pos_weight is None:
        losses = logistic_loss(x, t)
    else:
        losses = t * ops.softplus(-x) * pos_weight + ops.subtract(1, t) * ops.softplus(x)
    losses = losses if weight is None else losses * weight
    return narrowed(_reduced(losses, reduction), logits)


def _factor(name: str, weight: Array, t: Array) -> Array:
    """Check a weight, and return it in the dtype of the targets t; return None for None."""
    if weight is None:
        return None
    if not fits(weight.shape, t.shape):
        raise ValueError(f"{name} of shape {weight.shape} does not fit {t.shape}")
    observed(check_not_negative, as_array(weight), f"{name} must be at least 0, not {{}}")
    return ops.astype(weight, t.dtype)


def _labels(target: Array, scores: Array, axis: int) -> Any:
    """Check class indices against scores with the classes along `axis`; return them as int64."""
    labels: Any = as_array(target)
    if labels.dtype.kind not in "iu":
        swapped = "; are the two arguments swapped?" if labels.ndim > scores.ndim else ""
        raise TypeError(
            f"targets are integer classes (or, for cross_entropy, floats of shape "
            f"{scores.shape}), not {labels.dtype} of shape {labels.shape}{swapped}"
        )
    expected = scores.shape[:axis] + scores.shape[axis + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"targets for scores of shape {scores.shape}, with the classes on axis {axis}, have "
            f"shape {expected}, not {labels.shape}"
        )
    if not scores.shape[axis]:  # then there is no target to ignore either
        check_below("targets", labels, 0, "classes")
    return as_array(labels, np.int64)  # for which kernels exist; an error if one is too large


def _label_losses(
    scores: Array,
    labels: Array,
    weights: Array,
    smoothing: float,
    divisor: float | None,
    axis: int = 1,
    is_weighted: bool = True,
) -> Any:
    """Return the losses of labels for log-probabilities with the classes along `axis`.

    If not `is_weighted`, each weight is 1 or 0.
    """
    counted, *index = observed(counted_scores, labels, weights, axis)
    chosen = ops.getitem(scores, tuple(index))
    losses = (smoothing - 1) * chosen if smoothing else -chosen
    if smoothing:
        losses = losses - (smoothing / scores.shape[axis]) * ops.sum(scores, axis)
    losses = ops.where(counted, losses, 0.0)  # also where a weight is 0 and a score infinite
    if is_weighted:
        losses = losses * weights
    return losses if divisor is None else ops.sum(losses) / divisor


def counted_scores(labels: Any, weights: Any, axis: int) -> tuple[Any, ...]:
    """Return which labels have a weight, and the index of a score for each (any, if weight 0)."""
    counted = weights != 0
    index: list[Any] = list(np.indices(labels.shape, sparse=True))
    index.insert(axis, labels * counted)
    return counted, *index


def label_weights(
    labels: NDArray[np.int64],
    classes: int,
    ignore_index: int,
    class_weights: NDArray[Any] | None,
    dtype: np.dtype[Any],
    reduction: Reduction,
) -> tuple[NDArray[Any], float | None]:
    """Return the weight of each label, 0 if it is ignored, and the divisor of the loss.

    A label that is not a class is a ValueError, and so is a mean in which all labels are ignored.
    """
    weights, total = kernels.losses.label_weights(
        labels, classes, int(ignore_index), class_weights, dtype
    )
    if not isfinite(total):  # the weight is nan where a label is not a class
        check_below("targets", np.where(labels == ignore_index, 0, labels), classes, "classes")
    if reduction == "mean" and total == 0:
        raise ValueError(_NO_MEAN if labels.size else _NO_LOSSES.format(labels.shape))
    return weights, {"mean": total, "sum": 1.0, "none": None}[reduction]


def check_from_0_to_1(values: NDArray[Any]) -> None:
    """Raise a ValueError unless all targets are from 0 to 1."""
    if not np.all((values >= 0) & (values <= 1)):
        found = f"{values.min()} to {values.max()}"
        raise ValueError(f"targets are probabilities, from 0 to 1; these run from {found}")


def check_not_negative(values: NDArray[Any], message: str) -> None:
    """Raise a ValueError if a value is negative; `message` may show the smallest value."""
    if (values < 0).any():
        raise ValueError(message.format(values.min()))


def _along(axis: int, class_weights: NDArray[Any], ndim: int) -> Array:
    """Return the weights of classes in a shape that broadcasts to scores with `ndim` axes."""
    return ops.reshape(class_weights, (-1,) + (1,) * (ndim - axis - 1))


def _classes(scores: Array, weight: Array) -> tuple[int, NDArray[Any] | None]:
    """Return the axis of the classes, and their weights."""
    if scores.ndim == 0:
        raise ValueError("scores have an axis of classes; a number has none")
    axis = 1 if scores.ndim > 1 else 0
    if weight is None:
        return axis, None
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise TypeError("the weights of classes are constants; pass weight.detach()")
    count = scores.shape[axis]
    if weight.shape != (count,):
        raise ValueError(f"there are {count} classes, but weights of shape {weight.shape}")
    values: NDArray[Any] = as_array(weight, scores.dtype)
    observed(check_not_negative, values, "weights of classes must be at least 0, not {}")
    return axis, values


# --------------------------------------------------------------------------------------------------
# The most frequent losses, each as one op. Their arguments have been checked.
# --------------------------------------------------------------------------------------------------


def _squared_error(prediction: Array, target: Array, divisor: float = 1.0) -> Array:
    difference = prediction - target
    return ops.sum(difference * difference) / divisor


@op(composition=_squared_error)
def squared_error(prediction: Array, target: Array, divisor: float = 1.0) -> Array:
    """sum((prediction - target)^2) / `divisor`, for floats of one shape and dtype.

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


@squared_error.jvp
def _squared_error_tangent(
    tangents: Sequence[Array], prediction: Array, target: Array, divisor: float
) -> Array:
    difference = prediction - target
    signed = [(1.0, tangents[0]), (-1.0, tangents[1])]
    return sum(sign * np.vdot(difference, v) for sign, v in signed if v is not None) * 2 / divisor


@op(
    elementwise=True,
    composition=lambda logits, target: (
        target * ops.softplus(-logits) + (1 - target) * ops.softplus(logits)
    ),
)
def logistic_loss(logits: Array, target: Array) -> Array:
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits) and the target t, of one shape.

    The gradients are (1 - t) s - t (1 - s) and -logits, times g.
    """
    return kernels.losses.logistic_loss(logits, target)


@logistic_loss.vjp("logits")
def _logistic_loss_logits(g: Array, logits: Array, target: Array) -> Array:
    if isinstance(g, Tensor):
        return g * ((1 - target) * ops.sigmoid(logits) - target * ops.sigmoid(-logits))
    return g * kernels.losses.logistic_slope(logits, target)


logistic_loss.vjp("target", lambda g, logits: -g * logits)


@op(
    composition=lambda logits, labels, weights, smoothing, divisor: _label_losses(
        ops.log_softmax(logits), labels, weights, smoothing, divisor
    ),
    returns_residuals=True,
    fresh=("weights",),
)
def label_cross_entropy(
    logits: Array, labels: Array, weights: Array, smoothing: float, divisor: float | None
) -> Any:
    """The cross entropy of softmax(logits) and class indices.

    The gradient is (softmax(logits) - target probabilities) times the weight of the label. If a
    weight is 0, the label need not be a class. `smoothing` is the share of the probability that is
    spread over all classes. The sum of the losses is divided by `divisor`; with None, each loss is
    returned. Shapes are `(n, classes)`, `(n,)` (int64) and `(n,)`.
    """
    losses, sums = kernels.losses.cross_entropy(logits, labels, weights, smoothing)
    if divisor is None:
        return losses, sums
    return np.add.reduce(losses) / divisor, sums


@label_cross_entropy.vjp("logits", cost=lambda logits: 4 * logits.size)
def _label_cross_entropy_logits(
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


@label_cross_entropy.jvp
def _label_cross_entropy_tangent(
    tangents: Sequence[Array],
    logits: Array,
    labels: Array,
    weights: Array,
    smoothing: float,
    divisor: float | None,
) -> Array:
    given = logits, labels, weights, smoothing
    _, sums = kernels.losses.cross_entropy(*given)
    g = np.ones(len(labels), logits.dtype)
    losses = np.sum(kernels.losses.cross_entropy_gradient(g, *given, sums) * tangents[0], axis=1)
    return losses if divisor is None else np.add.reduce(losses) / divisor


@op(
    composition=lambda x, weight, labels, weights, smoothing, divisor, chunk, differentiated: (
        label_cross_entropy(stored_linear(x, weight), labels, weights, smoothing, divisor)
    ),
    returns_residuals=True,
    fresh=("weights",),
)
def linear_label_cross_entropy(
    x: Array, weight: Any, labels: Array, weights: Array, smoothing: float,
    divisor: float | None, chunk: int, differentiated: bool,
) -> Any:  # fmt: skip
    """`label_cross_entropy` of x W^T, `chunk` rows at a time; W, `(classes, d)`, is frozen.

    If `differentiated`, it also computes the gradient with respect to x, `(n, d)`, as its residual.
    """
    counted = np.flatnonzero(weights)
    losses = np.zeros(len(x), x.dtype)
    gradient = np.zeros(x.shape, x.dtype) if differentiated else None
    memory = None  # a product with a matrix in few bits allocates its own result
    if isinstance(weight, np.ndarray):
        memory = np.empty((min(chunk, len(counted)), len(weight)), x.dtype)
    for start in range(0, len(counted), chunk):
        rows = counted[start : start + chunk]
        if memory is None:
            logits = stored_linear(x[rows], weight)
        else:
            logits = kernels.gemm.matmul(x[rows], weight.T, out=memory[: len(rows)])
        own, counts = labels[rows], weights[rows]
        losses[rows], sums = kernels.losses.cross_entropy(logits, own, counts, smoothing)
        if gradient is None:
            continue
        g = np.full(len(rows), 1.0 if divisor is None else 1.0 / divisor, x.dtype)
        for i in range(0, len(rows), _STRIP):  # the gradient overwrites the logits
            at = slice(i, i + _STRIP)
            logits[at] = kernels.losses.cross_entropy_gradient(
                g[at], logits[at], own[at], counts[at], smoothing, sums[at]
            )
        gradient[rows] = stored_linear(logits, weight.T)
    return (losses if divisor is None else np.add.reduce(losses) / divisor), gradient


@linear_label_cross_entropy.vjp(
    "x", cost=lambda x, weight: (2 * x.shape[1] + 4) * len(x) * weight.shape[0]
)
def _linear_label_cross_entropy_x(g: Array, divisor: float | None, residuals: Array) -> Array:
    return residuals * (g[:, None] if divisor is None else g)


# --------------------------------------------------------------------------------------------------
# Parts that all losses share
# --------------------------------------------------------------------------------------------------


def _alike(prediction: Array, target: Array, reduction: Reduction) -> tuple[Array, Array]:
    """Check the arguments; return both arrays in the prediction's dtype, or float64 for integers.

    A float64 target would make a float32 model compute in float64, which is slower. If one is a
    Tensor without axes, the other becomes one too: beside a Tensor, an op makes a number of an
    array without axes, and the kernels of losses take only arrays.
    """
    check_reduction("reduction", reduction)
    if target.shape != prediction.shape:
        shapes = f"{prediction.shape}, the target {target.shape}"
        raise ValueError(f"the prediction has shape {shapes}; they must be the same")
    prediction = widened(prediction)
    if target.dtype != prediction.dtype:
        target = ops.astype(target, prediction.dtype)
    if not target.ndim and isinstance(target, Tensor) != isinstance(prediction, Tensor):
        prediction, target = (
            x if isinstance(x, Tensor) else Tensor(x) for x in (prediction, target)
        )
    return prediction, target


def check_ignore_index(name: str, value: Any) -> None:
    """Raise a TypeError unless the target to ignore is an integer."""
    check_integer(f"{name} (by default -100, which is not a class)", value)


def check_reduction(name: str, value: Any) -> None:
    """Raise a ValueError unless the reduction is "mean", "sum" or "none"."""
    if not isinstance(value, str) or value not in ("mean", "sum", "none"):
        hint = "weights are passed by name, as in weight=..."
        raise ValueError(f"{name} is 'mean', 'sum' or 'none', not {value!r:.60} ({hint})")


def _reduced(losses: Any, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses  # type: ignore[no-any-return]
    if reduction == "sum":
        return ops.sum(losses)
    if losses.size == 0:
        raise ValueError(_NO_LOSSES.format(losses.shape))
    return ops.mean(losses)
