"""Convolutional layers: filters that slide over an image or a sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from minigrad import functional
from minigrad.checks import check_flag, check_positive, for_each_axis
from minigrad.core.tensor import Tensor
from minigrad.functional.convolutions import check_padding
from minigrad.nn.layers import weight_and_bias
from minigrad.nn.module import Module, unusual
from minigrad.ops.convolutions import Sizes
from minigrad.random import Rng

__all__ = ["Conv1d", "Conv2d"]


class Conv2d(Module):
    """A convolution of images: `(N, C, H, W)` or `(C, H, W)` -> `(N, O, H', W')` or `(O, H', W')`.

    For the formula and the sizes of the result see `minigrad.convolution`. Padding adds zeros.
    Weight and bias are initialised uniformly in +-1 / sqrt(n), as in PyTorch; n is the number of
    weights of a filter.

    Args:
        in_channels: the channels C of an image.
        out_channels: the number O of filters, which are the channels of the result.
        kernel_size: the height and width of a filter, one number or two.
        stride: how far the filter moves between two elements of the result, one number or two.
        padding: the number of zeros around an image, one number or two, or "same" or "valid".
        dilation: the distance between elements of the kernel, one number or two.
        groups: the number of groups into which channels and filters are split.
        bias: whether the layer has a bias.

    Attributes:
        weight: `(O, C / groups, h, w)`.
        bias: `(O,)`, or None.

    Raises:
        ValueError: if a size is not a positive integer, groups do not divide both channels, or the
            padding is a negative number, an unknown name, or "same" with a stride other than 1.
        TypeError: if `bias` is not True or False.
    """

    _axes, _convolve = 2, staticmethod(functional.conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        for key, size in sizes.items():
            check_positive(key, size)
        check_flag("bias", bias)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide both {in_channels} and {out_channels} channels"
            )
        self.stride = self._sizes("stride", stride)
        if isinstance(padding, str):
            check_padding(padding, self.stride)
        else:
            padding = self._sizes("padding", padding, 0)
        self.padding = padding
        self.dilation = self._sizes("dilation", dilation)
        self.groups = groups
        shape = out_channels, in_channels // groups, *self._sizes("kernel_size", kernel_size)
        self.weight, self.bias = weight_and_bias(shape, bias, dtype, rng)

    def _sizes(self, name: str, value: Sizes, least: int = 1) -> tuple[int, ...]:
        return for_each_axis(name, value, self._axes, least)

    @property
    def in_channels(self) -> int:
        """The number of channels of an image."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """The number of filters."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The size of a filter."""
        return self.weight.shape[2:]

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x.

        Raises:
            ValueError: if the shape of x does not match, or a filter is larger than the padded x.
        """
        options = self.stride, self.padding, self.dilation, self.groups
        return self._convolve(x, self.weight, self.bias, *options)

    def extra_repr(self) -> str:
        """Return the channels, the size of a filter, and options that differ from the defaults."""
        ones, zeros = (1,) * self._axes, (0,) * self._axes
        usual = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1, "bias": True}
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return text + unusual(self, usual)


class Conv1d(Conv2d):
    """A convolution of sequences: `(N, C, L)` or `(C, L)` -> `(N, O, L')` or `(O, L')`.

    Arguments and attributes are as in `Conv2d`, but each option is one number, and the weight is
    `(O, C / groups, l)`.

    Raises:
        ValueError, TypeError: as in `Conv2d`.
    """

    _axes, _convolve = 1, staticmethod(functional.conv1d)
