"""Layers that bring values to one scale, so that they neither grow nor shrink with depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from minigrad import ops
from minigrad.checks import check_positive
from minigrad.core.tensor import Tensor
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter

__all__ = ["LayerNorm", "RMSNorm"]


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
