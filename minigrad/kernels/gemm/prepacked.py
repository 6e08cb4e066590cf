"""A matrix that is packed once and multiplied with often, such as the frozen weight in LoRA.

A product with W packs W into panels first (`minigrad.kernels.gemm.packing`), which takes a tenth of
the time if the other operand has a hundred rows. A weight that does not change needs that once. It
is read in two layouts, one for x W^T and one for g W, each packed when it is first used.

A layer owns the panels of its weight: it calls `prepack(W)` and stores the result. Functions that
multiply with W find them by the array, with `find(W)`, as long as some owner has them.

Panels that are out of date would give a wrong result without an error. So the memory of W is
read-only while there are any (`minigrad.readonly.hold`): whoever wants to write there ends that
first, and the next product packs again.

The panels of a weight take as much memory as the weight, for each layout. All together may take
192 MB, or a quarter of the machine's memory if that is less; `minigrad.set_pack_limit` sets it.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from minigrad.checks import check_count
from minigrad.heap import physical_memory
from minigrad.kernels.gemm import products
from minigrad.kernels.gemm.dispatch import PRODUCTS
from minigrad.kernels.gemm.dispatch import SECONDS as SECONDS_OF_MULTIPLY_ADD
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.jit import Array, nothing
from minigrad.kernels.launch import kernel_for
from minigrad.readonly import hold, release

MOST = 192_000_000  # bytes of all panels together, unless the user sets another limit
ROWS = 32  # in the other operand; with fewer, packing does not pay
SIZE = 1 << 14  # elements of W; with fewer, it does not pay either
SECONDS = 5e-11  # that a byte takes to be packed, about

_packing = threading.RLock()
_bytes = 0
_limit: int | None = None  # that the user has set


def bytes_in_use() -> int:
    """Return the bytes of all panels of this process."""
    return _bytes


def limit() -> int:
    """Return the bytes that all panels may take; what would exceed it is packed each time."""
    if _limit is not None:
        return _limit
    memory = physical_memory()
    return MOST if memory is None else min(MOST, memory // 4)


def set_limit(size: int | None) -> None:
    """Set the limit, None for the default; if there are more bytes of panels, drop all of them."""
    global _limit
    if size is not None:
        check_count("set_pack_limit: the number of bytes", size)
    with _packing:
        _limit = size
        for prepacked in list(_known.values()) if _bytes > limit() else ():
            release(prepacked.matrix)


def _unlock_in_child() -> None:
    """Renew the lock in a process made by fork, where the thread that had it is gone."""
    global _packing
    _packing = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_unlock_in_child)


class PrepackedMatrix:
    """The panels of one matrix W, `(d_out, d_in)`, which is read-only while there are any.

    Attributes:
        matrix: W.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self._packed: dict[bool, Array] = {}  # by whether it is W^T
        self._writes = 0  # how often someone wanted to write to W

    def __del__(self) -> None:
        if self._packed:  # then W is read-only
            release(self.matrix)
            self.let_go()

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of a layer packs for itself

    def let_go(self) -> None:
        """Forget all panels, since someone is about to write to W."""
        global _bytes
        with _packing:
            _bytes -= sum(panels.nbytes for panels in self._packed.values())
            self._packed = {}
            self._writes += 1

    def matmul(
        self, x: Array, transpose: bool, left: Array, right: Array, bias: Array | None = None
    ) -> Array | None:
        """Compute x W^T, or x W, plus a product of few steps, `left @ right`, plus a bias.

        Return None if panels do not serve: for few rows, for arrays of several dtypes, if they
        would exceed the limit, or if W cannot be made read-only.
        """
        kernel = kernel_for(products.gemm_packed, self.matrix, x, left, right, bias)
        if kernel is None or len(x) < ROWS:
            return None
        matrix = self.matrix.T if transpose else self.matrix
        panels = self._packed.get(transpose)
        if panels is None:
            panels = self._pack(matrix, transpose)
            if panels is None:
                return None
        k, n = matrix.shape
        out = np.empty((len(x), n), x.dtype)
        seconds = SECONDS_OF_MULTIPLY_ADD * len(x) * n * k
        bias = nothing(x.dtype) if bias is None else bias
        plan = PRODUCTS[x.dtype].plans[False]
        kernel(seconds, x, panels, n, left, right, bias, out, plan)
        return out

    def _pack(self, matrix: Array, transpose: bool) -> Array | None:
        global _bytes
        size = packed_bytes(matrix)
        with _packing:
            if transpose in self._packed:  # by another thread, meanwhile
                return self._packed[transpose]
            if _bytes + size > limit():
                return None
            panels = np.empty(size, np.uint8)
            if not hold(self.matrix, self):
                return None
            writes = self._writes
            try:
                plan = PRODUCTS[matrix.dtype].plans[False]
                products.pack_all[matrix.dtype](SECONDS * size, matrix, panels, plan)
            except BaseException:
                release(self.matrix)
                raise
            if self._writes != writes:
                return None  # someone has written to W meanwhile: these are for nobody
            _bytes += size
            self._packed[transpose] = panels
        return panels


def packed_bytes(matrix: Array) -> int:
    """Return the size of the panels of a matrix `(k, n)`: complete panels, from a cache line on."""
    (k, n), NR = matrix.shape, PRODUCTS[matrix.dtype].tile.NR
    size: int = -(-n // NR) * NR * k * matrix.itemsize + CACHE_LINE
    return size


_known: WeakValueDictionary[int, PrepackedMatrix] = WeakValueDictionary()
"""By the id of the matrix, which lives as long as its panels."""


def prepack(matrix: Array) -> PrepackedMatrix | None:
    """Return the panels of a matrix, one object for all its owners; None if it has none.

    They are packed by the first product, and dropped with the last owner.
    """
    if matrix.size < SIZE:
        return None
    known = _known.get(id(matrix))
    if known is not None:
        return known
    if matrix.dtype not in PRODUCTS:
        return None
    made = _known[id(matrix)] = PrepackedMatrix(matrix)
    return made


def find(matrix: Array) -> PrepackedMatrix | None:
    """Return the panels of a matrix that has an owner, else None."""
    return _known.get(id(matrix))
