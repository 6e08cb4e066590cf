"""Activation functions of neural networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.checks import check_above_0, check_number
from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.ops.elementwise import clip, exp, log, normal_cdf, tanh, where
from minigrad.ops.reduction import max, sum
from minigrad.ops.shape import as_tuple, flag, is_last, normalize_axes, reduced, reshape

# If the backward pass is recorded, a VJP gets Tensors, and computes with ops. Usually it gets
# arrays; then a kernel computes the same in one pass.


@op(elementwise=True, floats=True, cost=1)
def sigmoid(x: Array) -> Array:
    """s = 1 / (1 + e^-x), without overflow for any x; the derivative is s (1 - s)."""
    return kernels.activation.sigmoid(x)


@sigmoid.vjp("x")
def _sigmoid_x(g: Array, out: Array) -> Array:
    if isinstance(g, Tensor):
        return g * out * (1 - out)
    return kernels.activation.sigmoid_gradient(g, out)


@op(elementwise=True)
def relu(x: Array) -> Array:
    """max(x, 0); the derivative is 1 where x > 0, and 0 elsewhere; a nan stays nan."""
    if isinstance(x, np.ndarray):
        return kernels.activation.relu(x)
    return np.maximum(x, 0)


@relu.vjp("x")
def _relu_x(g: Array, out: Array) -> Array:
    if isinstance(g, Tensor):
        return where(out <= 0, 0.0, g)  # where out is nan, the gradient is g, not 0
    return kernels.activation.relu_gradient(g, out)


@op(elementwise=True, floats=True, cost=1)
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where x > 0, else `negative_slope` x; the derivative at 0 is `negative_slope`.

    From Maas et al., 2013.

    Raises:
        TypeError: if `negative_slope` is not a number.
    """
    return kernels.activation.leaky_relu(x, check_number("negative_slope", negative_slope))


@leaky_relu.vjp("x")
def _leaky_relu_x(g: Array, x: Array, negative_slope: float) -> Array:
    if isinstance(g, Tensor):
        return where(x > 0, g, negative_slope * g)
    return kernels.activation.leaky_relu_gradient(g, x, float(negative_slope))


