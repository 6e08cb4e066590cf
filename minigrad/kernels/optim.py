"""Optimiser steps: one call for all parameters, and one pass over memory for all operations.

Each function gets a table of arrays, with one row for each parameter. Its columns are the gradients
and the arrays that change. The formula of a step is written for one element; `MultiTensor` makes a
kernel from it. Rows that no kernel accepts, such as those of float16, are computed by numpy, which
applies the formula to whole arrays.

A model has hundreds of parameters, most of them small, and a call for each would take longer than
its work. A compiled function has a fixed number of array arguments. But the addresses of all arrays
fit in one array:

    row   column 0      column 1    column 2 ...        starts
    0     gradient      parameter   moment                0
    1     gradient      parameter   moment                64       row 0 has 64 elements
                                                          4160     row 1 has 4096

The work is all elements of all rows, one row after another; threads share equal pieces of it.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from operator import is_
from typing import Annotated, Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from minigrad.kernels.jit import JIT_ENABLED, NUMBERS, Array, Integers, Written, jit
from minigrad.kernels.launch import for_each_dtype, function_from, span
from minigrad.kernels.vector import elements, flushed

Column = Sequence[Array]
Numbers = tuple[float, ...]

SECONDS = 1e-9  # approximate seconds of an element
OPTIONS, OWN = 6, 2  # how many numbers all rows can share, and how many each row has for itself
Addresses = Annotated[Written.D2, types.int64]


class AddressTable:
    """The addresses of the arrays in some rows, all of the same dtype.

    Attributes:
        dtype: the dtype of all arrays.
        rows: the indices of these rows in the columns.
        addresses: int64, an address for each array of each row: first the array that is only read,
            such as a gradient, and then the arrays that change.
        starts: the index of each row's first element among the elements of all rows, and `size`.
        size: the number of elements of all rows together.
        own: memory for the numbers that belong to one row.
        options, constants: the numbers for all rows in the last call, and the same as an array.
    """

    def __init__(
        self, dtype: np.dtype[Any], rows: Sequence[int], columns: Sequence[Column]
    ) -> None:
        self.dtype = dtype
        self.rows = rows
        self.addresses = np.zeros((len(rows), 1 + len(columns)), np.int64)
        for k, column in enumerate(columns, 1):
            self.addresses[:, k] = addresses([column[row] for row in rows])
        self.starts = np.cumsum([0, *(columns[0][row].size for row in rows)], dtype=np.int64)
        self.size = int(self.starts[-1])
        self.own = np.empty((len(rows), OWN), dtype)
        self.options: Numbers | None = None
        self.constants = np.zeros(OPTIONS, dtype)
        self._copies: list[Array] = []

    def look_up_first(self, first: Column) -> None:
        """Look up the addresses in column 0 again, because gradients are new arrays in each step.

        An array that is not contiguous, or has another dtype, is copied for this call.
        """
        self._copies.clear()
        if len(first) != len(self.rows):
            first = [first[row] for row in self.rows]
        if not (all(map(_carray, first)) and all(map(is_, map(_dtype, first), repeat(self.dtype)))):
            first = self._copies = [np.array(x, self.dtype, order="C") for x in first]
        self.addresses[:, 0] = addresses(first)


class Tables:
    """Tables of the arrays that a step changes, in columns; the arrays of a row have one shape.

    Attributes:
        columns: the arrays; these references keep them alive while their addresses are in use.
        sizes: the number of elements of an array, for each row.
        by_dtype: a table for each dtype that has kernels.
        rest: the indices of all other rows.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = [list(column) for column in columns]
        self.sizes = [*map(_size, self.columns[0])]
        self.rest: list[int] = []
        rows: dict[np.dtype[Any], list[int]] = {}
        for i, arrays in enumerate(zip(*self.columns, strict=True)):
            shape, dtype = arrays[0].shape, arrays[0].dtype
            # A kernel writes only to contiguous arrays.
            fit = all(x.shape == shape and x.dtype == dtype and _carray(x) for x in arrays)
            if not (JIT_ENABLED and dtype in NUMBERS and fit):
                self.rest.append(i)
            elif arrays[0].size:
                rows.setdefault(dtype, []).append(i)
        self.by_dtype = [AddressTable(dtype, rows[dtype], self.columns) for dtype in rows]

    def __reduce__(self) -> Any:
        return Tables, (self.columns,)  # a copy has other addresses


def addresses(arrays: Iterable[Array]) -> list[int]:
    """Return the addresses of arrays, or raise an error if one is not contiguous and writable."""
    # Three times as fast as array.ctypes.data.
    return [*map(ctypes.addressof, map(_from_buffer, arrays))]


_from_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_dtype, _size, _carray = map(operator.attrgetter, ("dtype", "size", "flags.carray"))


