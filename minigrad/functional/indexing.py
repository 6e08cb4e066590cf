"""Indexing and sorting: gather, scatter, sort, topk, running maxima, one-hot vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minigrad import ops
from minigrad.checks import check_flag, check_integer
from minigrad.core.grad_mode import observed
from minigrad.core.op import Op, op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.compositions import composition
from minigrad.functional.shape import squeeze
from minigrad.ops.shape import flag, from_the_front, normalize_axis


# Types are passed as objects: annotations would be strings here, which the API reference cannot
# resolve.
class ValuesAndIndices(NamedTuple("ValuesAndIndices", [("values", Tensor), ("indices", Tensor)])):
    """Elements that were chosen along an axis, for example by `topk`, and their indices."""


@composition
def take_along_axis(x: Array, indices: Array, axis: int | None = -1) -> Tensor:
    """out[i, j, k] = x[i, indices[i, j, k], k] for `axis=1`, and so on for other axes.

    Shapes are broadcast, except along `axis`. With `axis=None`, x is flattened first.

    Raises:
        ValueError: if the numbers of axes differ, the shapes cannot be broadcast, or the axis does
            not exist.
        TypeError: if the indices are not integers.
        IndexError: if an index is out of range.
    """
    if axis is None:
        x, axis = ops.reshape(x, -1), 0
    axis = normalize_axis(axis, x.ndim)
    taken = as_integers("indices", indices)
    pairs = zip(taken.shape, x.shape, strict=False)
    others = [pair for i, pair in enumerate(pairs) if i != axis]
    if taken.ndim != x.ndim or any(1 != a != b != 1 for a, b in others):
        raise ValueError(
            f"indices of shape {taken.shape} do not fit x of shape {x.shape};"
            f" all sizes but that of axis {axis} must be the same, or 1"
        )
    positions = observed(flat_positions, taken, axis, x.shape, x.shape)
    return ops.getitem(ops.reshape(x, -1), positions)


@composition
def gather(x: Array, axis: int, indices: Array) -> Tensor:
    """out[i, j, k] = x[i, indices[i, j, k], k] for `axis=1`, for each index of `indices`.

    As in PyTorch, nothing is broadcast, and `indices` may be smaller than x along the other axes.
    Negative indices count from the end; PyTorch does not accept them.

    Raises:
        ValueError: if the numbers of axes differ, or the indices are larger along another axis.
        TypeError: if the indices are not integers.
        IndexError: if an index is out of range.
    """
    axis, taken = normalize_axis(axis, x.ndim), as_integers("indices", indices)
    _check_smaller(taken, "x", x.shape, axis)
    positions = observed(flat_positions, taken, axis, x.shape, taken.shape)
    return ops.getitem(ops.reshape(x, -1), positions)


def flat_positions(
    indices: Any, axis: int, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> NDArray[Any]:
    """Return where the elements x[i, indices[i, j, k], k] are in x.reshape(-1), for `axis=1`.

    x has the given shape. i and k count to `sizes`, unless the indices are broadcast there. An
    index that is out of range is an IndexError.
    """
    index = list(np.indices(sizes, sparse=True))
    index[axis] = from_the_front(indices, axis, shape)
    return np.ravel_multi_index(tuple(index), shape)


@composition
def scatter(x: Array, axis: int, indices: Array, src: Array) -> Tensor:
    """x with out[i, indices[i, j, k], k] = src[i, j, k] for `axis=1`, for each index of `indices`.

    As in PyTorch, `indices` may be smaller than `src`, and smaller than x along the other axes. If
    an index is repeated, the last value counts. The gradient goes to the values in the result.
    Negative indices count from the end; PyTorch does not accept them.

    Args:
        x: the array; it is not changed.
        axis: the axis of x along which the indices count.
        indices: integers, with as many axes as x.
        src: an array with as many axes as x, or a number; it is converted to the dtype of x.

    Raises:
        ValueError: if the shapes do not match, or a value is out of range of the integers of x.
        TypeError: if the indices are not integers, or floats would be written to integers.
        IndexError: if an index is out of range.
    """
    axis, taken = normalize_axis(axis, x.ndim), as_integers("indices", indices)
    _check_smaller(taken, "x", x.shape, axis)
    if src.dtype.kind == "f" and x.dtype.kind != "f":
        raise TypeError(f"x contains {x.dtype} and no floats; use x.astype({str(src.dtype)!r})")
    if src.ndim:
        _check_smaller(taken, "src", src.shape)
        src = ops.getitem(src, tuple(slice(n) for n in taken.shape))
    if x.dtype.kind in "iu":
        converted = observed(as_array, as_array(src), x.dtype)  # an error if one is out of range
        src = Tensor(converted) if isinstance(src, Tensor) else converted
    positions, sources, written = observed(last_written, taken, axis, x.shape)
    flat = ops.reshape(ops.broadcast_to(src, taken.shape), -1)
    values = ops.astype(ops.getitem(flat, sources), x.dtype)
    out = ops.reshape(ops.scatter_add(values, positions, (x.size,)), x.shape)
    return ops.where(written, out, x)


def last_written(indices: Any, axis: int, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Return the flat positions that `scatter` writes, the index of each value, and a mask.

    The mask has the given shape, and is True at the written positions. An index that is out of
    range is an IndexError.
    """
    positions = flat_positions(indices, axis, shape, indices.shape)
    # A flat array: numpy keeps the last of several values for a position, in any memory order.
    source = np.full(shape, -1)
    source.reshape(-1)[positions.ravel()] = np.arange(indices.size)
    written = source >= 0
    return np.flatnonzero(written), source[written], written


