"""Ops that rearrange elements: reshape, transpose, join and cut, index, scatter."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple
from numpy.typing import DTypeLike

from minigrad import kernels
from minigrad.checks import check_flag, native_dtype
from minigrad.core.codegen import Shapes
from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis, Tensor

# --------------------------------------------------------------------------------------------------
# Axes: an int, a tuple or list of ints, or None for all of them
# --------------------------------------------------------------------------------------------------


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return non-negative axes of an array that has `ndim` axes.

    As in numpy, a number may be reduced over axis 0 or -1, although it has no axes.

    Raises:
        TypeError: if an axis is not an integer.
        ValueError: if an axis does not exist or is repeated.
    """
    try:
        return normalize_axis_tuple(range(ndim) if axis is None else axis, ndim)
    except TypeError:
        raise TypeError(f"axis is an int or several of them, not {axis!r}") from None
    except (AxisError, OverflowError):
        if ndim == 0 and axis in (0, -1):
            return ()
        wrong = f"out of bounds for an array of {ndim} axes"
    except ValueError:
        wrong = "repeated"
    raise ValueError(f"axis {axis} is {wrong}")


def normalize_axis(axis: int, ndim: int) -> int:
    """Return one axis as a non-negative number; raise errors as `normalize_axes` does."""
    try:
        return normalize_axis_index(operator.index(axis), ndim)
    except TypeError:
        raise TypeError(f"axis is an int, not {axis!r}") from None
    except (AxisError, OverflowError):
        raise ValueError(f"axis {axis} is out of bounds for an array of {ndim} axes") from None


def reduced(shape: Sequence[int], axis: Axis, keepdims: bool) -> tuple[int, ...]:
    """Return the shape of a reduction over `axis`."""
    axes = normalize_axes(axis, len(shape))
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes)


