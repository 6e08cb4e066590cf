"""How a weight is stored: the nearest number in each dtype, and the unit in its last place.

Four dtypes are of floating point, with p binary digits and a least positive number. In them, the
unit of an x with 2^(e-1) <= |x| < 2^e is 2^(e-p), at least the least number, and x is rounded to
the nearest multiple of it, to the even one of two. This rounds once, from float64, whatever the
dtype. The fifth is NF4 (Dettmers et al., 2023, section 3): blocks of 64 numbers of a row, each
number one of 16 levels times the largest absolute value of its block, which is kept in float32. So
it is what `lora.quantize(model, double_quant=False)` would make of the merged weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels

Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """A dtype of floating point.

    Attributes:
        digits: p, with the leading one that is not stored.
        least: the least positive number.
        largest: the largest number.
    """

    digits: int
    least: float
    largest: float


_FORMATS = {
    "float64": Format(53, math.ldexp(1, -1074), float(np.finfo(np.float64).max)),
    "float32": Format(24, math.ldexp(1, -149), float(np.finfo(np.float32).max)),
    "float16": Format(11, math.ldexp(1, -24), 65504.0),
    "bfloat16": Format(8, math.ldexp(1, -133), math.ldexp(255, 120)),
}

_EXPONENT = 0x7FF0_0000_0000_0000  # where a number of float64 has its exponent
_LARGEST_POWER = math.ldexp(1, 1023)  # that of numbers that are not finite would be infinite

DTYPES = (*_FORMATS, "nf4")
"""What a merged weight can be stored in."""

BLOCK = 64  # numbers of a row that NF4 divides by one absolute value


@cache
def _code_book() -> tuple[Array, Array, Array]:
    """The levels, the middles between two, and how far the nearer neighbour of each is."""
    levels = kernels.nf4_decode.LEVELS.astype(np.float64)
    gaps = np.diff(levels, prepend=-np.inf), np.diff(levels, append=np.inf)
    return levels, (levels[1:] + levels[:-1]) / 2, np.minimum(*gaps)


def check_dtype(dtype: str) -> str:
    """`dtype`, if a weight can be stored in it.

    Raises:
        ValueError: if not.
    """
    if dtype not in DTYPES:
        raise ValueError(f"cannot store weights in {dtype!r}; there are {', '.join(DTYPES)}")
    return dtype


def check_dtypes(dtypes: str | Sequence[str]) -> tuple[str, ...]:
    """One dtype or several, each once.

    Raises:
        ValueError: if there are none, or a weight cannot be stored in one.
    """
    chosen = tuple(dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes))
    if not chosen:
        raise ValueError(f"there are no dtypes to certify for; choose from {', '.join(DTYPES)}")
    return tuple(check_dtype(dtype) for dtype in chosen)


def computing_dtype(own: np.dtype[Any], dtype: str) -> np.dtype[Any]:
    """What a layer of dtype `own` computes in with weights stored in `dtype`: the wider of the two.

    Numbers of bfloat16 and NF4 are made float32 first.
    """
    return np.promote_types(own, dtype if dtype in ("float16", "float64") else "float32")


def round_to(x: Array, dtype: str) -> Array:
    """Each number as it is read back once it was stored in `dtype`, in float64.

    To the nearest number, of two to the even one; beyond the largest it is infinite.

    Args:
        x: float64, `(..., n)`; NF4 divides the rows of n numbers into blocks.
        dtype: one of `DTYPES`.

    Raises:
        TypeError: if x is not of float64, which might have been rounded before.
        ValueError: if there is no such dtype, or x is a single number.
    """
    check_dtype(dtype)
    x = np.asarray(x)
    if x.dtype != np.float64:
        raise TypeError(f"round_to takes an array of float64, not of {x.dtype}")
    if x.ndim == 0:
        raise ValueError("round_to takes rows of numbers, not a single one; pass x.reshape(1)")
    if dtype == "nf4":
        return _nf4(x)
    if dtype == "float64":
        return x.copy()
    unit = unit_of(x, dtype)
    rounded = np.rint(x / unit)
    with np.errstate(over="ignore"):
        rounded *= unit
    rounded[np.abs(rounded) > _FORMATS[dtype].largest] *= np.inf
    return rounded


def unit_of(x: Array, dtype: str) -> Array:
    """The unit in the last place of each number in `dtype`.

    In NF4 it is the distance from the level of the number to the nearer of its neighbours, times
    the largest absolute value of the block. It is at least the least positive number, of float32
    for NF4. Of what is not finite it has no meaning.

    Args:
        x: as `round_to` gives it, `(..., n)`.
        dtype: one of `DTYPES`.
    """
    if dtype == "nf4":
        absmax = _absmax(x)
        unit = _code_book()[2][_codes(x, absmax)] * absmax
        least = _FORMATS["float32"].least
    else:
        # The bits of the exponent alone are the power of two below |x|, or 0 below the normal ones.
        power = (x.view(np.int64) & _EXPONENT).view(np.float64)
        unit = np.minimum(power, _LARGEST_POWER) * 2.0 ** (1 - _FORMATS[dtype].digits)
        least = _FORMATS[dtype].least
    found: Array = np.maximum(unit, least)
    return found


def _nf4(x: Array) -> Array:
    absmax = _absmax(x)
    with np.errstate(invalid="ignore"):  # 0 times infinity, in a block that is beyond float32
        return _code_book()[0][_codes(x, absmax)] * absmax


def _absmax(x: Array) -> Array:
    """The largest absolute value of each block, in float32, at each number of the block."""
    starts = np.arange(0, x.shape[-1], BLOCK)
    if not x.size:
        return np.zeros(x.shape)
    with np.errstate(over="ignore"):
        absmax = np.maximum.reduceat(np.abs(x), starts, axis=-1).astype(np.float32)
    return np.repeat(absmax.astype(np.float64), BLOCK, axis=-1)[..., : x.shape[-1]]


def _codes(x: Array, absmax: Array) -> Array:
    """Which level is the nearest to x / absmax."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.searchsorted(_code_book()[1], x / absmax)
