"""Pooling layers: the largest element, or the mean, of each window of an image or a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, ClassVar

from minigrad import functional
from minigrad.errors import named_errors
from minigrad.functional.pooling import OutputSizes, counts, max_options, mean_options
from minigrad.nn.module import FunctionModule
from minigrad.ops.convolutions import Sizes

__all__ = ["AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AvgPool1d", "AvgPool2d", "MaxPool1d"]
__all__ += ["MaxPool2d"]


class _Pool(FunctionModule):
    """Base class of pooling layers, which checks their options."""

    _axes: ClassVar[int]
    _check: ClassVar[Callable[..., Any]]

    @named_errors
    def __post_init__(self) -> None:
        type(self)._check(self._axes, **{name: getattr(self, name) for name in self._options})


class MaxPool1d(_Pool):
    """The largest element of each window: `(N, C, L) -> (N, C, L')`, as `max_pool1d`.

    Errors are those of `max_pool1d`; for an option alone, when the layer is made.
    """

    function, _axes, _check = functional.max_pool1d, 1, max_options
    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    dilation: Sizes = 1
    _: KW_ONLY
    ceil_mode: bool = False


class MaxPool2d(MaxPool1d):
    """The largest element of each window: `(N, C, H, W) -> (N, C, H', W')`, as `max_pool2d`.

    Indices are not returned. Errors are those of `max_pool2d`; for an option alone, when the layer
    is made.
    """

    function, _axes = functional.max_pool2d, 2


class AvgPool1d(_Pool):
    """The mean of each window: `(N, C, L) -> (N, C, L')`, as `avg_pool1d`.

    Errors are those of `avg_pool1d`; for an option alone, when the layer is made.
    """

    function, _axes, _check = functional.avg_pool1d, 1, mean_options
    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    ceil_mode: bool = False
    count_include_pad: bool = True


class AvgPool2d(AvgPool1d):
    """The mean of each window: `(N, C, H, W) -> (N, C, H', W')`, as `avg_pool2d`.

    Errors are those of `avg_pool2d`; for an option alone, when the layer is made.
    """

    function, _axes = functional.avg_pool2d, 2
    divisor_override: int | None = None


class AdaptiveAvgPool1d(_Pool):
    """The means of `output_size` windows: `(N, C, L) -> (N, C, L')`, as `adaptive_avg_pool1d`.

    Errors are those of `adaptive_avg_pool1d`; for an option alone, when the layer is made.
    """

    function, _axes, _check = functional.adaptive_avg_pool1d, 1, counts
    output_size: OutputSizes


class AdaptiveAvgPool2d(AdaptiveAvgPool1d):
    """The means of `output_size` windows, as `adaptive_avg_pool2d`.

    Shapes: `(N, C, H, W) -> (N, C, H', W')`. Errors are those of `adaptive_avg_pool2d`; for an
    option alone, when the layer is made.
    """

    function, _axes = functional.adaptive_avg_pool2d, 2
