"""A matrix that is packed once and multiplied with often, such as the frozen weight in LoRA.

A product with W first packs W into panels (`minigrad.kernels.gemm.packing`), which takes a tenth of
the time if the other operand has a hundred rows. A weight that does not change needs to be packed
only once. It is read in two layouts, one for x W^T and one for g W, and each layout is packed when
it is first used.

A layer owns the panels of its weight: it calls `prepack(W)` and stores the result. Functions that
multiply with W get the panels by `find(W)`, as long as an owner of the panels exists.

Panels that are out of date would give a wrong result without an error. So W is read-only while it
has panels (`minigrad.readonly.hold`). Code that wants to write to W must release it first, which
deletes the panels; the next product packs again.

The panels of a weight take as much memory as the weight, for each layout, or 1.5 times as much for
the matrix unit, which multiplies large operands. By default, all panels together may take 192 MB,
or a quarter of the machine's memory if that is less; `minigrad.set_pack_limit` changes the limit.
"""

from __future__ import annotations

import sys
import threading
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from minigrad.checks import check_count
from minigrad.heap import physical_memory
from minigrad.kernels.gemm import products
from minigrad.kernels.gemm.dispatch import PRODUCTS
from minigrad.kernels.gemm.dispatch import SECONDS as SECONDS_OF_MULTIPLY_ADD
from minigrad.kernels.gemm.matrix_unit import BLOCK, SIDE
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.gemm.products import SPLIT
from minigrad.kernels.jit import Array, nothing
from minigrad.kernels.launch import kernel_for
from minigrad.locks import renewed_in_child
from minigrad.readonly import hold, release

MOST = 192_000_000  # bytes of all panels together, unless the user sets another limit
ROWS = 16  # the least rows of the other operand for which packing pays
SIZE = 1 << 14  # the least elements of W for which packing pays
SECONDS = 5e-11  # seconds to pack a byte, approximately

_packing = renewed_in_child(sys.modules[__name__], "_packing", threading.RLock)
_bytes = 0
_limit: int | None = None  # the limit that the user has set


def bytes_in_use() -> int:
    """Return the bytes of all panels of this process."""
    return _bytes


def limit() -> int:
    """Return the bytes that all panels may take; a W beyond the limit is packed in each product."""
    if _limit is not None:
        return _limit
    memory = physical_memory()
    return MOST if memory is None else min(MOST, memory // 4)


def set_limit(size: int | None) -> None:
    """Set the limit, None for the default; if the panels exceed it, delete all of them."""
    global _limit
    if size is not None:
        check_count("set_pack_limit: the number of bytes", size)
    with _packing:
        _limit = size
        for prepacked in list(_known.values()) if _bytes > limit() else ():
            release(prepacked.matrix)


class PrepackedMatrix:
    """The panels of one matrix W, `(d_out, d_in)`, which is read-only while it has panels.

    Attributes:
        matrix: W.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self._packed: dict[tuple[bool, bool], Array] = {}  # by the arguments of `panels`

    def __del__(self) -> None:
        if self._packed:  # then W is read-only
            release(self.matrix)
            self.on_release()

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of a layer packs for itself

    def on_release(self) -> None:
        """Delete all panels, because W is about to change."""
        global _bytes
        with _packing:
            _bytes -= sum(panels.nbytes for panels in self._packed.values())
            self._packed = {}

    def panels(self, transpose: bool, on_unit: bool) -> Array | None:
        """Return the panels of W^T if `transpose`, or else of W; pack them if there are none.

        Panels for the matrix unit have another order. The result is None if the panels would exceed
        the limit, or if W cannot be made read-only.
        """
        global _bytes
        key = transpose, on_unit
        known = self._packed.get(key)
        if known is not None:
            return known
        matrix = self.matrix.T if transpose else self.matrix
        plan = PRODUCTS[matrix.dtype].plans_of(on_unit)[False]
        size = packed_bytes(matrix, plan)
        with _packing:
            if key in self._packed:  # by another thread in the meantime
                return self._packed[key]
            if _bytes + size > limit():
                return None
            panels = np.empty(size, np.uint8)
            if not hold(self.matrix, self):
                return None
            try:
                products.pack_all[matrix.dtype](SECONDS * size, matrix, panels, plan)
            except BaseException:
                release(self.matrix)
                raise
            _bytes += size
            self._packed[key] = panels
        return panels


def packed_bytes(matrix: Array, plan: Array) -> int:
    """Return the bytes of the panels of a matrix `(k, n)`, and of one more cache line."""
    (k, n), NR, KC, split = matrix.shape, plan[1], plan[5], plan[SPLIT]
    panel = -(-k // SIDE) * BLOCK + -(-k // KC) * CACHE_LINE if split else NR * k * matrix.itemsize
    return int(-(-n // NR) * panel + CACHE_LINE)


_known: WeakValueDictionary[int, PrepackedMatrix] = WeakValueDictionary()
"""The panels by the id of their matrix, which lives as long as its panels."""


def prepack(matrix: Array) -> PrepackedMatrix | None:
    """Return the panels of a matrix, one object for all owners; None if small or not of floats.

    The first product packs the panels. They are deleted with the last owner.
    """
    if matrix.size < SIZE or matrix.dtype not in PRODUCTS:
        return None
    return find(matrix) or _known.setdefault(id(matrix), PrepackedMatrix(matrix))


def find(matrix: Array) -> PrepackedMatrix | None:
    """Return the panels of a matrix, or None if no owner has any."""
    return _known.get(id(matrix))


def multiply_and_update(
    x: Array, weight: Array, transpose: bool, left: Array, right: Array, bias: Array | None = None
) -> Array | None:
    """Compute x W^T if `transpose`, else x W; plus `left @ right`, with a small k, and a bias.

    Return None if no kernel computes all at once: for arrays of several dtypes, and, unless the
    matrix unit computes, for few rows or if W has no panels. Whether there are panels does not
    change a bit.
    """
    kernel = kernel_for(products.gemm_packed, weight, x, left, right, bias)
    if kernel is None:
        return None
    matrix, compiled = weight.T if transpose else weight, PRODUCTS[x.dtype]
    rows, (k, n) = len(x), matrix.shape
    on_unit, owner = compiled.suits_unit(rows, n, k), find(weight)
    panels = None
    if owner is not None and (on_unit or rows >= ROWS):
        panels = owner.panels(transpose, on_unit)
    if panels is None:
        if not on_unit:
            return None
        panels = nothing(np.dtype(np.uint8))
    out = np.empty((rows, n), x.dtype)
    seconds = SECONDS_OF_MULTIPLY_ADD * rows * n * k
    bias = nothing(x.dtype) if bias is None else bias
    plan = compiled.plans_of(on_unit)[False]
    kernel(seconds, x, matrix, panels, left, right, bias, out, plan)
    return out
