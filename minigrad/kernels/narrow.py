"""Frozen matrices that are stored in few bits per number: bfloat16 and NF4.

A product of many rows decodes a strip of the matrix into floats at a time, and multiplies the strip
with `gemm`. The time of a product of few rows, as when a language model generates one token, is the
time to read the matrix from memory. So it decodes in registers, and reads each stored row once
(`emit_tile`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import numpy as np
from llvmlite import ir
from numpy.typing import DTypeLike

from minigrad.kernels import gemm
from minigrad.kernels.gemm.skinny import fold
from minigrad.kernels.jit import SINGLE, WORD, Array
from minigrad.kernels.vector import REGISTERS, VECTOR, Emitter

STRIP = 1 << 20  # elements in a strip: smaller strips need more passes over x
ROWS = 256  # the least rows of a strip, because each strip takes a pass over x and packs x again

FEW = 16  # the most rows of x for which a matrix is decoded in registers
WIDTH = 4  # stored rows that a tile of dot products reads at a time
HEIGHT = REGISTERS // 8  # rows of x in a tile, if not one: sums fill half the registers
LANES = VECTOR // SINGLE.itemsize  # numbers in a vector; a row must have as many

Vectors = list[list[Any]]  # one or more vectors of each row, as values in the emitted code
Read = Callable[[int, Any, Any], tuple[Vectors, Vectors]]


class NarrowMatrix(ABC):
    """A frozen matrix that is stored in few bits; it cannot be changed."""

    format: ClassVar[str]  # the name of the format, such as "nf4"
    is_transposed: bool  # whether this matrix is the transpose of the matrix in the arrays

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, int]:
        """The numbers of rows and columns of the matrix in the arrays."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""

    @abstractmethod
    def _read(self, start: int, out: Array) -> None:
        """Write the stored rows from `start` on to `out`, C-contiguous `(n, cols)` of floats."""

    @abstractmethod
    def _dots(self, x: Array, out: Array) -> bool:
        """Write the dot products of rows of x and stored rows; return False if no kernel can.

        x is `(n, cols)` and `out` is `(n, rows)`, both C-contiguous in float32.
        """

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it cannot be changed

    def __reduce__(self) -> Any:
        return type(self), tuple(self._fields().values())  # `__init__` makes them read-only again

    def _fields(self) -> dict[str, Any]:
        """Return the fields of a subclass, which is a dataclass, without cached properties."""
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        rows, cols = self.stored_shape
        return (cols, rows) if self.is_transposed else (rows, cols)

    @property
    def ndim(self) -> int:
        """The number of axes, as for arrays."""
        return 2

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.stored_shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays."""
        return sum(array.nbytes for array in self.parts().values())

    @property
    def T(self) -> Self:  # noqa: N802  # as arrays have it
        """The transpose: another view of the same arrays."""
        turned = object.__new__(type(self))  # `replace` would check all arrays again
        vars(turned).update(self._fields(), is_transposed=not self.is_transposed)
        return turned

    def dense(self, dtype: DTypeLike = np.float32) -> Array:
        """Return the complete matrix as an array of floats."""
        return self.rows(0, self.shape[0], dtype)

    def rows(self, start: int, stop: int, dtype: DTypeLike = np.float32) -> Array:
        """Return the rows from `start` to before `stop` as an array of floats.

        Raises:
            ValueError: unless 0 <= start <= stop <= the number of rows, or if the dtype is not a
                dtype of floats.
        """
        rows, cols = self.shape
        name = type(self).__name__
        if not 0 <= start <= stop <= rows:
            raise ValueError(
                f"{name}.rows: rows {start} to {stop} are not in a matrix of {rows}; it takes "
                f"0 <= start <= stop <= {rows}"
            )
        dtype = np.dtype(dtype)
        if dtype.kind != "f":
            raise ValueError(f"{name}: its numbers are floats, and cannot be read as {dtype}")
        out = np.empty((stop - start, cols), dtype)
        if self.is_transposed:
            for a, b, strip in self.strips(np.result_type(dtype, np.float32)):
                out[:, a:b] = strip[:, start:stop].T
        else:
            for a, b in strips(stop - start, cols):
                self._read(start + a, out[a:b])
        return out

    def strips(self, dtype: DTypeLike) -> Iterator[tuple[int, int, Array]]:
        """Yield strips of stored rows: the first row, the row after the last, and the values.

        Each strip is decoded into the memory of the strip before.
        """
        rows, cols = self.stored_shape
        spans = list(strips(rows, cols))
        buffer = np.empty((spans[0][1], cols), dtype)
        for a, b in spans:
            self._read(a, buffer[: b - a])
            yield a, b, buffer[: b - a]

    def matmul(self, x: Array, transposed: bool = False) -> Array:
        """Compute x M: `(n, rows)` and `(rows, cols)` of this matrix -> `(n, cols)`, dtype of x.

        If `transposed`, compute x M^T; this takes less time than a view of the transpose.

        A sum is added up in the same order for any number of threads. float16 is computed in
        float32 and rounded once. Integers become floats as numpy promotes them with float32.

        Raises:
            TypeError: if x is not made of real numbers.
            ValueError: if the shapes do not align.
        """
        name, x = type(self).__name__, np.asarray(x)
        rows, cols = self.shape[::-1] if transposed else self.shape
        if x.ndim != 2 or x.shape[1] != rows:
            raise ValueError(
                f"{name}.matmul: x of shape {x.shape} does not fit a matrix of shape "
                f"{(rows, cols)}; it must be (n, {rows})"
            )
        if x.dtype.kind not in "biuf":
            raise TypeError(f"{name}.matmul: x is made of real numbers, not {x.dtype}")
        # The usual dtype first, because a token of a language model waits for a hundred such calls.
        dtype = SINGLE if x.dtype == SINGLE else np.result_type(x.dtype, SINGLE)
        wide = x if x.dtype == dtype else x.astype(dtype)
        out = np.empty((len(x), cols), dtype)
        by_rows = self.is_transposed != transposed  # a column of the result is that of a stored row
        few = by_rows and 0 < len(x) <= FEW and dtype == SINGLE
        if not (few and self._dots(np.ascontiguousarray(wide), out)):
            for a, b, strip in self.strips(dtype):
                if by_rows and len(strip) == cols:
                    gemm.matmul(wide, strip.T, out=out)
                elif by_rows:
                    out[:, a:b] = gemm.matmul(wide, strip.T)
                else:
                    gemm.matmul(wide[:, a:b], strip, out=out, add=a > 0)
        return out if wide is x or x.dtype.kind != "f" else out.astype(x.dtype)

    def parts(self) -> dict[str, Array]:
        """Return the arrays in which the matrix is stored, by name."""
        return {name: x for name, x in self._fields().items() if isinstance(x, np.ndarray)}


def check_kind(owner: str, weight: Any, kind: type[NarrowMatrix]) -> None:
    """Raise a TypeError that begins with `owner` if a weight is not of this kind."""
    if not isinstance(weight, kind):
        name = kind.__name__
        raise TypeError(
            f"{owner}the weight is {'an' if name.startswith('N') else 'a'} {name}, not "
            f"{type(weight).__name__}; {name}.of(array) makes one"
        )


def check_matrix(name: str, array: Any, *dtypes: str) -> None:
    """Raise an error that begins with `name` unless an array is a matrix of one of these dtypes."""
    *others, last = dtypes
    accepted = f"{', '.join(others)} or {last}" if others else last
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: takes an array of {accepted}, not {type(array).__name__}; of a Tensor, pass "
            ".detach().numpy(), and of a masked array, .filled(value)"
        )
    if array.dtype.name not in dtypes:
        raise TypeError(f"{name}: takes an array of {accepted}, not {array.dtype}")
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"{name}: takes a matrix with a row and a column at least, not shape {array.shape}"
        )


def read_only(name: str, array: Any, dtype: DTypeLike, shape: tuple[int, ...]) -> Array:
    """Return a contiguous, read-only view or copy of an array of this dtype and shape, or raise."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} is an array of {np.dtype(dtype)}, not {kind}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; it must be {shape}")
    view = np.ascontiguousarray(array).view(np.ndarray)
    view.flags.writeable = False
    return view


