"""A matrix that is packed once and multiplied with often, such as the frozen weight in LoRA.

A product with W copies W into panels first (`minigrad.kernels.pack`), which takes a tenth of the
time where the other operand has a hundred rows. A weight that does not change needs that once. It
is read in two layouts, one for x W^T and one for g W, each packed when it is first used.

Panels that are out of date would be a wrong number without a word. So the memory of W is read-only
while there are any (`minigrad.readonly.hold`): whoever wants to write there ends it first, and the
next product packs anew.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels import gemm, products
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.kernel import Kernel
from minigrad.kernels.micro import CACHE_LINE
from minigrad.readonly import hold, release

Array = NDArray[Any]

LIMIT = 512 * 1024 * 1024  # bytes of all panels together; what would exceed it is packed each time
ROWS = 32  # in the other operand, for fewer of which packing does not pay
SIZE = 1 << 14  # numbers in W, for fewer of which it does not pay either
SECONDS = 5e-11  # what a byte takes to be packed, about

_kept_bytes = 0
_packing = threading.RLock()


def _unlock_in_child() -> None:
    """In a process made by fork, the thread that had the lock is gone."""
    global _packing
    _packing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_unlock_in_child)


class Panels:
    """The panels of one matrix W, `(d_out, d_in)`, held read-only while there are any.

    Attributes:
        matrix: W.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self._packed: dict[bool, Array] = {}  # by whether it is W^T
        self._writes = 0  # how often someone wanted to write to W

    def __del__(self) -> None:
        if self._packed:  # then it is held
            release(self.matrix)
            self.let_go()

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of a layer packs for itself

    def let_go(self) -> None:
        """Forget all panels, since someone is about to write to W."""
        global _kept_bytes
        with _packing:
            _kept_bytes -= sum(panels.nbytes for panels in self._packed.values())
            self._packed = {}
            self._writes += 1

    def matmul(
        self, x: Array, transpose: bool, left: Array, right: Array, row: Array | None = None
    ) -> Array | None:
        """x W^T, or x W, plus the product of a thin pair, `left @ right`, plus a row.

        None where that is not for panels: for few rows, where these would exceed the limit, or
        where W cannot be held.
        """
        if len(x) < ROWS or x.dtype != self.matrix.dtype:
            return None
        matrix = self.matrix.T if transpose else self.matrix
        panels = self._packed.get(transpose)
        if panels is None:
            panels = self._pack(matrix, transpose)
            if panels is None:
                return None
        (k, n), products = matrix.shape, gemm.PRODUCTS[x.dtype]
        out = np.empty((len(x), n), x.dtype)
        seconds = gemm.SECONDS * len(x) * n * k
        row = no_row(x.dtype) if row is None else np.ascontiguousarray(row)
        _MULTIPLY[x.dtype](seconds, x, panels, n, left, right, row, out, products.plans[False])
        return out

    def _pack(self, matrix: Array, transpose: bool) -> Array | None:
        global _kept_bytes
        size = packed_bytes(matrix)
        with _packing:
            if transpose in self._packed:  # by another thread, meanwhile
                return self._packed[transpose]
            if _kept_bytes + size > LIMIT:
                return None
            panels = np.empty(size, np.uint8)
            if not hold(self.matrix, self):
                return None
            writes = self._writes
            try:
                plan = gemm.PRODUCTS[matrix.dtype].plans[False]
                _PACK[matrix.dtype](SECONDS * size, matrix, panels, plan)
            except BaseException:
                release(self.matrix)
                raise
            if self._writes != writes:
                return None  # someone has written to W meanwhile: these are for nobody
            _kept_bytes += size
            self._packed[transpose] = panels
        return panels


@cache
def no_row(dtype: np.dtype[Any]) -> Array:
    """What stands for no bias in a kernel's call."""
    return np.empty(0, dtype)


def packed_bytes(matrix: Array) -> int:
    """Room for the panels of a matrix `(k, n)`: whole panels, from a cache line on."""
    (k, n), NR = matrix.shape, gemm.PRODUCTS[matrix.dtype].tile.NR
    size: int = -(-n // NR) * NR * k * matrix.itemsize + CACHE_LINE
    return size


_PANELS: WeakValueDictionary[int, Panels] = WeakValueDictionary()
"""By the id of the matrix, which lives as long as its panels."""


def panels_of(matrix: Array) -> Panels | None:
    """The panels of a matrix, one object for all who ask; None for what is not served."""
    if matrix.size < SIZE:
        return None
    known = _PANELS.get(id(matrix))
    if known is not None:
        return known
    if not JIT_ENABLED or matrix.dtype not in gemm.PRODUCTS:
        return None
    made = _PANELS[id(matrix)] = Panels(matrix)
    return made


def _kernels() -> tuple[dict[np.dtype[Any], Kernel], dict[np.dtype[Any], Kernel]]:
    pack, multiply = {}, {}
    for number in (types.float32, types.float64):
        dtype = np.dtype(str(number))
        operand = types.Array(number, 2, "A", readonly=True, aligned=False)
        out = types.Array(number, 2, "C")
        room, plan = types.Array(types.uint8, 1, "C"), types.Array(types.int64, 1, "C")
        pack[dtype] = Kernel(products.pack_all, (operand, room, plan))
        row = types.Array(number, 1, "C", readonly=True)
        extra = (operand, operand, row)
        multiply[dtype] = Kernel(
            products.gemm_packed, (operand, room, types.intp, *extra, out, plan), pieces=0
        )
    return pack, multiply


_PACK, _MULTIPLY = _kernels()
