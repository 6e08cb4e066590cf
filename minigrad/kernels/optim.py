"""Optimiser steps: one call for all parameters, and one pass over memory for all operations.

Each function takes rows of arrays, one row for each parameter: its gradient, and what is changed
(see `minigrad.kernels.multi_tensor`). The formula of a step is written for one element; rows that
no kernel takes, such as those of float16, are left to numpy, which applies it to the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange, types

from minigrad.kernels.jit import jit
from minigrad.kernels.kernel import NUMBERS, Array, Kernel, written
from minigrad.kernels.multi_tensor import (
    SECONDS,
    MultiTensor,
    Numbers,
    Row,
    TableCache,
    overlap,
)
from minigrad.kernels.vector import elements

__all__ = ["TableCache", "adam", "ema", "scale", "sgd", "square_sums"]

# --------------------------------------------------------------------------------------------------
# SGD
# --------------------------------------------------------------------------------------------------


def sgd(
    cache: TableCache,
    rows: Sequence[Row],
    shares: Sequence[float],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Do one step of SGD in place, for rows `(gradient, (x,))`, or `(gradient, (x, velocity))`.

    With momentum, the share of a row is the part of its gradient that goes into the velocity.
    """
    options = (lr, momentum, weight_decay)
    if momentum == 0:
        _plain(cache, rows, options)
    else:
        step = _nesterov if nesterov else _momentum
        step(cache, rows, options, [(share,) for share in shares])


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
    rows: Sequence[Row],
    steps: Sequence[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Do one step of Adam in place, for rows `(gradient, (x, m, v))`; `steps` counts each row's.

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
    update = _adam if not rows or len(rows[0][1]) == 3 else _amsgrad
    update(cache, rows, options, [known[step] for step in steps])


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


def ema(cache: TableCache, rows: Sequence[Row], decay: float) -> None:
    """Compute average <- decay average + (1 - decay) x in place, for rows `(x, (average,))`."""
    _ema(cache, rows, (1 - decay,))


@MultiTensor
def _ema(x: Any, average: Any, _own: Any, options: Any) -> Any:
    return (average + options[0] * (x - average),)


def scale(rows: Sequence[Row], factor: float) -> None:
    """Compute target <- factor x, for rows `(x, (target,))`."""
    _scale(TableCache(), rows, (factor,))


@MultiTensor
def _scale(x: Any, _target: Any, _own: Any, options: Any) -> Any:
    return (options[0] * x,)


BLOCK = 8192  # elements whose squares are added up together


def square_sums(arrays: Sequence[Array]) -> float:
    """Return the sum of the squares of all elements of all arrays, added up in float64."""
    tables, rest = TableCache().tables([(x, ()) for x in arrays])
    total = 0.0
    for row in rest:
        wide = arrays[row].astype(np.float64, copy=False)
        total += float(np.vdot(wide, wide))
    for table in tables:
        sums, like = np.zeros(-(-table.size // BLOCK)), np.empty(0, table.dtype)
        kernel = _SQUARES[table.dtype]
        kernel(table.size * SECONDS, table.addresses, table.starts, like, sums)
        total += float(sums.sum())
    return total


def _squares_loop(_pieces: int, addresses: Any, starts: Any, like: Any, sums: Any) -> None:
    blocks = len(sums)  # cut by size alone: so the sum has the same bits on any number of threads
    for block in prange(blocks):
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


_SQUARES = {
    dtype: Kernel(
        _squares_loop,
        (
            *(written(types.int64, 2), written(types.int64, 1)),
            *(written(number, 1), written(types.float64, 1)),
        ),
    )
    for dtype, number in NUMBERS.items()
}
