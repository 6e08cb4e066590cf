"""LoRALayer: a frozen linear layer plus a trainable low-rank update (LoRA).

A low-rank change of the weights is enough for fine-tuning, with little loss (Hu et al., 2021). So
LoRA trains rank (d_in + d_out) parameters instead of the d_out d_in elements of W. Gradients flow
to A, B and x, but never to W: no product and no saved activation is spent on the gradient of W.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import DEFAULT, Adapter, joined
from lora.scaling import LoRAScaling, check_rank_fits, check_size
from minigrad import kernels, ops
from minigrad.core.tensor import Tensor
from minigrad.nn import Linear, Parameter
from minigrad.ops.products import stored_linear


class LoRALayer(AdaptedLayer):
    """A linear layer with a low-rank adapter: `(..., d_in) -> (..., d_out)`.

        y = x W^T + b + scale (x A^T) B^T          A: (rank, d_in), B: (d_out, rank)

    W and b are frozen; A and B train (Hu et al., 2021, section 4.1). B begins at zero, so the first
    output equals that of the base. `merge` and `unmerge` are those of `AdaptedLayer`.

    Args:
        base_weight: W, `(d_out, d_in)` or flat with d_out * d_in elements; a Tensor or an array.
            The layer shares its memory as a detached view, and does not change its `requires_grad`.
            While the layer keeps W packed, this memory is read-only; reading `base_weight.data`
            makes it writable.
        d_out: the size of an output vector.
        d_in: the size of an input vector.
        rank: the rank of the update, at most min(d_out, d_in).
        alpha: the strength of the update; the scale is alpha / rank by default, see `scaling`.
        scaling: alpha / rank or alpha / sqrt(rank); see `LoRAScaling`.
        bias: b, `(d_out,)`, frozen, or None.
        dropout: the probability of dropping an element of the x that A multiplies, in training.
        rng: the generator that draws A and dropout; None for the default generator. A is normal
            with standard deviation 1 / rank.

    Raises:
        TypeError: if the weight has no float dtype, a size is not an integer, alpha or dropout
            is not a number, or `rng` is not a generator.
        ValueError: if shapes do not match, the rank is not in 1 ... min(d_out, d_in), alpha is not
            positive and finite, dropout is not a probability, or the scaling is unknown.
    """

    _prepacked: Any = None  # the packed panels of W; matrix products use them while they exist

    # The names that `Linear` uses:
    in_features = property(attrgetter("d_in"), doc="The size of an input vector.")
    out_features = property(attrgetter("d_out"), doc="The size of an output vector.")

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
        check_rank_fits(check_size("rank", rank), d_out, d_in)
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
        """Adapt `linear`: the new layer shares its weight and bias, and does not change them.

        The options and errors are those of the class. A layer of another kind, or with a weight in
        few bits, is refused with a TypeError; `lora.attach` adapts it.
        """
        if not isinstance(linear, Linear):
            kind = type(linear).__name__
            raise TypeError(
                f"LoRALayer.from_linear: takes a Linear, not {kind}; lora.attach adapts the "
                f"layers of a model, of each kind that has adapters"
            )
        options: Any = {"scaling": scaling, "bias": linear.bias, "dropout": dropout, "rng": rng}
        d_out, d_in = linear.weight.shape
        return cls(linear.weight, d_out, d_in, rank, alpha, **options)

    def plain(self) -> Linear:
        """Make a `Linear` with the merged weight; it shares no memory with this layer."""
        return self._plain(Linear, bias=None if self.bias is None else Parameter(self.bias))

    to_linear = plain

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Compute x W^T + b."""
        if isinstance(weight, Tensor):
            return ops.linear(x, weight.detach(), bias)
        return stored_linear(x, weight, bias)  # type: ignore[no-any-return]

    def _updated(
        self, x: Tensor, stored: Any, bias: Tensor | None, adapters: Sequence[Adapter]
    ) -> Tensor:
        """Compute base and update by one fused op, with the packed panels of W."""
        if not adapters or not isinstance(stored, Tensor):
            return super()._updated(x, stored, bias, adapters)
        a, b, scale = joined(adapters)
        weight = stored if stored.node is None else stored.detach()
        # W does not change from step to step, so its packed panels are kept for all products.
        panels = kernels.gemm.prepacked.prepack(weight._data)
        if panels is not self._prepacked:  # setting an attribute of a module takes a microsecond
            self._prepacked = panels
        return ops.lora_linear(x, weight, a, b, bias, scale)
