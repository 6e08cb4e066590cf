"""Elements by their indices: along an axis, in order of size, or by class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.composition import composition
from minigrad.ops import argsort, getitem, reshape
from minigrad.ops.shape import normalize_axis


@composition
def take_along_axis(x: Array, indices: Array, axis: int | None = -1) -> Tensor:
    """out[i, j, k] = x[i, indices[i, j, k], k] for `axis=1`, and so on for other axes.

    Shapes are broadcast, except along `axis`. With `axis=None`, x is flattened first.

    Raises:
        ValueError: if the numbers of axes differ.
        TypeError: if the indices are not integers.
        IndexError: if one is out of range.
    """
    if axis is None:
        x, axis = reshape(x, -1), 0
    axis = normalize_axis(axis, x.ndim)
    taken = as_integers("indices", indices)
    if taken.ndim != x.ndim or any(
        i != axis and 1 != a != b != 1
        for i, (a, b) in enumerate(zip(taken.shape, x.shape, strict=True))
    ):
        raise ValueError(
            f"indices of shape {taken.shape} do not go with x of shape {x.shape};"
            f" all sizes but that of axis {axis} must be the same, or 1"
        )
    index: list[Any] = list(observed(np.indices, x.shape, np.int64, True))
    index[axis] = taken
    return getitem(x, tuple(index))


@composition
def sort(x: Array, axis: int | None = -1, descending: bool = False) -> Tensor:
    """The elements along `axis` from small to large, each with its gradient.

    With `axis=None`, x is flattened first. A nan counts as the largest; equals keep their order.
    """
    return take_along_axis(x, argsort(x, axis, descending), axis)


# Types as they are: annotations would be texts here, which the reference cannot look up.
class TopK(NamedTuple("TopK", [("values", Tensor), ("indices", Tensor)])):
    """The result of `topk`: the elements, and their indices along the axis."""

    __slots__ = ()


@composition
def topk(x: Array, k: int, axis: int = -1, largest: bool = True) -> TopK:
    """The k largest (or smallest) elements along `axis`, in order, and their indices.

    The gradient goes to the elements that were taken; of equal elements, to the first.

    Raises:
        ValueError: if there are fewer than k.
    """
    axis = normalize_axis(axis, x.ndim)
    if not isinstance(k, (int, np.integer)):
        raise TypeError(f"k is an integer, not {k!r}")
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k = {k}, but axis {axis} of shape {x.shape} has {x.shape[axis]}")
    order = argsort(x, axis, descending=largest)
    indices = getitem(order, (*[slice(None)] * axis, slice(k)))
    return TopK(take_along_axis(x, indices, axis), indices)


@composition
def one_hot(labels: Array, num_classes: int | None = None) -> Tensor:
    """Rows `(..., num_classes)` of zeros with a 1 at the class, for integers `(...)`, as int64.

    Args:
        labels: the classes.
        num_classes: how many there are; None for one more than the largest label.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if one is not among the classes.
    """
    classes = as_integers("labels", labels)
    if not isinstance(num_classes, (int, np.integer, type(None))):
        raise TypeError(f"num_classes is an integer, not {num_classes!r}")
    out: Any = observed(one_hot_rows, classes, num_classes)
    return Tensor(out) if isinstance(labels, Tensor) else out


def one_hot_rows(classes: Any, num_classes: int | None) -> Any:
    """Return the result of `one_hot` for an array of integers, which it checks."""
    if num_classes is None:
        num_classes = int(classes.max()) + 1 if classes.size else 0
    if num_classes < 0:
        raise ValueError(f"num_classes is not negative, unlike {num_classes}")
    check_below("labels", classes, num_classes, "classes")
    rows = np.zeros((classes.size, num_classes), np.int64)
    rows[np.arange(classes.size), classes.ravel()] = 1
    return rows.reshape(*classes.shape, num_classes)


def check_below(
    role: str, values: Any, count: int, what: str, error: type[Exception] = ValueError
) -> None:
    """Raise an error unless all integers are from 0 to `count` - 1, as indices of `what`."""
    if values.size and not (values.min() >= 0 and values.max() < count):
        raise error(
            f"{role} run from {values.min()} to {values.max()}, but there are {count} {what}, "
            f"0 to {count - 1}"
        )


def as_integers(role: str, values: Array) -> Any:
    """Return an array, or raise a TypeError if it is not of integers."""
    array = as_array(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{role} must be integers, not {array.dtype}")
    return array
