"""Wider dtypes for sums of squares, and a root whose gradient is finite at 0."""

from __future__ import annotations

import numpy as np

from minigrad.core.tensor import Array, Tensor
from minigrad.ops import astype, sqrt, where


def root(x: Array, p: float = 2.0) -> Tensor:
    """x^(1/p) for x >= 0, with gradient 0 instead of infinity at 0, the minimum of a distance."""
    zero = x == 0
    positive = where(zero, 1.0, x)
    return where(zero, 0.0, sqrt(positive) if p == 2 else positive ** (1 / p))


_HALF = np.dtype(np.float16)


def widened(x: Array) -> Array:
    """Convert float16 to float32 and integers to float64, to avoid overflow in sums of squares."""
    if x.dtype.kind == "f":
        # By equality, because a dtype from a pickle is another object.
        return astype(x, np.float32) if x.dtype == _HALF else x
    return astype(x, np.float64)


def narrowed(result: Tensor, x: Array) -> Tensor:
    """Convert a result to the dtype of x; if x holds integers, convert a Tensor to float32."""
    if x.dtype.kind == "f":
        return astype(result, x.dtype) if result.dtype != x.dtype else result
    return astype(result, np.float32) if isinstance(result, Tensor) else result
