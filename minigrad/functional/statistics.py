"""Variance and standard deviation."""

from __future__ import annotations

import numpy as np

from minigrad.checks import check_range
from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.functional.composition import composition
from minigrad.ops import astype, sqrt, sum, where
from minigrad.ops.reduction import count_along


@composition
def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, sum((x - mean)^2) / (n - ddof), of n elements.

    As in numpy, ddof is 0 by default; PyTorch divides by n - 1.

    Raises:
        ValueError: if n <= ddof, n = 0, ddof is infinite, or an axis does not exist.
        TypeError: if ddof is not a number.
    """
    count = count_along(x.shape, axis)
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


def root(x: Array, p: float = 2.0) -> Tensor:
    """x^(1/p) for x >= 0, with gradient 0 instead of infinity at 0, the minimum of a distance."""
    zero = x == 0
    positive = where(zero, 1.0, x)
    return where(zero, 0.0, sqrt(positive) if p == 2 else positive ** (1 / p))


_HALF = np.dtype(np.float16)


def widened(x: Array) -> Array:
    """Convert float16 to float32 and integers to float64, to avoid overflow in sums of squares."""
    if x.dtype.kind == "f":
        return astype(x, np.float32) if x.dtype is _HALF else x
    return astype(x, np.float64)


def narrowed(result: Tensor, x: Array) -> Tensor:
    """Convert a result to the dtype of x; if x holds integers, convert a Tensor to float32."""
    if x.dtype.kind == "f":
        return astype(result, x.dtype) if result.dtype != x.dtype else result
    return astype(result, np.float32) if isinstance(result, Tensor) else result
