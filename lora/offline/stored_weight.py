"""StoredWeight: a frozen weight that stays in its file, and is read some rows at a time."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from lora.frozen import Array, FrozenMatrix, strips
from lora.peft.facts import fingerprint_of_rows
from lora.peft.folder import FLOATS
from minigrad.io import TensorSet

BAND = 1 << 24  # elements of a transposed weight that are read in one pass through the file


class StoredWeight(FrozenMatrix):
    """A matrix in a file; only some of its rows are in memory at a time.

    The tensor `name` is W, `(d_out, d_in)`, or the filters of a convolution, which are the rows of
    W. If it `is_transposed`, it is W^T, as in an embedding, whose rows are vectors. No result is
    saved for later calls, because the file may change. Computations with float16 and bfloat16 use
    float32. A ValueError is raised for tensors of other dtypes or numbers of axes.
    """

    def __init__(self, tensors: TensorSet, name: str, is_transposed: bool = False) -> None:
        info = tensors.info(name)
        axes = (2,) if is_transposed else (2, 3, 4)
        if len(info.shape) not in axes or info.dtype not in FLOATS:
            raise ValueError(
                f"{name} has shape {info.shape} and dtype {info.dtype}; only a matrix or filters "
                f"of {', '.join(FLOATS)} can have an update, so convert a quantized base first"
            )
        self.name = name
        self.dtype = np.dtype("float64" if info.dtype == "float64" else "float32")
        self.is_transposed = is_transposed
        self._tensors = tensors
        self._first, self._band = 0, np.empty((info.shape[0], 0), self.dtype)
        self.stored_shape = info.shape  # of the tensor
        rows, columns = info.shape[0], math.prod(info.shape[1:])
        self.shape = (columns, rows) if is_transposed else (rows, columns)

    def rows(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Return some rows and columns of W in float64."""
        if not self.is_transposed:
            filters = self._tensors.read(self.name, np.float64, rows)
            return filters.reshape(len(filters), self.shape[1])[:, columns]
        if columns != slice(None):
            return self._tensors.read(self.name, np.float64, columns)[:, rows].T
        # Rows of W are columns of the tensor, which are scattered over the file. So one pass also
        # reads the following columns, a band that stays in memory until its last column is used.
        total, count = self.shape
        start, stop, _ = rows.indices(total)
        if not self._first <= start <= stop <= self._first + self._band.shape[1]:
            end = min(total, max(stop, start + BAND // max(1, count)))
            self._first, self._band = start, np.empty((count, end - start), self.dtype)
            for part in strips((count, total)):
                self._band[part] = self._tensors.read(self.name, None, part)[:, start:end]
        found = self._band[:, start - self._first : stop - self._first].astype(np.float64)
        if stop == total:
            self._first, self._band = 0, self._band[:, :0].copy()
        return found.T

    def blocks(self) -> list[tuple[slice, slice]]:
        """Divide W into parts, slices of rows and columns, in the order of the file."""
        if self.is_transposed:
            return [(slice(None), strip) for strip in strips(self.stored_shape)]
        return super().blocks()

    def fingerprint(self) -> str:
        """Return the fingerprint of the tensor."""
        read = partial(self._tensors.read, self.name, None)
        return fingerprint_of_rows(self.stored_shape, read)
