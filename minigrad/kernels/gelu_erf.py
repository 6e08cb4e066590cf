"""The normal distribution, and gelu, which is made of it.

Phi is the distribution function of the standard normal, and phi its density. float32 has vector
code made of `vector_math`; in float64 Phi and erf are those of the C library, and the rest is
numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigrad.kernels import vector_math
from minigrad.kernels.fused import CURVE, elementwise
from minigrad.kernels.kernel import Array

_erf: Any = np.vectorize(math.erf, otypes=[np.float64])
_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])


def _erf_of_double(x: Any) -> Any:
    return math.erf(x)


@elementwise(CURVE, reference=lambda x: np.asarray(_erf(x)).astype(x.dtype), double=_erf_of_double)
def erf(x: Any) -> Any:
    """Compute the error function."""
    return vector_math.erf(x)


def _normal_cdf(x: Array) -> Array:
    return np.asarray(0.5 * _erfc(x.astype(np.float64) * -math.sqrt(0.5))).astype(x.dtype)


def _normal_cdf_of_double(x: Any) -> Any:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would round to 0
    return 0.5 * math.erfc(-x * 0.7071067811865476)


@elementwise(CURVE, reference=_normal_cdf, double=_normal_cdf_of_double)
def normal_cdf(x: Any) -> Any:
    """Compute Phi(x), the distribution function of the standard normal."""
    return vector_math.normal_cdf(x)


# --------------------------------------------------------------------------------------------------
# gelu
# --------------------------------------------------------------------------------------------------

_ONE = np.float32(1)
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


def _gelu_gradient(g: Array, x: Array) -> Array:
    wide = x.astype(np.float64)
    bell = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return np.asarray((g * (normal_cdf(wide) + wide * bell)).astype(x.dtype))


@elementwise(CURVE, reference=_gelu_gradient, operands=2)
def gelu_gradient(g: Any, x: Any) -> Any:
    """Compute g (Phi(x) + x phi(x))."""
    bell, size = vector_math.bell(x), abs(x)
    # the slope at -|x|; that at |x| is 1 - this one
    slope = vector_math.normal_tail(size, bell) - size * (_ROOT * bell)
    return g * (slope if x < 0 else _ONE - slope)


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(_SLOPE * (x + _CUBIC * x * x * x))))


@elementwise(CURVE, reference=_gelu_tanh)
def gelu_tanh(x: Any) -> Any:
    """Compute x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    # (1 + tanh u) / 2 is sigmoid(2 u), in which nothing cancels
    return x * vector_math.sigmoid(x * (_U1 + _U3 * (x * x)))


def _gelu_tanh_gradient(g: Array, x: Array) -> Array:
    t = np.tanh(_SLOPE * (x + _CUBIC * x * x * x))
    return np.asarray(g * 0.5 * (1 + t + x * (1 - t * t) * _SLOPE * (1 + 3 * _CUBIC * x * x)))


@elementwise(CURVE, reference=_gelu_tanh_gradient, operands=2)
def gelu_tanh_gradient(g: Any, x: Any) -> Any:
    """Compute g (1 + t + x (1 - t^2) u') / 2 with t = tanh u."""
    square = x * x
    s = vector_math.sigmoid(x * (_U1 + _U3 * square))
    rise = x * (_U1 + _U33 * square)
    return g * (s + s * (_ONE - s) * rise)
