"""Activation functions and their gradients, each in one pass over memory.

A gradient takes g, the gradient of the result, and the input x, or the result where that says all.
float32 has loops, vector code made of `maths`; float64 has the twins, which are numpy.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from minigrad.kernels import maths
from minigrad.kernels.elementwise import (
    CURVE,
    LINE,
    loops,
    piece,
    run,
    run_gradient,
    where,
)

prange: Any = numba.prange

Array = NDArray[Any]

_ZERO, _ONE = np.float32(0), np.float32(1)

# --------------------------------------------------------------------------------------------------
# Of straight lines
# --------------------------------------------------------------------------------------------------


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return run(_RELU, LINE, relu_twin, x)


def relu_gradient(g: Array, out: Array) -> Array:
    """g where the result is above 0 or nan, else 0."""
    return run_gradient(_RELU_GRADIENT, LINE, relu_gradient_twin, g, out)


def leaky_relu(x: Array, slope: float) -> Array:
    """x above 0, else slope x."""
    return run(_LEAKY, LINE, leaky_relu_twin, x, slope)


def leaky_relu_gradient(g: Array, x: Array, slope: float) -> Array:
    """g where x is above 0, else slope g."""
    return run_gradient(_LEAKY_GRADIENT, LINE, leaky_relu_gradient_twin, g, x, slope)


def relu_twin(x: Array) -> Array:
    """`relu` in numpy."""
    return np.asarray(np.maximum(x, 0))


def relu_gradient_twin(g: Array, out: Array) -> Array:
    """`relu_gradient` in numpy."""
    return np.where(out <= 0, 0, g)


def leaky_relu_twin(x: Array, slope: float) -> Array:
    """`leaky_relu` in numpy."""
    return np.where(x > 0, x, slope * x)


def leaky_relu_gradient_twin(g: Array, x: Array, slope: float) -> Array:
    """`leaky_relu_gradient` in numpy."""
    return np.where(x > 0, g, slope * g)


def _relu_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = _ZERO if xs[i] <= 0 else xs[i]


def _relu_gradient_loop(pieces: int, g: Any, out: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, outs, dxs = (
            piece(number, pieces, g),
            piece(number, pieces, out),
            piece(number, pieces, dx),
        )
        for i in range(gs.size):
            dxs[i] = _ZERO if outs[i] <= 0 else gs[i]


def _leaky_loop(pieces: int, x: Any, slope: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = xs[i] if xs[i] > 0 else slope * xs[i]


def _leaky_gradient_loop(pieces: int, g: Any, x: Any, slope: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            dxs[i] = gs[i] if xs[i] > 0 else slope * gs[i]


_RELU = loops(_relu_loop, _relu_loop)
_RELU_GRADIENT = loops(_relu_gradient_loop, _relu_gradient_loop, operands=2)
_LEAKY = loops(_leaky_loop, _leaky_loop, options=1)
_LEAKY_GRADIENT = loops(_leaky_gradient_loop, _leaky_gradient_loop, operands=2, options=1)

# --------------------------------------------------------------------------------------------------
# Of exponentials
# --------------------------------------------------------------------------------------------------


def elu(x: Array, alpha: float) -> Array:
    """x above 0, else alpha (e^x - 1)."""
    return run(_ELU, CURVE, elu_twin, x, alpha)


def elu_gradient(g: Array, x: Array, alpha: float) -> Array:
    """g where x is above 0, else alpha g e^x."""
    return run_gradient(_ELU_GRADIENT, CURVE, elu_gradient_twin, g, x, alpha)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return run(_SIGMOID, CURVE, sigmoid_twin, x)


def sigmoid_gradient(g: Array, out: Array) -> Array:
    """g s (1 - s), of the result s."""
    return run_gradient(_SIGMOID_GRADIENT, LINE, sigmoid_gradient_twin, g, out)


def tanh_gradient(g: Array, out: Array) -> Array:
    """g (1 - t^2), of the result t."""
    return run_gradient(_TANH_GRADIENT, LINE, tanh_gradient_twin, g, out)


def silu(x: Array) -> Array:
    """x s, s = sigmoid(x)."""
    return run(_SILU, CURVE, silu_twin, x)


def silu_gradient(g: Array, x: Array) -> Array:
    """g s (1 + x (1 - s))."""
    return run_gradient(_SILU_GRADIENT, CURVE, silu_gradient_twin, g, x)


def softplus(x: Array, beta: float) -> Array:
    """log(1 + e^(beta x)) / beta."""
    return run(_SOFTPLUS, CURVE, softplus_twin, x, beta)


def softplus_gradient(g: Array, x: Array, beta: float) -> Array:
    """g sigmoid(beta x)."""
    return run_gradient(_SOFTPLUS_GRADIENT, CURVE, softplus_gradient_twin, g, x, beta)


def elu_twin(x: Array, alpha: float) -> Array:
    """`elu` in numpy."""
    return np.asarray(np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)))


def elu_gradient_twin(g: Array, x: Array, alpha: float) -> Array:
    """`elu_gradient` in numpy."""
    return where(x > 0, g, alpha * g * np.exp(np.minimum(x, 0)))


def sigmoid_twin(x: Array) -> Array:
    """`sigmoid` in numpy."""
    with np.errstate(over="ignore"):  # 1 / inf is 0, as it should be
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


def sigmoid_gradient_twin(g: Array, out: Array) -> Array:
    """`sigmoid_gradient` in numpy."""
    return np.asarray(g * out * (1 - out))


def tanh_gradient_twin(g: Array, out: Array) -> Array:
    """`tanh_gradient` in numpy."""
    return np.asarray(g * (1 - out * out))


def silu_twin(x: Array) -> Array:
    """`silu` in numpy."""
    return np.asarray(x * sigmoid_twin(x))


def silu_gradient_twin(g: Array, x: Array) -> Array:
    """`silu_gradient` in numpy."""
    s = sigmoid_twin(x)
    return np.asarray(g * (s * (1 + x * (1 - s))))


def softplus_twin(x: Array, beta: float) -> Array:
    """`softplus` in numpy."""
    z = beta * x
    return np.asarray((np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))) / beta)


def softplus_gradient_twin(g: Array, x: Array, beta: float) -> Array:
    """`softplus_gradient` in numpy."""
    return np.asarray(g * sigmoid_twin(beta * x))


def _elu_loop(pieces: int, x: Any, alpha: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            value = xs[i]
            below = alpha * maths.expm1_below(_ZERO if value > 0 else value)
            outs[i] = value if value > 0 else below


def _elu_gradient_loop(pieces: int, g: Any, x: Any, alpha: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            below = gs[i] * (alpha * maths.exp_below(xs[i]))
            dxs[i] = gs[i] if xs[i] > 0 else below


def _sigmoid_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = maths.sigmoid(xs[i])


def _sigmoid_gradient_loop(pieces: int, g: Any, out: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, outs, dxs = (
            piece(number, pieces, g),
            piece(number, pieces, out),
            piece(number, pieces, dx),
        )
        for i in range(gs.size):
            dxs[i] = gs[i] * outs[i] * (_ONE - outs[i])


def _tanh_gradient_loop(pieces: int, g: Any, out: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, outs, dxs = (
            piece(number, pieces, g),
            piece(number, pieces, out),
            piece(number, pieces, dx),
        )
        for i in range(gs.size):
            dxs[i] = gs[i] * (_ONE - outs[i] * outs[i])


def _silu_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = xs[i] * maths.sigmoid(xs[i])


def _silu_gradient_loop(pieces: int, g: Any, x: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            s = maths.sigmoid(xs[i])
            dxs[i] = gs[i] * (s * (_ONE + xs[i] * (_ONE - s)))


def _softplus_loop(pieces: int, x: Any, beta: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        for i in range(xs.size):
            z = beta * xs[i]
            above = _ZERO if z < 0 else z
            outs[i] = (above + maths.log1p_series(maths.exp_below(-abs(z)))) / beta


def _softplus_gradient_loop(pieces: int, g: Any, x: Any, beta: Any, dx: Any) -> None:
    for number in prange(pieces):
        gs, xs, dxs = piece(number, pieces, g), piece(number, pieces, x), piece(number, pieces, dx)
        for i in range(gs.size):
            dxs[i] = gs[i] * maths.sigmoid(beta * xs[i])


_ELU = loops(_elu_loop, options=1)
_ELU_GRADIENT = loops(_elu_gradient_loop, operands=2, options=1)
_SIGMOID = loops(_sigmoid_loop)
_SIGMOID_GRADIENT = loops(_sigmoid_gradient_loop, _sigmoid_gradient_loop, operands=2)
_TANH_GRADIENT = loops(_tanh_gradient_loop, _tanh_gradient_loop, operands=2)
_SILU = loops(_silu_loop)
_SILU_GRADIENT = loops(_silu_gradient_loop, operands=2)
_SOFTPLUS = loops(_softplus_loop, options=1)
_SOFTPLUS_GRADIENT = loops(_softplus_gradient_loop, operands=2, options=1)
