"""Variance and standard deviation, and the normalisation of channels by them.

Channels are along axis 1 of an image or a sequence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.checks import check_flag, check_positive, check_range
from minigrad.core.grad_mode import observed
from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis, Tensor, as_array
from minigrad.functional.compositions import composition, narrowed, root, widened
from minigrad.ops import hints, mean, reshape, rsqrt, sum
from minigrad.ops.reduction import count_along
from minigrad.ops.shape import check_shape, flag
from minigrad.readonly import release
from minigrad.versions import mark_written


@composition
def var(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, sum((x - mean)^2) / (n - ddof), of n elements.

    As in numpy, ddof is 0 by default; PyTorch divides by n - 1.

    Raises:
        ValueError: if n <= ddof, n = 0, ddof is infinite, or an axis does not exist.
        TypeError: if ddof is not a number, or `keepdims` is not True or False.
    """
    keepdims, count = flag(keepdims), count_along(x.shape, axis)
    check_range("ddof", ddof, -np.inf, np.inf)
    if count <= ddof:
        raise ValueError(f"{count} elements are too few for ddof={ddof}")
    wide = widened(x)
    deviation = wide - sum(wide, axis, keepdims=True) / count
    return narrowed(sum(deviation * deviation, axis, keepdims) / (count - ddof), x)


