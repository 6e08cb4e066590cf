"""Layers that bring values to one scale, so that they neither grow nor shrink with depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad import functional, ops
from minigrad.checks import check_positive, check_range
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.nn import init
from minigrad.nn.module import Buffer, Module, Parameter
from minigrad.versions import mark_written

__all__ = ["BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"]


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) over the last axes, times `weight`, plus `bias`.

    From Ba et al., 2016. The shape `(..., *normalized_shape)` stays.

    Args:
        normalized_shape: the sizes of the axes over which mean and variance are taken; one number
            for the last axis alone.
        eps: a small number that keeps the root away from 0.
        elementwise_affine: whether there are a weight and a bias.
        bias: whether there is a bias beside the weight.
        dtype: the dtype of the parameters.

    Attributes:
        weight: `normalized_shape`, ones at first, or None.
        bias: `normalized_shape`, zeros at first, or None.

    Raises:
        ValueError: if a size is not a positive integer, or `eps` is negative.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _checked_sizes("LayerNorm", normalized_shape)
        self.eps = _checked_eps("LayerNorm", eps)
        shape, bias = self.normalized_shape, elementwise_affine and bias
        self.weight = init.ones_(Parameter.empty(shape, dtype)) if elementwise_affine else None
        self.bias = init.zeros_(Parameter.empty(shape, dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by `ops.layer_norm`."""
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The sizes, eps, and the parameters that are missing."""
        missing = ", bias=False" if self.weight is not None and self.bias is None else ""
        return _described(self) + missing


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) over the last axes, times `weight` (Zhang and Sennrich, 2019).

    The shape `(..., *normalized_shape)` stays.

    Args:
        normalized_shape: the sizes of the axes over which the mean is taken; one number for the
            last axis alone.
        eps: a small number that keeps the root away from 0; None for the machine epsilon of the
            dtype of x.
        elementwise_affine: whether there is a weight.
        dtype: the dtype of the weight.

    Attributes:
        weight: `normalized_shape`, ones at first, or None.

    Raises:
        ValueError: if a size is not a positive integer, or `eps` is negative.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _checked_sizes("RMSNorm", normalized_shape)
        self.eps = None if eps is None else _checked_eps("RMSNorm", eps)
        shape = self.normalized_shape
        self.weight = init.ones_(Parameter.empty(shape, dtype)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by `ops.rms_norm`."""
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The sizes, eps, and whether the weight is missing."""
        return _described(self)


class BatchNorm1d(Module):
    """(x - mean) / sqrt(var + eps) of each channel, times `weight`, plus `bias`.

    From Ioffe and Szegedy, 2015: `(N, C)` or `(N, C, L)` stays. In training, mean and variance are
    those of the batch, and go into the running ones; in evaluation they are the running ones.

    Args:
        num_features: C.
        eps: a small number that keeps the root away from 0.
        momentum: how much of a new mean goes into the running one; None for the mean of all.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running means and variances; without, evaluation is
            as training.
        dtype: the dtype of parameters and buffers.

    Attributes:
        weight, bias: `(C,)`, ones and zeros at first, or None.
        running_mean, running_var: buffers `(C,)`, zeros and ones at first, or None. The variances
            are unbiased.
        num_batches_tracked: a buffer, the number of batches that are in these, or None.

    Raises:
        ValueError: if C is not a positive integer, `eps` is negative, or the momentum is not in
            [0, 1].
    """

    _axes: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        name = type(self).__name__
        check_positive(f"{name}: num_features", num_features)
        if momentum is not None:
            check_range(f"{name}: momentum", momentum, 0, 1)
        self.num_features, self.momentum = num_features, momentum
        self.eps = _checked_eps(name, eps)
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        tracks = track_running_stats
        self.running_mean = Buffer(np.zeros(num_features, dtype)) if tracks else None
        self.running_var = Buffer(np.ones(num_features, dtype)) if tracks else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if tracks else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by `functional.batch_norm`.

        Raises:
            ValueError: if x has another number of axes or channels, or in training less than two
                elements of a channel.
        """
        if x.ndim not in self._axes:
            raise ValueError(f"{type(self).__name__}: x has {self._axes} axes, not {x.ndim}")
        momentum, tracked = self.momentum, self.num_batches_tracked
        if self.training and tracked is not None:
            momentum = observed(count_batch, tracked._data, momentum)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or tracked is None, momentum or 0.0, self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The number of channels and the options, as PyTorch prints them."""
        flags = self.weight is not None, self.running_mean is not None
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={flags[0]}, "
            f"track_running_stats={flags[1]}"
        )


class BatchNorm2d(BatchNorm1d):
    """The same for images, `(N, C, H, W)`."""

    _axes = (4,)


def count_batch(tracked: NDArray[Any], momentum: float | None) -> float:
    """Add 1 to a number of batches, and return how much of the new one goes into the means."""
    tracked += 1
    mark_written(tracked)
    return 1 / float(tracked) if momentum is None else momentum


class GroupNorm(Module):
    """(x - mean) / sqrt(var + eps) of each group of channels, times `weight`, plus `bias`.

    From Wu and He, 2018: `(N, C, ...)` stays.

    Args:
        num_groups: the number of groups.
        num_channels: C, a multiple of it.
        eps: a small number that keeps the root away from 0.
        affine: whether there are a weight and a bias.
        dtype: the dtype of the parameters.

    Attributes:
        weight, bias: `(C,)`, ones and zeros at first, or None.

    Raises:
        ValueError: if a number is no positive integer, C is no multiple, or `eps` is negative.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        check_positive("GroupNorm: num_groups", num_groups)
        check_positive("GroupNorm: num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: {num_groups} groups do not divide {num_channels} channels"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps = _checked_eps("GroupNorm", eps)
        self.weight = Parameter(np.ones(num_channels, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, dtype)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by `functional.group_norm`.

        Raises:
            ValueError: if x has another number of channels.
        """
        if x.shape[1:2] != (self.num_channels,):
            raise ValueError(f"GroupNorm: x has {self.num_channels} channels, unlike {x.shape}")
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The numbers of groups and channels, and the options."""
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={affine}"


def _checked_sizes(name: str, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    if not sizes:
        raise ValueError(f"{name}: normalized_shape names one axis at least, unlike ()")
    for size in sizes:
        check_positive(f"{name}: each size of normalized_shape", size)
    return tuple(sizes)


def _checked_eps(name: str, eps: float) -> float:
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name}: eps is a small number that is not negative, not {eps!r}")
    return eps


def _described(norm: LayerNorm | RMSNorm) -> str:
    sizes = norm.normalized_shape
    missing = ", elementwise_affine=False" if norm.weight is None else ""
    return f"{sizes[0] if len(sizes) == 1 else sizes}, eps={norm.eps}{missing}"
