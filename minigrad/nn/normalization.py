"""Normalisation layers, which keep the scale of values the same at every depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad import functional, ops
from minigrad.checks import check_flag, check_positive, check_range, for_each_axis
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.creation import or_float32
from minigrad.nn import init
from minigrad.nn.module import Buffer, Module, Parameter, as_input
from minigrad.versions import mark_written

__all__ = ["BatchNorm1d", "BatchNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"]


def _described(norm: LayerNorm | RMSNorm) -> str:
    """Return the sizes, eps, and whether the weight is missing."""
    sizes = norm.normalized_shape
    missing = ", elementwise_affine=False" if norm.weight is None else ""
    return f"{sizes[0] if len(sizes) == 1 else sizes}, eps={norm.eps}{missing}"


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) over the last axes, times `weight`, plus `bias`.

    From Ba et al., 2016. The result has the shape of x, `(..., *normalized_shape)`.

    Args:
        normalized_shape: the sizes of the last axes, over which mean and variance are computed; one
            number means the last axis only.
        eps: a small number that keeps the root away from 0.
        elementwise_affine: whether the layer has a weight and a bias.
        bias: whether the layer has a bias besides the weight.

    Attributes:
        weight: of shape `normalized_shape`, initially ones; or None.
        bias: of shape `normalized_shape`, initially zeros; or None.

    Raises:
        ValueError: if a size is not a positive integer, or `eps` is negative.
        TypeError: if an option is not a number or a flag.
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
        self.normalized_shape = _checked_sizes(normalized_shape)
        check_range("eps", eps, 0, np.inf)
        check_flag("elementwise_affine", elementwise_affine)
        check_flag("bias", bias)
        self.eps = eps
        shape, bias = self.normalized_shape, elementwise_affine and bias
        self.weight, self.bias = _affine_pair(shape, dtype, elementwise_affine, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `layer_norm` of x; a ValueError if x does not end in `normalized_shape`."""
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the sizes, eps, and which parameters are missing."""
        missing = ", bias=False" if self.weight is not None and self.bias is None else ""
        return _described(self) + missing


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) over the last axes, times `weight` (Zhang and Sennrich, 2019).

    Arguments, `weight` and errors are as in `LayerNorm`; there is no bias. If `eps` is None, it is
    the machine epsilon of the dtype of x.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _checked_sizes(normalized_shape)
        if eps is not None:
            check_range("eps", eps, 0, np.inf)
        check_flag("elementwise_affine", elementwise_affine)
        self.eps = eps
        self.weight, _ = _affine_pair(self.normalized_shape, dtype, elementwise_affine, False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `rms_norm` of x; a ValueError if x does not end in `normalized_shape`."""
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    extra_repr = _described


