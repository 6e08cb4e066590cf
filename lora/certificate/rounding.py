"""Rounding of stored weights in each dtype, and bounds on rounding errors.

Four dtypes are floating-point formats with p binary digits and a least positive number. In them,
the unit in the last place of an x with 2^(e-1) <= |x| < 2^e is 2^(e-p), or the least positive
number if that is larger. x is rounded once, from float64, to the nearest multiple of this unit; a
tie goes to the even one. The fifth dtype is NF4 (Dettmers et al., 2023, section 3). A row is
divided into blocks of 64 elements. Each element is one of 16 levels times the largest absolute
value of its block, which is stored in float32. `lora.quantize(model, double_quant=False)` stores
the merged weight in the same way.

Take a sum of products that is computed with n roundings of each term, in any order. Its error is at
most gamma(n) times the sum of the terms' absolute values. In addition, each product smaller than
the least normal number loses at most half of the least positive number (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, sections 2.1 and 3.1).

    gamma(n) = n u / (1 - n u)          u: half the distance from 1 to the next number

This is a worst-case bound; `lora.verify` uses a probabilistic one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.frozen import Array
from minigrad import kernels
from minigrad.io.tensor_info import from_stored, to_stored

# p, with the leading digit, which is not stored; and the exponent of the least positive number
_FORMATS = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24)}
_FORMATS["bfloat16"] = (8, -133)

_EXPONENT = 0x7FF0_0000_0000_0000  # the bits of the exponent of a float64
DTYPES = (*_FORMATS, "nf4")  # the dtypes that can store a merged weight
BLOCK = 64  # elements of a row that share one absmax in NF4


def check_dtypes(dtypes: str | Sequence[str]) -> tuple[str, ...]:
    """Return the dtypes as a tuple without repeats; a ValueError for none, or an unknown one."""
    chosen = tuple(dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes))
    if not chosen:
        raise ValueError(f"there are no dtypes to certify for; choose from {', '.join(DTYPES)}")
    for dtype in chosen:
        if dtype not in DTYPES:
            raise ValueError(f"cannot store weights in {dtype!r}; there are {', '.join(DTYPES)}")
    return chosen


def round_to(x: Array, dtype: str) -> Array:
    """Round each number to `dtype`, and return the result in float64.

    Each number is rounded to the nearest one of the dtype, and a tie to the even one; numbers
    beyond the largest become infinite. NF4 divides the rows of x, `(..., n)`, into blocks of 64.

    Raises:
        TypeError: if x is not of float64, because another dtype would mean that it was rounded
            before.
        ValueError: if x has no axis, or the dtype is not one of `DTYPES`.
    """
    check_dtypes(dtype)
    x = np.asarray(x)
    if x.dtype != np.float64:
        raise TypeError(f"round_to takes an array of float64, not of {x.dtype}")
    if x.ndim == 0:
        raise ValueError("round_to takes rows of numbers, not a single one; pass x.reshape(1)")
    if dtype == "nf4":
        levels, _, codes, absmax = _in_nf4(x)
        with np.errstate(invalid="ignore"):  # 0 times infinity, if absmax exceeds float32
            return levels[codes] * absmax
    return from_stored(to_stored(x, dtype), dtype).astype(np.float64)


def unit_of(x: Array, dtype: str) -> Array:
    """Compute the unit in the last place of each number that `round_to` returned.

    In NF4 it is the distance from the level of the number to the nearest other level, times the
    largest absolute value of the block. The unit is at least the least positive number of the dtype
    (of float32 for NF4). For NaN and Inf it has no meaning.
    """
    if dtype == "nf4":
        _, gaps, codes, absmax = _in_nf4(x)
        unit, (_, least) = gaps[codes] * absmax, _FORMATS["float32"]
    else:
        digits, least = _FORMATS[dtype]
        # With only its exponent bits, x is the power of two below |x|, or 0 if x is subnormal.
        unit = (x.view(np.int64) & _EXPONENT).view(np.float64) * 2.0 ** (1 - digits)
    found: Array = np.maximum(unit, math.ldexp(1, least))
    return found


def _in_nf4(x: Array) -> tuple[Array, Array, Array, Array]:
    """Store x in NF4: return the levels, the gap of each to the nearest other one, indices, absmax.

    The indices are those of the levels nearest to x / absmax, and absmax is in float32.
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
    """Return gamma of a number of roundings, the bound above; infinite where it is not valid."""
    nu = roundings * float(np.finfo(dtype).eps) / 2
    return nu / (1 - nu) if nu < 1 else math.inf


def least_of(dtype: np.dtype[Any]) -> float:
    """Return the least positive number of a dtype."""
    return float(np.finfo(dtype).smallest_subnormal)


def norms(x: Array) -> Array:
    """Compute the norm of each row, whose squares cannot over- or underflow; NaN if not finite."""
    largest = np.abs(x).max(axis=-1, initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x / np.where(largest > 0, largest, 1.0)[..., None]
        found: Array = largest * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
    return found


def upper(x: Any, roundings: int) -> Any:
    """Return an upper bound of the exact value of x, a computed float64 sum of numbers >= 0."""
    raised = np.asarray(x) * (1 + (roundings + 8) * float(np.finfo(np.float64).eps))
    return np.where(raised > 0, np.nextafter(raised, np.inf), raised)
