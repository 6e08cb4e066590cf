"""Norms, diagonals and traces."""

from __future__ import annotations

import numpy as np

from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.functional.composition import composition
from minigrad.functional.shape import moveaxis
from minigrad.functional.statistics import root
from minigrad.ops import abs, getitem, max, min, scatter_add, square, sum
from minigrad.ops.axes import normalize_axes

__all__ = ["diag", "diagonal", "norm", "trace"]


@composition
def norm(
    x: Array, ord: float | str | None = None, axis: Axis = None, keepdims: bool = False
) -> Tensor:
    """The norm of vectors along one axis, or of matrices along two.

    Of a vector: (sum |x|^p)^(1/p) for `ord` = p >= 1, the largest |x| for inf, the smallest for
    -inf; of a matrix: the largest (smallest) sum of |x| over a column for 1 (-1), over a row for
    inf (-inf). None is the root of the sum of squares of either; for a matrix it is also called
    "fro". With `axis=None`, x itself is the vector or the matrix; with `ord=None` too, x may have
    any shape. Where the norm is 0, so is the gradient.

    Raises:
        ValueError: for another order, such as those of a matrix that need singular values.
    """
    axes = normalize_axes(axis, x.ndim)
    count = len(axes)
    if (ord is None and (axis is None or count in (1, 2))) or (ord == "fro" and count == 2):
        return root(sum(square(x), axes, keepdims))
    known = {1: "p >= 1, inf, -inf or None", 2: "1, -1, inf, -inf, 'fro' or None"}
    if count not in known:
        raise ValueError(f"takes vectors or matrices, not {count} axes of shape {x.shape}")
    if ord is not None and not isinstance(ord, str):
        extreme = max if ord > 0 else min
        if count == 1 and np.isinf(ord):
            return extreme(abs(x), axes, keepdims)
        if count == 1 and ord == 2:
            return root(sum(square(x), axes, keepdims))
        if count == 1 and ord >= 1:
            return root(sum(abs(x) ** ord, axes, keepdims), ord)
        if count == 2 and ord in (1, -1, np.inf, -np.inf):
            row, column = axes
            sums = sum(abs(x), row if np.abs(ord) == 1 else column, keepdims=True)
            return extreme(sums, axes, keepdims)
    raise ValueError(
        f"ord is {known[count]} for {'vectors' if count == 1 else 'matrices'}, not {ord!r}"
    )


@composition
def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The diagonal of the matrices along `axis1` and `axis2`, as a last axis: x[i, i + offset].

    Raises:
        ValueError: if the axes are the same or do not exist.
    """
    x = moveaxis(x, normalize_axes((axis1, axis2), x.ndim), (-2, -1))
    rows, columns = x.shape[-2:]
    first, last = np.maximum(-offset, 0), np.minimum(rows, columns - offset)
    steps = np.arange(first, np.maximum(first, last))
    return getitem(x, (..., steps, steps + offset))


@composition
def trace(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of the diagonal of the matrices along `axis1` and `axis2`.

    Raises:
        ValueError: if the axes are the same or do not exist.
    """
    return sum(diagonal(x, offset, axis1, axis2), -1)


@composition
def diag(x: Array, k: int = 0) -> Tensor:
    """The k-th diagonal of a matrix, or the matrix that has a vector as its k-th diagonal.

    Raises:
        ValueError: for an array of another number of axes.
    """
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise ValueError(f"takes a vector or a matrix, not an array of shape {x.shape}")
    size = x.shape[0] + int(np.abs(k))
    steps = np.arange(x.shape[0])
    return scatter_add(x, (steps + np.maximum(-k, 0), steps + np.maximum(k, 0)), (size, size))
