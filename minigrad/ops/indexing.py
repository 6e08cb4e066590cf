"""Taking elements out, and its transpose: adding elements in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.errors import op_error

__all__ = ["getitem", "scatter_add"]


@op(cost=0, shape=lambda x, index: x[plain_index(index)].shape)
def getitem(x: Array, index: Any) -> Array:
    """x[index], as in numpy: ints, slices, None, Ellipsis, booleans and integer arrays."""
    return x[plain_index(index)]


@getitem.vjp("x")
def _getitem_x(g: Array, x_shape: tuple[int, ...], index: Any) -> Array:
    return scatter_add(g, index, x_shape)


@op(cost=lambda values: values.size, shape=lambda shape: shape)
def scatter_add(values: Array, index: Any, shape: Sequence[int]) -> Array:
    """An array of `shape` with `values` added to zeros at `index`; repeated indices add up."""
    values = np.asarray(values)
    out = np.zeros(shape, values.dtype)
    index = plain_index(index)
    if not _may_repeat(index):
        out[index] = values
        return out
    rows = _rows(index, out.shape) if values.size >= COMPILED_FROM else None
    if rows is None:
        np.add.at(out, index, values)
        return out
    positions, count = rows
    width = math.prod(out.shape[count:])
    values = np.broadcast_to(values, (*positions.shape, *out.shape[count:]))
    kernels.indexing.add_rows(
        out.reshape(-1, width), positions.ravel(), values.reshape(positions.size, width)
    )
    return out


scatter_add.vjp("values", lambda g, index: getitem(g, index))


COMPILED_FROM = 4096  # elements, from which on it pays to find the rows of an index


def _rows(index: Any, shape: tuple[int, ...]) -> tuple[Array, int] | None:
    """Turn an index of integer arrays into positions in the first axes, taken as one axis.

    Returns:
        The positions, and how many axes they are in; None for any other index.
    """
    parts = [np.asarray(part) for part in (index if isinstance(index, tuple) else (index,))]
    if len(parts) > len(shape) or any(part.dtype.kind not in "iu" for part in parts):
        return None
    sizes = shape[: len(parts)]
    checked = []
    for axis, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if part.size and not (part.min() >= -size and part.max() < size):
            raise op_error(
                IndexError,
                "scatter_add",
                f"indices run from {part.min()} to {part.max()}, which is out of "
                f"bounds for axis {axis} of shape {shape}",
            )
        part = part.astype(np.intp, copy=False)  # bytes have no room for a position beyond 255
        checked.append(np.where(part < 0, part + size, part))
    return np.ravel_multi_index(tuple(np.broadcast_arrays(*checked)), sizes), len(parts)


def plain_index(index: Any) -> Any:
    """Return an index for numpy, with arrays for the Tensors in it."""
    if isinstance(index, Tensor):
        return index._data
    if isinstance(index, tuple):
        return tuple(plain_index(part) for part in index)
    return index


def _may_repeat(index: Any) -> bool:
    """Return whether an index can name an element twice: one with an array of integers can."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        not isinstance(part, (int, np.integer, slice, type(None), type(Ellipsis)))
        and np.asarray(part).dtype != np.bool_
        for part in parts
    )