def is_last(axis: Axis, x: Array) -> bool:
    """Return whether `axis` is the last axis, or None for the only one: kernels need this."""
    if axis is None:
        return bool(x.ndim == 1)
    return axis.__class__ is int and x.ndim > 0 and axis in (-1, x.ndim - 1)


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether an array of this shape can be broadcast to the shape `target`."""
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, size) for n, size in pairs)


def check_shape(name: str, value: Any, shape: tuple[int, ...], meaning: str = "") -> None:
    """Raise a ValueError if an array does not have this shape; None passes.

    `meaning` is put behind the shape in the message, and begins with a comma.
    """
    if value is not None and np.shape(value) != shape:
        raise ValueError(f"{name} must have shape {shape}{meaning}, but has {np.shape(value)}")


def as_tuple(axis: Axis) -> Any:
    """Return `axis` in the form that numpy accepts: a tuple instead of a list."""
    return tuple(axis) if isinstance(axis, list) else axis


def flag(keepdims: Any) -> bool:
    """Return `keepdims` as a bool.

    A number is refused with a TypeError, because it may be meant as another axis.
    """
    if keepdims is not True and keepdims is not False:
        check_flag("keepdims", keepdims)
    return bool(keepdims)


# --------------------------------------------------------------------------------------------------
# Elements in another arrangement
# --------------------------------------------------------------------------------------------------


@op(elementwise=True)
def clone(x: Array) -> Array:
    """A copy, through which gradients flow."""
    return x.copy() if hasattr(x, "dtype") else np.asarray(x)


clone.vjp("x", lambda g: g)


@op(elementwise=True)
def astype(x: Array, dtype: DTypeLike) -> Array:
    """Convert x to `dtype`; the gradient is converted back to the dtype of x.

    Raises:
        TypeError: if `dtype`, or the dtype of x, is not one of booleans, integers or floats.
    """
    if dtype is None or (target := native_dtype(dtype)).kind not in "biuf":
        raise TypeError(f"a tensor contains booleans, integers or floats, not {dtype!r}")
    x = x if hasattr(x, "astype") else np.asarray(x)
    if x.dtype.kind not in "biuf":  # of complex numbers, numpy would take the real part
        raise TypeError(f"a tensor contains booleans, integers or floats, not {x.dtype}")
    return x.astype(target)


astype.vjp("x", lambda g: g)


@op(linear=("x",))
def reshape(x: Array, shape: int | Sequence[int]) -> Array:
    """The elements in another shape, in row-major order; one size may be -1, and is computed.

    Raises:
        ValueError: if the other shape has another number of elements.
        TypeError: if a size is not an integer.
    """
    return x.reshape(shape) if hasattr(x, "reshape") else np.asarray(x).reshape(shape)


reshape.vjp("x", lambda g, x_shape: reshape(g, x_shape))


@op(linear=("x",))
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """The array with its axes in the order `axes`, or reversed: axis i of the result is axes[i].

    Raises:
        ValueError: if `axes` does not name each axis once.
    """
    return np.transpose(x, axes)


@transpose.vjp("x")
def _transpose_x(g: Array, axes: Sequence[int] | None) -> Array:
    if axes is None or g.ndim == 1:  # numpy takes a number for the order of one axis
        return transpose(g)
    inverse = [0] * len(axes)
    for i, axis in enumerate(axes):
        inverse[axis] = i
    return transpose(g, inverse)


@op(linear=("x",))
def flip(x: Array, axis: Axis = None) -> Array:
    """The elements in reverse order along `axis`: an int, a tuple of ints, or None for all.

    Raises:
        ValueError: if an axis does not exist or is repeated.
        TypeError: if an axis is not an integer.
    """
    return np.flip(x, as_tuple(axis))


flip.vjp("x", lambda g, axis: flip(g, axis))


@op(linear=("x",))
def roll(x: Array, shift: int | Sequence[int], axis: Axis = None) -> Array:
    """Shift the elements by `shift` along `axis`; elements past the end continue at the front.

    With `axis=None`, the flattened array is shifted. For several axes, give one shift for each, or
    one for all.

    Raises:
        ValueError: if an axis does not exist, or there are several shifts, but not one for each
            axis.
        TypeError: if a shift is not an integer.
    """
    if np.size(shift) and np.asarray(shift).dtype.kind not in "iu":
        raise TypeError(f"a shift is an integer, not {shift!r}")
    return np.roll(x, shift, axis)


@roll.vjp("x")
def _roll_x(g: Array, shift: int | Sequence[int], axis: Axis) -> Array:
    shifts = np.asarray(shift, np.int64)  # the negative of an unsigned integer would be positive
    return roll(g, (-shifts).tolist(), axis)


@op(elementwise=True)
def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """The elements repeated along new leading axes and along axes of size 1, as in numpy.

    Raises:
        ValueError: if x cannot be broadcast to this shape.
    """
    is_number = isinstance(x, (np.ndarray, np.generic)) and not x.ndim
    if not is_number or shape.__class__ is not tuple or min(shape, default=0) < 0:
        return np.broadcast_to(x, shape)
    # For one number, the gradient of most losses, this is six times as fast as np.broadcast_to.
    out = np.ndarray(shape, x.dtype, x, strides=(0,) * len(shape))
    out.flags.writeable = False
    return out


broadcast_to.vjp("x", lambda g: g)  # the engine sums over broadcast axes, as for any op


@op(linear=("arrays",), cost=0)
def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join several arrays along an existing axis.

    Raises:
        ValueError: if there are no arrays, their sizes differ along another axis, or the axis is
            None or does not exist.
    """
    if axis is None:
        raise ValueError("axis=None is not supported; reshape each to (-1,) first")
    return np.concatenate(arrays, axis)


@concatenate.vjp("arrays")
def _concatenate_one(g: Array, argnum: int, arrays_shape: Shapes, axis: int) -> Array:
    axis = normalize_axis(axis, g.ndim)
    part = slice(*arrays_shape.starts(axis)[argnum : argnum + 2])
    return getitem(g, (*[slice(None)] * axis, part))


# --------------------------------------------------------------------------------------------------
# Taking elements out, and its transpose: adding elements in
# --------------------------------------------------------------------------------------------------


