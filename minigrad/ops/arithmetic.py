"""The arithmetic operators."""

from __future__ import annotations

import numpy as np

from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.ops import hints
from minigrad.ops.comparison import logical_and
from minigrad.ops.elementwise import flat, log, where

__all__ = [
    "add",
    "divide",
    "floor_divide",
    "multiply",
    "negative",
    "power",
    "remainder",
    "subtract",
]


_DIFFERENCE_HINTS = {
    "Inf - Inf is NaN": lambda x, y, out: (
        np.isinf(x).any() and np.isinf(y).any() and np.isnan(out).any()
    ),
}


@op(nonfinite_hint=_DIFFERENCE_HINTS)
def add(x: Array, y: Array) -> Array:
    """x + y, broadcast."""
    return np.add(x, y)


add.vjp("x", lambda g: g)
add.vjp("y", lambda g: g)


@op(nonfinite_hint=_DIFFERENCE_HINTS)
def subtract(x: Array, y: Array) -> Array:
    """x - y, broadcast."""
    return np.subtract(x, y)


subtract.vjp("x", lambda g: g)
subtract.vjp("y", lambda g: -g)


@op(
    nonfinite_hint={
        "0 * Inf is NaN: choose by `where`, not by a product with 0": lambda x, y: (
            (x == 0) & np.isinf(y) | (y == 0) & np.isinf(x)
        )
    },
    gradient_hint=hints.of_product_gradient,
)
def multiply(x: Array, y: Array) -> Array:
    """x y, element by element, broadcast."""
    return np.multiply(x, y)


multiply.vjp("x", lambda g, y: g * y)
multiply.vjp("y", lambda g, x: g * x)


@op(
    nonfinite_hint={
        "0 / 0 is NaN; add a small number to the divisor, or choose by `where` beforehand": (
            lambda x, y: (x == 0) & (y == 0)
        ),
        "division by 0; add a small number to the divisor": lambda x, y: (x != 0) & (y == 0),
        "Inf / Inf is NaN": lambda x, y: np.isinf(x) & np.isinf(y),
    },
    gradient_hint={"the derivative divides by y, which has a 0": lambda y: y == 0},
)
def divide(x: Array, y: Array) -> Array:
    """x / y, broadcast; integers give floats. At y = 0 it is infinite or nan, as in numpy."""
    return np.divide(x, y)


divide.vjp("x", lambda g, y: g / y)
divide.vjp("y", lambda g, y, out: -g * out / y)


@op
def floor_divide(x: Array, y: Array) -> Array:
    """floor(x / y), broadcast: a staircase, of derivative 0 wherever it has one."""
    return np.floor_divide(x, y)


floor_divide.vjp("x", flat)
floor_divide.vjp("y", flat)


@op
def remainder(x: Array, y: Array) -> Array:
    """x - y floor(x / y), broadcast: it has the sign of y, as Python's % has.

    The derivatives are 1 in x and -floor(x / y) in y, also at the jumps.
    """
    return np.remainder(x, y)


remainder.vjp("x", lambda g: g)
remainder.vjp("y", lambda g, x, y: -g * floor_divide(x, y))


@op
def negative(x: Array) -> Array:
    """-x."""
    return np.negative(x)


negative.vjp("x", lambda g: -g)


@op(
    nonfinite_hint={
        "a negative number to a power that is no integer is NaN": (
            lambda x, y: (x < 0) & (y != np.floor(y))
        ),
        "0 to a negative power is Inf: division by 0": lambda x, y: (x == 0) & (y < 0),
    },
    gradient_hint={
        "the slope of x^y is infinite at x = 0 for y < 1; (x + 1e-12)^y has one": (
            lambda x, y: (x == 0) & (y < 1)
        )
    },
)
def power(x: Array, y: Array) -> Array:
    """x ** y, broadcast.

    x^0 = 1 and has derivative 0 in x, also at x = 0. The derivative in y is out log(x), taken as 0
    where x = 0; at a negative x, where x^y is defined at isolated y only, it is nan.
    """
    if y.__class__ in (int, float) and y in _WHOLE and x.__class__ is np.ndarray:
        if y > 0:
            return _product(x, int(y))
        if x.dtype.kind == "f":
            return 1.0 / _product(x, int(-y))
    return x**y  # the operator, not np.power: it has fast ways for exponents such as 2 and 0.5


_WHOLE = {-4, -3, -2, -1, 3, 4, 5, 6, 7, 8}  # for which numpy takes up to a hundred times as long


def _product(x: Array, n: int) -> Array:
    """x x ... x, n times, by squaring."""
    if n == 1:
        return x
    half = _product(x, n // 2)
    return half * half * x if n % 2 else half * half


@power.vjp("x")
def _power_x(g: Array, x: Array, y: Array) -> Array:
    if isinstance(y, (int, float)):
        return g * (y * power(x, y - 1)) if y != 0 else g * 0.0
    nothing = logical_and(x == 0, y == 0)  # 0 times 0^-1
    return g * y * x ** where(nothing, 1.0, y - 1)


@power.vjp("y")
def _power_y(g: Array, x: Array, out: Array) -> Array:
    zero = x == 0
    return where(zero, 0.0, g * out * log(where(zero, 1.0, x)))