@composition
def std(x: Array, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`, the root of `var`. Where it is 0, its gradient is 0.

    Raises:
        ValueError, TypeError: as in `var`.
    """
    return narrowed(root(var(widened(x), axis, ddof, keepdims)), x)


def _channel_norm(
    x: Array, weight: Array = None, bias: Array = None, moments: Any = None,
    num_groups: int | None = None, is_fixed: bool = False, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Compute the same as `channel_norm`; use the moments of x itself unless they are fixed."""
    if is_fixed:
        average, variance = (reshape(m, _channel_shape(x)) for m in moments)
        deviation = x - average
    else:
        y, axes = x, (0, *range(2, x.ndim))
        if num_groups is not None:
            size = math.prod(x.shape[1:]) // num_groups
            y, axes = reshape(x, (x.shape[0], num_groups, size)), (2,)
        deviation = y - mean(y, axes, keepdims=True)
        variance = mean(deviation * deviation, axes, keepdims=True)
    out = reshape(deviation * rsqrt(variance + eps), x.shape)
    out = out if weight is None else out * reshape(weight, _channel_shape(x))
    return out if bias is None else out + reshape(bias, _channel_shape(x))


def _channel_shape(x: Array) -> tuple[int, ...]:
    """Return the shape of a vector with one number per channel that broadcasts to x."""
    return (-1, *[1] * (x.ndim - 2))


@op(
    composition=_channel_norm, replayed=True, floats=True, fresh=("moments",),
    nonfinite_hint=hints.of_norm,
)  # fmt: skip
def channel_norm(
    x: Array, weight: Array = None, bias: Array = None, moments: Any = None,
    num_groups: int | None = None, is_fixed: bool = False, eps: float = 1e-5,
) -> Array:  # fmt: skip
    """Normalise x by moments, which are fixed or have been computed from x itself."""
    return kernels.channel_norm.norm(x, moments, weight, bias, eps, num_groups)


channel_norm.joint_vjp(
    ("x", "weight", "bias"),
    lambda g, needs_input_grad, x, weight, moments, num_groups, is_fixed, eps: (
        kernels.channel_norm.norm_gradients(
            g, x, moments, weight, eps, num_groups, is_fixed, needs_input_grad
        )
    ),
    cost={"x": 5, "shared": lambda out: 4 * out.size},
)


@composition
def batch_norm(
    x: Array,
    running_mean: Any,
    running_var: Any,
    weight: Array = None,
    bias: Array = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) of each channel, times `weight`, plus `bias`.

    From Ioffe and Szegedy, 2015. In training, it uses mean and variance of x, and updates the
    running ones to (1 - momentum) running + momentum new; the new variance is unbiased. In
    evaluation, it uses the running ones. Every forward pass in training updates them, so under
    `checkpoint` they are updated twice for each step.

    Args:
        x: `(N, C, ...)`.
        running_mean: a Tensor or an array `(C,)`, or None in training.
        running_var: the running variance, in the same form.
        weight: `(C,)`, or None.
        bias: `(C,)`, or None.
        training: whether x is normalised by its own mean and variance.
        momentum: the weight of the new mean and variance in the running ones, in [0, 1].
        eps: a small number, added so that the root is not 0.

    Raises:
        ValueError: if shapes do not match, eps is negative, the momentum is not in [0, 1], a
            channel has fewer than two elements in training, running moments are read-only in
            training, or they are missing in evaluation.
        TypeError: if a running moment is not an array of floats, or requires a gradient, or an
            option is not a number or a flag.
    """
    check_flag("training", training)
    check_range("momentum", momentum, 0, 1)
    running = {"running_mean": running_mean, "running_var": running_var}
    _check(x, eps, weight=weight, bias=bias, **running)
    for name, value in running.items():
        of_floats = isinstance(value, (Tensor, np.ndarray)) and value.dtype.kind == "f"
        if value is not None and (not of_floats or getattr(value, "requires_grad", False)):
            wanted = "a Tensor or an array of floats, which is written to and has no gradient"
            raise TypeError(f"{name} is {wanted}, not {value!r:.60}")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("running_mean and running_var are needed if training is not True")
        fixed = observed(joined, *map(as_array, (running_mean, running_var)))
        return channel_norm(x, weight, bias, fixed, None, True, eps)
    count = math.prod(x.shape) // x.shape[1]
    if count < 2:
        raise ValueError(
            f"training needs at least 2 elements in each channel; x has shape {x.shape}, so each "
            f"channel has {count}. Use a larger batch, or eval() of a layer with running moments"
        )
    moments = observed(kernels.channel_norm.moments, as_array(x), None)
    arrays = {n: None if value is None else as_array(value) for n, value in running.items()}
    for name, array in arrays.items():
        if array is not None and not array.flags.writeable and not release(array):
            raise ValueError(f"{name} is read-only, and training writes to it; pass a copy")
    observed(update_running, *arrays.values(), moments, momentum, count)
    return channel_norm(x, weight, bias, moments, eps=eps)


def joined(running_mean: Any, running_var: Any) -> NDArray[Any]:
    """Return running moments in the form that `channel_norm` expects."""
    return np.stack([running_mean, running_var]).astype(np.float64)[:, None]


def update_running(
    running_mean: Any, running_var: Any, moments: NDArray[Any], momentum: float, count: int
) -> None:
    """Update the running mean and variance; each channel of the batch has `count` elements."""
    unbiased = moments[1, 0] * (count / (count - 1))
    for running, new in ((running_mean, moments[0, 0]), (running_var, unbiased)):
        if running is not None:
            running *= 1 - momentum
            running += momentum * new
            mark_written(running)


@composition
def group_norm(
    x: Array, num_groups: int, weight: Array = None, bias: Array = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) of each group of channels, times `weight`, plus `bias`.

    From Wu and He, 2018. Mean and variance are computed separately for each element of the batch.

    Args:
        x: `(N, C, ...)`.
        num_groups: the number of groups, which divides C.
        weight: `(C,)`, or None.
        bias: `(C,)`, or None.
        eps: a small number, added so that the root is not 0.

    Raises:
        ValueError: if shapes do not match, `num_groups` is not a positive integer that divides C,
            or eps is negative.
        TypeError: if eps is not a number.
    """
    _check(x, eps, weight=weight, bias=bias)
    check_positive("num_groups", num_groups)
    if x.shape[1] % num_groups:
        raise ValueError(f"num_groups = {num_groups} does not divide {x.shape[1]} channels")
    moments = observed(kernels.channel_norm.moments, as_array(x), num_groups)
    return channel_norm(x, weight, bias, moments, num_groups, eps=eps)


def _check(x: Array, eps: float, **of_channels: Any) -> None:
    """Raise an error unless eps is a number of at least 0 and all shapes match."""
    check_range("eps", eps, 0, np.inf)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (N, C, ...), where only N may be 0, but has {x.shape}")
    for name, value in of_channels.items():
        check_shape(name, value, x.shape[1:2])
