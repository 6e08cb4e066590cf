"""Rounding of stored weights in each dtype, and the arithmetic of rounding errors.

Four dtypes are of floating point, with p binary digits and a least positive number. In them, the
unit of an x with 2^(e-1) <= |x| < 2^e is 2^(e-p), at least the least number, and x is rounded to
the nearest multiple of it, to the even one of two. This rounds once, from float64, whatever the
dtype. The fifth is NF4 (Dettmers et al., 2023, section 3): blocks of 64 elements of a row, each
element one of 16 levels times the largest absolute value of its block, which is stored in float32:
the same as `lora.quantize(model, double_quant=False)` would make of the merged weight.

A sum of products that is computed with n roundings of each term, in any order, differs from the
exact one by at most gamma(n) times the sum of the terms' absolute values, and by what products lose
that are smaller than the least normal number: half of the least positive number each (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, sections 2.1 and 3.1).

    gamma(n) = n u / (1 - n u)          u: half the distance from 1 to the next number

This is a bound for the worst case, whereas `lora.verify` uses a likely one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.frozen import Array
from minigrad import kernels
from minigrad.io.tensor_info import from_stored, to_stored

# p, with the leading digit that is not stored, and the exponent of the least positive number
_FORMATS = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24)}
_FORMATS["bfloat16"] = (8, -133)

_EXPONENT = 0x7FF0_0000_0000_0000  # the bits of the exponent of a float64
DTYPES = (*_FORMATS, "nf4")  # that a merged weight can be stored in
BLOCK = 64  # elements of a row that NF4 divides by one absolute value


def check_dtypes(dtypes: str | Sequence[str]) -> tuple[str, ...]:
    """Return dtypes as a tuple, each once; a ValueError if one is unknown, or there are none."""
    chosen = tuple(dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes))
    if not chosen:
        raise ValueError(f"there are no dtypes to certify for; choose from {', '.join(DTYPES)}")
    for dtype in chosen:
        if dtype not in DTYPES:
            raise ValueError(f"cannot store weights in {dtype!r}; there are {', '.join(DTYPES)}")
    return chosen


def round_to(x: Array, dtype: str) -> Array:
    """Round each number as storing it in `dtype` does; the result is in float64.

    It is rounded to the nearest number, of two to the even one; beyond the largest to infinity. NF4
    divides the rows of x, `(..., n)`, into blocks. x must be of float64, since it might have been
    rounded before.
    """
    check_dtypes(dtype)
    x = np.asarray(x)
    if x.dtype != np.float64:
        raise TypeError(f"round_to takes an array of float64, not of {x.dtype}")
    if x.ndim == 0:
        raise ValueError("round_to takes rows of numbers, not a single one; pass x.reshape(1)")
    if dtype == "nf4":
        levels, _, codes, absmax = _in_nf4(x)
        with np.errstate(invalid="ignore"):  # 0 times infinity, in a block that is beyond float32
            return levels[codes] * absmax
    return from_stored(to_stored(x, dtype), dtype).astype(np.float64)


def unit_of(x: Array, dtype: str) -> Array:
    """Compute the unit in the last place of each of the numbers that `round_to` has returned.

    In NF4 it is the distance from the level of the number to the nearer of its neighbours, times
    the largest absolute value of the block. It is at least the least positive number, of float32
    for NF4. For NaN and Inf it has no meaning.
    """
    if dtype == "nf4":
        _, gaps, codes, absmax = _in_nf4(x)
        unit, (_, least) = gaps[codes] * absmax, _FORMATS["float32"]
    else:
        digits, least = _FORMATS[dtype]
        # The bits of the exponent alone are the power of two below |x|, or 0 below the normal ones.
        unit = (x.view(np.int64) & _EXPONENT).view(np.float64) * 2.0 ** (1 - digits)
    found: Array = np.maximum(unit, math.ldexp(1, least))
    return found


def _in_nf4(x: Array) -> tuple[Array, Array, Array, Array]:
    """Return the levels of NF4, the gap from each to its nearer neighbour, and x as stored.

    That is the index of the level nearest to each x / absmax, and absmax in float32.
    """
    levels = kernels.nf4.LEVELS.astype(np.float64)
    gaps = np.minimum(np.diff(levels, prepend=-np.inf), np.diff(levels, append=np.inf))
    absmax, starts = np.zeros(x.shape), np.arange(0, x.shape[-1], BLOCK)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if x.size:
            blocks = np.maximum.reduceat(np.abs(x), starts, axis=-1).astype(np.float32)
            repeated = np.repeat(blocks.astype(np.float64), BLOCK, axis=-1)
            absmax = repeated[..., : x.shape[-1]]
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x / absmax)
    return levels, gaps, codes, absmax


def gamma(roundings: int, dtype: np.dtype[Any]) -> float:
    """Return the relative error after so many roundings, infinite where it has no bound."""
    nu = roundings * float(np.finfo(dtype).eps) / 2
    return nu / (1 - nu) if nu < 1 else math.inf


def least_of(dtype: np.dtype[Any]) -> float:
    """Return the least positive number of a dtype."""
    return float(np.finfo(dtype).smallest_subnormal)


def norms(x: Array) -> Array:
    """Compute the norm of each row, NaN if it is not finite; no square over- or underflows."""
    largest = np.abs(x).max(axis=-1, initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x / np.where(largest > 0, largest, 1.0)[..., None]
        found: Array = largest * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
    return found


def upper(x: Any, roundings: int) -> Any:
    """Return an upper bound of the exact value of x, a float64 sum of nonnegative numbers."""
    raised = np.asarray(x) * (1 + (roundings + 8) * float(np.finfo(np.float64).eps))
    return np.where(raised > 0, np.nextafter(raised, np.inf), raised)
