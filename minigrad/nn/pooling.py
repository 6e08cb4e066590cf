"""Pooling layers: the largest element, or the mean, of each window of an image or a sequence."""

from __future__ import annotations

from dataclasses import KW_ONLY

from minigrad import functional
from minigrad.functional.pooling import OutputSizes
from minigrad.nn.module import FunctionModule
from minigrad.ops.convolutions import Sizes

__all__ = ["AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AvgPool1d", "AvgPool2d", "MaxPool1d"]
__all__ += ["MaxPool2d"]


class MaxPool1d(FunctionModule):
    """The largest element of each window: `(N, C, L) -> (N, C, L')`, as `max_pool1d`.

    Raises:
        ValueError, TypeError: when called, as `max_pool1d`.
    """

    function = functional.max_pool1d
    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    dilation: Sizes = 1
    _: KW_ONLY
    ceil_mode: bool = False


class MaxPool2d(MaxPool1d):
    """The largest element of each window: `(N, C, H, W) -> (N, C, H', W')`, as `max_pool2d`.

    Indices are not returned.

    Raises:
        ValueError, TypeError: when called, as `max_pool2d`.
    """

    function = functional.max_pool2d


class AvgPool1d(FunctionModule):
    """The mean of each window: `(N, C, L) -> (N, C, L')`, as `avg_pool1d`.

    Raises:
        ValueError, TypeError: when called, as `avg_pool1d`.
    """

    function = functional.avg_pool1d
    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    ceil_mode: bool = False
    count_include_pad: bool = True


class AvgPool2d(AvgPool1d):
    """The mean of each window: `(N, C, H, W) -> (N, C, H', W')`, as `avg_pool2d`.

    Raises:
        ValueError, TypeError: when called, as `avg_pool2d`.
    """

    function = functional.avg_pool2d
    divisor_override: int | None = None


class AdaptiveAvgPool1d(FunctionModule):
    """The means of `output_size` windows: `(N, C, L) -> (N, C, L')`, as `adaptive_avg_pool1d`.

    Raises:
        ValueError: when called, as `adaptive_avg_pool1d`.
    """

    function = functional.adaptive_avg_pool1d
    output_size: OutputSizes


class AdaptiveAvgPool2d(AdaptiveAvgPool1d):
    """The means of `output_size` windows, as `adaptive_avg_pool2d`.

    Shapes: `(N, C, H, W) -> (N, C, H', W')`.

    Raises:
        ValueError: when called, as `adaptive_avg_pool2d`.
    """

    function = functional.adaptive_avg_pool2d