def _check_smaller(
    indices: Any, name: str, shape: tuple[int, ...], axis: int | None = None
) -> None:
    """Raise a ValueError if `indices` is larger than an array along another axis than `axis`."""
    if indices.ndim != len(shape) or any(
        i != axis and n > size for i, (n, size) in enumerate(zip(indices.shape, shape, strict=True))
    ):
        larger = "may not be larger" if axis is None else f"only along axis {axis} may be larger"
        raise ValueError(
            f"indices of shape {indices.shape} do not fit {name} of shape {shape}: they need "
            f"as many axes as {name}, and {larger}"
        )


@composition
def sort(x: Array, axis: int | None = -1, descending: bool = False) -> Tensor:
    """The elements along `axis`, sorted from small to large; each gets its own gradient.

    With `descending`, from large to small. With `axis=None`, x is flattened first. A nan counts as
    the largest. Equal elements keep their order.

    Raises:
        ValueError: if the axis does not exist.
        TypeError: if `descending` is not True or False.
    """
    return take_along_axis(x, ops.argsort(x, axis, descending), axis)


@composition
def topk(x: Array, k: int, axis: int = -1, largest: bool = True) -> ValuesAndIndices:
    """The k largest (or smallest) elements along `axis`, in order, and their indices.

    The gradient goes to the chosen elements; among equal elements, the first is chosen.

    Raises:
        TypeError: if `k` is not an integer, or `largest` is not True or False.
        ValueError: if k is negative, there are fewer than k elements, or the axis does not exist.
    """
    check_flag("largest", largest)
    axis = normalize_axis(axis, x.ndim)
    check_integer("k", k)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"k = {k}, but axis {axis} of shape {x.shape} has {x.shape[axis]}")
    indices = top_indices(x, k, axis, largest)
    return ValuesAndIndices(take_along_axis(x, indices, axis), indices)


@op(
    cost=lambda x: 4 * x.size,  # comparisons: about three to select an element, one with the bound
    shape=lambda x, k, axis: (*x.shape[:axis], k, *x.shape[axis + 1 :]),
)
def top_indices(x: Array, k: int, axis: int, largest: bool) -> Array:
    """The indices of the k largest (or smallest) elements along `axis`, in order.

    A few of many elements are selected first, so that the others need not be sorted. If more
    elements equal the last one, or it is nan, all are sorted, because the first of equals count.
    """
    size = x.shape[axis]
    if size >= 64 and 0 < k <= size // 8:  # else sorting all is as fast
        rows = np.moveaxis(x, axis, -1)
        last = size - k if largest else k - 1
        bound = np.partition(rows, last, -1)[..., last, None]
        chosen = ~(rows < bound) if largest else rows <= bound  # a nan is the largest
        if (np.count_nonzero(chosen, -1) == k).all():
            found = np.nonzero(chosen)[-1].reshape(*rows.shape[:-1], k)
            order = ops.argsort.forward(np.take_along_axis(rows, found, -1), -1, largest)
            return np.moveaxis(np.take_along_axis(found, order, -1), -1, axis)
    return ops.argsort.forward(x, axis, largest)[(*[slice(None)] * axis, slice(k))]


@composition
def max_with_indices(x: Array, axis: int = -1, keepdims: bool = False) -> ValuesAndIndices:
    """The largest elements along `axis`, and their indices.

    The gradient goes to the chosen elements: the first of equal elements, and nan if there is one.
    (In `max`, equal elements share the gradient.)

    Raises:
        ValueError: if the axis is empty or does not exist.
        TypeError: if `keepdims` is not True or False.
    """
    return _chosen(x, ops.argmax, axis, keepdims)


