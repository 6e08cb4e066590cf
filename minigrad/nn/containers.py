"""Modules that call other modules, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minigrad import ops
from minigrad.core.tensor import Tensor
from minigrad.nn.layers import Dropout, Linear
from minigrad.nn.module import Module


class Sequential(Module):
    """Modules, or functions of one tensor, called one after the other and named "0", "1", ...

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
        """Return layers[-1](... layers[0](x))."""
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
        sizes: the sizes of the input, the hidden layers and the output.
        activation: the function between the layers.
        dropout: the probability of dropout after each activation.
        bias: whether the layers have one.
        dtype: the dtype of the parameters.
        rng: the generator of the weights and of the dropout.

    Raises:
        ValueError: if there are fewer than two sizes, or one is not a positive integer, or dropout
            is not a probability.
        TypeError: if the sizes are no sequence, or the activation cannot be called.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[Tensor], Tensor] = ops.relu,
        dropout: float = 0.0,
        bias: bool = True,
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
        """The activation, if it is a plain function."""
        name = getattr(self.activation, "__name__", None)
        return f"activation={name}" if name else ""


def _check_callable(layer: Any, role: str) -> None:
    if isinstance(layer, type):
        raise TypeError(f"{role} is the class {layer.__name__}; make one, as in {layer.__name__}()")
    if not callable(layer):
        raise TypeError(f"{role} must be a module or a function of a tensor, not {layer!r:.60}")
