"""StoredWeight: a frozen weight that stays in its file, and is read some rows at a time."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from lora.frozen import Array, FrozenMatrix, strips
from lora.peft.facts import fingerprint_of_rows
from lora.peft.folder import FLOATS
from minigrad.io import TensorSet
from minigrad.kernels.bfloat16 import BFloat16Matrix


class StoredWeight(FrozenMatrix):
    """A matrix in a file; only some of its rows are in memory at a time.

    The tensor `name` is W, `(d_out, d_in)`, or the filters of a convolution, which are the rows of
    W. If it `is_transposed`, it is W^T, as in an embedding, whose rows are vectors. No result is
    saved for later calls, because the file may change. Computations with float16 and bfloat16 use
    float32. A ValueError is raised for tensors of other dtypes or numbers of axes.
    """

    def __init__(self, tensors: TensorSet, name: str, is_transposed: bool = False) -> None:
        info = tensors.info(name)
        axes = (2,) if is_transposed else (2, 3, 4, 5)
        if len(info.shape) not in axes or info.dtype not in FLOATS:
            raise ValueError(
                f"{name} has shape {info.shape} and dtype {info.dtype}; only a matrix or filters "
                f"of {', '.join(FLOATS)} can have an update, so convert a quantized base first"
            )
        self.name = name
        self.dtype = np.dtype("float64" if info.dtype == "float64" else "float32")
        self.is_transposed = is_transposed
        self._tensors = tensors
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
        # Rows of W are columns of the tensor, so the whole tensor is read, some rows at a time.
        found = np.empty((self.stored_shape[0], len(range(self.shape[0])[rows])))
        for strip in strips(self.stored_shape):
            found[strip] = self._tensors.read(self.name, None, strip)[:, rows]
        return found.T

    def blocks(self) -> list[tuple[slice, slice]]:
        """Divide W into parts, slices of rows and columns, in the order of the file."""
        if self.is_transposed:
            return [(slice(None), strip) for strip in strips(self.stored_shape)]
        return super().blocks()

    def fingerprint(self, in_bfloat16: bool = False) -> str:
        """Return the fingerprint of the tensor, or of the nearest numbers in bfloat16."""
        read = partial(self._tensors.read, self.name, None)

        def rounded(rows: slice) -> Array:
            return BFloat16Matrix.of(read(rows)).dense()

        return fingerprint_of_rows(self.stored_shape, rounded if in_bfloat16 else read)
