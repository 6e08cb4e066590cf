"""Optimiser steps: one call for all parameters, and one pass over memory, not one an operation.

Each function takes rows of arrays, one for every parameter: its gradient, and what is changed (see
`minigrad.kernels.places`). Rows that a kernel does not serve, such as those of float16, are left to
its twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import jit
from minigrad.kernels.kernel import Kernel
from minigrad.kernels.places import Places, Row, elements, overlap

__all__ = ["Places", "adam", "ema", "scale", "sgd", "square_sums"]

prange: Any = numba.prange

Array = NDArray[Any]
Numbers = tuple[float, ...]

SECONDS = 1e-9  # what an element takes, about


def sgd(
    places: Places,
    rows: Sequence[Row],
    shares: Sequence[float],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One step of SGD in place, for rows `(gradient, (x,))`, or `(gradient, (x, velocity))`.

    With momentum, the share of a row is how much of its gradient goes into the velocity.
    """
    options = (lr, momentum, weight_decay)
    if momentum == 0:
        _run("sgd", sgd_twin, places, rows, [()] * len(rows), options)
    else:
        name, twin = ("nesterov", nesterov_twin) if nesterov else ("momentum", momentum_twin)
        _run(name, twin, places, rows, [(share,) for share in shares], options)


def adam(
    places: Places,
    rows: Sequence[Row],
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One step of Adam in place, for rows `(gradient, (x, m, v))`, the n-th of each as `steps` say.

    Decoupled weight decay makes it AdamW; a further array in the rows, with the highest v of all
    steps so far, AMSGrad.
    """
    beta1, beta2 = betas
    keep, l2 = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    options = (keep, l2, beta1, 1 - beta1, beta2, 1 - beta2)
    known: dict[int, Numbers] = {}
    for step in steps:
        if step not in known:
            # (m / c1) / (sqrt(v) / c2 + eps) is (m c2 / c1) / (sqrt(v) + c2 eps): one division.
            c1, c2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
            known[step] = (lr * c2 / c1, c2 * eps)
    plain = not rows or len(rows[0][1]) == 3
    name, twin = ("adam", adam_twin) if plain else ("amsgrad", amsgrad_twin)
    _run(name, twin, places, rows, [known[step] for step in steps], options)


def ema(places: Places, rows: Sequence[Row], decay: float) -> None:
    """average <- decay average + (1 - decay) x, in place, for rows `(x, (average,))`."""
    _run("ema", ema_twin, places, rows, [()] * len(rows), (1 - decay,))


def scale(rows: Sequence[Row], factor: float) -> None:
    """target <- factor x, for rows `(x, (target,))`."""
    _run("scale", scale_twin, Places(), rows, [()] * len(rows), (factor,))


def square_sums(arrays: Sequence[Array]) -> float:
    """The sum of the squares of all elements of all arrays, added up in float64."""
    tables, rest = Places().tables([(x, ()) for x in arrays])
    total = float(sum(square_sums_twin(arrays[row]) for row in rest))
    for table in tables:
        sums = np.zeros(-(-table.size // BLOCK))
        kernel = _KERNELS["squares", table.dtype]
        like = np.empty(0, table.dtype)
        kernel(table.size * SECONDS, table.addresses, table.starts, like, sums)
        total += float(sums.sum())
    return total


def _run(
    name: str,
    twin: Callable[..., None],
    places: Places,
    rows: Sequence[Row],
    numbers: Sequence[Numbers],
    options: Numbers,
) -> None:
    """Run a kernel on the rows it serves, and its twin on the others.

    Args:
        name: of the kernel.
        twin: is called with the arrays of a row, its numbers and the options.
        places: remembers where the arrays of the last call were.
        rows: arrays.
        numbers: for each row, numbers of its own.
        options: numbers for all of them.
    """
    tables, rest = places.tables(rows)
    for row in rest:
        first, others = rows[row]
        with np.errstate(all="ignore"):  # kernels do not warn either
            twin(first, *others, *numbers[row], *options)
    for table in tables:
        own = np.array([numbers[row] for row in table.rows], table.dtype)
        _KERNELS[name, table.dtype](
            table.size * SECONDS,
            table.addresses,
            table.starts,
            own,
            _constants(options, table.dtype),
        )


@lru_cache(maxsize=64)
def _constants(options: Numbers, dtype: np.dtype[Any]) -> Array:
    """Options as an array, which they stay from step to step."""
    return np.array(options, dtype)


# --------------------------------------------------------------------------------------------------
# Loops
# --------------------------------------------------------------------------------------------------


def _sgd_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    lr, weight_decay = options[0], options[2]
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            g = elements(at[row, 0], low, size, options)
            x = elements(at[row, 1], low, size, options)
            for i in range(g.size):
                x[i] -= lr * (g[i] + weight_decay * x[i])


def _momentum_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    lr, momentum, weight_decay = options[0], options[1], options[2]
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            g = elements(at[row, 0], low, size, options)
            x = elements(at[row, 1], low, size, options)
            velocity = elements(at[row, 2], low, size, options)
            share = own[row, 0]
            for i in range(g.size):
                speed = momentum * velocity[i] + share * (g[i] + weight_decay * x[i])
                velocity[i] = speed
                x[i] -= lr * speed


def _nesterov_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    lr, momentum, weight_decay = options[0], options[1], options[2]
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            g = elements(at[row, 0], low, size, options)
            x = elements(at[row, 1], low, size, options)
            velocity = elements(at[row, 2], low, size, options)
            share = own[row, 0]
            for i in range(g.size):
                gradient = g[i] + weight_decay * x[i]
                speed = momentum * velocity[i] + share * gradient
                velocity[i] = speed
                x[i] -= lr * (gradient + momentum * speed)


@jit(inline="always")
def _moments(g: Any, x: Any, m: Any, v: Any, options: Any) -> Any:
    """The value to step from, and the two moments, of one element."""
    gradient = g + options[1] * x
    first = options[2] * m + options[3] * gradient
    second = options[4] * v + options[5] * (gradient * gradient)
    return options[0] * x, first, second


def _adam_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            g = elements(at[row, 0], low, size, options)
            x = elements(at[row, 1], low, size, options)
            m = elements(at[row, 2], low, size, options)
            v = elements(at[row, 3], low, size, options)
            rate, eps = own[row, 0], own[row, 1]
            for i in range(g.size):
                value, first, second = _moments(g[i], x[i], m[i], v[i], options)
                m[i], v[i] = first, second
                x[i] = value - rate * first / (np.sqrt(second) + eps)


def _amsgrad_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            g = elements(at[row, 0], low, size, options)
            x = elements(at[row, 1], low, size, options)
            m = elements(at[row, 2], low, size, options)
            v = elements(at[row, 3], low, size, options)
            highest = elements(at[row, 4], low, size, options)
            rate, eps = own[row, 0], own[row, 1]
            for i in range(g.size):
                value, first, second = _moments(g[i], x[i], m[i], v[i], options)
                m[i], v[i] = first, second
                highest[i] = np.maximum(highest[i], second)
                x[i] = value - rate * first / (np.sqrt(highest[i]) + eps)


def _ema_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    rest = options[0]
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            x = elements(at[row, 0], low, size, options)
            average = elements(at[row, 1], low, size, options)
            for i in range(x.size):
                average[i] += rest * (x[i] - average[i])


def _scale_loop(pieces: int, at: Any, starts: Any, own: Any, options: Any) -> None:
    factor = options[0]
    for number in prange(pieces):
        for row in range(len(at)):
            low, size = overlap(number, pieces, starts, row)
            x = elements(at[row, 0], low, size, options)
            target = elements(at[row, 1], low, size, options)
            for i in range(x.size):
                target[i] = factor * x[i]


BLOCK = 8192  # elements whose squares are added up together


def _squares_loop(_pieces: int, at: Any, starts: Any, like: Any, sums: Any) -> None:
    blocks = len(sums)  # cut by size alone: so the sum has the same bits on any number of threads
    for block in prange(blocks):
        for row in range(len(at)):
            low, size = overlap(block, blocks, starts, row)
            sums[block] += _square_sum(elements(at[row, 0], low, size, like))


@jit(fastmath={"contract", "reassoc"})
def _square_sum(x: Any) -> Any:
    """The sum of the squares: in vectors of sums, in an order that its length alone decides."""
    total = 0.0
    for i in range(x.size):
        wide = np.float64(x[i])
        total += wide * wide
    return total


def _kernels() -> dict[tuple[str, np.dtype[Any]], Kernel]:
    """Every loop, by its name and the dtype of its rows."""
    loops = {
        "sgd": _sgd_loop,
        "momentum": _momentum_loop,
        "nesterov": _nesterov_loop,
        "adam": _adam_loop,
        "amsgrad": _amsgrad_loop,
        "ema": _ema_loop,
        "scale": _scale_loop,
    }
    table = types.Array(types.int64, 2, "C"), types.Array(types.int64, 1, "C")
    kernels = {}
    for number in (types.float32, types.float64):
        dtype = np.dtype(str(number))
        one, two = types.Array(number, 1, "C"), types.Array(number, 2, "C")
        for name, loop in loops.items():
            kernels[name, dtype] = Kernel(loop, (*table, two, one))
        kernels["squares", dtype] = Kernel(
            _squares_loop, (*table, one, types.Array(types.float64, 1, "C"))
        )
    return kernels


_KERNELS = _kernels()

# --------------------------------------------------------------------------------------------------
# The twins: the references, and what runs where nothing is compiled
# --------------------------------------------------------------------------------------------------


def sgd_twin(g: Array, x: Array, lr: float, _momentum: float, weight_decay: float) -> None:
    """A step of `sgd` without momentum for one row, in numpy."""
    x -= lr * (g + weight_decay * x)


def momentum_twin(
    g: Array,
    x: Array,
    velocity: Array,
    share: float,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """A step of `sgd` for one row, in numpy."""
    velocity *= momentum
    velocity += share * (g + weight_decay * x)
    x -= lr * velocity


def nesterov_twin(
    g: Array,
    x: Array,
    velocity: Array,
    share: float,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """A step of `sgd` with Nesterov's momentum for one row, in numpy."""
    gradient = g + weight_decay * x
    velocity *= momentum
    velocity += share * gradient
    x -= lr * (gradient + momentum * velocity)


def adam_twin(
    g: Array, x: Array, m: Array, v: Array, rate: float, eps: float, *options: float
) -> None:
    """A step of `adam` for one row, in numpy."""
    amsgrad_twin(g, x, m, v, None, rate, eps, *options)


def amsgrad_twin(
    g: Array,
    x: Array,
    m: Array,
    v: Array,
    highest: Array | None,
    rate: float,
    eps: float,
    keep: float,
    l2: float,
    beta1: float,
    rest1: float,
    beta2: float,
    rest2: float,
) -> None:
    """A step of `adam` for one row, in numpy; with `highest`, of AMSGrad."""
    gradient = g + l2 * x
    x *= keep
    m *= beta1
    m += rest1 * gradient
    v *= beta2
    v += rest2 * (gradient * gradient)
    if highest is not None:
        v = np.maximum(highest, v, out=highest)
    x -= rate * m / (np.sqrt(v) + eps)


def ema_twin(x: Array, average: Array, rest: float) -> None:
    """`ema` for one row, in numpy."""
    average += rest * (x - average)


def scale_twin(x: Array, target: Array, factor: float) -> None:
    """`scale` for one row, in numpy."""
    np.multiply(x, factor, out=target)


def square_sums_twin(x: Array) -> float:
    """`square_sums` for one array, in numpy."""
    wide = x.astype(np.float64, copy=False)
    return float(np.vdot(wide, wide))
