"""The layers that an MLP is made of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minigrad import functional, ops, random
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter
from minigrad.tensor import Tensor


class Linear(Module):
    """y = x W^T + b: `(..., in_features) -> (..., out_features)`.

    Weight and bias begin uniform in +-1 / sqrt(in_features), as PyTorch's do.

    Attributes:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`, or None.

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not all(
            isinstance(size, (int, np.integer)) and size >= 1
            for size in (in_features, out_features)
        ):
            raise ValueError(
                f"Linear: sizes are positive integers, not {in_features!r} and {out_features!r}"
            )
        self.weight = Parameter(np.empty((out_features, in_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), rng=rng)
        if self.bias is not None:
            bound = 1 / math.sqrt(in_features)
            init.uniform_(self.bias, -bound, bound, rng=rng)

    @property
    def in_features(self) -> int:
        """The size of an input vector."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The size of an output vector."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.in_features}, {self.out_features}" + (
            "" if self.bias is not None else ", bias=False"
        )


class Dropout(Module):
    """In training, each element is 0 with probability `p`, else x / (1 - p); x in evaluation.

    Raises:
        ValueError: if `p` is not in [0, 1].
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        random.check_probability("Dropout: p", p)
        self.p = p
        self.rng = rng

    def forward(self, x: Tensor) -> Tensor:
        """`functional.dropout`."""
        return functional.dropout(x, self.p, self.training, rng=self.rng)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Sequential(Module):
    """Modules, or functions of one tensor, one after the other; they are named "0", "1", ...

    Raises:
        TypeError: if one cannot be called.
    """

    def __init__(self, *layers: Callable[[Tensor], Tensor]) -> None:
        for i, layer in enumerate(layers):
            _check_callable(layer, f"Sequential: layer {i}")
            vars(self)[str(i)] = layer

    def __iter__(self) -> Iterator[Callable[[Tensor], Tensor]]:
        return (layer for name, layer in vars(self).items() if name.isdigit())

    def forward(self, x: Tensor) -> Tensor:
        """layers[-1](... layers[0](x))."""
        for layer in self:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int) -> Callable[[Tensor], Tensor]:
        return list(self)[index]


class MLP(Module):
    """Linear layers with an activation between each two: sizes (4, 64, 64, 1) give three layers.

    Args:
        sizes: of the input, the hidden layers and the output.
        activation: what to put between the layers.
        dropout: the probability of dropout after each activation.
        dtype: of the parameters.
        rng: where the weights (and what is dropped) are drawn from.

    Raises:
        ValueError: if there are fewer than two sizes.
        TypeError: if the sizes are no sequence, or the activation cannot be called.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[Tensor], Tensor] = ops.relu,
        dropout: float = 0.0,
        *,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not isinstance(sizes, Sequence):
            raise TypeError(f"MLP: sizes are a sequence, as in MLP([2, 3, 1]), not {sizes!r}")
        _check_callable(activation, "MLP: the activation")
        if len(sizes) < 2:
            raise ValueError(f"MLP: sizes are at least those of input and output, not {sizes!r}")
        self.activation = activation
        self.dropout = Dropout(dropout, rng=rng) if dropout else None
        self.layers = [
            Linear(d_in, d_out, dtype=dtype, rng=rng) for d_in, d_out in itertools.pairwise(sizes)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The layers in turn."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
            if self.dropout is not None:
                x = self.dropout(x)
        return self.layers[-1](x)  # type: ignore[no-any-return]  # what a module returns is Any

    def extra_repr(self) -> str:
        """The activation, if it is a plain function."""
        name = getattr(self.activation, "__name__", None)
        return f"activation={name}" if name else ""


def _check_callable(layer: Any, role: str) -> None:
    if isinstance(layer, type):
        raise TypeError(f"{role} is the class {layer.__name__}; make one, as in {layer.__name__}()")
    if not callable(layer):
        raise TypeError(f"{role} must be a module or a function of a tensor, not {layer!r:.60}")
