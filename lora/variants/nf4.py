"""NF4Linear: a linear layer whose frozen weight is in four bits (QLoRA, Dettmers et al., 2023).

Gradients flow through it to x; it has nothing to train. `lora.quantize` replaces each linear layer
of a model by one, and `lora.attach` puts adapters on top.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lora.frozen import frozen_bias
from minigrad import kernels, ops
from minigrad.core.tensor import Tensor
from minigrad.nn import Linear, Module, Parameter


class NF4Linear(Module):
    """y = x W^T + b with a frozen W in four bits: `(..., in_features) -> (..., out_features)`.

    The weight is no parameter: optimisers, `state_dict` and `astype` ignore it, and a copy of the
    layer shares it, since it cannot change. `weight.arrays()` is what a file has to contain.

    Args:
        weight: W, an NF4Matrix `(out_features, in_features)`.
        bias: b, `(out_features,)`, whose memory is shared, frozen here; or None.
        dtype: the dtype of adapters on it, if there is no bias whose dtype they take.

    Raises:
        TypeError: if the weight is no NF4Matrix.
        ValueError: if the shapes do not match.
    """

    def __init__(
        self, weight: kernels.nf4.NF4Matrix, bias: Any = None, dtype: DTypeLike = np.float32
    ) -> None:
        if not isinstance(weight, kernels.nf4.NF4Matrix):
            raise TypeError(
                f"NF4Linear: the weight is an NF4Matrix, not {type(weight).__name__}; of a Linear, "
                f"NF4Linear.from_linear makes one"
            )
        self.weight = weight
        self._dtype = np.dtype(dtype)
        self.bias = None if bias is None else Parameter.sharing(Tensor(bias))
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise ValueError(
                f"NF4Linear: bias has shape {self.bias.shape}; for a weight of shape "
                f"{weight.shape} it must be {(self.out_features,)}"
            )

    @classmethod
    def from_linear(
        cls, linear: Linear, block_size: int = 64, double_quant: bool = True
    ) -> NF4Linear:
        """Make a layer with the weight of `linear` in four bits; the bias is shared.

        Raises:
            TypeError: if it is no Linear.
            ValueError: if the weight has NaN or Inf, or the block size is no positive integer.
        """
        if not isinstance(linear, Linear):
            raise TypeError(f"NF4Linear.from_linear: takes a Linear, not {type(linear).__name__}")
        weight = kernels.nf4.NF4Matrix.of(linear.weight._data, block_size, double_quant)
        layer = cls(weight, linear.bias, linear.weight.dtype)
        layer.training = linear.training
        return layer

    def to_linear(self, dtype: DTypeLike = np.float32) -> Linear:
        """Return a plain layer with the decoded weight, which shares nothing."""
        linear = Linear.__new__(Linear)
        linear.weight = Parameter(self.weight.dense(dtype))
        linear.bias = None if self.bias is None else Parameter(self.bias, dtype=dtype)
        linear.training = self.training
        return linear

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the bias, or of the weight before it was quantised."""
        return self._dtype if self.bias is None else self.bias.dtype

    @property
    def in_features(self) -> int:
        """The size of an input vector."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The size of an output vector."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b, in the dtype of x."""
        x = x if isinstance(x, Tensor) else Tensor(x)
        return ops.nf4_linear(x, self.weight, frozen_bias(self.bias))

    def extra_repr(self) -> str:
        """Describe the sizes, and how the weight is stored."""
        parts = [f"{self.in_features}, {self.out_features}"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += [f"block_size={self.weight.block_size}"]
        parts += [] if self.weight.double_quant else ["double_quant=False"]
        return ", ".join(parts)
