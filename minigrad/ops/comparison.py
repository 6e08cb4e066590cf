"""Comparisons, logic and order: booleans and indices, which have no derivative.

Functions that use the indices (`sort`, `topk`) take the elements there, and so the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis
from minigrad.ops.of_numpy import binary, unary
from minigrad.ops.shape import as_tuple

# The type is Any because numpy's stubs know `keepdims` as a literal only.
_any: Any = np.logical_or.reduce
_all: Any = np.logical_and.reduce

equal = binary("equal", "a == b, as booleans.")
not_equal = binary("not_equal", "a != b, as booleans.")
less = binary("less", "a < b, as booleans.")
less_equal = binary("less_equal", "a <= b, as booleans.")
greater = binary("greater", "a > b, as booleans.")
greater_equal = binary("greater_equal", "a >= b, as booleans.")
isfinite = unary("isfinite", "True where x is neither infinite nor nan.")
isinf = unary("isinf", "True where x is infinite.")
isnan = unary("isnan", "True where x is nan, not a number.")


@op
def logical_and(a: Array, b: Array) -> Array:
    """a and b, element by element, for booleans.

    Raises:
        TypeError: for anything else than booleans.
    """
    return np.logical_and(_booleans(a), _booleans(b))


@op
def logical_or(a: Array, b: Array) -> Array:
    """a or b, element by element, for booleans.

    Raises:
        TypeError: for anything else than booleans.
    """
    return np.logical_or(_booleans(a), _booleans(b))


@op
def logical_not(x: Array) -> Array:
    """not x, element by element, for booleans.

    Raises:
        TypeError: for anything else than booleans.
    """
    return np.logical_not(_booleans(x))


@op
def any(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """True if any element over `axis` is true, for booleans; False if there are none.

    Raises:
        TypeError: for anything else than booleans.
    """
    return _any(_booleans(x), axis=as_tuple(axis), keepdims=keepdims)


@op
def all(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """True if all elements over `axis` are true, for booleans; also if there are none.

    Raises:
        TypeError: for anything else than booleans.
    """
    return _all(_booleans(x), axis=as_tuple(axis), keepdims=keepdims)


def _booleans(x: Array) -> Array:
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if dtype != np.bool_:
        raise TypeError(f"takes booleans, as comparisons give, not {dtype}")
    return x


# --------------------------------------------------------------------------------------------------
# The order of elements by size
# --------------------------------------------------------------------------------------------------


@op
def argmax(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the largest element along `axis`, or in the flattened array.

    Of equal elements, the first counts.

    Raises:
        ValueError: if there is nothing to choose from.
    """
    return x.argmax(axis, keepdims=keepdims)


@op
def argmin(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the smallest element along `axis`, or in the flattened array.

    Of equal elements, the first counts.

    Raises:
        ValueError: if there is nothing to choose from.
    """
    return x.argmin(axis, keepdims=keepdims)


def _comparisons(x: Array, axis: int | None) -> int:
    """The comparisons of a sort: n log2(n) for each row of n elements."""
    n = x.size if axis is None or not x.shape else x.shape[axis]
    return x.size * math.ceil(math.log2(n)) if n > 1 else 0


@op(cost=_comparisons, shape=lambda x, axis: (x.size,) if axis is None else x.shape)
def argsort(x: Array, axis: int | None = -1, descending: bool = False) -> Array:
    """The indices that sort the elements along `axis` from small to large; equals keep their order.

    With `axis=None`, the array is flattened first. A nan counts as the largest.
    """
    if axis is None:
        x, axis = np.ravel(x), -1
    if not descending:
        return np.argsort(x, axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)
