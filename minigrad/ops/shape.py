"""The same elements in another arrangement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from minigrad.core.codegen import Shapes
from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis
from minigrad.errors import op_error
from minigrad.ops.axes import as_tuple, normalize_axis
from minigrad.ops.indexing import getitem

__all__ = [
    "astype",
    "broadcast_to",
    "clone",
    "concatenate",
    "flip",
    "reshape",
    "roll",
    "transpose",
]


@op
def clone(x: Array) -> Array:
    """A copy."""
    return x.copy()


clone.vjp("x", lambda g: g)


@op
def astype(x: Array, dtype: DTypeLike) -> Array:
    """The same values as `dtype`; the gradient comes back in x's own dtype.

    Raises:
        TypeError: if `dtype` is not one of booleans, integers or floats.
    """
    if np.dtype(dtype).kind not in "biuf":
        raise op_error(
            TypeError, "astype", f"a tensor holds booleans, integers or floats, not {dtype!r}"
        )
    return x.astype(dtype)


astype.vjp("x", lambda g: g)


@op
def reshape(x: Array, shape: int | Sequence[int]) -> Array:
    """The elements in row-major order, in another shape; one size may be -1, to be found."""
    return x.reshape(shape) if hasattr(x, "reshape") else np.asarray(x).reshape(shape)


reshape.vjp("x", lambda g, x_shape: reshape(g, x_shape))


@op
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """The array with its axes in the order `axes`, or reversed."""
    return np.transpose(x, axes)


@transpose.vjp("x")
def _transpose_x(g: Array, axes: Sequence[int] | None) -> Array:
    inverse = None if axes is None else [int(i) for i in np.argsort([a % len(axes) for a in axes])]
    return transpose(g, inverse)


@op
def flip(x: Array, axis: Axis = None) -> Array:
    """The elements in reverse order along `axis`: an int, a tuple of ints, or None for all."""
    return np.flip(x, as_tuple(axis))


flip.vjp("x", lambda g, axis: flip(g, axis))


@op
def roll(x: Array, shift: int | Sequence[int], axis: Axis = None) -> Array:
    """The elements shifted by `shift` along `axis`; those that leave at the end enter at the front.

    With `axis=None`, the flattened array is shifted. Several axes have a shift each, or one.

    Raises:
        TypeError: if a shift is no integer.
    """
    if np.asarray(shift).dtype.kind not in "iu":
        raise op_error(TypeError, "roll", f"a shift is an integer, not {shift!r}")
    return np.roll(x, shift, axis)


roll.vjp("x", lambda g, shift, axis: roll(g, np.negative(shift), axis))


@op
def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """The elements repeated along new leading axes and along axes of size 1."""
    return np.broadcast_to(x, shape)


broadcast_to.vjp("x", lambda g: g)  # the engine sums over broadcast axes, as for any op


@op(cost=0)
def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Several arrays joined along an existing axis.

    Raises:
        ValueError: if there are none, or they differ in another axis.
    """
    if axis is None:
        raise op_error(
            ValueError, "concatenate", "axis=None is not supported; reshape each to (-1,) first"
        )
    return np.concatenate(arrays, axis)


@concatenate.vjp("arrays")
def _concatenate_one(g: Array, argnum: int, arrays_shape: Shapes, axis: int) -> Array:
    axis = normalize_axis(axis, g.ndim)
    part = slice(*arrays_shape.starts(axis)[argnum : argnum + 2])
    return getitem(g, (*[slice(None)] * axis, part))
