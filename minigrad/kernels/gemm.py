"""Matrix products of arrays: `matmul`, the checked entry to the compiled loops.

Machine code that works on addresses must be told the truth about them. This module is the only
place that calls `minigrad.kernels.loops`, and what it hands over comes from numpy's own account
of the arrays: their shapes, their strides, and an output it has just made.

Arrays of any layout are served by the same machine code, compiled once for each dtype: it takes
the most general kind of array (any strides, possibly read-only, possibly misaligned), and numba
lets every other kind pass as one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels import loops
from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.micro import tile_shape
from minigrad.kernels.threads import get_num_threads, team

Array = NDArray[Any]

TILES_MC, KC, NC = 8, 512, 1024  # blocks: tiles of rows of A, steps of k, columns of B
SECONDS = 2e-11  # a multiply-add takes one thread, at best: float32 with AVX-512
THREADS_FROM = 4_000_000  # multiply-adds below which threads are not even asked for

_NO_AXES = np.empty((0, 3), np.int64)  # the batch axes of a plain product


def matmul(x: Array, y: Array) -> Array:
    """The matrix product x @ y, `(..., m, k) @ (..., k, n) -> (..., m, n)`, as a new array.

    Leading axes broadcast as numpy's do. Two float32 or two float64 arrays, of any strides, are
    multiplied here; all else that `np.matmul` takes (integers, mixed dtypes, vectors, subclasses
    of ndarray) is handed to it.
    """
    kernel = _KERNELS.get(x.dtype)
    if kernel is None or x.dtype != y.dtype or not type(x) is type(y) is np.ndarray:
        return _numpy_matmul(x, y)
    if x.ndim == 2 and y.ndim == 2:
        m, k = x.shape
        k_y, n = y.shape
        if k != k_y:
            raise ValueError(_mismatch(x, y))
        if not JIT_ENABLED:
            return _numpy_matmul(x, y)
        work = m * n * k
        if work == 0:
            return np.zeros((m, n), x.dtype)  # an empty sum is 0
        out = np.empty((m, n), x.dtype)
        kernel.run(x, y, out, _NO_AXES, 1, work)
        return out
    return _matmul_batch(kernel, x, y)


def _mismatch(x: Array, y: Array) -> str:
    k, k_y = x.shape[-1], y.shape[-2]
    message = f"matmul: shapes {x.shape} and {y.shape} do not align: {k} != {k_y}"
    if k == y.shape[-1]:
        message += "; did you mean the transpose of the second, np.swapaxes(y, -1, -2)?"
    return message


def _numpy_matmul(x: Array, y: Array) -> Array:
    """The product by numpy: for what is not ours, and as the twin of ours without JIT."""
    product: Array = np.matmul(x, y, order="C")
    return product


def _matmul_batch(kernel: _Kernel, x: Array, y: Array) -> Array:
    """`matmul` where an operand has leading axes."""
    if x.ndim < 2 or y.ndim < 2:
        return _numpy_matmul(x, y)
    if x.shape[-1] != y.shape[-2]:
        raise ValueError(_mismatch(x, y))
    try:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError:
        raise ValueError(
            f"matmul: the leading axes of shapes {x.shape} and {y.shape} do not broadcast: "
            f"{x.shape[:-2]} and {y.shape[:-2]} must agree, or be 1 or missing"
        ) from None
    if not JIT_ENABLED:
        return _numpy_matmul(x, y)
    m, k, n = x.shape[-2], x.shape[-1], y.shape[-1]
    out = np.empty((*batch, m, n), x.dtype)
    work = out.size * k
    if work == 0:
        out.fill(0)
        return out
    if len(batch) == x.ndim - 2 and y.size == k * n and _rows_are_evenly_spaced(x):
        # One matrix y for all of x, as in a linear layer: all rows of x are one tall matrix.
        tall = x.reshape(out.size // n, k)  # a view, since the rows are evenly spaced
        kernel.run(tall, y.reshape(k, n), out.reshape(-1, n), _NO_AXES, 1, work)
        return out
    axes = zip(batch, _steps(x, len(batch)), _steps(y, len(batch)), strict=True)
    table = np.array([*axes], np.int64)
    count = out.size // (m * n)
    kernel.run(_first(x), _first(y), _first(out), table, count, work)
    return out


def _rows_are_evenly_spaced(x: Array) -> bool:
    """Whether all rows of a stack of matrices lie one step apart, across the matrices too."""
    step = x.strides[-2] * x.shape[-2]
    for length, stride in zip(x.shape[-3::-1], x.strides[-3::-1], strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _steps(x: Array, axes: int) -> list[int]:
    """The strides of the last `axes` leading axes of x; 0 where it is broadcast."""
    steps = [
        0 if length == 1 else stride
        for length, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    ]
    return [0] * (axes - len(steps)) + steps


def _first(x: Array) -> Array:
    """The first matrix of a stack, as a view."""
    matrix: Array = x[(0,) * (x.ndim - 2)]
    return matrix


class _Kernel:
    """The compiled product for one dtype, made (or read from numba's cache) at its first use."""

    def __init__(self, dtype: np.dtype[Any], number: Any) -> None:
        tile = tile_shape(dtype.itemsize)
        self._sizes = np.array([*tile, TILES_MC * tile.MR, KC, NC, THREADS_FROM], np.int64)
        operand = types.Array(number, 2, "A", readonly=True, aligned=False)
        out = types.Array(number, 2, "C")
        sizes, batch = types.Array(types.int64, 1, "C"), types.Array(types.int64, 2, "C")
        self._signature = (operand, operand, out, sizes, batch, types.intp)

    @cached_property
    def _serial(self) -> Callable[..., None]:
        return jit(signature=self._signature)(loops.gemm)

    @cached_property
    def _threads_share_products(self) -> Callable[..., None]:
        return jit(signature=self._signature, parallel=True)(loops.gemm)

    @cached_property
    def _threads_take_products(self) -> Callable[..., None]:
        return jit(signature=self._signature, parallel=True)(loops.gemm_batch)

    def run(self, x: Array, y: Array, out: Array, batch: Array, count: int, work: int) -> None:
        """Do `count` products of together `work` multiply-adds, more than none.

        `x`, `y` and `out` are the first matrices, `batch` says where the others are
        (`loops.locate`).
        """
        if work < THREADS_FROM or get_num_threads() == 1:
            self._serial(x, y, out, self._sizes, batch, count)
            return
        with team(work * SECONDS) as threads:
            if threads == 1:
                kernel = self._serial
            elif count < loops.PIECES:
                kernel = self._threads_share_products
            else:
                kernel = self._threads_take_products
            kernel(x, y, out, self._sizes, batch, count)


_KERNELS = {
    np.dtype(np.float32): _Kernel(np.dtype(np.float32), types.float32),
    np.dtype(np.float64): _Kernel(np.dtype(np.float64), types.float64),
}
