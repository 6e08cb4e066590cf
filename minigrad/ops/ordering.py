"""The order of elements by size: indices, which have no derivative.

Functions that use them (`sort`, `topk`) take the elements at these indices, and so the gradient.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.core.op import op
from minigrad.core.tensor import Array

__all__ = ["argmax", "argmin", "argsort"]


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
