"""LoRAConv: a frozen convolution plus a trainable low-rank update.

A convolution multiplies each patch of an image, C h w numbers, by a matrix whose rows are the
filters. So its adapter is the adapter of a linear layer that is called on patches.
"""

from __future__ import annotations

from typing import Any, Self

from lora.adapted_layer import AdaptedLayer
from lora.frozen import Array
from minigrad import functional, ops
from minigrad.core.tensor import Tensor
from minigrad.nn import Conv1d, Conv2d, Parameter


class LoRAConv(AdaptedLayer):
    """A convolution with adapters, of images `(N, C, H, W)` or of sequences `(N, C, L)`.

        y = conv(x, W) + b + scale B conv(x, A)      A: (rank, C h w), B: (O, rank)

    The rows of A are filters like those of W, and B is a 1 x 1 convolution. A has the dilation of
    W, but PEFT's A has none. So PEFT cannot use the adapter of a layer that `is_dilated`.

    `lora.attach` makes one; `LoRAConv.around(conv)` makes one without an adapter. Both raise a
    ValueError for a grouped convolution.
    """

    options: tuple[Any, ...]  # stride, padding and dilation

    @classmethod
    def around(cls, layer: Conv2d) -> Self:
        """Make a layer without an adapter, which shares the parameters of `layer`."""
        if layer.groups > 1:
            raise ValueError(
                f"its filters are in {layer.groups} groups, and each sees the channels of its own, "
                f"where A sees all; so W + s B A would be no weight of the layer. Exclude it; "
                f"PEFT's adapters of such a layer cannot be loaded"
            )
        made = super().around(layer)
        made.options = layer.stride, layer.padding, layer.dilation
        return made

    def plain(self) -> Conv2d:
        """Make a `Conv2d` or `Conv1d` with the merged filters; it shares no memory with this."""
        kind = Conv1d if self.base_weight.ndim == 3 else Conv2d
        made = self._plain(kind, bias=None if self.bias is None else Parameter(self.bias), groups=1)
        made.stride, made.padding, made.dilation = self.options
        return made

    @property
    def is_dilated(self) -> bool:
        """Whether the dilation is larger than 1."""
        pairs = zip(self.base_weight.shape[2:], self.options[2], strict=True)
        return any(size > 1 and dilation > 1 for size, dilation in pairs)

    def stored(self, matrix: Array) -> Array:
        """Return the rows of a matrix as filters."""
        return matrix.reshape(self.base_weight.shape)

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Compute conv(x, W) + b."""
        return _convolve(x, weight.detach(), bias, *self.options)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Compute conv(x, M), with the rows of M as filters."""
        filters = ops.reshape(matrix, (-1, *self.base_weight.shape[1:]))
        return _convolve(x, filters, None, *self.options)

    def times_b(self, h: Tensor, b: Tensor) -> Tensor:
        """Multiply the channels of h by B, as a 1 x 1 convolution."""
        return _convolve(h, self.broadcast_outputs(b))

    def broadcast_outputs(self, values: Tensor) -> Tensor:
        """Append the axes of a 1 x 1 kernel; a vector then broadcasts with the outputs."""
        return ops.reshape(values, (*values.shape, *(1,) * (self.base_weight.ndim - 2)))

    def base_facts(self) -> list[str]:
        """Describe the kernel, and a stride, padding or dilation other than the default."""
        names, usual = ("kernel_size", "stride", "padding", "dilation"), (None, 1, 0, 1)
        facts = zip(names, (self.base_weight.shape[2:], *self.options), usual, strict=True)
        return [f"{name}={value}" for name, value, usually in facts if {*value} != {usually}]


def _convolve(x: Tensor, filters: Tensor, bias: Tensor | None = None, *options: Any) -> Tensor:
    convolve = functional.conv1d if filters.ndim == 3 else functional.conv2d
    return convolve(x, filters, bias, *options)
