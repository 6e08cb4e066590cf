"""Comparisons, logic and sorting order: the results are booleans or indices, without derivatives.

Functions such as `sort` and `topk` use these indices with `getitem`, which has a derivative.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.checks import check_flag
from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.ops.of_numpy import binary, booleans, equality, index, logical, logical_reducer, unary

equal = equality("equal", "a == b, as booleans.")
not_equal = equality("not_equal", "a != b, as booleans.")
less = binary("less", "a < b, as booleans.")
less_equal = binary("less_equal", "a <= b, as booleans.")
greater = binary("greater", "a > b, as booleans.")
greater_equal = binary("greater_equal", "a >= b, as booleans.")


@op(cost=6)
def isclose(
    a: Array, b: Array, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Array:
    """|a - b| <= atol + rtol |b|, as booleans; with `equal_nan`, True also where both are nan.

    As in numpy, infinities are close only to themselves, and the tolerance depends on b, not on a.
    """
    return np.isclose(a, b, rtol, atol, equal_nan)


isfinite = unary("isfinite", "True where x is neither infinite nor nan.")
isinf = unary("isinf", "True where x is infinite.")
isnan = unary("isnan", "True where x is nan, not a number.")

logical_and = logical(
    "logical_and",
    "a and b, element by element, broadcast. Raises a TypeError unless both are booleans.",
)
logical_or = logical(
    "logical_or",
    "a or b, element by element, broadcast. Raises a TypeError unless both are booleans.",
)
_OF_BOOLEANS = (
    "Raises a TypeError unless x contains booleans and `keepdims` is True or False, and a "
    "ValueError if an axis does not exist."
)
any = logical_reducer(
    "any",
    f"True if any element over `axis` is True; False for an empty axis. {_OF_BOOLEANS}",
    "logical_or",
)
all = logical_reducer(
    "all",
    f"True if all elements over `axis` are True, and for an empty axis. {_OF_BOOLEANS}",
    "logical_and",
)


@op
def logical_not(x: Array) -> Array:
    """not x, element by element, for booleans.

    Raises:
        TypeError: if x does not contain booleans.
    """
    return np.logical_not(booleans(x))


# --------------------------------------------------------------------------------------------------
# The order of elements by size
# --------------------------------------------------------------------------------------------------

_INDEX = (
    "The index of the {} element along `axis`, or in the flattened array; the first one, if "
    "several are equal, and the first nan, if there is one. Raises a ValueError if there are no "
    "elements, or the axis does not exist, and a TypeError if `keepdims` is not True or False."
)
argmax = index("argmax", _INDEX.format("largest"))
argmin = index("argmin", _INDEX.format("smallest"))


def _comparisons(x: Array, axis: int | None) -> int:
    """The number of comparisons in a sort: n log2(n) for each row of n elements."""
    n = x.size if axis is None or not x.shape else x.shape[axis]
    return x.size * math.ceil(math.log2(n)) if n > 1 else 0


@op(cost=_comparisons, shape=lambda x, axis: (x.size,) if axis is None else x.shape)
def argsort(x: Array, axis: int | None = -1, descending: bool = False) -> Array:
    """The indices that sort the elements along `axis` from small to large.

    With `descending`, from large to small. Equal elements keep their order in both cases. With
    `axis=None`, the array is flattened first. A nan counts as the largest.

    Raises:
        ValueError: if the axis does not exist.
        TypeError: if `descending` is not True or False.
    """
    check_flag("descending", descending)
    x = np.asarray(x)
    if axis is None:
        x, axis = np.ravel(x), -1
    if not descending:
        return np.argsort(x, axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)
