"""Functions that are compositions of ops, and have no derivative rule of their own.

They take Tensors, and like ops also plain arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from minigrad import ops, random
from minigrad.ops import getitem, log_softmax, reshape, sum, transpose
from minigrad.ops.reduction import kept
from minigrad.tensor import Array, Axis, Tensor, as_array

Reduction = Literal["mean", "sum", "none"]


def swapaxes(x: Array, axis1: int, axis2: int) -> Tensor:
    """Two axes exchanged."""
    axes = list(range(x.ndim))
    i, j = (normalize_axis_index(axis, x.ndim) for axis in (axis1, axis2))
    axes[i], axes[j] = axes[j], axes[i]
    return transpose(x, axes)


def expand_dims(x: Array, axis: int | Sequence[int]) -> Tensor:
    """New axes of size 1, at the positions `axis` of the result."""
    count = x.ndim + np.size(axis)
    axes = normalize_axis_tuple(axis, count)
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if i in axes else next(sizes) for i in range(count)))


def squeeze(x: Array, axis: Axis = None) -> Tensor:
    """Without the axes of size 1: all of them, or those given.

    Raises:
        ValueError: if an axis that is given has another size.
    """
    axes = None if axis is None else normalize_axis_tuple(axis, x.ndim)
    for i in axes or ():
        if x.shape[i] != 1:
            raise ValueError(f"squeeze: axis {i} of shape {x.shape} has size {x.shape[i]}, not 1")
    dropped = range(x.ndim) if axes is None else axes
    return reshape(
        x, tuple(size for i, size in enumerate(x.shape) if not (i in dropped and size == 1))
    )


def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`: an int, a tuple of ints, or None for all.

    Raises:
        ValueError: if there is nothing to average.
    """
    return sum(x, axis, keepdims) / _count("mean", x.shape, axis)


def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, sum((x - mean)^2) / (n - ddof).

    Raises:
        ValueError: if n <= ddof.
    """
    count = _count("var", x.shape, axis)
    if count <= ddof:
        raise ValueError(f"var: {count} elements are too few for ddof={ddof}")
    deviation = x - mean(x, axis, keepdims=True)
    return sum(deviation * deviation, axis, keepdims) / (count - ddof)


def _count(name: str, shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements a reduction over `axis` combines into one."""
    axes = kept(shape, axis)
    count = math.prod(size for size, target in zip(shape, axes, strict=True) if target == 1)
    if count == 0:
        raise ValueError(f"{name}: shape {shape} has no elements along axis {axis}")
    return count


def dropout(
    x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | None = None
) -> Tensor:
    """In training, each element is 0 with probability `p`, else x / (1 - p); otherwise x itself.

    The expectation is x (Srivastava et al., 2014).

    Raises:
        ValueError: if `p` is not in [0, 1].
    """
    random.check_probability("dropout: p", p)
    if not training or p == 0:
        return x  # type: ignore[no-any-return]  # a Tensor for a Tensor
    p = float(p)
    keep = random.generator(rng).random(x.shape, np.float32) >= p
    return ops.multiply(x, keep.astype(x.dtype) / (1 - p) if p < 1 else keep.astype(x.dtype))


def mse(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The squared error (prediction - target)^2: its mean, its sum, or each.

    Raises:
        ValueError: if the shapes differ; they are not broadcast, that is a mistake too often.
    """
    difference = prediction - _like(prediction, target, "mse")
    return _reduced(difference * difference, reduction, "mse")


def l1(prediction: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """The absolute error |prediction - target|: its mean, its sum, or each.

    Raises:
        ValueError: if the shapes differ; they are not broadcast, that is a mistake too often.
    """
    return _reduced(abs(prediction - _like(prediction, target, "l1")), reduction, "l1")


def cross_entropy(logits: Array, target: Array, reduction: Reduction = "mean") -> Tensor:
    """-log softmax(logits)[target]: its mean, its sum, or each.

    Args:
        logits: `(n, classes)`, `(classes,)`, or `(n, classes, ...)` with classes on axis 1.
        target: the integer class of each, of the shape of `logits` without its axis of classes.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: if the targets are not integers.
        ValueError: if the shapes do not match, or a target is not among the classes.
    """
    axis = 1 if logits.ndim > 1 else 0
    classes = logits.shape[axis]
    labels = as_array(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets are integer classes, not {labels.dtype}")
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"cross_entropy: targets for logits of shape {logits.shape} have shape {expected}, "
            f"not {labels.shape}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"cross_entropy: targets run from {labels.min()} to {labels.max()}, but there are "
            f"{classes} classes, 0 to {classes - 1}"
        )
    positions: list[Any] = list(np.indices(labels.shape, sparse=True))
    positions.insert(axis, labels)
    return _reduced(
        -getitem(log_softmax(logits, axis), tuple(positions)), reduction, "cross_entropy"
    )


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
