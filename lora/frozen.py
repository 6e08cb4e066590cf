"""The frozen parts of a layer with adapters: its matrix W, dense or in few bits, and its bias.

A matrix is `(d_out, d_in)`. The matrix of an embedding is its table, transposed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.core.tensor import Tensor
from minigrad.nn import Buffer, Parameter
from minigrad.readonly import hold, release

Array = NDArray[Any]

_INSTEAD = "layer.base_weight is the Tensor, and layer.merged_weight() one with the updates in it"

STRIP = 1 << 18  # the number of elements in float64 at a time


def strips(shape: tuple[int, ...]) -> list[slice]:
    """Divide the rows of an array into parts of a few megabytes; a scalar is one part."""
    if not shape:
        return [slice(None)]
    rows, step = shape[0], max(1, STRIP // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class FrozenMatrix(ABC):
    """A frozen matrix W, with the operations that adapters need, computed a few rows at a time."""

    shape: tuple[int, int]  # `(d_out, d_in)`
    dtype: np.dtype[Any]  # the dtype of results computed with W
    groups: int = 1  # if a convolution has several, the shape is `(d_out, d_in / groups)`

    if not TYPE_CHECKING:  # code written for a Linear reads `layer.weight` as a Tensor or an array

        def __getattr__(self, name):
            raise AttributeError(f"a FrozenMatrix has no {name}; {_INSTEAD}")

        def __array__(self, *args, **options):
            raise TypeError(f"a FrozenMatrix is not an array; {_INSTEAD}")

    @abstractmethod
    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Return some rows and columns of W in float64, as a copy."""

    def project(self, a: Array) -> Array:
        """Compute W A^T, `(d_out, rank)`, in the dtype of A."""
        total = np.zeros((self.shape[0], len(a)))
        for rows, columns in self.blocks():
            total[rows] += self.rows(rows, columns) @ a[:, columns].T.astype(np.float64)
        return total.astype(a.dtype)

    def is_finite(self) -> bool:
        """Return whether W has no NaN and no Inf."""
        return all(np.isfinite(self.rows(*block)).all() for block in self.blocks())

    def cached_squares(self) -> Array:
        """Return `squares()`; a subclass may save the result for as long as W cannot change."""
        return self.squares()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype})"

    def dense(self) -> Array:
        """Return all of W in float64."""
        return self.rows(slice(None))

    def strips(self) -> list[slice]:
        """Divide the rows into parts of a few megabytes."""
        return strips(self.shape)

    def blocks(self) -> list[tuple[slice, slice]]:
        """Divide W into parts that are quick to read: rows and columns, a few megabytes each."""
        return [(strip, slice(None)) for strip in self.strips()]

    def squares(self) -> Array:
        """Compute the squared norm of each row in float64: `(d_out,)`."""
        total = np.zeros(self.shape[0])
        for rows, columns in self.blocks():
            part = self.rows(rows, columns)
            total[rows] += np.einsum("ij,ij->i", part, part)
        return total


class DenseMatrix(FrozenMatrix):
    """A plain array, whose memory other code may share.

    An array of filters, with more axes, has a row for each filter; they may be in groups. While the
    norms of the rows are saved, the memory is read-only; code that wants to write releases it first
    (`on_release`).
    """

    def __init__(self, array: Array, groups: int = 1) -> None:
        self._array, self.dtype, self.groups = array, array.dtype, groups
        self.shape = len(array), math.prod(array.shape[1:])
        self._known: Array | None = None

    @property
    def matrix(self) -> Array:
        """The array as a matrix: a view if the memory is contiguous, otherwise a copy."""
        return self._array.reshape(self.shape)

    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Return some rows and columns of W in float64, as a copy."""
        return self.matrix[rows, columns].astype(np.float64)

    def project(self, a: Array) -> Array:
        """Compute W A^T."""
        return kernels.gemm.matmul(self.matrix, a.T)

    def cached_squares(self) -> Array:
        """Return the squared norms of the rows, saved for as long as W is read-only."""
        if self._known is None:
            squares = self.squares()
            if not hold(self._array, self):
                return squares
            self._known = squares
        return self._known

    def on_release(self) -> None:
        """Drop the saved norms, because other code is about to write to W."""
        self._known = None

    def __del__(self) -> None:
        if self._known is not None:
            release(self._array)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copied layer makes a new one from its own weight


class NarrowFrozenMatrix(FrozenMatrix):
    """A matrix in few bits (`minigrad.kernels.narrow`), which cannot change.

    Only one strip of rows is decoded at a time.
    """

    def __init__(self, matrix: kernels.narrow.NarrowMatrix, dtype: np.dtype[Any]) -> None:
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, dtype
        self._known: Array | None = None

    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Decode some rows and columns to float64."""
        if self.matrix.is_transposed and columns != slice(None):
            start, stop, _ = columns.indices(self.shape[1])
            return self.matrix.T.rows(start, stop, np.float64).T[rows]
        start, stop, _ = rows.indices(self.shape[0])
        return self.matrix.rows(start, stop, np.float64)[:, columns]

    def strips(self) -> list[slice]:
        """Divide the rows; a transpose gets fewer parts, because each part decodes all of it."""
        rows, cols = self.shape
        return strips((rows, cols // 16 if self.matrix.is_transposed else cols))

    def project(self, a: Array) -> Array:
        """Compute W A^T."""
        return self.matrix.matmul(a, transposed=True).T

    def is_finite(self) -> bool:
        """Return whether W has no NaN and no Inf."""
        return self.matrix.is_finite()

    def cached_squares(self) -> Array:
        """Return the squared norms of the rows, computed once."""
        if self._known is None:
            self._known = self.squares()
        return self._known


LayerMatrix = DenseMatrix | NarrowFrozenMatrix
"""The matrix of a layer, whose `matrix` is in memory: an array, or a matrix in few bits."""


class TrainedCopy(Parameter):
    """A copy of a frozen parameter that an adapter trains.

    Gradients reach it in a frozen layer too; `lora.attachment.state` swaps it with the original.
    """

    __slots__ = ()


class OwnBuffer(Buffer):
    """A copy of a buffer, such as a running mean, that belongs to one adapter."""

    __slots__ = ()


def copy_for_adapter(original: Parameter | Buffer, value: Any) -> TrainedCopy | OwnBuffer:
    """Return a copy with this value, which replaces the original while the adapter is active."""
    return OwnBuffer(value) if isinstance(original, Buffer) else TrainedCopy(value)


def frozen_bias(bias: Parameter | None) -> Tensor | None:
    """Detach the bias of a frozen layer from the graph, unless it is a copy that an adapter trains.

    An ordinary bias gets no gradient, even if its `requires_grad` is set.
    """
    if bias is None or bias.node is None or isinstance(bias, TrainedCopy):
        return bias
    return bias.detach()
