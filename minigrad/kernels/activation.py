"""Activation functions and their gradients, each in one pass over memory.

A gradient takes g, the gradient of the result, and the input x, or the result where that suffices.
The reference in numpy stands beside each function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels import vector_math
from minigrad.kernels.elementwise import where
from minigrad.kernels.fused import CURVE, LINE, elementwise
from minigrad.kernels.kernel import Array

_ZERO, _ONE = np.float32(0), np.float32(1)

# --------------------------------------------------------------------------------------------------
# Straight lines
# --------------------------------------------------------------------------------------------------


@elementwise(LINE, reference=lambda x: np.asarray(np.maximum(x, 0)), double=True)
def relu(x: Any) -> Any:
    """Compute max(x, 0)."""
    return _ZERO if x <= 0 else x


@elementwise(LINE, reference=lambda g, out: np.where(out <= 0, 0, g), operands=2, double=True)
def relu_gradient(g: Any, out: Any) -> Any:
    """Return g where the result is above 0 or nan, else 0."""
    return _ZERO if out <= 0 else g


@elementwise(LINE, reference=lambda x, slope: np.where(x > 0, x, slope * x), double=True)
def leaky_relu(x: Any, slope: Any) -> Any:
    """Return x above 0, else slope x."""
    return x if x > 0 else slope * x


@elementwise(
    LINE,
    reference=lambda g, x, slope: np.where(x > 0, g, slope * g),
    operands=2,
    double=True,
)
def leaky_relu_gradient(g: Any, x: Any, slope: Any) -> Any:
    """Return g where x is above 0, else slope g."""
    return g if x > 0 else slope * g


# --------------------------------------------------------------------------------------------------
# Exponentials
# --------------------------------------------------------------------------------------------------


def _elu(x: Array, alpha: float) -> Array:
    return np.asarray(np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)))


@elementwise(CURVE, reference=_elu)
def elu(x: Any, alpha: Any) -> Any:
    """Return x above 0, else alpha (e^x - 1)."""
    negative = _ZERO if x > 0 else x
    below = alpha * vector_math.expm1_below(negative)
    return x if x > 0 else below


def _elu_gradient(g: Array, x: Array, alpha: float) -> Array:
    return where(x > 0, g, alpha * g * np.exp(np.minimum(x, 0)))


@elementwise(CURVE, reference=_elu_gradient, operands=2)
def elu_gradient(g: Any, x: Any, alpha: Any) -> Any:
    """Return g where x is above 0, else alpha g e^x."""
    below = g * (alpha * vector_math.exp_below(x))
    return g if x > 0 else below


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # 1 / inf is 0, as it should be
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


@elementwise(CURVE, reference=_sigmoid)
def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + e^-x)."""
    return vector_math.sigmoid(x)


@elementwise(
    LINE, reference=lambda g, out: np.asarray(g * out * (1 - out)), operands=2, double=True
)
def sigmoid_gradient(g: Any, out: Any) -> Any:
    """Compute g s (1 - s) from the result s."""
    return g * out * (_ONE - out)


@elementwise(
    LINE, reference=lambda g, out: np.asarray(g * (1 - out * out)), operands=2, double=True
)
def tanh_gradient(g: Any, out: Any) -> Any:
    """Compute g (1 - t^2) from the result t."""
    return g * (_ONE - out * out)


@elementwise(CURVE, reference=lambda x: np.asarray(x * _sigmoid(x)))
def silu(x: Any) -> Any:
    """Compute x s with s = sigmoid(x)."""
    return x * vector_math.sigmoid(x)


def _silu_gradient(g: Array, x: Array) -> Array:
    s = _sigmoid(x)
    return np.asarray(g * (s * (1 + x * (1 - s))))


@elementwise(CURVE, reference=_silu_gradient, operands=2)
def silu_gradient(g: Any, x: Any) -> Any:
    """Compute g s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = vector_math.sigmoid(x)
    return g * (s * (_ONE + x * (_ONE - s)))


def _softplus(x: Array, beta: float) -> Array:
    z = beta * x
    return np.asarray((np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))) / beta)


@elementwise(CURVE, reference=_softplus)
def softplus(x: Any, beta: Any) -> Any:
    """Compute log(1 + e^(beta x)) / beta."""
    z = beta * x
    above = _ZERO if z < 0 else z
    return (above + vector_math.log1p_series(vector_math.exp_below(-abs(z)))) / beta


@elementwise(CURVE, reference=lambda g, x, beta: np.asarray(g * _sigmoid(beta * x)), operands=2)
def softplus_gradient(g: Any, x: Any, beta: Any) -> Any:
    """Compute g sigmoid(beta x)."""
    return g * vector_math.sigmoid(beta * x)
