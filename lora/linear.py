"""LoRALayer: a frozen linear map, and a trainable one of low rank beside it.

    y = x W^T + b + scale (x A^T) B^T          A: (rank, d_in), B: (d_out, rank)

Fine-tuning changes a weight by a matrix of low rank, or can be made to at little loss (Hu et al.,
2021). So instead of the d_out d_in elements of W, only rank (d_in + d_out) are trained. B begins at
zero: the first output is that of the base. Gradients flow into A and B, and through to x; never
into W, for which no product runs and no activation is saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import DEFAULT, Adapter, joined
from lora.scaling import LoRAScaling, check_rank_and_alpha, check_size
from minigrad import kernels, ops
from minigrad.core.tensor import Tensor
from minigrad.nn import Linear, Parameter
from minigrad.ops.products import stored_linear


class LoRALayer(AdaptedLayer):
    """A linear layer with a low-rank adapter: `(..., d_in) -> (..., d_out)`.

    Args:
        base_weight: W, `(d_out, d_in)` or flat with d_out * d_in elements; a Tensor or an array. It
            becomes a detached view: its memory is shared, its `requires_grad` not changed. While
            the layer has it packed the memory is read-only; `base_weight.data` ends that.
        d_out: the size of an output vector.
        d_in: the size of an input vector.
        rank: the rank of the update, at most min(d_out, d_in).
        alpha: the strength of the update, before it is divided; see `LoRAScaling`.
        scaling: alpha / rank or alpha / sqrt(rank).
        bias: b, `(d_out,)`, frozen, or None.
        dropout: the probability of dropping an element of x on its way to A, in training.
        rng: the generator of A, and of dropout. A is Gaussian with standard deviation 1 / rank.

    Raises:
        TypeError: if the weight is not of floats, or a size is no integer.
        ValueError: if shapes do not match, the rank is not in 1 ... min(d_out, d_in), alpha is not
            a positive number, or dropout no probability.
    """

    _prepacked: Any = None  # the panels of W, which a product finds while they are here

    def __init__(
        self,
        base_weight: Any,
        d_out: int,
        d_in: int,
        rank: int,
        alpha: float,
        *,
        scaling: LoRAScaling = LoRAScaling.STANDARD,
        bias: Any = None,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        d_out, d_in = (check_size(n, v) for n, v in (("d_out", d_out), ("d_in", d_in)))
        check_rank_and_alpha(rank, alpha)
        check_rank_fits(rank, d_out, d_in)
        weight = Tensor(base_weight)
        if weight.dtype.kind != "f":
            raise TypeError(f"base_weight must be of floats, not {weight.dtype}")
        if weight.shape not in ((d_out, d_in), (d_out * d_in,)):
            raise ValueError(
                f"base_weight has shape {weight.shape}; for d_out={d_out} and d_in={d_in} it must "
                f"be {(d_out, d_in)}, or flat with {d_out * d_in} elements"
            )
        shared = None if bias is None else Parameter.sharing(Tensor(bias, dtype=weight.dtype))
        if shared is not None and shared.shape != (d_out,):
            raise ValueError(f"bias has shape {shared.shape}; it must be {(d_out,)}")
        super().__init__(Parameter.sharing(weight.detach().reshape(d_out, d_in)), shared)
        adapter = Adapter(self.weight, rank, alpha, scaling=scaling, dropout=dropout, rng=rng)
        self.add(DEFAULT, adapter)
        self.use([DEFAULT])

    @classmethod
    def from_linear(
        cls,
        linear: Linear,
        rank: int,
        alpha: float,
        *,
        scaling: LoRAScaling = LoRAScaling.STANDARD,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> LoRALayer:
        """Put an adapter on `linear`, whose weight and bias it shares and does not change."""
        options: Any = {"scaling": scaling, "bias": linear.bias, "dropout": dropout, "rng": rng}
        d_out, d_in = linear.weight.shape
        return cls(linear.weight, d_out, d_in, rank, alpha, **options)

    def plain(self) -> Linear:
        """Make a plain layer with the weight W + scale B A, which shares nothing.

        A RuntimeError is raised if the layer is merged, but A, B, W or the scale changed since.
        """
        return self._plain(Linear, bias=None if self.bias is None else Parameter(self.bias))

    to_linear = plain

    @property
    def in_features(self) -> int:
        """The size of an input vector, as a `Linear` calls it."""
        return self.d_in

    @property
    def out_features(self) -> int:
        """The size of an output vector, as a `Linear` calls it."""
        return self.d_out

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Compute x W^T + b."""
        if isinstance(weight, Tensor):
            return ops.linear(x, weight.detach(), bias)
        return stored_linear(x, weight, bias)  # type: ignore[no-any-return]

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Compute x M^T."""
        return ops.linear(x, matrix)

    def _updated(
        self, x: Tensor, stored: Any, bias: Tensor | None, adapters: Sequence[Adapter]
    ) -> Tensor:
        """Compute one fused product, with the packed panels of a frozen W."""
        if not adapters or not isinstance(stored, Tensor):
            return super()._updated(x, stored, bias, adapters)
        a, b, scale = joined(adapters)
        weight = stored if stored.node is None else stored.detach()
        # W stays as it is from step to step, so its packed panels, which products find, may too.
        panels = kernels.gemm.prepacked.prepack(weight._data)
        if panels is not self._prepacked:  # setting an attribute of a module takes a microsecond
            self._prepacked = panels
        return ops.lora_linear(x, weight, a, b, bias, scale)


def largest_rank(shape: tuple[int, ...]) -> int:
    """Return the largest rank that an update of a weight of this shape can have."""
    return min(shape[0], math.prod(shape[1:]))


def check_rank_fits(rank: int, d_out: int, d_in: int) -> None:
    """Raise a ValueError if B A cannot have this rank, which is larger than one of the sizes."""
    if rank > min(d_out, d_in):
        raise ValueError(
            f"rank {rank} is larger than min(d_out, d_in) = {min(d_out, d_in)}; B A has no "
            f"more rank than that, so a larger one only costs"
        )
