"""Optimiser steps: one call for all parameters, and one pass over memory for all operations.

Each function gets columns, which are lists of arrays, with one row for each parameter: first the
gradients, and then the arrays that change. The formula of a step is written for one element;
`MultiTensor` makes a kernel from it. Rows that no kernel accepts, such as those of float16, are
computed by numpy, which applies the formula to whole arrays.

A model has hundreds of parameters, most of them small, and a call for each would take longer than
its work. A compiled function has a fixed number of array arguments. So it gets a table:

    row   column 0      column 1    column 2 ...        start
    0     gradient      parameter   moment                0
    1     gradient      parameter   moment                64       row 0 has 64 elements
    2                                                     4160     row 1 has 4096

Each array is replaced by its address, which compiled code reads from the lists in 5 ns. The work is
all elements of all rows, one row after another; threads share equal pieces of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from minigrad.kernels.jit import SINGLE, Array, Written, jit, nothing
from minigrad.kernels.launch import for_each_dtype, function_from, span
from minigrad.kernels.unboxing import array_at, items_of, word_at
from minigrad.kernels.vector import elements, flushed

Column = list[Array]
Numbers = tuple[float, ...]

SECONDS = 1e-9  # approximate seconds of an element
OPTIONS, OWN = 6, 2  # how many numbers all rows can share, and how many each row has for itself
Table = Annotated[Written.D2, types.int64]


def table_of(columns: list[Column], dtype: np.dtype[Any]) -> Array | None:
    """Return the table of some columns; None if compiled code cannot use their arrays.

    All must be contiguous arrays of this dtype, and those of a row must have one size. All except
    those of the first column must be writable.
    """
    table = np.empty((len(columns[0]) + 1, len(columns) + 1), np.int64)
    _fill_table[SINGLE].alone(id(columns), id(list), id(np.ndarray), dtype.num, table)
    return table if table[-1, -1] >= 0 else None


@for_each_dtype(SINGLE, threads=False)  # one kernel, which serves all dtypes
def _fill_table(
    _piece: int, _pieces: int, columns: int, list_class: int, array_class: int, dtype: int,
    table: Table,
) -> None:  # fmt: skip
    """Fill the table of the lists in the list at an address, or set its last number to -1."""
    rows, count, start = table.shape[0] - 1, table.shape[1] - 1, 0
    table[rows, count] = -1
    lists = items_of(columns, list_class, count)
    for row in range(rows):
        size = -1
        for i in range(count):
            arrays = items_of(word_at(lists + 8 * i), list_class, rows)
            if arrays == 0:
                return
            at, length = array_at(word_at(arrays + 8 * row), array_class, dtype, i > 0)
            if length < 0 or size not in (-1, length):
                return
            table[row, i], size = at, length
        table[row, count] = start
        start += size
    table[rows, count] = start


@jit(inline="always")
def overlap(piece: int, pieces: int, table: Any, row: int) -> tuple[int, int]:
    """Return at which element of a row a piece of the work begins, and how many it has there."""
    rows, count = table.shape[0] - 1, table.shape[1] - 1
    total, start = table[rows, count], table[row, count]
    low, high = piece * total // pieces, (piece + 1) * total // pieces
    begin = max(low, start)
    return begin - start, max(min(high, table[row + 1, count]) - begin, 0)


class MultiTensor:
    """An update of many rows of arrays in place, mostly with one call of a kernel.

    Attributes:
        update: the formula. It gets an element of each array in a row, the numbers of the row, and
            the options, and returns the new elements of all arrays except the first. With complete
            arrays it is the reference in numpy, which is used for rows without a kernel.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        functools.update_wrapper(self, update)
        self.update = update
        self._kernels = for_each_dtype()(_loop_over(update))
        self._last: dict[np.dtype[Any], tuple[Numbers, Array]] = {}  # the last options, as an array

    def __call__(
        self, columns: list[Column], options: Numbers, own: Numbers | list[Any] = (0.0,) * OWN
    ) -> None:
        """Update all rows.

        Args:
            columns: lists of arrays: first those that are only read, and then those that change.
            options: at most `OPTIONS` numbers for all rows.
            own: a tuple of `OWN` numbers for all rows, or a list of such tuples, one for each row.

        Raises:
            ValueError: if the arrays of a row have different sizes. Nothing is changed then.
        """
        if not columns[1] or self._run(columns, options, own):
            return
        sizes = [[x.size for x in column] for column in columns]
        for others in sizes[1:]:
            if others != sizes[0]:
                raise ValueError(f"arrays of sizes {sizes[0]} do not fit those of {others}")
        pairs = zip(columns[0], columns[1], strict=True)
        first = [np.asarray(g, x.dtype, order="C") for g, x in pairs]
        if self._run([first, *columns[1:]], options, own):
            return
        for i, row in enumerate(zip(first, *columns, strict=True)):  # they have several dtypes
            contiguous, *operands = row
            numbers = own[i] if isinstance(own, list) else own
            if not self._run([[x] for x in (contiguous, *operands[1:])], options, numbers):
                self._apply_reference(operands, options, numbers)

    def _run(self, columns: list[Column], options: Numbers, own: Numbers | list[Any]) -> bool:
        """Update all rows by a kernel; return False, and change nothing, if none accepts them."""
        dtype = columns[1][0].dtype
        kernel = self._kernels.get(dtype)
        table = None if kernel is None else table_of(columns, dtype)
        if kernel is None or table is None:
            return False
        options = tuple(map(float, options))  # a float16 of numpy would equal many other numbers
        last, constants = self._last.get(dtype, ((), None))
        if constants is None or last != options:
            constants = np.zeros(OPTIONS, dtype)
            constants[: len(options)] = options
            self._last[dtype] = options, constants
        numbers = np.array(own if isinstance(own, list) else [own], dtype)
        kernel(int(table[-1, -1]) * SECONDS, table, numbers, constants)
        return True

    def _apply_reference(self, operands: list[Array], options: Numbers, numbers: Numbers) -> None:
        """Update one row by the formula in numpy."""
        changing = operands[1:]
        if changing[0].dtype == np.float16:  # in which eps, and squares of gradients, would be 0
            operands = [x.astype(np.float32) for x in operands]
        with np.errstate(all="ignore"):  # kernels do not warn either
            new = self.update(*operands, numbers, options)
        for array, values in zip(changing, new, strict=True):
            array[...] = values


