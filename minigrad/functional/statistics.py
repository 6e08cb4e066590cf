"""Variance and standard deviation."""

from __future__ import annotations

import numpy as np

from minigrad.checks import check_range
from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.functional.compositions import composition, narrowed, root, widened
from minigrad.ops import sum
from minigrad.ops.reduction import count_along
from minigrad.ops.shape import flag


@composition
def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, sum((x - mean)^2) / (n - ddof), of n elements.

    As in numpy, ddof is 0 by default; PyTorch divides by n - 1.

    Raises:
        ValueError: if n <= ddof, n = 0, ddof is infinite, or an axis does not exist.
        TypeError: if ddof is not a number, or `keepdims` is not True or False.
    """
    keepdims, count = flag(keepdims), count_along(x.shape, axis)
    check_range("ddof", ddof, -np.inf, np.inf)
    if count <= ddof:
        raise ValueError(f"{count} elements are too few for ddof={ddof}")
    wide = widened(x)
    deviation = wide - sum(wide, axis, keepdims=True) / count
    return narrowed(sum(deviation * deviation, axis, keepdims) / (count - ddof), x)


@composition
def std(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`, the root of `var`. Where it is 0, its gradient is 0.

    Raises:
        ValueError, TypeError: as in `var`.
    """
    return narrowed(root(var(widened(x), axis, ddof, keepdims)), x)
