"""TensorInfo: what a file says of a tensor; and the dtypes there are, by their names.

numpy has no bfloat16, the upper half of a float32. Reading makes such numbers float32, which has
all of them. Writing rounds to the nearest, of two to the even one, once from any dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What safetensors calls the dtypes that can be read and written."""

NAMES = {code: name for name, code in CODES.items()}

_BITS = {
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64},
}
"""Of a number, in the dtypes of the format that are not read as numbers, but copied as they are."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file.

    Attributes:
        name: its name.
        dtype: the name of its dtype: numpy's, or "bfloat16"; if it is neither, the format's own.
        shape: its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return self.size * bits_of(self.dtype) // 8


def bits_of(dtype: str) -> int:
    """How many bits a number takes in a file.

    Raises:
        ValueError: if the dtype is none of the format.
    """
    return _BITS.get(dtype) or 8 * stored_dtype(dtype).itemsize


def check_dtype(dtype: str) -> str:
    """`dtype`, if numbers can be stored in it.

    Raises:
        ValueError: if not, with those there are.
    """
    if dtype not in CODES:
        raise ValueError(f"cannot store numbers in {dtype!r}; there are {', '.join(CODES)}")
    return dtype


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """numpy's dtype for the bytes in a file, which are little-endian."""
    return np.dtype("uint16" if dtype == "bfloat16" else check_dtype(dtype)).newbyteorder("<")


def from_stored(stored: Array, dtype: str) -> Array:
    """The numbers that bytes in a file stand for, in a dtype of numpy."""
    if dtype != "bfloat16":
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def to_stored(array: Array, dtype: str) -> Array:
    """Numbers as they are stored in `dtype`, C-contiguous."""
    if dtype == "bfloat16":
        array = _upper_half(array)
    with np.errstate(over="ignore"):  # Inf is the nearest; who wants it refused says so
        return np.asarray(array.astype(stored_dtype(dtype), copy=False), order="C")


def _upper_half(x: Array) -> Array:
    """The upper halves of the float32s that are the nearest with a lower half of zeros."""
    with np.errstate(over="ignore"):
        narrow = np.array(x, np.float32)
    bits = narrow.view(np.uint32)
    if x.dtype.itemsize > 4:
        # Rounded to odd: so the second rounding, to even, has the result of a single one.
        exact = narrow.astype(x.dtype)
        bits -= (np.abs(exact) > np.abs(x)).astype(np.uint32)
        bits |= (exact != x).astype(np.uint32)
    odd = (bits >> 16) & 1
    rounded = (bits + (0x7FFF + odd)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding might carry the last bits of a NaN away
    found: Array = np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)
    return found
