"""Elementwise functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.checks import check_number
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.compositions import composition, narrowed, widened
from minigrad.ops import abs, astype, isnan, log, logical_and, logical_or, multiply, sin, where


@composition
def xlogy(x: Array, y: Array) -> Tensor:
    """x log(y), broadcast. Where x = 0 and log(y) is not finite, result and gradients are 0.

    A nan in y stays nan.
    """
    undefined = logical_and(x == 0, logical_or(y <= 0, y == math.inf))
    # Where 1 is chosen, the dtype of the result must still be that of x y.
    one = 1.0 if np.ndim(y) else astype(undefined, x.dtype)
    return multiply(x, log(where(undefined, one, y)))


@composition
def sinc(x: Array) -> Tensor:
    """sin(pi x) / (pi x), and 1 at 0. Derivatives of any order are exact, even near 0."""
    u = math.pi * widened(x)
    near = abs(u) < 0.5  # use the Taylor series there: the quotient's derivatives would cancel
    small = where(near, u, 0.0)
    square = small * small  # which a huge u would overflow
    series: Any = 1.0
    for k in range(9, 0, -1):
        series = 1.0 - square / (2 * k * (2 * k + 1)) * series
    u = where(near, 1.0, u)
    return narrowed(where(near, series, sin(u) / u), x)


@composition
def nan_to_num(
    x: Array, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """x with nan, inf and -inf replaced by numbers; the gradient of a replaced element is 0.

    Args:
        x: the array; integers do not change.
        nan: the number that replaces nan.
        posinf: the number that replaces inf; None for the largest number of the dtype.
        neginf: the number that replaces -inf; None for the lowest number of the dtype.

    Raises:
        TypeError: if one of these is not a number.
    """
    for name, value in {"nan": nan, "posinf": posinf, "neginf": neginf}.items():
        if value is not None or name == "nan":
            check_number(name, value)
    if x.dtype.kind != "f":
        return x  # type: ignore[no-any-return]
    limits = np.finfo(x.dtype)
    high, low = x == math.inf, x == -math.inf
    x = where(isnan(x), nan, x)  # first, so that `detect_anomaly` sees no nan in a result
    x = where(high, float(limits.max) if posinf is None else posinf, x)
    return where(low, float(limits.min) if neginf is None else neginf, x)