def _loop_over(update: Callable[..., Any]) -> Callable[..., None]:
    """Return a loop, named after the update, that updates a piece of the rows of a table.

    The loop reads the numbers once for each row, and not once for each element.
    """
    columns = range(update.__code__.co_argcount - 2)
    arrays = ", ".join(f"x{i}" for i in columns)
    views = ", ".join(f"elements(table[row, {i}], low, size, options)" for i in columns)
    first, *others = (f"x{i}[j]" for i in columns)
    body = f"""
        for row in range(len(table) - 1):
            low, size = overlap(piece, pieces, table, row)
            {arrays} = {views}
            mine = min(row, len(own) - 1)
            numbers = {", ".join(f"own[mine, {i}]" for i in range(OWN))}
            constants = {", ".join(f"options[{i}]" for i in range(OPTIONS))}
            for j in range(x0.size):
                {", ".join(others)}, = f({first}, {", ".join(others)}, numbers, constants)
    """
    arguments = {"table": Table, "own": Written.D2, "options": Written.D1}
    parameters = {"piece": int, "pieces": int, **arguments}
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
    total = 0.0
    for dtype in dict.fromkeys(x.dtype for x in arrays):
        some = [np.asarray(x, order="C") for x in arrays if x.dtype == dtype]
        loop = _squares_loop.get(dtype)
        table = None if loop is None else table_of([some], dtype)
        if loop is None or table is None:
            wide = (x.astype(np.float64, copy=False) for x in some)
            total += sum(float(np.square(x).sum()) for x in wide)  # BLAS adds in another order
            continue
        size = int(table[-1, -1])
        sums = np.zeros(-(-size // BLOCK))
        loop(size * SECONDS, table, nothing(dtype), sums)
        total += float(sums.sum())
    return total


@for_each_dtype()
def _squares_loop(
    piece: int, pieces: int, table: Table, like: Written.D1,
    sums: Annotated[Written.D1, types.float64],
) -> None:  # fmt: skip
    blocks = len(sums)  # depends only on the size, so any number of threads gives the same bits
    for block in span(piece, pieces, blocks):
        for row in range(len(table) - 1):
            low, size = overlap(block, blocks, table, row)
            sums[block] += _square_sum(elements(table[row, 0], low, size, like))


@jit(fastmath={"contract", "reassoc"})
def _square_sum(x: Any) -> Any:
    """Return the sum of squares, added up in an order that depends only on the length."""
    total = 0.0
    for i in range(x.size):
        wide = np.float64(x[i])
        total += wide * wide
    return total
