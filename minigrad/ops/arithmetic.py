"""The arithmetic operators."""

from __future__ import annotations

import numpy as np

from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.ops import hints
from minigrad.ops.comparison import logical_and, logical_not
from minigrad.ops.elementwise import flat, log, round, where
from minigrad.ops.of_numpy import binary, unary

_DIFFERENCE_HINTS = {
    "Inf - Inf is NaN": lambda a, b, out: (
        np.isinf(a).any() and np.isinf(b).any() and np.isnan(out).any()
    ),
}

add = binary("add", "a + b, broadcast.", nonfinite_hint=_DIFFERENCE_HINTS)
add.vjp("a", lambda g: g)
add.vjp("b", lambda g: g)

subtract = binary(
    "subtract",
    "a - b, broadcast.\n\nRaises:\n    TypeError: for booleans, as in numpy.",
    nonfinite_hint=_DIFFERENCE_HINTS,
)
subtract.vjp("a", lambda g: g)
subtract.vjp("b", lambda g: -g)

multiply = binary(
    "multiply",
    "a b, element by element, broadcast.",
    nonfinite_hint={
        "0 * Inf is NaN: choose by `where`, not by a product with 0": lambda a, b: (
            (a == 0) & np.isinf(b) | (b == 0) & np.isinf(a)
        )
    },
    gradient_hint=hints.of_product_gradient,
)
multiply.vjp("a", lambda g, b: g * b)
multiply.vjp("b", lambda g, a: g * a)

divide = binary(
    "divide",
    "a / b, broadcast; integers give floats. At b = 0 it is infinite or nan, as in numpy. The "
    "derivatives are 1 / b and -a / b^2.",
    nonfinite_hint={
        "0 / 0 is NaN; add a small number to the divisor, or choose by `where` beforehand": (
            lambda a, b: (a == 0) & (b == 0)
        ),
        "division by 0; add a small number to the divisor": lambda a, b: (a != 0) & (b == 0),
        "Inf / Inf is NaN": lambda a, b: np.isinf(a) & np.isinf(b),
    },
    gradient_hint={"the derivative divides by b, which has a 0": lambda b: b == 0},
)
divide.vjp("a", lambda g, b: g / b)
divide.vjp("b", lambda g, b, out: -g * out / b)

floor_divide = binary(
    "floor_divide",
    "floor(a / b), broadcast: a step function, whose derivative is 0. For integers, it is 0 at "
    "b = 0, as in numpy.",
)
floor_divide.vjp("a", flat)
floor_divide.vjp("b", flat)

remainder = binary(
    "remainder",
    "a - b floor(a / b), broadcast: it has the sign of b, as in Python's %. The derivatives are 1 "
    "with respect to a, and -floor(a / b) with respect to b, also at the jumps. For integers, it "
    "is 0 at b = 0, as in numpy.",
)
remainder.vjp("a", lambda g: g)
remainder.vjp("b", lambda g, a, b: -g * floor_divide(a, b))

fmod = binary(
    "fmod",
    "a - b trunc(a / b), broadcast: the remainder with the sign of a. The derivatives are 1 with "
    "respect to a, and -trunc(a / b) with respect to b, also at the jumps.",
)
fmod.vjp("a", lambda g: g)
fmod.vjp("b", lambda g, a, b, out: -g * round((a - out) / b))

negative = unary("negative", "-x.\n\nRaises:\n    TypeError: for booleans, as in numpy.")
negative.vjp("x", lambda g: -g)


@op(
    elementwise=True,
    nonfinite_hint={
        "a negative number to a power that is not an integer is NaN": (
            lambda a, b: (a < 0) & (b != np.floor(b))
        ),
        "0 to a negative power is Inf: division by 0": lambda a, b: (a == 0) & (b < 0),
    },
    gradient_hint={
        "the slope of a^b is infinite at a = 0 for b < 1; (a + 1e-12)^b has one": (
            lambda a, b: (a == 0) & (b < 1)
        )
    },
)
def power(a: Array, b: Array) -> Array:
    """a ** b, broadcast.

    The derivative with respect to a is b a^(b - 1). a^0 = 1, and its derivative is 0, also at
    a = 0. The derivative with respect to b is out log(a). At a = 0 this is 0 for b >= 0, and -inf
    for b < 0. For negative a it is nan, because a^b is only defined at isolated b.

    Raises:
        ValueError: if integers are raised to negative integers, as in numpy; a float, such as -1.0,
            gives floats.
    """
    if b.__class__ in (int, float) and b in _BY_SQUARING and a.__class__ is np.ndarray:
        if b > 0 and (a.dtype.kind == "f" or (a.dtype.kind in "iu" and b.__class__ is int)):
            return _product(a, int(b))
        if b < 0 and a.dtype.kind == "f" and a.dtype != np.float16:  # there, a^n may overflow
            return 1.0 / _product(a, int(-b))
    return a**b  # the operator, not np.power: it is fast for exponents such as 2 and 0.5


# Exponents for which numpy is up to a hundred times slower than repeated squaring.
_BY_SQUARING = {-4, -3, -2, -1, 3, 4, 5, 6, 7, 8}


def _product(x: Array, n: int) -> Array:
    """Compute x^n by repeated squaring."""
    if n == 1:
        return x
    half = _product(x, n // 2)
    return half * half * x if n % 2 else half * half


@power.vjp("a")
def _power_a(g: Array, a: Array, b: Array) -> Array:
    if isinstance(b, (int, float)):
        if b == 2:
            return g * (b * a)
        return g * (b * power(a, b - 1)) if b != 0 else g * 0.0
    # 0 times a^-1, which is infinite for a = 0 and the smallest subnormal numbers, or nan.
    nothing = logical_and(logical_not(abs(a) > float(np.finfo(g.dtype).tiny) / 4), b == 0)
    return g * b * where(nothing, 0.0, a) ** where(nothing, 1.0, b - 1)


@power.vjp("b")
def _power_b(g: Array, a: Array, b: Array, out: Array) -> Array:
    zero = a == 0
    at_zero = where(b >= 0, 0.0, -g * out)  # infinite or nan, as out is
    return where(zero, at_zero, g * out * log(where(zero, 1.0, a)))
