"""Activation functions and their gradients, each in one pass over memory.

A gradient is a function of g, the gradient of the result, and of the input x, or of the result if
that is enough. Each function has its reference in numpy beside it.

Phi is the distribution function of the standard normal distribution, and phi its density. For
float32, `vector_math` gives vector code. For float64, Phi and erf are those of the C library, and
numpy computes the rest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels import vector_math
from minigrad.kernels.elementwise import where
from minigrad.kernels.fused import CURVE, LINE, elementwise
from minigrad.kernels.jit import Array

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise(LINE, reference=lambda x: np.maximum(x, 0), double=True)
def relu(x: Any) -> Any:
    """Compute max(x, 0)."""
    return _ZERO if x <= 0 else x


@elementwise(LINE, reference=lambda g, out: np.where(out <= 0, 0, g), double=True)
def relu_gradient(g: Any, out: Any) -> Any:
    """Return g where the result is above 0 or nan, else 0."""
    return _ZERO if out <= 0 else g


@elementwise(LINE, reference=lambda x, slope: np.where(x > 0, x, slope * x), double=True)
def leaky_relu(x: Any, slope: float) -> Any:
    """Return x above 0, else slope x."""
    return x if x > 0 else slope * x


@elementwise(LINE, reference=lambda g, x, slope: np.where(x > 0, g, slope * g), double=True)
def leaky_relu_gradient(g: Any, x: Any, slope: float) -> Any:
    """Return g where x is above 0, else slope g."""
    return g if x > 0 else slope * g


@elementwise(
    CURVE, reference=lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0))
)
def elu(x: Any, alpha: float) -> Any:
    """Return x above 0, else alpha (e^x - 1)."""
    negative = _ZERO if x > 0 else x
    below = alpha * vector_math.expm1_below(negative)
    return x if x > 0 else below


@elementwise(
    CURVE,
    reference=lambda g, x, alpha: where(x > 0, g, alpha * g * np.exp(np.minimum(x, 0))),
)
def elu_gradient(g: Any, x: Any, alpha: float) -> Any:
    """Return g where x is above 0, else alpha g e^x."""
    below = g * (alpha * vector_math.exp_below(x))
    return g if x > 0 else below


def _sigmoid(x: Array) -> Any:
    with np.errstate(over="ignore"):  # 1 / inf is 0, as it should be
        return 1.0 / (1.0 + np.exp(-x))


@elementwise(CURVE, reference=_sigmoid)
def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + e^-x)."""
    return vector_math.sigmoid(x)


@elementwise(LINE, reference=lambda g, out: g * out * (1 - out), double=True)
def sigmoid_gradient(g: Any, out: Any) -> Any:
    """Compute g s (1 - s) from the result s."""
    return g * out * (_ONE - out)


@elementwise(LINE, reference=lambda g, out: g * (1 - out * out), double=True)
def tanh_gradient(g: Any, out: Any) -> Any:
    """Compute g (1 - t^2) from the result t."""
    return g * (_ONE - out * out)


@elementwise(CURVE, reference=lambda x: x * _sigmoid(x))
def silu(x: Any) -> Any:
    """Compute x s with s = sigmoid(x)."""
    return x * vector_math.sigmoid(x)


@elementwise(CURVE, reference=lambda gate, x: gate * _sigmoid(gate) * x)
def swiglu(gate: Any, x: Any) -> Any:
    """Compute silu(gate) x."""
    return gate * vector_math.sigmoid(gate) * x


def _silu_gradient(g: Array, x: Array) -> Any:
    s = _sigmoid(x)
    return g * (s * (1 + x * (1 - s)))