def strips(rows: int, cols: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of strips with about `STRIP` elements, but at least `ROWS` rows."""
    step = max(ROWS, STRIP // cols)
    return ((a, min(a + step, rows)) for a in range(0, rows, step))


def emit_tile(
    e: Emitter, height: Any, count: Any, read: Read, target: Any, target_row: Any, apart: Any
) -> None:
    """Emit a tile of dot products: of `HEIGHT` rows x, or of one, with `WIDTH` rows w.

    They are sums over `count` positions, at least as many as a vector has lanes. The last vector
    ends at the end of the row, so nothing beyond the row is read. Positions in it that were added
    before count as 0.

    Args:
        e: the emitter of float32.
        height: `HEIGHT` or 1.
        count: the number of positions.
        read: a function of the height, of the position where a vector begins, and of the first
            position in the vector that is new. It emits the vectors of each row x and of each row w
            that begin there: the same number of vectors for each row.
        target: the address of the first product.
        target_row: the bytes from the products of a row x to those of the next row x.
        apart: the distance of the products of a row x, in numbers.
    """
    builder, lanes = e.builder, WORD(e.lanes)
    new = builder.mul(builder.udiv(builder.sub(count, WORD(1)), lanes), lanes)
    last = builder.sub(count, lanes)
    is_old, zeros = e.first_lanes(builder.sub(new, last)), ir.Constant(e.vector, None)

    def emit(high: int) -> None:
        def added(sums: list[Any], x: Vectors, w: Vectors) -> list[Any]:
            for i in range(len(x[0])):
                pairs = [(xs[i], ws[i]) for xs in x for ws in w]
                sums = [e.multiply_add(*pair, s) for pair, s in zip(pairs, sums, strict=True)]
            return sums

        def step(at: Any, sums: list[Any]) -> list[Any]:
            return added(sums, *read(high, at, at))

        sums = e.for_range(WORD(0), new, e.lanes, [zeros] * (high * WIDTH), step)
        x, w = (
            [[builder.select(is_old, zeros, vector) for vector in row] for row in rows]
            for rows in read(high, last, new)
        )
        for i, number in enumerate(fold(e, added(sums, x, w))):
            row = e.step(target, target_row, i // WIDTH)
            e.store(number, e.step(row, builder.mul(apart, WORD(e.item)), i % WIDTH))

    is_one = builder.icmp_signed("==", height, WORD(1))
    e.choose([(is_one, lambda: emit(1))], lambda: emit(HEIGHT))
