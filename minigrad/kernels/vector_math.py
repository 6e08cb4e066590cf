"""Functions of one float32 that become vector code: exp, log, tanh, erf and similar functions.

The functions of the C library compute one number at a time. The functions here consist of
additions, products, selections and bit shifts. In a kernel's loop over a contiguous array, the
optimiser does these for 16, 8 or 4 numbers at once. They are copied into the kernel and work on
float32 only; for float64, kernels use the C library and numpy.

The errors that the docstrings state are the largest over the whole range of floats, including
subnormal numbers, with and without fused multiply-adds. They are in units in the last place. nan
and infinities give the results of IEEE and the C library.

A kernel that calls these functions may have the flags "contract" and "reassoc". With "nsz" as well,
LLVM would remove additions that are there only to round a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from minigrad.kernels.jit import jit
from minigrad.kernels.vector import F32, I32, Emitter, instruction, prefer_full_vectors

_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)

# Adding this constant rounds a number to a whole number, which is then in the last bits of the sum.
# The last bits of the constant itself are the offset of a float32's exponent.
_SHIFT = np.float32(1.5 * 2**23 + 127)


@instruction(types.float32)
def _power_of_two(e: Emitter, shifted: Any) -> Any:
    """Compute 2^k for `shifted` = k + _SHIFT, k from -126 to 127; 0 for k = -127."""
    return e.builder.bitcast(e.builder.shl(e.builder.bitcast(shifted, I32), I32(23)), F32)


@instruction(types.float32)
def _leading_half(e: Emitter, number: Any) -> Any:
    """Return a float32 cut to the first 12 of its 24 binary digits, so that its square is exact."""
    bits = e.builder.and_(e.builder.bitcast(number, I32), I32(0xFFFFF000))
    return e.builder.bitcast(bits, F32)


@instruction(types.float32)
def _with_sign(e: Emitter, size: Any, number: Any) -> Any:
    """Return the absolute value of `size` with the sign of `number`, which may be 0 or -0."""
    size = e.builder.and_(e.builder.bitcast(size, I32), I32(0x7FFFFFFF))
    sign = e.builder.and_(e.builder.bitcast(number, I32), I32(0x80000000))
    return e.builder.bitcast(e.builder.or_(size, sign), F32)


_ROOT_HALF = I32(int(np.float32(math.sqrt(0.5)).view(np.int32)))


@instruction(types.float32)
def _exponent(e: Emitter, number: Any) -> Any:
    """Return k so that number / 2^k is from sqrt(1/2) to sqrt(2), for a positive normal number."""
    above = e.builder.sub(e.builder.bitcast(number, I32), _ROOT_HALF)
    return e.builder.sitofp(e.builder.ashr(above, I32(23)), F32)


@instruction(types.float32)
def _mantissa(e: Emitter, number: Any) -> Any:
    """Return number / 2^k, with the k of `_exponent`."""
    above = e.builder.sub(e.builder.bitcast(number, I32), _ROOT_HALF)
    digits = e.builder.and_(above, I32(0x7FFFFF))
    return e.builder.bitcast(e.builder.add(digits, _ROOT_HALF), F32)


# --------------------------------------------------------------------------------------------------
# Exponentials
# --------------------------------------------------------------------------------------------------

_LOG2_E = np.float32(1 / math.log(2))
_LN_2_HIGH = np.float32(355 / 512)  # 9 binary digits, so that k times this is exact
_LN_2_LOW = np.float32(math.log(2) - 355 / 512)
_VANISHING = np.float32(-88)  # its k is -127, for which `_power_of_two` gives 0

# (e^r - 1 - r) / r^2 for |r| <= log(2) / 2, to 1.4e-8 of e^r - 1. Like the other polynomials here
# it is fitted by least squares, reweighted until the largest errors are equal (Lawson, 1961).
_E2, _E3, _E4, _E5, _E6 = map(
    np.float32, (0.49999997, 0.16666545, 0.04166744, 0.008366453, 0.0013870555)
)


@jit(inline="always")
def _reduce_range(x: Any) -> Any:
    """Return the remainder of x / log(2), with log(2) in two parts, and the quotient + _SHIFT.

    All exponentials begin with this, and a loop over one is faster with full vectors.
    """
    prefer_full_vectors()
    shifted = x * _LOG2_E + _SHIFT
    k = shifted - _SHIFT
    return (x - k * _LN_2_HIGH) - k * _LN_2_LOW, shifted


@jit(inline="always")
def _curve(r: Any) -> Any:
    """Compute e^r - 1 - r for |r| <= log(2) / 2."""
    return r * (r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))


@jit(inline="always")
def exp_below(x: Any) -> Any:
    """Compute e^x for x <= 0 (and up to 80) within 1.1 units in the last place; 0 below 2^-126.5.

    The results below it would be subnormal numbers, with which some processors take a hundred times
    as long. Scores that are masked by -inf would have that cost, too.
    """
    x = _VANISHING if x < _VANISHING else x
    r, shifted = _reduce_range(x)
    return (_ONE + (r + _curve(r))) * _power_of_two(shifted)


@jit(inline="always")
def expm1_below(x: Any) -> Any:
    """Compute e^x - 1 for x <= 0 within 1.1 units in the last place."""
    x = _NEARLY_0 if x < _NEARLY_0 else x
    r, shifted = _reduce_range(x)
    power = _power_of_two(shifted)
    return power * (r + _curve(r)) + (power - _ONE)


_NEARLY_0 = np.float32(-30)  # e^x is nothing beside 1
_MIDDLE = np.float32(0.7)


@jit(inline="always")
def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + e^-x) within 2.3 units in the last place; 0 below 2^-126.5."""
    e = exp_below(-abs(x))
    return (e if x < 0 else _ONE) / (_ONE + e)