@jit(inline="always")
def overlap(piece: int, pieces: int, starts: Any, row: int) -> tuple[int, int]:
    """Return at which element of a row a piece of the work begins, and how many it has there."""
    total = starts[starts.size - 1]
    low, high = piece * total // pieces, (piece + 1) * total // pieces
    begin = max(low, starts[row])
    return begin - starts[row], max(min(high, starts[row + 1]) - begin, 0)


class MultiTensor:
    """An update of many rows of arrays in place, with one call for each dtype.

    Attributes:
        update: the formula. It gets an element of each array in a row, the numbers of the row, and
            the options, and returns the new elements of all arrays except the first. With complete
            arrays it is the reference in numpy, which is used for rows without a kernel.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        functools.update_wrapper(self, update)
        self.update = update
        self._kernels = for_each_dtype()(_loop_over(update))

    def __call__(
        self,
        tables: Tables,
        first: Column,
        options: Numbers,
        own: Numbers | list[Any] = (0.0,) * OWN,
    ) -> None:
        """Update all rows.

        Args:
            tables: the arrays that change.
            first: the column of the arrays that are only read.
            options: at most `OPTIONS` numbers for all rows.
            own: a tuple of `OWN` numbers for all rows, or a list of such tuples, one for each row.
        """
        sizes = [*map(_size, first)]
        if sizes != tables.sizes:  # compiled code would read beyond the end of a small one
            raise ValueError(
                f"arrays of sizes {sizes} do not go with those of sizes {tables.sizes}"
            )
        for row in tables.rest:
            arrays = [column[row] for column in tables.columns]
            operands = [first[row], *arrays]
            if arrays[0].dtype == np.float16:  # in which eps, and squares of gradients, would be 0
                operands = [x.astype(np.float32) for x in operands]
            with np.errstate(all="ignore"):  # kernels do not warn either
                numbers = own[row] if isinstance(own, list) else own
                new = self.update(*operands, numbers, options)
            for array, values in zip(arrays, new, strict=True):
                array[...] = values
        for table in tables.by_dtype:
            table.look_up_first(first)
            table.own[:] = [own[row] for row in table.rows] if isinstance(own, list) else own
            if table.options != options:
                table.options = options
                table.constants[: len(options)] = options
            arguments = table.addresses, table.starts, table.own, table.constants
            self._kernels[table.dtype](table.size * SECONDS, *arguments)


def _loop_over(update: Callable[..., Any]) -> Callable[..., None]:
    """Return a loop, named after the update, that updates a piece of the rows of a table.

    The loop reads the numbers once for each row, and not once for each element.
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
# The steps of optimisers, which compute the options and the numbers of each row (`minigrad.optim`)
# --------------------------------------------------------------------------------------------------


@MultiTensor
def sgd(g: Any, x: Any, _own: Any, options: Any) -> Any:
    """Do a step of SGD without momentum; the options are those of `sgd_momentum`."""
    lr, weight_decay = options[0], options[2]
    return (x - lr * (g + weight_decay * x),)


@MultiTensor
def sgd_momentum(g: Any, x: Any, velocity: Any, own: Any, options: Any) -> Any:
    """Do a step of SGD with momentum; with Nesterov's momentum if option 3 is 1.

    The own number of a row is the factor of its gradient in the velocity.
    """
    lr, momentum, weight_decay, share = options[0], options[1], options[2], own[0]
    gradient = g + weight_decay * x
    speed = flushed(momentum * velocity + share * gradient)
    return x - lr * (gradient + momentum * speed if options[3] else speed), speed


def mean_square(v: Any, gradient: Any, decay: Any, rest: Any, eps: Any) -> Any:
    """Return decay v + rest gradient^2, the running mean of squares of Adam and RMSprop.

    Beside eps, a subnormal mean makes no difference, and becomes 0. If eps is 0, it is kept,
    because a step is divided by its root.
    """
    square = decay * v + rest * (gradient * gradient)
    return flushed(square) if eps else square


register_jitable(inline="always")(mean_square)  # for kernels, as it is for numpy

# The options of Adam are the factor of x, the factor of x in the gradient (for an L2 penalty),
# beta1, 1 - beta1, beta2 and 1 - beta2. The bias corrections c1 of m, and c2 of the root of v,
# differ from row to row. As (m / c1) / (sqrt(v) / c2 + eps) is (m c2 / c1) / (sqrt(v) + c2 eps),
# one division is enough, and the numbers of a row are lr c2 / c1 and c2 eps.


@MultiTensor
def adam(g: Any, x: Any, m: Any, v: Any, own: Any, options: Any) -> Any:
    """Do a step of Adam."""
    gradient = g + options[1] * x
    first = flushed(options[2] * m + options[3] * gradient)
    second = mean_square(v, gradient, options[4], options[5], own[1])
    return options[0] * x - own[0] * first / (np.sqrt(second) + own[1]), first, second