@op(elementwise=True, floats=True, cost=1)
def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where x > 0, else `alpha` (e^x - 1) (Clevert et al., 2016).

    The derivative is 1 where x > 0, else `alpha` e^x; so it is `alpha` at 0.

    Raises:
        TypeError: if `alpha` is not a number.
    """
    return kernels.activation.elu(x, check_number("alpha", alpha))


@elu.vjp("x")
def _elu_x(g: Array, x: Array, alpha: float) -> Array:
    if isinstance(g, Tensor):
        return where(x > 0, g, alpha * g * exp(where(x > 0, 0.0, x)))
    return kernels.activation.elu_gradient(g, x, float(alpha))


@op(elementwise=True, floats=True, cost=1)
def silu(x: Array) -> Array:
    """x s with s = sigmoid(x) (Elfwing et al., 2018); the derivative is s (1 + x (1 - s))."""
    return kernels.activation.silu(x)


@silu.vjp("x")
def _silu_x(g: Array, x: Array) -> Array:
    if isinstance(g, Tensor):
        s = sigmoid(x)
        return g * (s * (1.0 + x * (1.0 - s)))
    return kernels.activation.silu_gradient(g, x)


@op(elementwise=True, composition=lambda gate, x: silu(gate) * x, floats=True)
def swiglu(gate: Array, x: Array) -> Array:
    """silu(gate) x, the hidden vector of a gated MLP (Shazeer, 2020), in one pass over memory.

    Unlike its composition, it does not keep silu(gate) for the backward pass.
    """
    return kernels.activation.swiglu(gate, x)


swiglu.vjp("gate", lambda g, gate, x: _silu_x(g * x, gate))
swiglu.vjp("x", lambda g, gate: swiglu(gate, g))


@op(elementwise=True, floats=True, cost=1)
def softplus(x: Array, beta: float = 1.0) -> Array:
    """log(1 + e^(beta x)) / beta, without overflow; the derivative is sigmoid(beta x).

    Raises:
        ValueError: if `beta` is not positive.
        TypeError: if `beta` is not a number.
    """
    check_above_0("beta", beta)
    return kernels.activation.softplus(x, float(beta))


@softplus.vjp("x")
def _softplus_x(g: Array, x: Array, beta: float) -> Array:
    if isinstance(g, Tensor):
        with np.errstate(over="ignore"):  # infinities have the right sigmoid
            return g * sigmoid(beta * x)
    return kernels.activation.softplus_gradient(g, x, float(beta))


def _gelu(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        y = clip(x, -20.0, 20.0)  # beyond, tanh is 1 or -1, and the cube could overflow
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)))
    return x * normal_cdf(x)


@op(elementwise=True, composition=_gelu, replayed=True, floats=True)
def gelu(x: Array, approximate: str = "none") -> Array:
    """x Phi(x), with Phi the normal distribution function (Hendrycks and Gimpel, 2016).

    The derivative is Phi(x) + x phi(x), with phi the normal density.

    With `approximate="tanh"`, it is x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as in GPT-2,
    with the derivative of this formula.

    Raises:
        ValueError: if `approximate` is not "none" or "tanh".
    """
    if approximate == "none":
        return kernels.activation.gelu(x)
    if approximate != "tanh":
        raise ValueError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    return kernels.activation.gelu_tanh(x)


@gelu.vjp("x", cost=lambda approximate, out: (18 if approximate == "tanh" else 8) * out.size)
def _gelu_x(g: Array, x: Array, approximate: str) -> Array:
    if approximate == "none":
        return kernels.activation.gelu_gradient(g, x)
    return kernels.activation.gelu_tanh_gradient(g, x)


_SOFTMAX_HINTS = {
    "Inf - Inf is NaN: softmax subtracts the maximum, which is Inf": lambda x: x == math.inf,
    "a row of nothing but -Inf has no softmax: everything in it is masked; mask with the least "
    "finite number, or leave such rows out": lambda x: x == -math.inf,
}


def _softmax(x: Array, axis: Axis = -1) -> Array:
    e = exp(x - max(x, axis, keepdims=True))
    return e / sum(e, axis, keepdims=True)


@op(composition=_softmax, floats=True, nonfinite_hint=_SOFTMAX_HINTS)
def softmax(x: Array, axis: Axis = -1) -> Array:
    """e^x / sum(e^x) along `axis`, without overflow; for an empty x, the result is empty.

    With several axes, or None for all, the sum is over all of them.

    Raises:
        ValueError: if an axis does not exist or is repeated.
        TypeError: if an axis is not an integer.
    """
    return _by_rows(kernels.reduction.softmax, x, axis)


@softmax.vjp("x")
def _softmax_x(g: Array, axis: Axis, out: Array) -> Array:
    if isinstance(g, Tensor) or not is_last(axis, out):
        return out * (g - sum(g * out, axis, keepdims=True))
    return kernels.reduction.softmax_gradient(g, out)


softmax.jvp(lambda tangents, axis, out: _softmax_x(tangents[0], axis, out))  # J is symmetric


def _log_softmax(x: Array, axis: Axis = -1) -> Array:
    return log(_softmax(x, axis))


@op(composition=_log_softmax, floats=True, nonfinite_hint=_SOFTMAX_HINTS)
def log_softmax(x: Array, axis: Axis = -1) -> Array:
    """x - log(sum(e^x)) along `axis`, exact even where softmax would round to 0.

    Raises:
        ValueError, TypeError: as in `softmax`.
    """
    return _by_rows(kernels.reduction.log_softmax, x, axis)


@log_softmax.vjp("x")
def _log_softmax_x(g: Array, axis: Axis, out: Array) -> Array:
    if isinstance(g, Tensor) or not is_last(axis, out):
        return g - exp(out) * sum(g, axis, keepdims=True)
    return kernels.reduction.log_softmax_gradient(g, out)


@log_softmax.jvp
def _log_softmax_tangent(tangents: Sequence[Array], axis: Axis, out: Array) -> Array:
    return tangents[0] - sum(exp(out) * tangents[0], axis, keepdims=True)


@op(
    floats=True,
    cost=lambda x, out: 4 * x.size + 2 * out.size,
    shape=lambda x, axis, keepdims: reduced(x.shape, axis, keepdims),
)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """log(sum(e^x)) over `axis`, without overflow; the derivative is softmax(x) over `axis`.

    Raises:
        ValueError: if there are no elements to sum, or an axis does not exist or is repeated.
        TypeError: if an axis is not an integer, or `keepdims` is not True or False.
    """
    axis, keepdims = as_tuple(axis), flag(keepdims)
    out = kernels.reduction.logsumexp(x) if is_last(axis, x) else None
    if out is not None:
        return out.reshape(reduced(x.shape, axis, keepdims))
    top = x.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0).astype(top.dtype)
    with np.errstate(divide="ignore"):  # the logarithm of an empty sum is -inf
        out = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return out if keepdims else out.reshape(np.squeeze(out, axis=axis).shape)


@logsumexp.vjp("x")
def _logsumexp_x(g: Array, x: Array, axis: Axis, out: Array) -> Array:
    shape = reduced(x.shape, axis, keepdims=True)
    if isinstance(x, np.ndarray) and is_last(axis, x) and np.isfinite(out).all():
        return reshape(g, shape) * kernels.reduction.softmax(x)
    weights = exp(x - reshape(out, shape))
    # For a large x, the weights do not sum to 1, because `out` is rounded. Next to an infinite x,
    # they are 0, and their sum is nan.
    total = sum(weights, axis, keepdims=True)
    return reshape(g, shape) * weights / where(total > 0, total, 1)


def _by_rows(function: Any, x: Array, axis: Axis) -> Array:
    """Apply a function of `kernels.reduction` along an axis; the result is empty where x is."""
    if x.size and is_last(axis, x):
        return function(x)
    normalize_axes(axis, x.ndim)
    # numpy raises an error for the maximum of an empty array.
    return function.reference(x, as_tuple(axis)) if x.size else x.copy()
