"""TensorInfo: the dtype and shape of a tensor in a file; and the names of dtypes.

numpy has no bfloat16, which is the upper half of a float32. Reading converts bfloat16 to float32
without loss. Writing rounds once, from any dtype, to the nearest value, ties to even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import native_dtype

Array = NDArray[Any]

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
"""The safetensors codes of the dtypes that can be read and written."""

NAMES = {code: name for name, code in CODES.items()}

_BITS = {
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64},
}
"""The bits per element of dtypes that can only be copied, not read as numbers."""


@dataclass(frozen=True)
class TensorInfo:
    """The name, dtype and shape of a tensor in a file.

    Attributes:
        name: the name of the tensor.
        dtype: numpy's name of the dtype, "bfloat16", or for other dtypes the code of safetensors.
        shape: the size along each axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file.

        Raises:
            ValueError: if the dtype is unknown.
        """
        return self.size * bits_of(self.dtype) // 8


def bits_of(dtype: str) -> int:
    """Return the number of bits per element in a file; a ValueError if the dtype is unknown."""
    return _BITS.get(dtype) or 8 * stored_dtype(dtype).itemsize


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Return numpy's dtype for the bytes in a file, which are little-endian.

    A ValueError, with a list of dtypes, is raised if the dtype cannot be read and written.
    """
    if dtype not in CODES:
        raise ValueError(f"cannot store numbers in {dtype!r}; there are {', '.join(CODES)}")
    little_endian = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    return np.dtype(little_endian.str)


def from_stored(stored: Array, dtype: str) -> Array:
    """Convert stored values to a numpy dtype."""
    if dtype != "bfloat16":
        return stored.astype(native_dtype(stored.dtype), copy=False)
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def to_stored(array: Array, dtype: str) -> Array:
    """Convert values to the storage format of `dtype`, as a C-contiguous array."""
    if dtype == "bfloat16":
        array = _upper_half(array)
    with np.errstate(over="ignore"):  # too large values become Inf; some callers check for it
        return np.asarray(array.astype(stored_dtype(dtype), copy=False), order="C")


def _upper_half(x: Array) -> Array:
    """Round to bfloat16: round to float32 with lower 16 bits of 0, and return the upper 16 bits."""
    with np.errstate(over="ignore"):
        narrow = np.array(x, np.float32)
    bits = narrow.view(np.uint32)
    if not np.can_cast(x.dtype, np.float32):
        # Round to odd first: then the second rounding, to even, gives the result of one rounding.
        with np.errstate(invalid="ignore"):  # of integers that were rounded beyond the largest
            exact = narrow.astype(x.dtype)
        bits -= (np.abs(exact) > np.abs(x)).astype(np.uint32)
        bits |= (exact != x).astype(np.uint32)
    odd = (bits >> 16) & 1
    rounded = (bits + (0x7FFF + odd)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding could turn a NaN into Inf
    found: Array = np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)
    return found