@op(linear=("x",), cost=0, shape=lambda x, index: x[plain_index(index)].shape)
def getitem(x: Array, index: Any) -> Array:
    """x[index], as in numpy: ints, slices, None, Ellipsis, booleans and integer arrays.

    The gradient is added to zeros at the same index, so those of repeated elements add up.

    Raises:
        IndexError: if an index is out of range, has too many axes, or is none of these.
        ValueError: if the step of a slice is 0.
    """
    return x[plain_index(index)]


@op(linear=("values",), cost=lambda values: values.size, shape=lambda shape: shape)
def scatter_add(values: Array, index: Any, shape: Sequence[int]) -> Array:
    """An array of `shape` with `values` added to zeros at `index`; repeated indices add up.

    Args:
        values: the numbers to add, with the shape of `out[index]`.
        index: an index, as in `out[index]`.
        shape: the shape of the result.

    Raises:
        IndexError: if an index is out of range.
        ValueError: if the shape of `values` does not fit the index.
    """
    values = np.asarray(values)
    out = np.zeros(shape, values.dtype)
    index = plain_index(index)
    if not may_repeat(index):
        out[index] = values
        return out
    if values.dtype == np.float16:  # summed in float32, as by `sum`
        wide = scatter_add.forward(values.astype(np.float32), index, shape)
        return np.asarray(wide.astype(values.dtype))
    rows = _rows(index, out.shape) if values.size >= COMPILED_FROM else None
    if rows is None:
        np.add.at(out, index, values)
        return out
    positions, count = rows
    width = math.prod(out.shape[count:])
    values = np.broadcast_to(values, (*positions.shape, *out.shape[count:]))
    kernels.elementwise.add_rows(
        out.reshape(-1, width), positions.ravel(), values.reshape(positions.size, width)
    )
    return out


# The VJPs are here, after both ops, because each op is the VJP of the other.
getitem.vjp("x", lambda g, x_shape, index: scatter_add(g, index, x_shape))
scatter_add.vjp("values", lambda g, index: getitem(g, index))


COMPILED_FROM = 1024  # elements, from which a compiled kernel is faster


def _rows(index: Any, shape: tuple[int, ...]) -> tuple[Array, int] | None:
    """Convert an index of integer arrays to positions in the first axes, flattened to one axis.

    Returns the positions and the number of these axes; or None for any other index.
    """
    parts = [np.asarray(part) for part in (index if isinstance(index, tuple) else (index,))]
    if len(parts) > len(shape) or any(part.dtype.kind not in "iu" for part in parts):
        return None
    indices = [from_the_front(part, axis, shape) for axis, part in enumerate(parts)]
    if len(indices) == 1:
        return indices[0], 1
    sizes = shape[: len(parts)]
    return np.ravel_multi_index(tuple(np.broadcast_arrays(*indices)), sizes), len(parts)


def from_the_front(indices: Array, axis: int, shape: Sequence[int]) -> Array:
    """Return indices of an axis as non-negative integers; an IndexError if one is out of range."""
    size = shape[axis]
    least, most = (indices.min(), indices.max()) if indices.size else (0, -1)
    if not (least >= -size and most < size):
        wrong = f"out of bounds for axis {axis} of shape {tuple(shape)}"
        raise IndexError(f"indices run from {least} to {most}, which is {wrong}")
    indices = indices.astype(np.intp, copy=False)  # uint8 could not hold a position above 255
    return np.where(indices < 0, indices + size, indices) if least < 0 else indices


def plain_index(index: Any) -> Any:
    """Return an index for numpy: replace each Tensor in it by its array."""
    if isinstance(index, Tensor):
        return index._data
    if isinstance(index, tuple):
        return tuple([plain_index(part) for part in index])  # faster than a generator
    return index


def may_repeat(index: Any) -> bool:
    """Return whether an index can select an element twice: if it has an array of integers."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        not isinstance(part, (int, np.integer, slice, type(None), type(Ellipsis)))
        and np.asarray(part).dtype != np.bool_
        for part in parts
    )
