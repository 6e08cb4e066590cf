"""Elementwise functions, and choices between elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.ops.comparison import isinf, logical_and, logical_or
from minigrad.ops.of_numpy import binary, curve, of_two, unary

# --------------------------------------------------------------------------------------------------
# Choices
# --------------------------------------------------------------------------------------------------


@op(elementwise=True, cost=1)
def where(condition: Array, x: Array, y: Array) -> Array:
    """x where `condition` is true, else y, broadcast; the gradient goes to the chosen operand.

    Raises:
        ValueError: if the shapes cannot be broadcast, or one operand contains integers, and the
            other is an integer out of their range.
    """
    if x.__class__ is int or y.__class__ is int:  # before 2.3, numpy drops the high bits of one
        dtype = np.result_type(x, y)
        x, y = np.asarray(x, dtype), np.asarray(y, dtype)
    if condition.__class__ is np.ndarray and condition.size >= _MANY:
        return kernels.elementwise.where(condition, x, y)
    return np.where(condition, x, y)


_MANY = 4096  # elements, from which minigrad's own loop is faster


where.vjp("x", lambda g, condition: where(condition, g, 0.0))
where.vjp("y", lambda g, condition: where(condition, 0.0, g))

_EXTREME = (
    "The {} of a and b, broadcast. Where they are equal, each gets half of the gradient; where one "
    "is nan, the result is nan, and the gradient goes to both."
)
maximum = binary("maximum", _EXTREME.format("larger"))
maximum.vjp("a", lambda g, a, b: where(a < b, 0.0, where(a == b, 0.5 * g, g)))
maximum.vjp("b", lambda g, a, b: where(a > b, 0.0, where(a == b, 0.5 * g, g)))

minimum = binary("minimum", _EXTREME.format("smaller"))
minimum.vjp("a", lambda g, a, b: where(a > b, 0.0, where(a == b, 0.5 * g, g)))
minimum.vjp("b", lambda g, a, b: where(a < b, 0.0, where(a == b, 0.5 * g, g)))


@op(elementwise=True, cost=lambda min, max, out: ((min is not None) + (max is not None)) * out.size)
def clip(x: Array, min: Array = None, max: Array = None) -> Array:
    """min(max(x, `min`), `max`), broadcast; None means no bound.

    The gradient goes to the chosen operand: to x between the bounds, on a bound, and where x is
    nan; elsewhere to the bound.

    Raises:
        ValueError: if both bounds are None.
    """
    if min is None and max is None:
        raise ValueError("there must be a bound, min or max")
    return np.clip(x, min, max)


@clip.vjp("x")
def _clip_x(g: Array, x: Array, min: Array, max: Array) -> Array:
    if min is not None:
        g = where(x < min, 0.0, g)
    return g if max is None else where(_above(x, min, max), 0.0, g)


@clip.vjp("min")
def _clip_min(g: Array, x: Array, min: Array, max: Array) -> Array:
    taken = x < min if max is None else logical_and(x < min, min <= max)
    return where(taken, g, 0.0)


clip.vjp("max", lambda g, x, min, max: where(_above(x, min, max), g, 0.0))


def _above(x: Array, min: Array, max: Array) -> Array:
    """Return where `max` was chosen: where x is above it, or where it is below `min`."""
    return x > max if min is None else logical_or(x > max, min > max)


# --------------------------------------------------------------------------------------------------
# Staircases
# --------------------------------------------------------------------------------------------------


def flat(g: Array) -> Array:
    """The VJP of a step function such as round: 0 for every arriving gradient."""
    return where(False, g, 0.0)


sign = unary(
    "sign",
    "-1, 0 or 1, for negative x, 0 and positive x; its derivative is 0 everywhere, also at 0.",
)
sign.vjp("x", flat)

floor = unary(
    "floor", "The largest integer that is at most x; the derivative is 0, also at the steps."
)
floor.vjp("x", flat)

ceil = unary(
    "ceil", "The smallest integer that is at least x; the derivative is 0, also at the steps."
)
ceil.vjp("x", flat)

trunc = unary("trunc", "x without its decimals: the next integer towards 0. The derivative is 0.")
trunc.vjp("x", flat)


@op(elementwise=True)
def round(x: Array, decimals: int = 0) -> Array:
    """The nearest number with `decimals` decimals, ties to even; the derivative is 0.

    Raises:
        TypeError: if `decimals` is not an integer.
    """
    return np.round(x, decimals)


round.vjp("x", flat)

copysign = of_two(
    "copysign",
    "|a| with the sign of b, broadcast. The derivative with respect to a is +1 or -1 (0 at a = 0); "
    "with respect to b it is 0.",
)
copysign.vjp("a", lambda g, a, b: g * sign(a) * copysign(1.0, b))
copysign.vjp("b", flat)


# --------------------------------------------------------------------------------------------------
# Powers, exponentials and logarithms
# --------------------------------------------------------------------------------------------------

abs = unary("abs", "The absolute value |x|, with derivative sign(x), which is 0 at 0.")
abs.vjp("x", lambda g, x: g * sign(x))

square = unary("square", "x^2, with derivative 2 x.")
square.vjp("x", lambda g, x: 2.0 * g * x)

_OF_NEGATIVE = {"the root of a negative number is NaN": lambda x: x < 0}
_OF_ZERO = {"division by 0; add a small number to x": lambda x: x == 0}

sqrt = curve(
    "sqrt",
    "The square root, with derivative 0.5 / out, infinite at 0.",
    nonfinite_hint=_OF_NEGATIVE,
    gradient_hint={
        "the slope of the square root is infinite at 0; sqrt(x + 1e-12) has one": (
            lambda out: out == 0
        )
    },
)
sqrt.vjp("x", lambda g, out: 0.5 * g / out)


@op(elementwise=True, floats=True, cost=1, nonfinite_hint=_OF_NEGATIVE | _OF_ZERO)
def rsqrt(x: Array) -> Array:
    """1 / sqrt(x), with derivative -0.5 / x^1.5; both are infinite at 0."""
    return 1.0 / np.sqrt(x)


rsqrt.vjp("x", lambda g, x, out: -0.5 * g * out / x)


@op(elementwise=True, floats=True, nonfinite_hint=_OF_ZERO)
def reciprocal(x: Array) -> Array:
    """1 / x, also for integers, with derivative -1 / x^2; both are infinite at 0."""
    return 1.0 / x


reciprocal.vjp("x", lambda g, out: -g * out * out)


def _exp_hint(x: Array, out: Array) -> str | None:
    limit = math.log(float(np.finfo(out.dtype).max))
    if ((x > limit) & np.isfinite(x)).any():
        return (
            f"e^x overflows {out.dtype} for x > {limit:.4g}; subtract the maximum first, as "
            f"softmax and logsumexp do"
        )
    return None


exp = curve("exp", "e^x, which is its own derivative.", nonfinite_hint=_exp_hint)
exp.vjp("x", lambda g, out: g * out)

expm1 = curve("expm1", "e^x - 1, exact also near 0, with derivative e^x.", nonfinite_hint=_exp_hint)
expm1.vjp("x", lambda g, x: g * exp(x))

exp2 = curve("exp2", "2^x, with derivative 2^x log 2.")
exp2.vjp("x", lambda g, out: g * out * math.log(2))

_LOG: dict[str, Any] = {
    "nonfinite_hint": {
        "the logarithm of a negative number is NaN": lambda x: x < 0,
        "the logarithm of 0 is -Inf; add a small number, or take log_softmax or a loss "
        "`..._with_logits`, which never form the 0": lambda x: x == 0,
    },
    "gradient_hint": {"the slope of the logarithm is infinite at 0": lambda x: x == 0},
}

log = curve(
    "log", "The natural logarithm, with derivative 1 / x; -inf at 0, nan for negative x.", **_LOG
)
log.vjp("x", lambda g, x: g / x)

log1p = curve(
    "log1p",
    "log(1 + x), exact also near 0, with derivative 1 / (1 + x).",
    nonfinite_hint={
        "log1p(x) is the logarithm of 1 + x, which is negative for x < -1": lambda x: x < -1,
        "log1p(-1) is the logarithm of 0, -Inf": lambda x: x == -1,
    },
)
log1p.vjp("x", lambda g, x: g / (1.0 + x))

log2 = curve("log2", "The logarithm to base 2, with derivative 1 / (x log 2).", **_LOG)
log2.vjp("x", lambda g, x: g / (x * math.log(2)))

log10 = curve("log10", "The logarithm to base 10, with derivative 1 / (x log 10).", **_LOG)
log10.vjp("x", lambda g, x: g / (x * math.log(10)))

logaddexp = of_two(
    "logaddexp",
    "log(e^a + e^b), broadcast, without overflow. The derivatives are the shares of e^a and of e^b "
    "in the sum; if a and b are the same infinity, each share is 1/2.",
)
logaddexp.vjp("a", lambda g, a, b: g * _share(a, b))
logaddexp.vjp("b", lambda g, a, b: g * _share(b, a))


def _share(a: Array, b: Array) -> Array:
    """Compute e^a / (e^a + e^b)."""
    with np.errstate(invalid="ignore"):  # the difference of equal infinities is set to 0
        difference = where(logical_and(a == b, isinf(a)), 0.0, b - a)
    return exp(-logaddexp(difference, 0.0))


@op(elementwise=True, floats=True, cost=1)
def erf(x: Array) -> Array:
    """The error function: the integral of 2 / sqrt(pi) e^(-t^2) from 0 to x.

    The derivative is 2 / sqrt(pi) e^(-x^2).
    """
    return kernels.activation.erf(x)


erf.vjp("x", lambda g, x: g * (2 / math.sqrt(math.pi)) * exp(-x * x))


@op(elementwise=True, floats=True, cost=1)
def normal_cdf(x: Array) -> Array:
    """The standard normal distribution function (1 + erf(x / sqrt 2)) / 2, exact in both tails.

    The derivative is the density e^(-x^2 / 2) / sqrt(2 pi).
    """
    return kernels.activation.normal_cdf(x)


normal_cdf.vjp("x", lambda g, x: g * (exp(-0.5 * x * x) / math.sqrt(2 * math.pi)))


# --------------------------------------------------------------------------------------------------
# Trigonometric and hyperbolic functions; angles are in radians
# --------------------------------------------------------------------------------------------------

sin = curve("sin", "The sine, with derivative cos(x).")
cos = curve("cos", "The cosine, with derivative -sin(x).")
sin.vjp("x", lambda g, x: g * cos(x))
cos.vjp("x", lambda g, x: -g * sin(x))

tan = curve("tan", "The tangent, with derivative 1 + out^2.")
tan.vjp("x", lambda g, out: g * (1.0 + out * out))

_FROM_MINUS_1_TO_1: dict[str, Any] = {
    "nonfinite_hint": {"it is defined from -1 to 1 only": lambda x: np.abs(x) > 1},
    "gradient_hint": {"the slope is infinite at -1 and 1": lambda x: np.abs(x) == 1},
}


def _one_minus_square(x: Array) -> Array:
    """Compute 1 - x^2 with full precision near +-1, and with a precise derivative near 0."""
    return where(x * x < 0.25, 1.0 - x * x, (1.0 - x) * (1.0 + x))


arcsin = curve(
    "arcsin",
    "The angle in [-pi/2, pi/2] with sine x; the derivative 1 / sqrt(1 - x^2) is inf at +-1.",
    **_FROM_MINUS_1_TO_1,
)
arcsin.vjp("x", lambda g, x: g / sqrt(_one_minus_square(x)))

arccos = curve(
    "arccos",
    "The angle in [0, pi] with cosine x; the derivative -1 / sqrt(1 - x^2) is -inf at +-1.",
    **_FROM_MINUS_1_TO_1,
)
arccos.vjp("x", lambda g, x: -g / sqrt(_one_minus_square(x)))

arctan = curve(
    "arctan", "The angle in (-pi/2, pi/2) with tangent x, with derivative 1 / (1 + x^2)."
)
arctan.vjp("x", lambda g, x: g / (1.0 + x * x))


@op(elementwise=True, floats=True)
def arctan2(y: Array, x: Array) -> Array:
    """The angle in [-pi, pi] of the point (x, y), broadcast.

    The derivatives are x / (x^2 + y^2) with respect to y, and -y / (x^2 + y^2) with respect to x.
    At the origin, where the angle is undefined, they are 0, and second derivatives are nan. At
    infinity, they are 0.
    """
    return np.arctan2(y, x)


arctan2.vjp("y", lambda g, y, x: g * _over_square(x, y))
arctan2.vjp("x", lambda g, y, x: -g * _over_square(y, x))


def _over_square(a: Array, b: Array) -> Array:
    """Compute a / (a^2 + b^2), also if a square would overflow; 0 at the origin and at infinity."""
    larger = maximum(abs(a), abs(b))
    far, origin = isinf(larger), larger == 0
    scale = where(far, 1.0, where(origin, 1.0, larger))
    # At infinity, where the scale is 1, compute 0 / (0 + 1).
    u, v = where(far, 0.0 * scale, a) / scale, where(far, scale, b) / scale
    square = u * u + v * v
    # sqrt has no derivative at 0, so a derivative with respect to a or b is nan at the origin.
    return where(origin, sqrt(square), u / where(origin, 1.0, square) / scale)


hypot = of_two(
    "hypot",
    "sqrt(a^2 + b^2), broadcast, without overflow of the squares. The derivatives are a / out and "
    "b / out; at the origin, where no derivative exists, they are 0.",
)
hypot.vjp("a", lambda g, a, out: g * _cosine(a, out))
hypot.vjp("b", lambda g, b, out: g * _cosine(b, out))


def _cosine(a: Array, length: Array) -> Array:
    """Compute a / length; the result is 0 where length is 0."""
    return where(length == 0, 0.0, a / where(length == 0, 1.0, length))


sinh = curve("sinh", "The hyperbolic sine (e^x - e^-x) / 2, with derivative cosh(x).")
cosh = curve("cosh", "The hyperbolic cosine (e^x + e^-x) / 2, with derivative sinh(x).")
sinh.vjp("x", lambda g, x: g * cosh(x))
cosh.vjp("x", lambda g, x: g * sinh(x))

tanh = curve("tanh", "The hyperbolic tangent sinh(x) / cosh(x), with derivative 1 - out^2.")


@tanh.vjp("x")
def _tanh_x(g: Array, out: Array) -> Array:
    if isinstance(g, Tensor):
        return g * (1 - out * out)
    return kernels.activation.tanh_gradient(g, out)


arcsinh = curve(
    "arcsinh", "The number with hyperbolic sine x; the derivative is 1 / sqrt(x^2 + 1)."
)
arcsinh.vjp("x", lambda g, x: g / hypot(x, 1.0))

arccosh = curve(
    "arccosh",
    "The number >= 0 with hyperbolic cosine x; the derivative 1 / sqrt(x^2 - 1) is inf at 1.",
    nonfinite_hint={"it is defined from 1 on only": lambda x: x < 1},
    gradient_hint={"the slope is infinite at 1": lambda x: x == 1},
)
arccosh.vjp("x", lambda g, x: g / (sqrt(x - 1.0) * sqrt(x + 1.0)))

arctanh = curve(
    "arctanh",
    "The number with hyperbolic tangent x, +-inf at +-1. The derivative is 1 / (1 - x^2).",
    nonfinite_hint={"it is defined between -1 and 1 only": lambda x: np.abs(x) >= 1},
    gradient_hint=_FROM_MINUS_1_TO_1["gradient_hint"],
)
arctanh.vjp("x", lambda g, x: g / _one_minus_square(x))
