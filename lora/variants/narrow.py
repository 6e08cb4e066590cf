"""Layers whose frozen weight is stored in few bits: NF4 (QLoRA, Dettmers et al., 2023) or bfloat16.

`lora.quantize` replaces the linear layers of a model by them, and `lora.attach` adds adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeGuard

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lora.frozen import frozen_bias
from minigrad import functional, kernels
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.nn import Linear, Module, Parameter
from minigrad.ops.products import stored_linear


class NarrowLinear(Module):
    """y = x W^T + b with a frozen W in few bits: `(..., in_features) -> (..., out_features)`.

    Gradients flow to x only; an adapter may train a copy of b. The weight is not a parameter:
    optimisers, `state_dict` and `astype` ignore it. A copy of the layer shares the weight, because
    it cannot change. `from_linear` makes a layer from a `Linear`.

    Args:
        weight: W, `(out_features, in_features)`: an NF4Matrix or a BFloat16Matrix, as the name of
            the layer says.
        bias: b, `(out_features,)`, frozen, whose memory the layer shares; or None.
        dtype: the dtype of adapters, if there is no bias; with a bias, they have its dtype.

    A TypeError is raised if the weight has another class, a ValueError if the shapes do not match.
    """

    _repr_format, _repr_defaults = Linear._repr_format, Linear._repr_defaults
    # Returns the class of the weight, which is imported only when it is needed.
    _kind: Callable[[], type[kernels.narrow.NarrowMatrix]]

    def __init__(self, weight: Any, bias: Any = None, dtype: DTypeLike = np.float32) -> None:
        kernels.narrow.check_kind(f"{type(self).__name__}: ", weight, self._kind())
        self.weight, self._dtype = weight, np.dtype(dtype)
        self.bias = None if bias is None else Parameter.sharing(Tensor(bias))
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise ValueError(
                f"{type(self).__name__}: bias has shape {self.bias.shape}; for a weight of shape "
                f"{weight.shape} it must be {(self.out_features,)}"
            )

    @classmethod
    def _from_linear(cls, linear: Any, *options: Any) -> Self:
        if not isinstance(linear, Linear):
            raise TypeError(
                f"{cls.__name__}.from_linear: takes a Linear, not {type(linear).__name__}"
            )
        weight: Any = cls._kind()
        layer = cls(weight.of(linear.weight._data, *options), linear.bias, linear.weight.dtype)
        layer.training = linear.training
        return layer

    def to_linear(self, dtype: DTypeLike = np.float32) -> Linear:
        """Return a `Linear` with the decoded weight; it shares no memory with this layer."""
        linear = Linear.__new__(Linear)
        linear.weight = Parameter(self.weight.dense(dtype))
        linear.bias = None if self.bias is None else Parameter(self.bias, dtype=dtype)
        linear.training = self.training
        return linear

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the bias, or without a bias the dtype of the weight before conversion."""
        return self._dtype if self.bias is None else self.bias.dtype

    @property
    def in_features(self) -> int:
        """The size of an input vector."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """The size of an output vector."""
        return int(self.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + b, in the dtype of x."""
        x = x if isinstance(x, Tensor) else Tensor(x)
        return stored_linear(x, self.weight, frozen_bias(self.bias))  # type: ignore[no-any-return]


class NF4Linear(NarrowLinear):
    """A linear layer with a frozen weight in four bits (NF4, Dettmers et al., 2023, section 3).

    An element of W is one of 16 levels times the absmax of its block, the largest absolute value.
    `weight` is an NF4Matrix, whose `arrays()` are the arrays to store in a file. For everything
    else see `lora.variants.narrow.NarrowLinear`.
    """

    _kind = staticmethod(lambda: kernels.nf4.NF4Matrix)

    @classmethod
    def from_linear(
        cls, linear: Linear, block_size: int = 64, double_quant: bool = True
    ) -> NF4Linear:
        """Make a layer with the weight of `linear` in four bits; the bias is shared.

        Args:
            linear: the layer, which is not changed.
            block_size: the number of elements of a row that share one absmax.
            double_quant: store each absmax in 8 bits (section 3, double quantization).

        Raises:
            TypeError: if `linear` is not a Linear.
            ValueError: if the weight has NaN, Inf or numbers beyond float32, or the block size is
                not a positive integer.
        """
        return cls._from_linear(linear, block_size, double_quant)

    def extra_repr(self) -> str:
        """Describe the sizes, and how the weight is stored."""
        double = "" if self.weight.double_quant else ", double_quant=False"
        return f"{super().extra_repr()}, block_size={self.weight.block_size}{double}"


class BFloat16Linear(NarrowLinear):
    """A linear layer with a frozen weight in bfloat16, as language models store it.

    `weight` is a BFloat16Matrix. For everything else see `lora.variants.narrow.NarrowLinear`.
    """

    _kind = staticmethod(lambda: kernels.bfloat16.BFloat16Matrix)

    @classmethod
    def from_linear(cls, linear: Linear) -> BFloat16Linear:
        """Make a layer with the weight of `linear` rounded to bfloat16; the bias is shared.

        Raises:
            TypeError: if `linear` is not a Linear.
            ValueError: if the weight has NaN or Inf, or numbers that overflow bfloat16.
            ImportError: if ml_dtypes is not installed.
        """
        layer = cls._from_linear(linear)
        if not layer.weight.is_finite():
            raise ValueError(
                "BFloat16Linear.from_linear: the weight has NaN or Inf, or numbers beyond 3.39e38, "
                "the largest number of bfloat16"
            )
        return layer


def widened(bits: NDArray[np.uint16], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert bfloat16 numbers, given by their bits, to floats of this dtype."""
    out = np.empty(bits.shape, dtype)
    kernels.bfloat16.widen(bits, out)
    return out


class BFloat16Embedding(Module):
    """A vector for each integer, from a frozen table in bfloat16: `(...) -> (..., embedding_dim)`.

    Only the selected rows are converted to floats. The table is not a parameter and cannot change,
    so a head that is tied to it is `BFloat16Linear(embedding.weight)`.

    Args:
        weight: the table, a BFloat16Matrix `(num_embeddings, embedding_dim)`;
            `BFloat16Matrix.of(embedding.weight.data)` makes one from an `Embedding`.
        dtype: the dtype of the vectors.

    Raises:
        TypeError: if the weight is not a BFloat16Matrix.
        ValueError: if the weight is a transpose.
    """

    _repr_format = "{self.weight.shape[0]}, {self.weight.shape[1]}"

    def __init__(
        self, weight: kernels.bfloat16.BFloat16Matrix, dtype: DTypeLike = np.float32
    ) -> None:
        kernels.narrow.check_kind("BFloat16Embedding: ", weight, kernels.bfloat16.BFloat16Matrix)
        if weight.is_transposed:
            raise ValueError("BFloat16Embedding: the weight is a transpose, whose rows are apart")
        self.weight = weight
        self.dtype = np.dtype(dtype)

    def forward(self, indices: Any) -> Tensor:
        """Return the vectors of the indices; errors are those of `minigrad.embedding`."""
        found: Any = functional.embedding(indices, self.weight.bits)
        bits = found._data if isinstance(found, Tensor) else found
        return Tensor(observed(widened, bits, self.dtype))


def is_narrow(module: Module) -> TypeGuard[NarrowLinear | BFloat16Embedding]:
    """Return whether the weight of a module is in few bits, and so is not a parameter."""
    return isinstance(module, (NarrowLinear, BFloat16Embedding))
