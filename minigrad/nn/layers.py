"""The basic layers: linear, embedding, dropout, and containers of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import DTypeLike

from minigrad import functional, ops
from minigrad.checks import check_flag, check_integer, check_positive, check_probability, shown
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.neural import check_padding_idx
from minigrad.nn import init
from minigrad.nn.module import FunctionModule, Module, Parameter
from minigrad.random import Rng

__all__ = ["MLP", "Dropout", "Embedding", "Flatten", "GatedMLP", "Linear", "Sequential"]


class Linear(Module):
    """y = x W^T + b: `(..., in_features) -> (..., out_features)`.

    Weight and bias are initialised uniformly in +-1 / sqrt(in_features), as in PyTorch.

    Args:
        in_features: the size of an input vector.
        out_features: the size of an output vector.
        bias: whether the layer has a bias.

    Attributes:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`, or None.

    Raises:
        ValueError: if a size is not a positive integer.
        TypeError: if `bias` is not True or False, `dtype` is not a float dtype, or `rng` is not a
            generator; the last two in all layers with parameters.
    """

    _repr_format = "{self.in_features}, {self.out_features}"
    _repr_defaults: ClassVar = {"bias": True}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        check_positive("in_features", in_features)
        check_positive("out_features", out_features)
        check_flag("bias", bias)
        self.weight, self.bias = weight_and_bias((out_features, in_features), bias, dtype, rng)

    @property
    def in_features(self) -> int:
        """The size of an input vector."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The size of an output vector."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b.

        Raises:
            ValueError: if the last axis of x does not have the size `in_features`.
        """
        return ops.linear(x, self.weight, self.bias)


def weight_and_bias(
    shape: tuple[int, ...], bias: bool, dtype: DTypeLike, rng: Rng
) -> tuple[Parameter, Parameter | None]:
    """Make a weight and a bias, uniform in +-1 / sqrt(n) for n inputs of each output."""
    weight = init.kaiming_uniform_(Parameter.empty(shape, dtype), a=math.sqrt(5), rng=rng)
    if not bias:
        return weight, None
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return weight, init.uniform_(Parameter.empty(shape[0], dtype), -bound, bound, rng=rng)


class Embedding(Module):
    """A vector for each integer below `num_embeddings`: `(...) -> (..., embedding_dim)`.

    The vectors are initialised from the standard normal distribution, as in PyTorch.

    Args:
        num_embeddings: the number of vectors.
        embedding_dim: the size of a vector.
        padding_idx: an index whose vector starts as zeros and gets no gradient; a negative index
            counts from the end.

    Attributes:
        weight: `(num_embeddings, embedding_dim)`; each row is a vector.
        padding_idx: an index from 0 to num_embeddings - 1, or None.

    Raises:
        ValueError: if a size is not a positive integer, or there is no row `padding_idx`.
        TypeError: if `padding_idx` is not an integer.
    """

    _repr_format = "{self.num_embeddings}, {self.embedding_dim}"
    _repr_defaults: ClassVar = {"padding_idx": None}

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        check_positive("num_embeddings", num_embeddings)
        check_positive("embedding_dim", embedding_dim)
        if padding_idx is not None:
            padding_idx = check_padding_idx(padding_idx, num_embeddings)
        self.weight = init.normal_(Parameter.empty((num_embeddings, embedding_dim), dtype), rng=rng)
        self.padding_idx = padding_idx
        if padding_idx is not None:
            init.zeros_(self.weight.detach()[padding_idx])

    @property
    def num_embeddings(self) -> int:
        """The number of vectors."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """The size of a vector."""
        return self.weight.shape[1]

    def forward(self, indices: Array) -> Tensor:
        """Return the vectors of the indices, as `minigrad.embedding` does.

        Raises:
            TypeError: if the indices are not integers.
            IndexError: if an index is not from 0 to num_embeddings - 1.
        """
        return functional.embedding(indices, self.weight, self.padding_idx)


class Dropout(Module):
    """In training, set each element to 0 with probability `p`, and divide the others by 1 - p.

    From Srivastava et al., 2014. In evaluation, nothing is changed.

    Args:
        p: the probability.
        rng: the random generator; None for the default one, which `manual_seed` restarts.

    Raises:
        ValueError: if `p` is not in [0, 1].
        TypeError: if `p` is not a number; when called, if `rng` is not a generator.
    """

    _repr_format = "p={self.p}"

    def __init__(self, p: float = 0.5, *, rng: Rng = None) -> None:
        check_probability("p", p)
        self.p, self.rng = p, rng

    def forward(self, x: Tensor) -> Tensor:
        """Return x after dropout, as `minigrad.dropout` does; in evaluation, x itself."""
        return functional.dropout(x, self.p, self.training, rng=self.rng)


def _flatten(x: Any, start_dim: int, end_dim: int) -> Tensor:
    tensor: Tensor = x if isinstance(x, Tensor) else Tensor(x)
    return tensor.flatten(start_dim, end_dim)


class Flatten(FunctionModule):
    """Join the axes from `start_dim` to `end_dim`: `(n, a, b, ...) -> (n, a * b * ...)`.

    Raises:
        ValueError: when called, if x does not have these axes, or they are in the wrong order.
        TypeError: when called, if one of them is not an integer.
    """

    function = _flatten
    start_dim: int = 1
    end_dim: int = -1


# --------------------------------------------------------------------------------------------------
# Layers one after the other
# --------------------------------------------------------------------------------------------------


class Sequential(Module):
    """Modules, or functions of one tensor, called one after the other and named "0", "1", ...

    Raises:
        TypeError: if a layer cannot be called.
    """

    def __init__(self, *layers: Callable[[Tensor], Tensor]) -> None:
        for i, layer in enumerate(layers):
            _check_callable(layer, f"layer {i}")
            vars(self)[str(i)] = layer

    def __iter__(self) -> Iterator[Callable[[Tensor], Tensor]]:
        return (layer for name, layer in vars(self).items() if name.isdigit())

    def forward(self, x: Tensor) -> Tensor:
        """Return `layers[-1](... layers[0](x))`."""
        for layer in self:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def extra_repr(self) -> str:
        """Return the layers that are functions, and not modules."""
        functions = [(i, f) for i, f in enumerate(self) if not isinstance(f, Module)]
        return ", ".join(f"{i}={getattr(f, '__name__', f)}" for i, f in functions)

    @overload
    def __getitem__(self, index: int) -> Callable[[Tensor], Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...

    def __getitem__(self, index: int | slice) -> Callable[[Tensor], Tensor]:
        """Return one layer; or, for a slice, a Sequential of the same layers."""
        layers = list(self)
        return Sequential(*layers[index]) if isinstance(index, slice) else layers[index]

    def __setitem__(self, index: int, layer: Callable[[Tensor], Tensor]) -> None:
        """Replace one layer.

        Raises:
            IndexError: if there is no such layer.
            TypeError: if `index` is not an integer, or `layer` cannot be called.
        """
        check_integer("Sequential: the index of a layer", index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Sequential: there is no layer {index}; it has {len(self)} layers")
        name = str(index % len(self))
        _check_callable(layer, f"Sequential: layer {name}")
        setattr(self, name, layer)


class MLP(Module):
    """Linear layers with activations between them: sizes (4, 64, 64, 1) make three linear layers.

    Args:
        sizes: the sizes of the input, the hidden layers and the output.
        activation: the function between the layers.
        dropout: the probability of dropout after each activation.
        bias: whether the layers have a bias.

    Raises:
        ValueError: if there are fewer than two sizes, a size is not a positive integer, or dropout
            is not a probability.
        TypeError: if the sizes are not a sequence, the activation cannot be called, `dropout` is
            not a number, or `bias` is not True or False.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[Tensor], Tensor] = ops.relu,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        if not isinstance(sizes, Sequence):
            raise TypeError(f"sizes are a sequence, as in MLP([2, 3, 1]), not {sizes!r}")
        _check_callable(activation, "the activation")
        check_probability("dropout", dropout)
        if len(sizes) < 2:
            raise ValueError(f"sizes are at least those of input and output, not {sizes!r}")
        self.activation = activation
        self.dropout = Dropout(dropout, rng=rng) if dropout else None
        self.layers = [
            Linear(d_in, d_out, bias, dtype=dtype, rng=rng)
            for d_in, d_out in itertools.pairwise(sizes)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
            if self.dropout is not None:
                x = self.dropout(x)
        return self.layers[-1](x)  # type: ignore[no-any-return]  # a module returns Any

    def extra_repr(self) -> str:
        """Return the name of the activation, if it is a plain function."""
        name = getattr(self.activation, "__name__", None)
        return f"activation={name}" if name else ""


class GatedMLP(Module):
    """down(activation(gate(x)) * up(x)) (Shazeer, 2020): `(..., d_model) -> (..., d_model)`.

    Args:
        d_model: the size of a vector.
        d_ff: the size of the hidden vectors.
        activation: the function of the gate: silu for SwiGLU, gelu for GEGLU.
        bias: whether the layers have a bias.

    Raises:
        ValueError: if a size is not a positive integer.
        TypeError: if the activation cannot be called, or `bias` is not True or False.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[Tensor], Tensor] = ops.silu,
        bias: bool = False,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        _check_callable(activation, "the activation")
        self.activation = activation
        self.gate_proj = Linear(d_model, d_ff, bias, dtype=dtype, rng=rng)
        self.up_proj = Linear(d_model, d_ff, bias, dtype=dtype, rng=rng)
        self.down_proj = Linear(d_ff, d_model, bias, dtype=dtype, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Return down(activation(gate(x)) * up(x))."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        is_silu = self.activation is ops.silu
        hidden = ops.swiglu(gate, up) if is_silu else self.activation(gate) * up
        return self.down_proj(hidden)  # type: ignore[no-any-return]  # a module returns Any

    extra_repr = MLP.extra_repr


def _check_callable(layer: Any, role: str) -> None:
    if isinstance(layer, type):
        raise TypeError(f"{role} is the class {layer.__name__}; make one, as in {layer.__name__}()")
    if not callable(layer):
        hint = "; write Sequential(*layers)" if isinstance(layer, (list, tuple)) else ""
        hint = "; write Sequential(*layers.values())" if isinstance(layer, dict) else hint
        raise TypeError(
            f"{role} must be a module or a function of a tensor, not {shown(layer)}{hint}"
        )
