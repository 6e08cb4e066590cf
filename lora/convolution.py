"""LoRAConv: a frozen convolution plus a trainable low-rank update.

A convolution multiplies each patch of an image, C h w numbers, by a matrix whose rows are the
filters. So its adapter is the adapter of a linear layer that is called on patches.
"""

from __future__ import annotations

from typing import Any, Self

from lora.adapted_layer import AdaptedLayer
from lora.frozen import Array, DenseMatrix, LayerMatrix
from minigrad import functional, ops
from minigrad.core.tensor import Tensor
from minigrad.nn import Conv1d, Conv2d, Parameter

_USUAL = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # the options of a convolution


class LoRAConv(AdaptedLayer):
    """A convolution with adapters, of images `(N, C, H, W)` or of sequences `(N, C, L)`.

        y = conv(x, W) + b + scale B conv(x, A)      A: (rank, C h w), B: (O, rank)

    The rows of A are filters like those of W, and B is a 1 x 1 convolution. A has the dilation of
    W, but PEFT's A has none. So PEFT cannot use the adapter of a layer that `is_dilated`.

    In a grouped convolution, as in PEFT, A `(rank, C h w)` sees the channels of all groups, and B
    `(O, rank / groups)` has the groups of W, which must divide the rank. The update is a
    convolution of all channels, so it cannot be merged into W, `(O, C / groups, h, w)`: `merge` and
    `plain` raise a ValueError.

    `lora.attach` makes one; `LoRAConv.around(conv)` makes one without an adapter.
    """

    options: dict[str, Any]  # those of the convolution, by the names in `_USUAL`

    @classmethod
    def around(cls, layer: Conv2d) -> Self:
        """Make a layer without an adapter, which shares the parameters of `layer`."""
        made = super().around(layer)
        made.options = {name: getattr(layer, name) for name in _USUAL}
        return made

    def plain(self) -> Conv2d:
        """Make a `Conv2d` or `Conv1d` with the merged filters; it shares no memory with this."""
        kind = Conv1d if self.base_weight.ndim == 3 else Conv2d
        bias = None if self.bias is None else Parameter(self.bias)
        return self._plain(kind, bias=bias, **self.options)

    @property
    def groups(self) -> int:
        """The number of groups of the filters."""
        return int(self.options["groups"])

    @property
    def is_dilated(self) -> bool:
        """Whether the dilation is larger than 1."""
        pairs = zip(self.base_weight.shape[2:], self.options["dilation"], strict=True)
        return any(size > 1 and dilation > 1 for size, dilation in pairs)

    def weight_of(self, stored: Any) -> LayerMatrix:
        """Return the filters as the rows of a matrix, with their groups."""
        return DenseMatrix(stored, self.groups)

    def stored(self, matrix: Array) -> Array:
        """Return the rows of a matrix as filters."""
        return matrix.reshape(self.base_weight.shape)

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Compute conv(x, W) + b."""
        return _convolve(x, weight.detach(), bias, **self.options)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Compute conv(x, M), with the rows of M as filters of all channels."""
        _, channels, *kernel = self.base_weight.shape
        filters = ops.reshape(matrix, (-1, channels * self.groups, *kernel))
        return _convolve(x, filters, **self.options | {"groups": 1})

    def times_b(self, h: Tensor, b: Tensor) -> Tensor:
        """Multiply the channels of h by B, as a 1 x 1 convolution with the groups of W."""
        return _convolve(h, self.broadcast_outputs(b), groups=self.groups)

    def broadcast_outputs(self, values: Tensor) -> Tensor:
        """Append the axes of a 1 x 1 kernel; a vector then broadcasts with the outputs."""
        return ops.reshape(values, (*values.shape, *(1,) * (self.base_weight.ndim - 2)))

    def base_facts(self) -> list[str]:
        """Describe the kernel, and a stride, padding, dilation or groups if not the default."""
        _, _, *kernel = self.base_weight.shape
        usual = {name: (value, (value,) * len(kernel)) for name, value in _USUAL.items()}
        options = [f"{n}={value}" for n, value in self.options.items() if value not in usual[n]]
        return [f"kernel_size={(*kernel,)}", *options]


def _convolve(x: Tensor, filters: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    convolve = functional.conv1d if filters.ndim == 3 else functional.conv2d
    return convolve(x, filters, bias, **options)
