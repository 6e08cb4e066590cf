"""Optimiser steps in one pass over memory, where numpy would make one for each operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, jit

SERVED = (np.dtype(np.float32), np.dtype(np.float64))

Floats = NDArray[np.floating[Any]]


def sgd(
    x: Floats,
    g: Floats,
    velocity: Floats | None,
    lr: float,
    momentum: float,
    share: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One step of SGD in place; `share` of the gradient goes into the velocity, if there is one."""
    number = x.dtype.type
    if velocity is None:
        velocity = x  # is not touched where there is no momentum
    options = (number(lr), number(momentum), number(share), number(weight_decay), nesterov)
    if JIT_ENABLED and _in_rows(x, g, velocity):
        _sgd(x.reshape(-1), g.reshape(-1), velocity.reshape(-1), *options)
    else:
        sgd_twin(x, g, velocity, *options)


def adam(
    x: Floats,
    g: Floats,
    m: Floats,
    v: Floats,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    highest: Floats | None = None,
) -> None:
    """Step number `step` of Adam in place; decoupled weight decay makes it AdamW.

    With the `highest` v of all steps so far it is AMSGrad.
    """
    number = x.dtype.type
    options = (
        number(1 - lr * weight_decay if decoupled else 1.0),
        number(0.0 if decoupled else weight_decay),
        number(beta1),
        number(1 - beta1),
        number(beta2),
        number(1 - beta2),
        number(lr / (1 - beta1**step)),
        number(math.sqrt(1 - beta2**step)),
        number(eps),
    )
    if JIT_ENABLED and _in_rows(x, g, m, v) and (highest is None or _in_rows(highest)):
        flat = None if highest is None else highest.reshape(-1)
        _adam(x.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1), flat, *options)
    else:
        adam_twin(x, g, m, v, highest, *options)


def ema(average: Floats, x: Floats, decay: float) -> None:
    """average <- decay average + (1 - decay) x, in place."""
    rest = average.dtype.type(1 - decay)
    if JIT_ENABLED and _in_rows(average, x):
        _ema(average.reshape(-1), x.reshape(-1), rest)
    else:
        ema_twin(average, x, rest)


def _in_rows(*arrays: Floats) -> bool:
    """Whether the kernels serve arrays of one dtype: floats of 4 or 8 bytes, one behind another.

    Only then `reshape(-1)` is a view, so that what is written there stays.
    """
    for array in arrays:  # all() takes longer, and steps of small parameters count
        if not array.flags.c_contiguous:
            return False
    return arrays[0].dtype in SERVED


@jit()
def _sgd(
    x: Floats,
    g: Floats,
    velocity: Floats,
    lr: Any,
    momentum: Any,
    share: Any,
    weight_decay: Any,
    nesterov: bool,
) -> None:
    if momentum == 0:
        for i in range(x.size):
            x[i] -= lr * (g[i] + weight_decay * x[i])
    elif nesterov:
        for i in range(x.size):
            gradient = g[i] + weight_decay * x[i]
            velocity[i] = momentum * velocity[i] + share * gradient
            x[i] -= lr * (gradient + momentum * velocity[i])
    else:
        for i in range(x.size):
            velocity[i] = momentum * velocity[i] + share * (g[i] + weight_decay * x[i])
            x[i] -= lr * velocity[i]


def sgd_twin(
    x: Floats,
    g: Floats,
    velocity: Floats,
    lr: Any,
    momentum: Any,
    share: Any,
    weight_decay: Any,
    nesterov: bool,
) -> None:
    """The same in numpy: the reference, and what runs where nothing is compiled."""
    gradient = g + weight_decay * x
    if momentum == 0:
        x -= lr * gradient
        return
    velocity *= momentum
    velocity += share * gradient
    x -= lr * (gradient + momentum * velocity if nesterov else velocity)


@jit()
def _adam(
    x: Floats,
    g: Floats,
    m: Floats,
    v: Floats,
    highest: Floats | None,
    keep: Any,
    l2: Any,
    beta1: Any,
    rest1: Any,
    beta2: Any,
    rest2: Any,
    rate: Any,
    correction: Any,
    eps: Any,
) -> None:
    for i in range(x.size):
        value = keep * x[i]
        gradient = g[i] + l2 * x[i]
        first = beta1 * m[i] + rest1 * gradient
        second = beta2 * v[i] + rest2 * (gradient * gradient)
        m[i] = first
        v[i] = second
        if highest is not None:  # numba compiles the two cases apart
            second = np.maximum(highest[i], second)
            highest[i] = second
        x[i] = value - rate * first / (np.sqrt(second) / correction + eps)


def adam_twin(
    x: Floats,
    g: Floats,
    m: Floats,
    v: Floats,
    highest: Floats | None,
    keep: Any,
    l2: Any,
    beta1: Any,
    rest1: Any,
    beta2: Any,
    rest2: Any,
    rate: Any,
    correction: Any,
    eps: Any,
) -> None:
    """The same in numpy: the reference, and what runs where nothing is compiled."""
    gradient = g + l2 * x
    x *= keep
    m *= beta1
    m += rest1 * gradient
    v *= beta2
    v += rest2 * (gradient * gradient)
    if highest is not None:
        v = np.maximum(highest, v, out=highest)
    x -= rate * m / (np.sqrt(v) / correction + eps)


@jit()
def _ema(average: Floats, x: Floats, rest: Any) -> None:
    for i in range(x.size):
        average[i] += rest * (x[i] - average[i])


def ema_twin(average: Floats, x: Floats, rest: Any) -> None:
    """The same in numpy: the reference, and what runs where nothing is compiled."""
    average += rest * (x - average)
