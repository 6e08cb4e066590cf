"""Mean, variance and standard deviation."""

from __future__ import annotations

import math

from minigrad.functional.composition import composition
from minigrad.ops import sqrt, sum, where
from minigrad.ops.axes import kept
from minigrad.tensor import Array, Axis, Tensor

__all__ = ["mean", "std", "var"]


@composition
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`: an int, a tuple of ints, or None for all.

    Raises:
        ValueError: if there is nothing to average.
    """
    count = _count("mean", x.shape, axis)
    return sum(x, axis, keepdims) / count


@composition
def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, sum((x - mean)^2) / (n - ddof).

    Raises:
        ValueError: if n <= ddof.
    """
    count = _count("var", x.shape, axis)
    if count <= ddof:
        raise ValueError(f"var: {count} elements are too few for ddof={ddof}")
    deviation = x - mean(x, axis, keepdims=True)
    return sum(deviation * deviation, axis, keepdims) / (count - ddof)


@composition
def std(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`, the root of `var`; where that is 0, so is the gradient.

    Raises:
        ValueError: if n <= ddof.
    """
    return root(var(x, axis, ddof, keepdims))


def root(x: Array, p: float = 2.0) -> Tensor:
    """x^(1/p) for x >= 0, with gradient 0, not infinity, at 0: of a distance, at its least."""
    zero = x == 0
    positive = where(zero, 1.0, x)
    return where(zero, 0.0, sqrt(positive) if p == 2 else positive ** (1 / p))


def _count(name: str, shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements a reduction over `axis` combines into one."""
    axes = kept(shape, axis, name)
    count = math.prod(size for size, target in zip(shape, axes, strict=True) if target == 1)
    if count == 0:
        raise ValueError(f"{name}: shape {shape} has no elements along axis {axis}")
    return count
