"""Normalisation over the last axes.

Each op is one loop over rows, forward and backward (see `minigrad.kernels.normalization`). An op
has one joint VJP for all inputs, because their derivatives share the standardised x. The VJP
computes the standardised x again, so that only x and the weight are saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.checks import check_range
from minigrad.core.node import Cost
from minigrad.core.op import Op, op
from minigrad.core.tensor import Array
from minigrad.ops import hints
from minigrad.ops.elementwise import rsqrt
from minigrad.ops.reduction import sum
from minigrad.ops.shape import check_shape

Sizes = int | Sequence[int]


def _layer_norm(
    x: Array, normalized_shape: Sizes, weight: Array = None, bias: Array = None, eps: float = 1e-5
) -> Array:
    out = _rms_norm(x - _mean(x, normalized_shape), normalized_shape, weight, eps)
    return out if bias is None else out + bias


@op(composition=_layer_norm, replayed=True, floats=True, nonfinite_hint=hints.of_norm)
def layer_norm(
    x: Array, normalized_shape: Sizes, weight: Array = None, bias: Array = None, eps: float = 1e-5
) -> Array:
    """(x - mean) / sqrt(var + eps) over the last axes, times `weight`, plus `bias`.

    From Ba et al., 2016. The variance divides by n, not by n - 1.

    Args:
        x: `(..., *normalized_shape)`.
        normalized_shape: the sizes of the axes over which mean and variance are computed.
        weight: of shape `normalized_shape`, or None.
        bias: of shape `normalized_shape`, or None.
        eps: a small number, added so that the root is not 0.

    Raises:
        ValueError: if the shapes do not match, a row is empty, or eps is negative or infinite.
        TypeError: if eps is not a number, or a size is not an integer.
    """
    sizes = _checked_sizes(x, normalized_shape, eps, weight, bias)
    return kernels.normalization.norm(x, sizes, weight, bias, eps, True)


def _rms_norm(
    x: Array, normalized_shape: Sizes, weight: Array = None, eps: float | None = None
) -> Array:
    out = x * rsqrt(_mean(x * x, normalized_shape) + _known_eps(x, eps))
    return out if weight is None else out * weight


@op(composition=_rms_norm, replayed=True, floats=True, nonfinite_hint=hints.of_norm)
def rms_norm(
    x: Array, normalized_shape: Sizes, weight: Array = None, eps: float | None = None
) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axes, times `weight` (Zhang and Sennrich, 2019).

    Args:
        x: `(..., *normalized_shape)`.
        normalized_shape: the sizes of the axes over which the mean is computed.
        weight: of shape `normalized_shape`, or None.
        eps: a small number, added so that the root is not 0; None for the machine epsilon of the
            dtype of x.

    Raises:
        ValueError: if the shapes do not match, a row is empty, or eps is negative or infinite.
        TypeError: if eps is not a number, or a size is not an integer.
    """
    sizes = _checked_sizes(x, normalized_shape, 0.0 if eps is None else eps, weight)
    return kernels.normalization.norm(x, sizes, weight, None, _known_eps(x, eps), False)


def _give_vjp(norm: Op[Any], inputs: Sequence[str], centred: bool) -> None:
    """Define the VJP and the JVP of a norm. Both norms use the same kernel, with or without a mean.

    The gradients of x and of the weight share the FLOPs of standardising x again.
    """

    def gradients(
        g: Array,
        needs_input_grad: Sequence[bool],
        x: Array,
        normalized_shape: Sizes,
        weight: Array,
        eps: float | None,
    ) -> Sequence[Array]:
        sizes, eps = x.shape[-np.size(normalized_shape) :], _known_eps(x, eps)
        needed = (*needs_input_grad, False)[:3]  # rms_norm has no bias
        found = kernels.normalization.norm_gradients(g, x, sizes, weight, eps, centred, needed)
        return found[: len(inputs)]

    def tangent(
        tangents: Sequence[Array],
        x: Array,
        normalized_shape: Sizes,
        weight: Array,
        eps: float | None,
    ) -> Array:
        along_x, along_weight, along_bias = (*tangents, None)[:3]
        sizes, eps = x.shape[-np.size(normalized_shape) :], _known_eps(x, eps)
        out = np.zeros(x.shape, x.dtype) if along_bias is None else along_bias
        if along_weight is not None:
            out = out + kernels.normalization.norm(x, sizes, along_weight, None, eps, centred)
        if along_x is not None:  # the Jacobian of the standardised x is symmetric
            only_x = True, False, False
            moved, _, _ = kernels.normalization.norm_gradients(
                along_x, x, sizes, None, eps, centred, only_x
            )
            out = out + (moved if weight is None else moved * weight)
        return np.broadcast_to(out, x.shape)

    def flops(out: Array, normalized_shape: Sizes, elements: int, means: int) -> int:
        """The FLOPs, from those for each element, and those for the means of each row."""
        rows = out.size // math.prod(np.atleast_1d(normalized_shape).tolist())
        return int(elements * out.size + means * rows)

    cost: dict[str, Cost] = {
        "x": lambda weight, normalized_shape, out: flops(
            out, normalized_shape, 5 + 2 * centred + (weight is not None), 1 + centred
        ),
        "weight": 2,
        "bias": 1,
        "shared": lambda needs_input_grad, out, normalized_shape: (
            flops(out, normalized_shape, 3 + 2 * centred, 3 + centred)
            if needs_input_grad & {"x", "weight"}
            else 0
        ),
    }
    norm.joint_vjp(inputs, gradients, cost={k: cost[k] for k in (*inputs, "shared")})
    norm.jvp(tangent)  # the composition takes 10 times as long on 64 rows of 64 numbers


_give_vjp(layer_norm, ("x", "weight", "bias"), centred=True)
_give_vjp(rms_norm, ("x", "weight"), centred=False)


def _known_eps(x: Array, eps: float | None) -> float:
    """Return eps; for None, the distance from 1 to the next number of the dtype of x."""
    return float(np.finfo(x.dtype).eps) if eps is None else eps


def _mean(x: Array, normalized_shape: Sizes) -> Array:
    """Return the mean over as many of the last axes as there are sizes."""
    axes = tuple(range(-np.size(normalized_shape), 0))
    return sum(x, axes, keepdims=True) * (1.0 / math.prod(x.shape[axis] for axis in axes))


def _checked_sizes(
    x: Array, normalized_shape: Sizes, eps: float, weight: Array, bias: Array = None
) -> tuple[int, ...]:
    """Return the sizes of the axes to normalise over, after checking all arguments."""
    check_range("eps", eps, 0, np.inf)
    # Asking for tuples first is faster.
    is_sequence = isinstance(normalized_shape, (tuple, Sequence))
    given: Any = normalized_shape if is_sequence else (normalized_shape,)
    for size in given:
        if not isinstance(size, (int, np.integer)):
            raise TypeError(
                f"normalized_shape is the size of the last axis, or of the last axes in a tuple, "
                f"not {normalized_shape!r:.60}"
            )
    sizes = tuple(map(int, given))  # a product of int8 could be too large for int8
    if not sizes or 0 in sizes:
        raise ValueError(f"there is nothing to normalise in a shape {sizes}")
    if np.shape(x)[-len(sizes) :] != sizes:
        raise ValueError(f"x of shape {np.shape(x)} does not end in {sizes}")
    check_shape("weight", weight, sizes)
    check_shape("bias", bias, sizes)
    return sizes
