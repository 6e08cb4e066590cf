"""A frozen matrix in bfloat16, the upper 16 bits of a float32, as language models are stored.

A shift turns a bfloat16 into a float32; this takes far less time than reading it from memory. numpy
has no dtype bfloat16, so the numbers are stored as 16-bit integers. The package `ml_dtypes` has the
dtype; it is imported only to round floats, and to show the matrix as an array of bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from llvmlite import ir
from numba import types

from minigrad.kernels import narrow
from minigrad.kernels.gemm.skinny import rows_apart
from minigrad.kernels.jit import SINGLE, WORD, Array, Read, Written
from minigrad.kernels.launch import for_each_dtype, part, span
from minigrad.kernels.narrow import HEIGHT, LANES, WIDTH, NarrowMatrix, Vectors
from minigrad.kernels.vector import Emitter, address_of, instruction
from minigrad.packages import package

SECONDS = 1e-10  # approximate seconds of an element
AHEAD = 1024  # bytes: how far ahead rows are prefetched for one row x, which waits for memory
INFINITE = np.uint16(0x7F80)  # the bits of the exponent of NaN and Inf


@dataclass(frozen=True, eq=False, repr=False)
class BFloat16Matrix(NarrowMatrix):
    """A matrix of bfloat16 numbers; it cannot be changed. `of` makes one.

    Args:
        bits: `(rows, cols)` uint16, the 16 bits of each number. A contiguous array is not copied.
        is_transposed: whether this matrix is the transpose of the matrix in `bits`.

    Raises:
        TypeError: if the array has another dtype.
        ValueError: if the array is not a matrix, or is empty.
    """

    format = "bfloat16"

    bits: Array
    is_transposed: bool = False

    def __post_init__(self) -> None:
        narrow.check_matrix("BFloat16Matrix", self.bits, "uint16")
        bits = narrow.read_only("BFloat16Matrix: bits", self.bits, np.uint16, self.bits.shape)
        object.__setattr__(self, "bits", bits)

    @classmethod
    def of(cls, array: Array) -> BFloat16Matrix:
        """Return the matrix nearest to `array`; a contiguous array of bfloat16 is not copied.

        Args:
            array: `(rows, cols)` of float16, float32 or float64, or of `ml_dtypes.bfloat16`.

        Raises:
            TypeError: if `array` is not an array of floats.
            ValueError: if `array` is not a matrix, or is empty.
            ImportError: if ml_dtypes is not installed.
        """
        narrow.check_matrix("BFloat16Matrix.of", array, "float16", "float32", "float64", "bfloat16")
        dtype = package("ml_dtypes").bfloat16
        # A number beyond the range becomes Inf, and a NaN that signals becomes one that does not.
        with np.errstate(over="ignore", invalid="ignore"):
            return cls(array.astype(dtype, order="C", copy=False).view(np.uint16))

    def array(self) -> Array:
        """Return the matrix as a read-only array of `ml_dtypes.bfloat16`, without a copy.

        Raises:
            ImportError: if ml_dtypes is not installed.
        """
        found: Array = self.bits.view(package("ml_dtypes").bfloat16)
        return found.T if self.is_transposed else found

    def __repr__(self) -> str:
        transposed = ", transposed" if self.is_transposed else ""
        return f"BFloat16Matrix({self.shape[0]}, {self.shape[1]}{transposed})"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The numbers of rows and columns of the matrix in the array."""
        rows, cols = self.bits.shape
        return rows, cols

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        exponents = (self.bits[a:b] & INFINITE for a, b in narrow.strips(*self.stored_shape))
        return not any((each == INFINITE).any() for each in exponents)

    def _read(self, start: int, out: Array) -> None:
        widen(self.bits[start:][: len(out)], out)

    def _dots(self, x: Array, out: Array) -> bool:
        rows, cols = self.bits.shape
        if not _dots_loop or rows < WIDTH or cols < LANES:
            return False
        _dots_loop[SINGLE](self.bits.size * SECONDS, x, self.bits, out)
        return True


def widen(bits: Array, out: Array) -> None:
    """Write the values of bfloat16 numbers, as uint16, to floats; both arrays are C-contiguous."""
    if out.dtype != SINGLE:
        wide = np.empty(out.shape, np.float32)
        widen(bits, wide)
        out[...] = wide
    elif _widen_loop:
        _widen_loop[SINGLE](bits.size * SECONDS, bits.ravel(), out.reshape(-1).view(np.uint32))
    else:
        np.left_shift(bits, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)


@for_each_dtype(SINGLE)
def _widen_loop(
    piece: int, pieces: int, bits: Annotated[Read.D1, types.uint16],
    out: Annotated[Written.D1, types.uint32],
) -> None:  # fmt: skip
    x, y = part(piece, pieces, bits), part(piece, pieces, out)
    for i in range(x.size):
        y[i] = np.uint32(x[i]) << np.uint32(16)


@instruction()
def _tile(
    e: Emitter, height: Any, x: Any, x_row: Any, bits: Any, row: Any, count: Any,
    target: Any, target_row: Any, apart: Any,
) -> None:  # fmt: skip
    """Compute the dot products of `height` rows x with `WIDTH` rows of bfloat16."""
    builder, two, four = e.builder, WORD(2), WORD(4)
    stored, wide = (ir.VectorType(ir.IntType(n), e.lanes) for n in (16, 32))

    def read(high: int, at: Any, _new: Any) -> tuple[Vectors, Vectors]:
        there = builder.add(x, builder.mul(at, four))
        xs = [[e.load(e.step(there, x_row, i), e.vector)] for i in range(high)]
        here, ws = builder.add(bits, builder.mul(at, two)), []
        for j in range(WIDTH):
            source = e.step(here, row, j)
            if high == 1:
                e.prefetch(builder.add(source, WORD(AHEAD)), to_write=False)
            upper = builder.zext(e.load(source, stored), wide)
            upper = builder.shl(upper, ir.Constant(wide, [16] * e.lanes))
            ws.append([builder.bitcast(upper, e.vector)])
        return xs, ws

    narrow.emit_tile(e, height, count, read, target, target_row, apart)


@for_each_dtype(SINGLE)
def _dots_loop(
    piece: int, pieces: int, x: Read.D2, bits: Annotated[Read.D2, types.uint16], out: Written.D2
) -> None:
    m, (rows, cols) = x.shape[0], bits.shape
    height = HEIGHT if m >= HEIGHT else 1
    groups = span(piece, pieces, (rows + WIDTH - 1) // WIDTH)
    first = groups.start * WIDTH
    most = rows_apart(min(rows, groups.stop * WIDTH) - first, WIDTH)
    for number in range(len(groups)):
        j, apart = first + number, most
        if number >= most:  # the last tile may overlap the tile before
            j, apart = min(first + number * WIDTH, rows - WIDTH), 1
        for k in range(0, m, height):
            i = min(k, m - height)
            _tile(
                height, address_of(x) + i * cols * 4, cols * 4,
                address_of(bits) + j * cols * 2, apart * cols * 2, cols,
                address_of(out) + (i * rows + j) * 4, rows * 4, apart,
            )  # fmt: skip