@jit(inline="always")
def tanh(x: Any) -> Any:
    """Compute the hyperbolic tangent within 2.1 units in the last place, 2.0 with fused sums."""
    z = abs(x)
    u = expm1_below(-_TWO * z)
    # From 0.7 on, tanh is 1 - 2 e / (1 + e), with e = e^(-2 z). Below 0.7 it is -u / (2 + u), with
    # u = e - 1, computed as half - half quotient, because a smaller quotient has less rounding.
    far = z > _MIDDLE
    half = -_HALF * u
    quotient = (_TWO + _TWO * u if far else u) / (_TWO + u)
    size = _ONE - quotient if far else half - half * quotient
    return _with_sign(size, x)


# --------------------------------------------------------------------------------------------------
# Logarithms
# --------------------------------------------------------------------------------------------------

_LARGEST = np.finfo(np.float32).max

# (atanh(s) / s - 1) / s^2 as a polynomial of s^2, for s <= 1/3, to 5e-9 of atanh(s) / s
_A0, _A1, _A2, _A3 = map(np.float32, (0.33333206, 0.20010868, 0.13999332, 0.14013182))


@jit(inline="always")
def log1p_series(f: Any) -> Any:
    """Compute log(1 + f) for f from -0.3 to 1 within 1.0 units in the last place."""
    # log(1 + f) = 2 atanh(s) with s = f / (2 + f); as 2 s = f - s f, an error in s counts little
    s = f / (_TWO + f)
    z = s * s
    rest = _TWO * (z * (_A0 + z * (_A1 + z * (_A2 + z * _A3))))
    return f - s * (f - rest)


@jit(inline="always")
def log(x: Any) -> Any:
    """Compute the natural logarithm of x >= 2^-126 within 1.0 units in the last place."""
    k = _exponent(x)
    out = k * _LN_2_HIGH + (log1p_series(_mantissa(x) - _ONE) + k * _LN_2_LOW)
    return out if x <= _LARGEST else x  # inf, nan


# --------------------------------------------------------------------------------------------------
# The normal distribution
# --------------------------------------------------------------------------------------------------

_FAR = np.float32(13.25)  # from here on e^(-x^2 / 2) is 0 in float32

# Phi(-z) e^(z^2 / 2) for 0 <= z <= 13.3, as a ratio of polynomials in z, to 5e-9 of it
_N0, _N1, _N2, _N3, _N4 = map(np.float32, (0.5, 0.43500674, 0.18078043, 0.039800115, 0.0039908933))
_D1, _D2, _D3, _D4, _D5 = map(
    np.float32, (1.6678983, 1.1923478, 0.46298492, 0.09977161, 0.01000354)
)


@jit(inline="always")
def bell(x: Any) -> Any:
    """Compute e^(-x^2 / 2) within 1.6 units in the last place; 0 below 2^-126.5."""
    z = abs(x)
    z = _FAR if z > _FAR else z
    # x^2 has twice the digits of x, and all are needed: high^2 is exact, and the rest is small.
    high = _leading_half(z)
    power = high * (-_HALF * high)
    r, shifted = _reduce_range(power)
    r = r + (z - high) * (-_HALF * (z + high))
    return (_ONE + (r + _curve(r))) * _power_of_two(shifted)


@jit(inline="always")
def normal_tail(z: Any, bell: Any) -> Any:
    """Compute Phi(-z) for z >= 0 from e^(-z^2 / 2); for large z, 1 - Phi(z) would be inaccurate."""
    z = _FAR if z > _FAR else z
    over = _N0 + z * (_N1 + z * (_N2 + z * (_N3 + z * _N4)))
    under = _ONE + z * (_D1 + z * (_D2 + z * (_D3 + z * (_D4 + z * _D5))))
    return bell * (over / under)


@jit(inline="always")
def normal_cdf(x: Any) -> Any:
    """Compute Phi(x) within 5.4 units in the last place (7 if not fused); 0 below 2^-126.5."""
    tail = normal_tail(abs(x), bell(x))
    return tail if x < 0 else _ONE - tail


# erf(x) / x - 1 as a polynomial of x^2 for |x| <= 1, and -log(1 - erf(x)) for 1 <= x <= 4
_NEAR, _BEYOND = np.float32(1), np.float32(3.95)  # erf is 1 from 3.95 on
_S0, _S1, _S2, _S3, _S4, _S5, _S6 = map(
    np.float32,
    (0.12837917, -0.3761263, 0.11283618, -0.026855126, 0.0051907338, -0.00080307614, 7.920368e-05),
)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = map(
    np.float32,
    (0.0003415216, 1.1270891, 0.63814503, 0.103106454, -0.021837845, 0.0029475822, -0.00018636901),
)


@jit(inline="always")
def erf(x: Any) -> Any:
    """Compute the error function within 1.2 units in the last place."""
    z = abs(x)
    z = _BEYOND if z > _BEYOND else z
    s = z * z
    series = _S0 + s * (_S1 + s * (_S2 + s * (_S3 + s * (_S4 + s * (_S5 + s * _S6)))))
    power = _L0 + z * (_L1 + z * (_L2 + z * (_L3 + z * (_L4 + z * (_L5 + z * _L6)))))
    size = z + z * series if z <= _NEAR else -expm1_below(-power)
    return _with_sign(size, x)


def by_dtype(narrow: Callable[[Any], Any], wide: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function for kernels: `narrow` for float32, and `wide` for other dtypes."""

    def function(x: Any) -> Any:
        return wide(x)

    def choose(x: Any) -> Any:
        return (lambda x: narrow(x)) if x == types.float32 else wide

    overload(function, strict=False)(choose)
    return function
