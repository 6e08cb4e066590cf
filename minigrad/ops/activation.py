"""Activation functions of neural networks."""

from __future__ import annotations

import math

import numpy as np

from minigrad import kernels
from minigrad.op import op
from minigrad.ops.axes import as_tuple
from minigrad.ops.elementwise import exp, log, normal_cdf, where
from minigrad.ops.reduction import max, sum
from minigrad.ops.trigonometric import tanh
from minigrad.tensor import Array, Axis

__all__ = [
    "elu",
    "gelu",
    "leaky_relu",
    "log_softmax",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
]


@op(floats=True)
def sigmoid(x: Array) -> Array:
    """s = 1 / (1 + e^-x), without overflow for any x; the derivative is s (1 - s)."""
    with np.errstate(over="ignore"):  # 1 / inf is 0, as it should be
        return 1.0 / (1.0 + np.exp(-x))


sigmoid.rule("x", lambda g, out: g * out * (1 - out))


@op
def relu(x: Array) -> Array:
    """max(x, 0), with derivative 1 above 0, and 0 at and below it."""
    return np.maximum(x, 0)


relu.rule("x", lambda g, out: where(out <= 0, 0.0, g))  # a nan does not come back as a 0


@op(floats=True)
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x above 0, else `negative_slope` x, which also gives the derivative at 0."""
    return where(x > 0, x, negative_slope * x)


leaky_relu.rule("x", lambda g, x, negative_slope: where(x > 0, g, negative_slope * g))


@op(floats=True)
def elu(x: Array, alpha: float = 1.0) -> Array:
    """x above 0, else `alpha` (e^x - 1) (Clevert et al., 2016); the derivative at 0 is `alpha`."""
    return np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0))


elu.rule("x", lambda g, x, alpha: where(x > 0, g, alpha * g * exp(where(x > 0, 0.0, x))))


@op(floats=True)
def silu(x: Array) -> Array:
    """x s, s = sigmoid(x) (Elfwing et al., 2018), with derivative s (1 + x (1 - s))."""
    return x * sigmoid(x)


@silu.rule("x")
def _silu_x(g: Array, x: Array) -> Array:
    s = sigmoid(x)
    return g * (s * (1.0 + x * (1.0 - s)))


@op(floats=True)
def softplus(x: Array, beta: float = 1.0) -> Array:
    """log(1 + e^(beta x)) / beta, without overflow; the derivative is sigmoid(beta x).

    Raises:
        ValueError: if `beta` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"softplus: beta must be positive, not {beta!r}")
    z = beta * x
    return (np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))) / beta


softplus.rule("x", lambda g, x, beta: g * sigmoid(beta * x))


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(_ROOT * (x + 0.044715 * x * x * x)))
    return x * normal_cdf(x)


_ROOT = math.sqrt(2 / math.pi)


@op(composition=_gelu, replayed=True, floats=True)
def gelu(x: Array, approximate: str = "none") -> Array:
    """x Phi(x), with Phi the normal distribution function (Hendrycks and Gimpel, 2016).

    The derivative is Phi(x) + x phi(x), with phi the normal density.

    With `approximate="tanh"`, it is x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as in GPT-2,
    and the derivative is that of this.

    Raises:
        ValueError: for another approximation.
    """
    if approximate == "none":
        return kernels.elementwise.gelu(x)
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}")
    return 0.5 * x * (1 + np.tanh(_ROOT * (x + 0.044715 * x * x * x)))


@gelu.rule("x")
def _gelu_x(g: Array, x: Array, approximate: str) -> Array:
    if approximate == "none":
        return kernels.elementwise.gelu_gradient(g, x)
    t = np.tanh(_ROOT * (x + 0.044715 * x * x * x))
    return g * 0.5 * (1 + t + x * (1 - t * t) * _ROOT * (1 + 3 * 0.044715 * x * x))


def _softmax(x: Array, axis: Axis = -1) -> Array:
    e = exp(x - max(x, axis, keepdims=True))
    return e / sum(e, axis, keepdims=True)


@op(composition=_softmax, floats=True)
def softmax(x: Array, axis: Axis = -1) -> Array:
    """e^x / sum(e^x) along `axis`, without overflow."""
    axes = as_tuple(axis)
    e = np.exp(x - np.max(x, axis=axes, keepdims=True))
    e /= np.sum(e, axis=axes, keepdims=True)
    return e


softmax.rule("x", lambda g, axis, out: out * (g - sum(g * out, axis, keepdims=True)))


def _log_softmax(x: Array, axis: Axis = -1) -> Array:
    return log(_softmax(x, axis))


@op(composition=_log_softmax, floats=True)
def log_softmax(x: Array, axis: Axis = -1) -> Array:
    """x - log(sum(e^x)) along `axis`, exact also where softmax would round to 0."""
    axes = as_tuple(axis)
    shifted = x - np.max(x, axis=axes, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))
    return shifted


log_softmax.rule("x", lambda g, axis, out: g - exp(out) * sum(g, axis, keepdims=True))