@MultiTensor
def amsgrad(g: Any, x: Any, m: Any, v: Any, highest: Any, own: Any, options: Any) -> Any:
    """Do a step of AMSGrad, which uses the largest v of all steps so far."""
    gradient = g + options[1] * x
    first = flushed(options[2] * m + options[3] * gradient)
    second = mean_square(v, gradient, options[4], options[5], own[1])
    highest = np.maximum(highest, second)
    return options[0] * x - own[0] * first / (np.sqrt(highest) + own[1]), first, second, highest


# The options of RMSprop are lr, alpha, 1 - alpha, eps, the weight decay and the momentum.


@MultiTensor
def rmsprop(g: Any, x: Any, v: Any, _own: Any, options: Any) -> Any:
    """Do a step of RMSprop without momentum."""
    gradient = g + options[4] * x
    square = mean_square(v, gradient, options[1], options[2], options[3])
    return x - options[0] * gradient / (np.sqrt(square) + options[3]), square


@MultiTensor
def rmsprop_momentum(g: Any, x: Any, v: Any, velocity: Any, _own: Any, options: Any) -> Any:
    """Do a step of RMSprop with momentum."""
    gradient = g + options[4] * x
    square = mean_square(v, gradient, options[1], options[2], options[3])
    speed = flushed(options[5] * velocity + gradient / (np.sqrt(square) + options[3]))
    return x - options[0] * speed, square, speed


# Rounding can make a variance slightly negative, and its root nan; so its absolute value is used.


@MultiTensor
def centered(g: Any, x: Any, v: Any, m: Any, _own: Any, options: Any) -> Any:
    """Do a centered step, which divides by the root of the variance, without momentum."""
    gradient = g + options[4] * x
    square = mean_square(v, gradient, options[1], options[2], options[3])
    mean = flushed(options[1] * m + options[2] * gradient)
    root = np.sqrt(np.abs(square - mean * mean))
    return x - options[0] * gradient / (root + options[3]), square, mean


@MultiTensor
def centered_momentum(
    g: Any, x: Any, v: Any, m: Any, velocity: Any, _own: Any, options: Any
) -> Any:
    """Do a centered step, which divides by the root of the variance, with momentum."""
    gradient = g + options[4] * x
    square = mean_square(v, gradient, options[1], options[2], options[3])
    mean = flushed(options[1] * m + options[2] * gradient)
    root = np.sqrt(np.abs(square - mean * mean))
    speed = flushed(options[5] * velocity + gradient / (root + options[3]))
    return x - options[0] * speed, square, mean, speed


@MultiTensor
def adagrad(g: Any, x: Any, total: Any, own: Any, options: Any) -> Any:
    """Do a step of Adagrad: a row has its own step size; options are the weight decay and eps."""
    gradient = g + options[0] * x
    total = total + gradient * gradient
    return x - own[0] * gradient / (np.sqrt(total) + options[1]), total


# --------------------------------------------------------------------------------------------------
# Averages, scaling, and the norm
# --------------------------------------------------------------------------------------------------


@MultiTensor
def ema(x: Any, average: Any, _own: Any, options: Any) -> Any:
    """Compute average <- decay average + (1 - decay) x; option 0 is 1 - decay."""
    return (flushed(average + options[0] * (x - average)),)


@MultiTensor
def scale(x: Any, _target: Any, _own: Any, options: Any) -> Any:
    """Compute target <- factor x; option 0 is the factor."""
    return (options[0] * x,)


BLOCK = 8192  # elements whose squares are added up together


def square_sums(arrays: Sequence[Array]) -> float:
    """Return the sum of the squares of all elements of all arrays, added up in float64."""
    tables = Tables([[x if _carray(x) else np.array(x, order="C") for x in arrays]])
    total = 0.0
    for row in tables.rest:
        wide = arrays[row].astype(np.float64, copy=False)
        total += float(np.square(wide).sum())  # in BLAS, the order depends on the threads
    for table in tables.by_dtype:
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
    blocks = len(sums)  # depends only on the size, so any number of threads gives the same bits
    for block in span(piece, pieces, blocks):
        for row in range(len(addresses)):
            low, size = overlap(block, blocks, starts, row)
            sums[block] += _square_sum(elements(addresses[row, 1], low, size, like))


@jit(fastmath={"contract", "reassoc"})
def _square_sum(x: Any) -> Any:
    """Return the sum of squares, added up in an order that depends only on the length."""
    total = 0.0
    for i in range(x.size):
        wide = np.float64(x[i])
        total += wide * wide
    return total
