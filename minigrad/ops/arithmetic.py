"""The arithmetic operators, and the comparisons, which have no derivative."""

from __future__ import annotations

import numpy as np

from minigrad.op import op
from minigrad.ops.elementwise import log, where
from minigrad.tensor import Array


@op
def add(x: Array, y: Array) -> Array:
    """x + y, broadcast."""
    return np.add(x, y)


add.rule("x", lambda g: g)
add.rule("y", lambda g: g)


@op
def subtract(x: Array, y: Array) -> Array:
    """x - y, broadcast."""
    return np.subtract(x, y)


subtract.rule("x", lambda g: g)
subtract.rule("y", lambda g: -g)


@op
def multiply(x: Array, y: Array) -> Array:
    """x y, element by element, broadcast."""
    return np.multiply(x, y)


multiply.rule("x", lambda g, y: g * y)
multiply.rule("y", lambda g, x: g * x)


@op
def divide(x: Array, y: Array) -> Array:
    """x / y, broadcast; integers give floats."""
    return np.divide(x, y)


divide.rule("x", lambda g, y: g / y)
divide.rule("y", lambda g, y, out: -g * out / y)


@op
def negative(x: Array) -> Array:
    """-x."""
    return np.negative(x)


negative.rule("x", lambda g: -g)


@op
def power(x: Array, y: Array) -> Array:
    """x ** y, broadcast.

    x^0 = 1 and has derivative 0 in x, also at x = 0. The derivative in y is out log(x), taken as 0
    where x = 0; at a negative x, where x^y is defined at isolated y only, it is nan.
    """
    return x**y  # the operator, not np.power: it has fast ways for exponents such as 2 and 0.5


@power.rule("x")
def _power_x(g: Array, x: Array, y: Array) -> Array:
    if isinstance(y, (int, float)):
        return g * (y * x ** (y - 1)) if y != 0 else g * 0.0
    return where(y == 0, 0.0, g * y * x ** where(y == 0, 1.0, y - 1))


@power.rule("y")
def _power_y(g: Array, x: Array, out: Array) -> Array:
    zero = x == 0
    return where(zero, 0.0, g * out * log(where(zero, 1.0, x)))


@op
def logical_and(x: Array, y: Array) -> Array:
    """Whether both are true, for booleans.

    Raises:
        TypeError: for anything else.
    """
    return np.logical_and(_booleans("logical_and", x), _booleans("logical_and", y))


@op
def logical_or(x: Array, y: Array) -> Array:
    """Whether one of two is true, for booleans.

    Raises:
        TypeError: for anything else.
    """
    return np.logical_or(_booleans("logical_or", x), _booleans("logical_or", y))


@op
def logical_not(x: Array) -> Array:
    """Whether it is false, for booleans.

    Raises:
        TypeError: for anything else.
    """
    return np.logical_not(_booleans("logical_not", x))


def _booleans(name: str, x: Array) -> Array:
    if np.asarray(x).dtype != np.bool_:
        raise TypeError(f"{name}: takes booleans, as comparisons give, not {np.asarray(x).dtype}")
    return x


@op
def equal(x: Array, y: Array) -> Array:
    """x == y, as booleans."""
    return np.equal(x, y)


@op
def not_equal(x: Array, y: Array) -> Array:
    """x != y, as booleans."""
    return np.not_equal(x, y)


@op
def less(x: Array, y: Array) -> Array:
    """x < y, as booleans."""
    return np.less(x, y)


@op
def less_equal(x: Array, y: Array) -> Array:
    """x <= y, as booleans."""
    return np.less_equal(x, y)


@op
def greater(x: Array, y: Array) -> Array:
    """x > y, as booleans."""
    return np.greater(x, y)


@op
def greater_equal(x: Array, y: Array) -> Array:
    """x >= y, as booleans."""
    return np.greater_equal(x, y)
