"""Taking elements out, and its transpose: adding elements in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.op import op
from minigrad.tensor import Array, Tensor


@op
def getitem(x: Array, index: Any) -> Array:
    """x[index], as in numpy: ints, slices, None, Ellipsis, booleans and integer arrays."""
    return x[plain_index(index)]


@getitem.rule("x")
def _getitem_x(g: Array, x_shape: tuple[int, ...], index: Any) -> Array:
    return scatter_add(g, index, x_shape)


@op
def scatter_add(values: Array, index: Any, shape: Sequence[int]) -> Array:
    """Zeros of `shape` with `values` added at `index`; an index that is repeated adds up."""
    out = np.zeros(shape, values.dtype)
    index = plain_index(index)
    if _may_repeat(index):
        np.add.at(out, index, values)
    else:
        out[index] = values
    return out


scatter_add.rule("values", lambda g, index: getitem(g, index))


def plain_index(index: Any) -> Any:
    """An index for numpy: arrays for the Tensors in it."""
    if isinstance(index, Tensor):
        return index._data
    if isinstance(index, tuple):
        return tuple(plain_index(part) for part in index)
    return index


def _may_repeat(index: Any) -> bool:
    """Whether an index can name an element twice: only one with an array of integers can."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        not isinstance(part, (int, np.integer, slice, type(None), type(Ellipsis)))
        and np.asarray(part).dtype != np.bool_
        for part in parts
    )
