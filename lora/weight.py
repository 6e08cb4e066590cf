"""Weight: a frozen matrix W, `(d_out, d_in)`, however it is stored, and what an adapter asks of it.

There are two: dense, and in the 4 bits of NF4 (`minigrad.kernels.nf4`), of which no more than a
strip is ever dense. An embedding's table is a dense one, seen transposed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels, ops
from minigrad.core.tensor import Tensor
from minigrad.readonly import hold, release

if TYPE_CHECKING:
    from minigrad.kernels.nf4 import NF4Matrix

Array = NDArray[Any]

_INSTEAD = "layer.base_weight is the Tensor, and layer.merged_weight() one with the updates in it"

STRIP = 1 << 18  # numbers that are in float64 at a time


def strips(shape: tuple[int, ...]) -> list[slice]:
    """The rows of an array in parts of no more than some megabytes; of a number, all of it."""
    if not shape:
        return [slice(None)]
    rows, step = shape[0], max(1, STRIP // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class Weight(ABC):
    """What is common: rows in float64, and the squares of their norms.

    Attributes:
        shape: `(d_out, d_in)`.
        dtype: of what is computed with it.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    if not TYPE_CHECKING:  # a model may read layer.weight, which was a Tensor before

        def __getattr__(self, name):
            raise AttributeError(f"W as adapters see it has no {name}; {_INSTEAD}")

        def __array__(self, *args, **options):
            raise TypeError(f"W as adapters see it is no array; {_INSTEAD}")

    @abstractmethod
    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Some rows and columns of W in float64, a copy."""

    @abstractmethod
    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b. No gradient gets to W."""

    @abstractmethod
    def project(self, a: Array) -> Array:
        """W A^T: `(d_out, rank)`."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether there is no NaN and no Inf in W."""

    @abstractmethod
    def kept_squares(self) -> Array:
        """The squares of the norms of the rows, kept for the next time."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype})"

    def dense(self) -> Array:
        """W in float64, whole."""
        return self.rows(slice(None))

    def strips(self) -> list[slice]:
        """The rows in parts of no more than some megabytes."""
        return strips(self.shape)

    def blocks(self) -> list[tuple[slice, slice]]:
        """Rows and columns of parts that are quickly read, of no more than some megabytes."""
        return [(strip, slice(None)) for strip in self.strips()]

    def squares(self) -> Array:
        """The squares of the norms of the rows in float64."""
        total = np.zeros(self.shape[0])
        for rows, columns in self.blocks():
            part = self.rows(rows, columns)
            total[rows] += np.einsum("ij,ij->i", part, part)
        return total


class Dense(Weight):
    """A plain array. While the norms of its rows are known its memory is read-only.

    Args:
        matrix: W; an array that others may hold, and write to if they say so.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self._known: Array | None = None

    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Some rows and columns of W in float64, a copy."""
        return self.matrix[rows, columns].astype(np.float64)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b."""
        return ops.linear(x, self.matrix, bias)

    def project(self, a: Array) -> Array:
        """W A^T."""
        return kernels.gemm.matmul(self.matrix, a.T)

    def is_finite(self) -> bool:
        """Whether there is no NaN and no Inf in W."""
        return bool(np.isfinite(self.matrix).all())

    def kept_squares(self) -> Array:
        """The squares of the norms of the rows, kept for as long as nobody can write to W."""
        if self._known is None:
            squares = self.squares()
            if not hold(self.matrix, self):
                return squares
            self._known = squares
        return self._known

    def let_go(self) -> None:
        """Forget the norms, since someone is about to write to W."""
        self._known = None

    def __del__(self) -> None:
        if self._known is not None:
            release(self.matrix)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of a layer looks for itself


class InFourBits(Weight):
    """A matrix of NF4 codes. It cannot change, and no more than a strip of it is dense at a time.

    Args:
        matrix: W.
        dtype: of what is computed with it.
    """

    def __init__(self, matrix: NF4Matrix, dtype: np.dtype[Any]) -> None:
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, dtype
        self._known: Array | None = None

    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Some rows and columns of what the codes stand for, in float64."""
        start, stop, _ = rows.indices(self.shape[0])
        return self.matrix.rows(start, stop, np.float64)[:, columns]

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b."""
        return ops.nf4_linear(x, self.matrix, bias)

    def project(self, a: Array) -> Array:
        """W A^T."""
        return self.matrix.T.matmul(a).T

    def is_finite(self) -> bool:
        """That it was when it was made."""
        return True

    def kept_squares(self) -> Array:
        """The squares of the norms of the rows, computed once."""
        if self._known is None:
            self._known = self.squares()
        return self._known