class BatchNorm1d(Module):
    """(x - mean) / sqrt(var + eps) of each channel, times `weight`, plus `bias`.

    From Ioffe and Szegedy, 2015. The result has the shape of x, `(N, C)` or `(N, C, L)`. In
    training, the layer uses mean and variance of the batch, and updates the running mean and
    variance with them. In evaluation, it uses the running ones. `Trainer` refuses to train the
    layer on several ranks, because the running values of the ranks would differ.

    Args:
        num_features: the number of channels, C.
        eps: a small number that keeps the root away from 0.
        momentum: the weight of the batch in the running values; None for the plain mean of all
            batches.
        affine: whether the layer has a weight and a bias.
        track_running_stats: whether the layer has a running mean and variance; if False, it uses
            those of the batch also in evaluation.

    Attributes:
        weight, bias: `(C,)`, initially ones and zeros, or None.
        running_mean, running_var: buffers `(C,)`, initially zeros and ones, or None. The variances
            are unbiased.
        num_batches_tracked: a buffer, the number of batches in the running values, or None.

    Raises:
        ValueError: if C is not a positive integer, `eps` is negative, or the momentum is not in
            [0, 1].
        TypeError: if an option is not a number or a flag.
    """

    _axes: ClassVar[tuple[int, ...]] = (2, 3)
    _shapes: ClassVar[str] = "(N, C) or (N, C, L)"

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
        check_positive("num_features", num_features)
        if momentum is not None:
            check_range("momentum", momentum, 0, 1)
        check_range("eps", eps, 0, np.inf)
        check_flag("affine", affine)
        check_flag("track_running_stats", track_running_stats)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight, self.bias = _affine_pair(num_features, dtype, affine, affine)
        tracks = track_running_stats
        self.running_mean = Buffer(np.zeros(num_features, or_float32(dtype))) if tracks else None
        self.running_var = Buffer(np.ones(num_features, or_float32(dtype))) if tracks else None
        self.num_batches_tracked = Buffer(np.zeros((), np.int64)) if tracks else None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by `minigrad.batch_norm`.

        Raises:
            ValueError: if x has a wrong number of axes or channels, or if in training a channel has
                fewer than two elements.
        """
        x = as_input(self, x)
        if x.ndim not in self._axes or x.shape[1] != self.num_features:
            wanted = f"{self._shapes} with C = {self.num_features}"
            raise ValueError(f"{type(self).__name__} takes {wanted}, not shape {x.shape}")
        momentum, tracked = self.momentum, self.num_batches_tracked
        if self.training and tracked is not None and momentum is None:
            momentum = observed(share_of_batch, tracked._data)
        out = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or tracked is None, 0.0 if momentum is None else momentum, self.eps,
        )  # fmt: skip
        if self.training and tracked is not None:
            observed(count_batch, tracked._data)
        return out

    def extra_repr(self) -> str:
        """Return the number of channels and the options, as PyTorch prints them."""
        flags = self.weight is not None, self.running_mean is not None
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={flags[0]}, "
            f"track_running_stats={flags[1]}"
        )


class BatchNorm2d(BatchNorm1d):
    """`BatchNorm1d` for images `(N, C, H, W)`: a channel has N H W elements.

    Arguments, attributes and errors are those of `BatchNorm1d`.
    """

    _axes = (4,)
    _shapes = "(N, C, H, W)"


def share_of_batch(tracked: NDArray[Any]) -> float:
    """Return the weight of the newest batch in the plain mean of `tracked` batches."""
    return 1 / (1 + float(tracked))


def count_batch(tracked: NDArray[Any]) -> None:
    """Add 1 to the number of batches."""
    tracked += 1
    mark_written(tracked)


class GroupNorm(Module):
    """(x - mean) / sqrt(var + eps) of each group of channels, times `weight`, plus `bias`.

    From Wu and He, 2018. The result has the shape of x, `(N, C, ...)`.

    Args:
        num_groups: the number of groups.
        num_channels: the number of channels, C, a multiple of num_groups.
        eps: a small number that keeps the root away from 0.
        affine: whether the layer has a weight and a bias.

    Attributes:
        weight, bias: `(C,)`, initially ones and zeros, or None.

    Raises:
        ValueError: if a number is not a positive integer, C is not a multiple of num_groups, or
            `eps` is negative.
        TypeError: if an option is not a number or a flag.
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
        check_positive("num_groups", num_groups)
        check_positive("num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(f"{num_groups} groups do not divide {num_channels} channels")
        check_range("eps", eps, 0, np.inf)
        check_flag("affine", affine)
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight, self.bias = _affine_pair(num_channels, dtype, affine, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return `group_norm` of x; a ValueError if x does not have `num_channels` channels."""
        x = as_input(self, x)
        if x.shape[1:2] != (self.num_channels,):
            wanted = f"(N, C, ...) with C = {self.num_channels}"
            raise ValueError(f"GroupNorm takes {wanted}, not shape {x.shape}")
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the numbers of groups and channels, and the options."""
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={affine}"


def _checked_sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    count = len(normalized_shape) if isinstance(normalized_shape, Sequence) else 1
    if count == 0:
        raise ValueError("normalized_shape must name at least one axis, not ()")
    return for_each_axis("each size of normalized_shape", normalized_shape, count)


def _affine_pair(
    shape: int | tuple[int, ...], dtype: DTypeLike, weight: bool, bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return a weight of ones and a bias of zeros; each is None if its flag is False."""
    return (
        init.ones_(Parameter.empty(shape, dtype)) if weight else None,
        init.zeros_(Parameter.empty(shape, dtype)) if bias else None,
    )
