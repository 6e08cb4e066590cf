"""Optimiser steps: one call for all parameters, and one pass over memory for all operations.

Each function takes columns of arrays, with one row for each parameter: the gradients, and what is
changed. The formula of a step is written for one element, and made a kernel by `MultiTensor`; rows
that no kernel takes, such as those of float16, are left to numpy, which applies it to the arrays.

A model has hundreds of parameters, most of them small, and a call for each would take longer than
what it does. A compiled function takes a fixed number of arrays; but one table of addresses is one
array, however many rows it has:

    row   column 0      column 1    column 2 ...        starts
    0     gradient      parameter   moment                0
    1     gradient      parameter   moment                64       row 0 has 64 elements
                                                          4160     row 1 has 4096

All elements of all rows, one row behind another, are the work; threads take equal pieces of it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from operator import is_
from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.checks import are_same
from minigrad.kernels.jit import JIT_ENABLED, NUMBERS, Array, Integers, Written, jit
from minigrad.kernels.launch import for_each_dtype, function_from, span
from minigrad.kernels.vector import elements

__all__ = ["TableCache", "adam", "ema", "scale", "sgd", "square_sums"]

Column = Sequence[Array]
Numbers = tuple[float, ...]

SECONDS = 1e-9  # that an element takes, about
OPTIONS, OWN = 6, 2  # the most numbers for all rows, and the numbers of each row
Addresses = Annotated[Written.D2, types.int64]

# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------


class AddressTable:
    """The addresses of some rows of arrays, all of one dtype.

    Attributes:
        dtype: the dtype of all their arrays.
        rows: the indices of these rows among those that `TableCache.tables` was given.
        addresses: an int64 for each column of each row.
        starts: where each row begins when all lie one behind another, and where the last ends.
        own: memory for the numbers of each row.
        options, constants: the numbers of all rows in the last call, and the same as an array.
        size: the number of elements of all rows together.
    """

    def __init__(
        self, dtype: np.dtype[Any], rows: Sequence[int], first: Column, others: Sequence[Column]
    ) -> None:
        self.dtype = dtype
        self.rows = rows
        self.addresses = np.array(
            [[0, *addresses(column[row] for column in others)] for row in rows], np.int64, ndmin=2
        )
        self.starts = np.cumsum([0, *(first[row].size for row in rows)], dtype=np.int64)
        self.own = np.empty((len(rows), OWN), dtype)
        self.options: Numbers | None = None
        self.size = int(self.starts[-1])
        self.constants = np.empty(OPTIONS, dtype)
        self._copies: list[Array] = []

    def look_up_first(self, first: Column) -> None:
        """Look up column 0 again, since gradients are new arrays in each step.

        An array that is not contiguous is copied for this call.
        """
        self._copies.clear()
        if len(first) != len(self.rows):
            first = [first[row] for row in self.rows]
        if not (all(map(_carray, first)) and all(map(is_, map(_dtype, first), repeat(self.dtype)))):
            first = self._copies = [np.array(x, self.dtype, order="C") for x in first]
        self.addresses[:, 0] = addresses(first)


class TableCache:
    """Tables of columns of arrays, of which all but the first mostly stay the same.

    The arrays of a row have one shape. The addresses are looked up when the arrays are not those of
    the last call; so references to those are stored here. Arrays are not compared at all where the
    list of columns is the very list of the last call, whose elements have not changed then.
    """

    def __init__(self) -> None:
        self._given: Sequence[Column] | None = None
        self._others: list[list[Array]] = []
        self._sizes: list[int] = []
        self._tables: list[AddressTable] = []
        self._rest: list[int] = []

    def __reduce__(self) -> Any:
        return TableCache, ()  # a copy begins empty: the addresses are of our arrays, not of its

    def tables(
        self, first: Column, others: Sequence[Column] = ()
    ) -> tuple[list[AddressTable], list[int]]:
        """Return a table for each dtype that kernels take, and the indices of all other rows."""
        if others is not self._given:
            sizes = [*map(_size, first)]
            same = len(others) == len(self._others) and all(map(are_same, others, self._others))
            if not same or sizes != self._sizes:
                self._arrange(first, others)
            self._given, self._sizes = others, sizes
        for table in self._tables:
            table.look_up_first(first)
        return self._tables, self._rest

    def _arrange(self, first: Column, others: Sequence[Column]) -> None:
        self._others = [list(column) for column in others]
        self._rest = []
        by_dtype: dict[np.dtype[Any], list[int]] = {}
        for i, array in enumerate(first):
            row = [column[i] for column in others]
            dtype = row[0].dtype if row else array.dtype
            # A kernel writes to arrays whose elements lie one behind another.
            fit = all(
                x.shape == array.shape
                and x.dtype == dtype
                and x.flags.c_contiguous
                and x.flags.writeable
                and x.dtype.isnative
                for x in row
            )
            if JIT_ENABLED and dtype in NUMBERS and fit:
                if array.size:
                    by_dtype.setdefault(dtype, []).append(i)
            else:
                self._rest.append(i)
        self._tables = [
            AddressTable(dtype, rows, first, others) for dtype, rows in by_dtype.items()
        ]


def addresses(arrays: Iterable[Array]) -> list[int]:
    """Return the addresses of arrays, or raise an error if one is not contiguous and writable."""
    # Three times as fast as array.ctypes.data.
    return [*map(ctypes.addressof, map(_from_buffer, arrays))]


_from_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_size, _dtype, _carray = map(operator.attrgetter, ("size", "dtype", "flags.carray"))


# --------------------------------------------------------------------------------------------------
# Reading a table in compiled code
# --------------------------------------------------------------------------------------------------


@jit(inline="always")
def overlap(piece: int, pieces: int, starts: Any, row: int) -> tuple[int, int]:
    """Return where in a row a piece of the work begins, and how many elements it has there."""
    total = starts[starts.size - 1]
    low, high = piece * total // pieces, (piece + 1) * total // pieces
    begin = max(low, starts[row])
    return begin - starts[row], max(min(high, starts[row + 1]) - begin, 0)


# --------------------------------------------------------------------------------------------------
# The factory
# --------------------------------------------------------------------------------------------------


class MultiTensor:
    """An update of many rows of arrays in place, with one call for each dtype.

    Attributes:
        update: the formula. It takes an element of each array of a row, the numbers of the row, and
            the options, and returns what the arrays but the first become. Of complete arrays it is
            the reference in numpy, which serves the rows that no kernel takes.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        functools.update_wrapper(self, update)
        self.update = update
        self._kernels = for_each_dtype()(_loop_over(update))

    def __call__(
        self,
        cache: TableCache,
        first: Column,
        others: Sequence[Column],
        options: Numbers,
        own: Numbers | Sequence[Numbers] = (0.0,) * OWN,
    ) -> None:
        """Update all rows.

        Args:
            cache: remembers the addresses of the arrays of the last call.
            first: the column of the arrays that are read.
            others: the columns of those that are changed.
            options: at most `OPTIONS` numbers for all rows.
            own: `OWN` numbers for each row, or those of all rows.
        """
        tables, rest = cache.tables(first, others)
        for row in rest:
            arrays = [column[row] for column in others]
            with np.errstate(all="ignore"):  # kernels do not warn either
                numbers = own[row] if isinstance(own, list) else own
                new = self.update(first[row], *arrays, numbers, options)
            for array, values in zip(arrays, new, strict=True):
                array[...] = values
        for table in tables:
            table.own[:] = [own[row] for row in table.rows] if isinstance(own, list) else own
            if table.options != options:
                table.options = options
                table.constants = np.array(
                    [*options, *[0.0] * (OPTIONS - len(options))], table.dtype
                )
            arguments = table.addresses, table.starts, table.own, table.constants
            self._kernels[table.dtype](table.size * SECONDS, *arguments)


