"""The normal distribution, and gelu, which is made of it.

Phi is its distribution function and phi its density. float32 has loops, vector code made of
`maths`; in float64 Phi and erf are those of the C library, and the rest is numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from minigrad.kernels import maths
from minigrad.kernels.elementwise import CURVE, loops, piece, run, run_gradient

prange: Any = numba.prange

Array = NDArray[Any]


def erf(x: Array) -> Array:
    """The error function of each element."""
    return run(_ERF, CURVE, erf_twin, x)


def normal_cdf(x: Array) -> Array:
    """The distribution function of the standard normal, of each element."""
    return run(_NORMAL_CDF, CURVE, normal_cdf_twin, x)


_erf: Any = np.vectorize(math.erf, otypes=[np.float64])
_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])


def erf_twin(x: Array) -> Array:
    """`erf` in Python."""
    return np.asarray(_erf(x)).astype(x.dtype)


def normal_cdf_twin(x: Array) -> Array:
    """`normal_cdf` in Python."""
    return np.asarray(0.5 * _erfc(x.astype(np.float64) * -math.sqrt(0.5))).astype(x.dtype)


def _erf_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = maths.erf(xs[i])


def _wide_erf_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = math.erf(xs[i])


def _normal_cdf_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = maths.normal_cdf(xs[i])


def _wide_cdf_loop(pieces: int, x: Any, out: Any) -> None:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would round to 0
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = 0.5 * math.erfc(-xs[i] * 0.7071067811865476)


_ERF = loops(_erf_loop, _wide_erf_loop)
_NORMAL_CDF = loops(_normal_cdf_loop, _wide_cdf_loop)

# --------------------------------------------------------------------------------------------------
# gelu
# --------------------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    """x Phi(x)."""
    return run(_GELU, CURVE, gelu_twin, x)


def gelu_gradient(g: Array, x: Array) -> Array:
    """g (Phi(x) + x phi(x))."""
    return run_gradient(_GELU_GRADIENT, CURVE, gelu_gradient_twin, g, x)


def gelu_tanh(x: Array) -> Array:
    """x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return run(_GELU_TANH, CURVE, gelu_tanh_twin, x)


def gelu_tanh_gradient(g: Array, x: Array) -> Array:
    """g (1 + t + x (1 - t^2) u') / 2, t = tanh u."""
    return run_gradient(_GELU_TANH_GRADIENT, CURVE, gelu_tanh_gradient_twin, g, x)


def gelu_twin(x: Array) -> Array:
    """`gelu` in float64."""
    wide = x.astype(np.float64)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def gelu_gradient_twin(g: Array, x: Array) -> Array:
    """`gelu_gradient` in float64."""
    wide = x.astype(np.float64)
    bell = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return np.asarray((g * (normal_cdf(wide) + wide * bell)).astype(x.dtype))


_SLOPE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def gelu_tanh_twin(x: Array) -> Array:
    """`gelu_tanh` in numpy."""
    return np.asarray(0.5 * x * (1 + np.tanh(_SLOPE * (x + _CUBIC * x * x * x))))


def gelu_tanh_gradient_twin(g: Array, x: Array) -> Array:
    """`gelu_tanh_gradient` in numpy."""
    t = np.tanh(_SLOPE * (x + _CUBIC * x * x * x))
    return np.asarray(g * 0.5 * (1 + t + x * (1 - t * t) * _SLOPE * (1 + 3 * _CUBIC * x * x)))


_ONE = np.float32(1)
_ROOT = np.float32(1 / math.sqrt(2 * math.pi))
_U1, _U3, _U33 = map(np.float32, (2 * _SLOPE, 2 * _SLOPE * _CUBIC, 6 * _SLOPE * _CUBIC))


def _gelu_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = xs[i] * maths.normal_cdf(xs[i])


def _gelu_gradient_loop(pieces: int, g: Any, x: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            value = xs[i]
            bell, size = maths.bell(value), abs(value)
            # the slope at -|x|; that at |x| is 1 - this one
            slope = maths.normal_tail(size, bell) - size * (_ROOT * bell)
            dxs[i] = gs[i] * (slope if value < 0 else _ONE - slope)


def _gelu_tanh_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            value = xs[i]  # (1 + tanh u) / 2 is sigmoid(2 u), in which nothing cancels
            outs[i] = value * maths.sigmoid(value * (_U1 + _U3 * (value * value)))


def _gelu_tanh_gradient_loop(pieces: int, g: Any, x: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            value = xs[i]
            square = value * value
            s = maths.sigmoid(value * (_U1 + _U3 * square))
            rise = value * (_U1 + _U33 * square)
            dxs[i] = gs[i] * (s + s * (_ONE - s) * rise)


_GELU = loops(_gelu_loop)
_GELU_GRADIENT = loops(_gelu_gradient_loop, operands=2)
_GELU_TANH = loops(_gelu_tanh_loop)
_GELU_TANH_GRADIENT = loops(_gelu_tanh_gradient_loop, operands=2)