@elementwise(CURVE, reference=_silu_gradient)
def silu_gradient(g: Any, x: Any) -> Any:
    """Compute g s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = vector_math.sigmoid(x)
    return g * (s * (_ONE + x * (_ONE - s)))


def _times(beta: float, x: Array) -> Any:
    """Compute beta x without a warning, because infinities have the right softplus."""
    with np.errstate(over="ignore"):
        return beta * x


def _softplus(x: Array, beta: float) -> Any:
    z = _times(beta, x)
    return np.where(z < 0, 0, x) + np.log1p(np.exp(-np.abs(z))) / beta


@elementwise(CURVE, reference=_softplus)
def softplus(x: Any, beta: float) -> Any:
    """Compute log(1 + e^(beta x)) / beta, also where beta x is not finite."""
    z = beta * x
    above = _ZERO if z < 0 else x
    return above + vector_math.log1p_series(vector_math.exp_below(-abs(z))) / beta


@elementwise(CURVE, reference=lambda g, x, beta: g * _sigmoid(_times(beta, x)))
def softplus_gradient(g: Any, x: Any, beta: float) -> Any:
    """Compute g sigmoid(beta x)."""
    return g * vector_math.sigmoid(beta * x)


_ROOT_HALF = math.sqrt(0.5)
_erf: Any = np.vectorize(math.erf, otypes=[np.float64])
_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])


@elementwise(CURVE, reference=lambda x: _erf(x).astype(x.dtype), double=lambda x: math.erf(x))
def erf(x: Any) -> Any:
    """Compute the error function."""
    return vector_math.erf(x)


# erfc keeps the relative accuracy of the left tail, where 1 + erf would round to 0.
@elementwise(
    CURVE,
    reference=lambda x: (0.5 * _erfc(x.astype(np.float64) * -_ROOT_HALF)).astype(x.dtype),
    double=lambda x: 0.5 * math.erfc(-x * _ROOT_HALF),
)
def normal_cdf(x: Any) -> Any:
    """Compute Phi(x), the distribution function of the standard normal."""
    return vector_math.normal_cdf(x)


_ROOT = np.float32(1 / math.sqrt(2 * math.pi))
_SLOPE, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_U1, _U3, _U33 = map(np.float32, (2 * _SLOPE, 2 * _SLOPE * _CUBIC, 6 * _SLOPE * _CUBIC))


def _gelu(x: Array) -> Array:
    wide = x.astype(np.float64)
    return (wide * normal_cdf(wide)).astype(x.dtype)


@elementwise(CURVE, reference=_gelu)
def gelu(x: Any) -> Any:
    """Compute x Phi(x)."""
    return x * vector_math.normal_cdf(x)


def _gelu_gradient(g: Array, x: Array) -> Any:
    wide = x.astype(np.float64)
    bell = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return (g * (normal_cdf(wide) + wide * bell)).astype(x.dtype)


@elementwise(CURVE, reference=_gelu_gradient)
def gelu_gradient(g: Any, x: Any) -> Any:
    """Compute g (Phi(x) + x phi(x))."""
    bell, size = vector_math.bell(x), abs(x)
    # the slope at -|x|; the slope at |x| is 1 minus this
    slope = vector_math.normal_tail(size, bell) - size * (_ROOT * bell)
    return g * (slope if x < 0 else _ONE - slope)


@elementwise(CURVE, reference=lambda x: 0.5 * x * (1 + np.tanh(_SLOPE * (x + _CUBIC * x * x * x))))
def gelu_tanh(x: Any) -> Any:
    """Compute x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    # (1 + tanh u) / 2 is sigmoid(2 u), which loses no digits by cancellation
    return x * vector_math.sigmoid(x * (_U1 + _U3 * (x * x)))


_FAR = np.float32(20)  # from here on tanh u is 1, and the slope constant; x^2 could overflow


def _gelu_tanh_gradient(g: Array, x: Array) -> Any:
    x = np.clip(x, -_FAR, _FAR)
    t = np.tanh(_SLOPE * (x + _CUBIC * x * x * x))
    return g * 0.5 * (1 + t + x * (1 - t * t) * _SLOPE * (1 + 3 * _CUBIC * x * x))


@elementwise(CURVE, reference=_gelu_tanh_gradient)
def gelu_tanh_gradient(g: Any, x: Any) -> Any:
    """Compute g (1 + t + x (1 - t^2) u') / 2 with t = tanh u."""
    end = _FAR if x > 0 else -_FAR
    near = end if abs(x) > _FAR else x
    square = near * near
    s = vector_math.sigmoid(near * (_U1 + _U3 * square))
    rise = near * (_U1 + _U33 * square)
    return g * (s + s * (_ONE - s) * rise)