def _loop_over(update: Callable[..., Any]) -> Callable[..., None]:
    """Return the loop that updates a piece of the rows of a table, named after the update.

    It reads the numbers once, and not once for each element.
    """
    columns = range(update.__code__.co_argcount - 2)
    arrays = ", ".join(f"x{i}" for i in columns)
    views = ", ".join(f"elements(at[row, {i}], low, size, options)" for i in columns)
    first, *others = (f"x{i}[j]" for i in columns)
    body = f"""
        for row in range(len(at)):
            low, size = overlap(piece, pieces, starts, row)
            {arrays} = {views}
            numbers = {", ".join(f"own[row, {i}]" for i in range(OWN))}
            constants = {", ".join(f"options[{i}]" for i in range(OPTIONS))}
            for j in range(x0.size):
                {", ".join(others)}, = f({first}, {", ".join(others)}, numbers, constants)
    """
    table = {"at": Addresses, "starts": Integers, "own": Written.D2, "options": Written.D1}
    parameters = {"piece": int, "pieces": int, **table}
    known = {"f": jit(inline="always")(update), "overlap": overlap, "elements": elements}
    name = f"{update.__name__}_loop"
    return function_from(name, parameters, body, __name__, **known)


# --------------------------------------------------------------------------------------------------
# SGD
# --------------------------------------------------------------------------------------------------


