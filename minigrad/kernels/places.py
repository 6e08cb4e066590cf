"""Where the arrays of many tensors lie in memory, so that one kernel call can serve all of them.

A model has hundreds of parameters, most of them small, and a call for each would take longer than
what it does. A compiled function takes a fixed number of arrays; but one table of addresses is one
array, however many rows it has:

    row   column 0      column 1    column 2 ...        starts
    0     gradient      weight      moment                0
    1     gradient      weight      moment                64       row 0 has 64 elements
                                                          4160     row 1 has 4096

All elements of all rows, one row behind another, are the work; threads take equal pieces of it.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, intrinsic, jit

_numba: Any = numba  # whose own annotations cover a part of it
carray: Any = _numba.carray

Array = NDArray[Any]
Row = tuple[Array, tuple[Array, ...]]

SERVED = (np.dtype(np.float32), np.dtype(np.float64))


class Table:
    """The addresses of some rows, all of one dtype.

    Attributes:
        dtype: of all their arrays.
        rows: which rows they are of those that `Places.tables` was given.
        addresses: an int64 for each of their arrays.
        starts: where each row begins when all lie one behind another, and where the last ends.
    """

    def __init__(self, dtype: np.dtype[Any], rows: Sequence[int], arrays: Sequence[Row]) -> None:
        self.dtype = dtype
        self.rows = rows
        self.addresses = np.array(
            [[0, *map(_address, arrays[row][1])] for row in rows], np.int64, ndmin=2
        )
        self.starts = np.cumsum([0, *(arrays[row][0].size for row in rows)], dtype=np.int64)
        self._copies: list[Array] = []

    @property
    def size(self) -> int:
        """The number of elements of all rows together."""
        return int(self.starts[-1])

    def look_up_first(self, arrays: Sequence[Row]) -> None:
        """Take the addresses of column 0 anew; what is not contiguous is copied for this call."""
        self._copies.clear()
        column = self.addresses
        for i, row in enumerate(self.rows):
            first = arrays[row][0]
            if first.dtype is not self.dtype or not (
                first.flags.c_contiguous and first.flags.writeable
            ):
                first = np.array(first, self.dtype, order="C")
                self._copies.append(first)
            column[i, 0] = _address(first)


class Places:
    """Tables for rows of arrays, of which all but the first of each row mostly stay the same.

    A row is `(first, others)`, arrays of one shape. The addresses of the others are looked up when
    they are other arrays than last time; that is why they are held on to here.
    """

    def __init__(self) -> None:
        self._others: list[tuple[Array, ...]] = []
        self._sizes: list[int] = []
        self._tables: list[Table] = []
        self._rest: list[int] = []

    def __reduce__(self) -> Any:
        return Places, ()  # a copy begins anew: the addresses are those of our arrays, not of its

    def tables(self, rows: Sequence[Row]) -> tuple[list[Table], list[int]]:
        """A table for each dtype that kernels serve, and the rows that are in none of them."""
        if len(rows) != len(self._others) or any(
            first.size != size or any(map(operator.is_not, others, known))
            for (first, others), size, known in zip(rows, self._sizes, self._others, strict=True)
        ):
            self._arrange(rows)
        for table in self._tables:
            table.look_up_first(rows)
        return self._tables, self._rest

    def _arrange(self, rows: Sequence[Row]) -> None:
        self._others = [others for _, others in rows]
        self._sizes = [first.size for first, _ in rows]
        self._rest = []
        by_dtype: dict[np.dtype[Any], list[int]] = {}
        for i, (first, others) in enumerate(rows):
            dtype = others[0].dtype if others else first.dtype
            if JIT_ENABLED and dtype in SERVED and all(_fits(x, first, dtype) for x in others):
                if first.size:
                    by_dtype.setdefault(dtype, []).append(i)
            else:
                self._rest.append(i)
        self._tables = [Table(dtype, numbers, rows) for dtype, numbers in by_dtype.items()]


def _fits(array: Array, first: Array, dtype: np.dtype[Any]) -> bool:
    """Whether a kernel can take an array for its elements in a row, one behind another."""
    return (
        array.shape == first.shape
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.flags.writeable
        and array.dtype.isnative
    )


def _address(array: Array) -> int:
    # Three times as fast as array.ctypes.data. It refuses what is not contiguous or not writable.
    memory: Any = array  # a buffer, which numpy's types do not say
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


# --------------------------------------------------------------------------------------------------
# What kernels need to read a table
# --------------------------------------------------------------------------------------------------


@intrinsic
def _pointer(_typing: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to numbers of the dtype of an array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer
    return pointer(like.dtype)(types.intp, like), emit


@jit(inline="always")
def elements(address: int, index: int, size: int, like: Any) -> Any:
    """As an array: `size` of the numbers at an address, from the given index on.

    They have the dtype of `like`. The array owns nothing: whoever made the table holds the memory.
    """
    return carray(_pointer(address + index * like.itemsize, like), (size,))


@jit(inline="always")
def overlap(number: int, pieces: int, starts: Any, row: int) -> tuple[int, int]:
    """Where in a row a piece of the work begins, and how many elements it has there."""
    total = starts[starts.size - 1]
    low, high = number * total // pieces, (number + 1) * total // pieces
    begin = max(low, starts[row])
    return begin - starts[row], max(min(high, starts[row + 1]) - begin, 0)
