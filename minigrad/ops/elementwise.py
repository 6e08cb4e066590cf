"""Functions of each element on its own, and choices between elements."""

from __future__ import annotations

import math

import numpy as np

from minigrad import kernels
from minigrad.op import op
from minigrad.tensor import Array


@op
def where(condition: Array, x: Array, y: Array) -> Array:
    """x where `condition` is true, else y; the gradient goes to the one that was taken."""
    return np.where(condition, x, y)


where.rule("x", lambda g, condition: where(condition, g, 0.0))
where.rule("y", lambda g, condition: where(condition, 0.0, g))


@op
def maximum(x: Array, y: Array) -> Array:
    """The larger of x and y, broadcast. Where they are equal each gets half of the gradient.

    Where one is nan, the result is, and the gradient goes to both.
    """
    return np.maximum(x, y)


maximum.rule("x", lambda g, x, y: where(x < y, 0.0, where(x == y, 0.5 * g, g)))
maximum.rule("y", lambda g, x, y: where(x > y, 0.0, where(x == y, 0.5 * g, g)))


@op
def sign(x: Array) -> Array:
    """-1, 0 or 1; its derivative is 0 everywhere, also at 0."""
    return np.sign(x)


sign.rule("x", lambda g: where(False, g, 0.0))


@op
def abs(x: Array) -> Array:
    """The absolute value |x|, with derivative sign(x), which is 0 at 0."""
    return np.abs(x)


abs.rule("x", lambda g, x: g * sign(x))


@op
def exp(x: Array) -> Array:
    """e^x, which is its own derivative."""
    return np.exp(x)


exp.rule("x", lambda g, out: g * out)


@op
def log(x: Array) -> Array:
    """The natural logarithm, with derivative 1 / x."""
    return np.log(x)


log.rule("x", lambda g, x: g / x)


@op
def sqrt(x: Array) -> Array:
    """The square root, with derivative 0.5 / out, infinite at 0."""
    return np.sqrt(x)


sqrt.rule("x", lambda g, out: 0.5 * g / out)


@op
def tanh(x: Array) -> Array:
    """The hyperbolic tangent, with derivative 1 - out^2."""
    return np.tanh(x)


tanh.rule("x", lambda g, out: g * (1 - out * out))


@op
def sigmoid(x: Array) -> Array:
    """s = 1 / (1 + e^-x), without overflow for any x; the derivative is s (1 - s)."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


sigmoid.rule("x", lambda g, out: g * out * (1 - out))


@op
def relu(x: Array) -> Array:
    """max(x, 0), with derivative 1 above 0, and 0 at and below it."""
    return np.maximum(x, 0)


relu.rule("x", lambda g, out: where(out <= 0, 0.0, g))  # a nan does not come back as a 0


@op
def erf(x: Array) -> Array:
    """The integral of 2 / sqrt(pi) e^(-t^2) from 0 to x; the derivative is the integrand at x."""
    return kernels.elementwise.erf(x)


erf.rule("x", lambda g, x: g * (2 / math.sqrt(math.pi)) * exp(-x * x))


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(_ROOT * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


_ROOT = math.sqrt(2 / math.pi)


@op(composition=_gelu)
def gelu(x: Array, approximate: str = "none") -> Array:
    """x Phi(x), with Phi the normal distribution function (Hendrycks and Gimpel, 2016).

    With `approximate="tanh"`, x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as in GPT-2.
    The derivative is Phi(x) + x phi(x), with phi the normal density.

    Raises:
        ValueError: for another approximation.
    """
    if approximate == "none":
        return x * kernels.elementwise.normal_cdf(x)
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}")
    return 0.5 * x * (1 + np.tanh(_ROOT * (x + 0.044715 * x * x * x)))


@gelu.rule("x")
def _gelu_x(g: Array, x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        t = tanh(_ROOT * (x + 0.044715 * x * x * x))
        return g * 0.5 * (1 + t + x * (1 - t * t) * _ROOT * (1 + 3 * 0.044715 * x * x))
    cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    return g * (cdf + x * exp(-0.5 * x * x) / math.sqrt(2 * math.pi))