def sgd(
    cache: TableCache,
    gradients: Column,
    changed: Sequence[Column],
    shares: Sequence[float],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Do one step of SGD in place, which changes the columns x and, with momentum, velocity.

    The share of a row is the part of its gradient that goes into the velocity.
    """
    options = (lr, momentum, weight_decay)
    if momentum == 0:
        _plain(cache, gradients, changed, options)
    else:
        step = _nesterov if nesterov else _momentum
        step(cache, gradients, changed, options, [(share, 0.0) for share in shares])


@MultiTensor
def _plain(g: Any, x: Any, _own: Any, options: Any) -> Any:
    """Do a step without momentum."""
    lr, weight_decay = options[0], options[2]
    return (x - lr * (g + weight_decay * x),)


@MultiTensor
def _momentum(g: Any, x: Any, velocity: Any, own: Any, options: Any) -> Any:
    """Do a step with momentum."""
    lr, momentum, weight_decay, share = options[0], options[1], options[2], own[0]
    speed = momentum * velocity + share * (g + weight_decay * x)
    return x - lr * speed, speed


@MultiTensor
def _nesterov(g: Any, x: Any, velocity: Any, own: Any, options: Any) -> Any:
    """Do a step with Nesterov's momentum."""
    lr, momentum, weight_decay, share = options[0], options[1], options[2], own[0]
    gradient = g + weight_decay * x
    speed = momentum * velocity + share * gradient
    return x - lr * (gradient + momentum * speed), speed


# --------------------------------------------------------------------------------------------------
# Adam
# --------------------------------------------------------------------------------------------------


def adam(
    cache: TableCache,
    gradients: Column,
    changed: Sequence[Column],
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Do one step of Adam in place, which changes the columns x, m and v.

    `steps` has the number of the step of each row. Decoupled weight decay makes it AdamW; a further
    column, with the highest v of all steps so far, AMSGrad.
    """
    beta1, beta2 = betas
    keep, l2 = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    options = (keep, l2, beta1, 1 - beta1, beta2, 1 - beta2)

    def corrected(step: int) -> Numbers:
        # (m / c1) / (sqrt(v) / c2 + eps) is (m c2 / c1) / (sqrt(v) + c2 eps): one division.
        c1, c2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
        return lr * c2 / c1, c2 * eps

    equal = steps and steps.count(steps[0]) == len(steps)
    own = corrected(steps[0]) if equal else [corrected(step) for step in steps]
    update = _adam if len(changed) == 3 else _amsgrad
    update(cache, gradients, changed, options, own)


@MultiTensor
def _adam(g: Any, x: Any, m: Any, v: Any, own: Any, options: Any) -> Any:
    """Do a step of Adam."""
    gradient = g + options[1] * x
    first = options[2] * m + options[3] * gradient
    second = options[4] * v + options[5] * (gradient * gradient)
    return options[0] * x - own[0] * first / (np.sqrt(second) + own[1]), first, second


@MultiTensor
def _amsgrad(g: Any, x: Any, m: Any, v: Any, highest: Any, own: Any, options: Any) -> Any:
    """Do a step of AMSGrad."""
    gradient = g + options[1] * x
    first = options[2] * m + options[3] * gradient
    second = options[4] * v + options[5] * (gradient * gradient)
    highest = np.maximum(highest, second)
    return options[0] * x - own[0] * first / (np.sqrt(highest) + own[1]), first, second, highest


# --------------------------------------------------------------------------------------------------
# Averages, scaling, and the norm
# --------------------------------------------------------------------------------------------------


def ema(cache: TableCache, x: Column, averages: Column, decay: float) -> None:
    """Compute average <- decay average + (1 - decay) x in place."""
    _ema(cache, x, [averages], (1 - decay,))


@MultiTensor
def _ema(x: Any, average: Any, _own: Any, options: Any) -> Any:
    return (average + options[0] * (x - average),)


def scale(x: Column, targets: Column, factor: float) -> None:
    """Compute target <- factor x."""
    _scale(TableCache(), x, [targets], (factor,))


@MultiTensor
def _scale(x: Any, _target: Any, _own: Any, options: Any) -> Any:
    return (options[0] * x,)


BLOCK = 8192  # elements whose squares are added up together


def square_sums(arrays: Sequence[Array]) -> float:
    """Return the sum of the squares of all elements of all arrays, added up in float64."""
    tables, rest = TableCache().tables(arrays)
    total = 0.0
    for row in rest:
        wide = arrays[row].astype(np.float64, copy=False)
        total += float(np.vdot(wide, wide))
    for table in tables:
        sums, like = np.zeros(-(-table.size // BLOCK)), np.empty(0, table.dtype)
        loop = _squares_loop[table.dtype]
        loop(table.size * SECONDS, table.addresses, table.starts, like, sums)
        total += float(sums.sum())
    return total


@for_each_dtype()
def _squares_loop(
    piece: int, pieces: int, addresses: Addresses, starts: Integers, like: Written.D1,
    sums: Annotated[Written.D1, types.float64],
) -> None:  # fmt: skip
    blocks = len(sums)  # cut by size alone: so the sum has the same bits on any number of threads
    for block in span(piece, pieces, blocks):
        for row in range(len(addresses)):
            low, size = overlap(block, blocks, starts, row)
            sums[block] += _square_sum(elements(addresses[row, 0], low, size, like))


@jit(fastmath={"contract", "reassoc"})
def _square_sum(x: Any) -> Any:
    """Return the sum of squares: in vectors of sums, in an order that its length alone decides."""
    total = 0.0
    for i in range(x.size):
        wide = np.float64(x[i])
        total += wide * wide
    return total