@composition
def min_with_indices(x: Array, axis: int = -1, keepdims: bool = False) -> ValuesAndIndices:
    """The smallest elements along `axis`, and their indices, as in `max_with_indices`.

    Raises:
        ValueError: if the axis is empty or does not exist.
        TypeError: if `keepdims` is not True or False.
    """
    return _chosen(x, ops.argmin, axis, keepdims)


def _chosen(x: Array, arg: Op[Any], axis: int, keepdims: bool) -> ValuesAndIndices:
    indices = arg(x, normalize_axis(axis, x.ndim), keepdims=True)
    values = take_along_axis(x, indices, axis)
    if flag(keepdims):
        return ValuesAndIndices(values, indices)
    return ValuesAndIndices(squeeze(values, axis), squeeze(indices, axis))


@composition
def cummax(x: Array, axis: int = -1) -> ValuesAndIndices:
    """The running maximum along `axis`, and the index of each maximum; both have the shape of x.

    The gradient goes to the chosen elements: the last of equal elements, and nan if there is one,
    as in PyTorch.

    Raises:
        ValueError: if the axis does not exist.
    """
    return _running(x, axis, largest=True)


@composition
def cummin(x: Array, axis: int = -1) -> ValuesAndIndices:
    """The running minimum along `axis`, and the index of each minimum, as in `cummax`.

    Raises:
        ValueError: if the axis does not exist.
    """
    return _running(x, axis, largest=False)


def _running(x: Array, axis: int, largest: bool) -> ValuesAndIndices:
    axis = normalize_axis(axis, x.ndim)
    indices: Any = observed(running_indices, as_array(x), axis, largest)
    indices = Tensor(indices) if isinstance(x, Tensor) else indices
    return ValuesAndIndices(take_along_axis(x, indices, axis), indices)


def running_indices(x: Any, axis: int, largest: bool) -> Any:
    """Return the index of the running maximum (or minimum) at each position along an axis."""
    extremes = (np.maximum if largest else np.minimum).accumulate(x, axis)
    steps = np.arange(x.shape[axis]).reshape(-1, *[1] * (x.ndim - axis - 1))
    return np.maximum.accumulate(np.where((x == extremes) | (x != x), steps, 0), axis)


@composition
def nonzero(x: Array) -> tuple[Tensor, ...]:
    """The indices of the elements that are not 0, in row-major order: an array for each axis.

    The indices are integers, and have no derivative. `x[nonzero(x)]` gives the elements.

    Raises:
        ValueError: if x is a number, without an axis.
    """
    if x.ndim == 0:
        raise ValueError("takes an array with axes, not a number; reshape it to (1,) first")
    found = observed(np.nonzero, as_array(x))
    return tuple(Tensor(index) for index in found) if isinstance(x, Tensor) else found  # type: ignore[return-value]


@composition
def one_hot(labels: Array, num_classes: int | None = None) -> Tensor:
    """One-hot vectors, `(...) -> (..., num_classes)`: 1 at the class and 0 elsewhere, as int64.

    Args:
        labels: the classes, integers.
        num_classes: the number of classes; None for the largest label plus 1.

    Raises:
        TypeError: if the labels or `num_classes` are not integers.
        ValueError: if a label is not among the classes, or `num_classes` is negative.
    """
    classes = as_integers("labels", labels)
    if num_classes is not None:
        check_integer("num_classes", num_classes)
    out: Any = observed(one_hot_rows, classes, num_classes)
    return Tensor(out) if isinstance(labels, Tensor) else out


def one_hot_rows(classes: Any, num_classes: int | None) -> Any:
    """Check an array of integers, and return the result of `one_hot` for it."""
    if num_classes is None:
        if classes.size and classes.min() < 0:
            raise ValueError(f"labels must be at least 0, and one is {classes.min()}")
        num_classes = int(classes.max()) + 1 if classes.size else 0
    if num_classes < 0:
        raise ValueError(f"num_classes must not be negative, but is {num_classes}")
    check_below("labels", classes, num_classes, "classes")
    rows = np.zeros((classes.size, num_classes), np.int64)
    rows[np.arange(classes.size), classes.ravel()] = 1
    return rows.reshape(*classes.shape, num_classes)


def check_below(
    role: str, values: Any, count: int, what: str, error: type[Exception] = ValueError
) -> None:
    """Raise an error unless all integers are from 0 to `count` - 1, as indices of `what`."""
    if values.size and not (values.min() >= 0 and values.max() < count):
        found = f"{values.min()} to {values.max()}"
        raise error(f"{role} run from {found}, but there are {count} {what}, 0 to {count - 1}")


def as_integers(role: str, values: Array) -> Any:
    """Return `values` as an array, or raise a TypeError if they are not integers."""
    array = as_array(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{role} must be integers, not {array.dtype}")
    return array
