"""Trigonometric and hyperbolic functions; angles are in radians."""

from __future__ import annotations

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.ops.elementwise import abs, maximum, sqrt, where

__all__ = [
    "arccos",
    "arcsin",
    "arctan",
    "arctan2",
    "cos",
    "cosh",
    "sin",
    "sinh",
    "tan",
    "tanh",
]


@op(floats=True)
def sin(x: Array) -> Array:
    """The sine, with derivative cos(x)."""
    return np.sin(x)


@sin.vjp("x")
def _sin_x(g: Array, x: Array) -> Array:
    return g * cos(x)


@op(floats=True)
def cos(x: Array) -> Array:
    """The cosine, with derivative -sin(x)."""
    return np.cos(x)


cos.vjp("x", lambda g, x: -g * sin(x))


@op(floats=True)
def tan(x: Array) -> Array:
    """The tangent, with derivative 1 + out^2."""
    return np.tan(x)


tan.vjp("x", lambda g, out: g * (1.0 + out * out))


_UNIT_HINTS = {"it is defined from -1 to 1 only": lambda x: np.abs(x) > 1}
_UNIT_GRADIENT_HINTS = {"the slope is infinite at -1 and 1": lambda x: np.abs(x) == 1}


@op(floats=True, nonfinite_hint=_UNIT_HINTS, gradient_hint=_UNIT_GRADIENT_HINTS)
def arcsin(x: Array) -> Array:
    """The angle in [-pi/2, pi/2] with sine x; the derivative 1 / sqrt(1 - x^2) is inf at +-1."""
    return np.arcsin(x)


arcsin.vjp("x", lambda g, x: g / sqrt((1.0 - x) * (1.0 + x)))


@op(floats=True, nonfinite_hint=_UNIT_HINTS, gradient_hint=_UNIT_GRADIENT_HINTS)
def arccos(x: Array) -> Array:
    """The angle in [0, pi] with cosine x; the derivative -1 / sqrt(1 - x^2) is -inf at +-1."""
    return np.arccos(x)


arccos.vjp("x", lambda g, x: -g / sqrt((1.0 - x) * (1.0 + x)))


@op(floats=True)
def arctan(x: Array) -> Array:
    """The angle in (-pi/2, pi/2) with tangent x, with derivative 1 / (1 + x^2)."""
    return np.arctan(x)


arctan.vjp("x", lambda g, x: g / (1.0 + x * x))


@op(floats=True)
def arctan2(y: Array, x: Array) -> Array:
    """The angle in [-pi, pi] of the point (x, y), broadcast.

    The derivatives are x / (x^2 + y^2) in y and -y / (x^2 + y^2) in x; at the origin, which has no
    angle, they are taken as 0.
    """
    return np.arctan2(y, x)


arctan2.vjp("y", lambda g, y, x: g * _over_square(x, y))
arctan2.vjp("x", lambda g, y, x: -g * _over_square(y, x))


def _over_square(a: Array, b: Array) -> Array:
    """Compute a / (a^2 + b^2), also where the squares leave the range; it is 0 at the origin."""
    larger = maximum(abs(a), abs(b))
    origin = larger == 0
    scale = where(origin, 1.0, larger)
    u, v = a / scale, b / scale
    return u / where(origin, 1.0, u * u + v * v) / scale


@op(floats=True)
def sinh(x: Array) -> Array:
    """The hyperbolic sine (e^x - e^-x) / 2, with derivative cosh(x)."""
    return np.sinh(x)


@sinh.vjp("x")
def _sinh_x(g: Array, x: Array) -> Array:
    return g * cosh(x)


@op(floats=True)
def cosh(x: Array) -> Array:
    """The hyperbolic cosine (e^x + e^-x) / 2, with derivative sinh(x)."""
    return np.cosh(x)


cosh.vjp("x", lambda g, x: g * sinh(x))


@op(floats=True)
def tanh(x: Array) -> Array:
    """The hyperbolic tangent sinh(x) / cosh(x), with derivative 1 - out^2."""
    return np.tanh(x)


@tanh.vjp("x")
def _tanh_x(g: Array, out: Array) -> Array:
    if isinstance(g, Tensor):
        return g * (1 - out * out)
    return kernels.activation.tanh_gradient(g, out)
