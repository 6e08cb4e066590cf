"""LoRALayer: a frozen linear map, and a trainable one of low rank beside it.

    y = x W^T + b + scale (x A^T) B^T          A: (rank, d_in), B: (d_out, rank)

Fine-tuning changes a weight by a matrix of low rank, or can be made to at little loss (Hu et al.,
2021). So instead of the d_out d_in numbers of W, only rank (d_in + d_out) are trained. B begins at
zero: the first output is that of the base. Gradients flow into A and B, and through to x; never
into W, for which no product runs and no activation is kept.

For inference, `merge()` computes W + scale B A once, so that a call costs no more than one of the
base. W itself is never written to. Hence `unmerge()` gives it back to the bit, which subtracting
what was added would not: (w + d) - d is not w in floating point.
"""

from __future__ import annotations

import enum
import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import functional, kernels, ops
from minigrad.memory import clock, last_written
from minigrad.mode import mode, no_grad
from minigrad.nn import Linear, Module, Parameter, init
from minigrad.random import check_probability
from minigrad.tensor import Tensor


class LoRAScaling(enum.Enum):
    """What the product B A is multiplied by."""

    STANDARD = "standard"
    """alpha / rank (Hu et al., 2021)."""

    RSLORA = "rslora"
    """alpha / sqrt(rank), which keeps the update's size at any rank (Kalajdzievski, 2023)."""

    def scale(self, alpha: float, rank: int) -> float:
        """The factor for an alpha and a rank."""
        return alpha / (rank if self is LoRAScaling.STANDARD else math.sqrt(rank))


class _Kept:
    """An attribute that stays the same parameter: assigning copies into it.

    So an optimiser that holds the parameter goes on training what the layer uses.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: LoRALayer | None, owner: type) -> Any:
        return self if layer is None else vars(layer)[self._name]

    def __set__(self, layer: LoRALayer, value: Any) -> None:
        held = vars(layer).setdefault(self._name, value)
        if held is not value:
            held.copy_(value)


class LoRALayer(Module):
    """A linear layer with a low-rank adapter: `(..., d_in) -> (..., d_out)`.

    Args:
        base_weight: W, `(d_out, d_in)` or flat with d_out * d_in elements; a Tensor or an array. It
            is held as a detached view: its memory is shared, its `requires_grad` not touched. While
            the layer keeps it packed the memory is read-only; `base_weight.data` ends that.
        d_out: the size of an output vector.
        d_in: the size of an input vector.
        rank: the rank of the update, at most min(d_out, d_in).
        alpha: the strength of the update, before it is divided; see `LoRAScaling`.
        scaling: alpha / rank or alpha / sqrt(rank).
        bias: b, `(d_out,)`, frozen, or None.
        dropout: the probability of dropping an element of x on its way to A, in training.
        rng: where A, and what is dropped, are drawn from.

    Attributes:
        base_weight: W, frozen.
        lora_a: A, `(rank, d_in)`, Gaussian with standard deviation 1 / rank at first. Assigning
            copies.
        lora_b: B, `(d_out, rank)`, zero at first. Assigning copies.
        scale: the factor in force, a float.

    Raises:
        TypeError: if the weight is not of floats, or a size is no integer.
        ValueError: if shapes do not match, the rank is not in 1 ... min(d_out, d_in), alpha is not
            a positive number, or dropout no probability.
    """

    base_weight: Parameter
    lora_a = _Kept()
    lora_b = _Kept()

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
        d_out, d_in = (_size(n, v) for n, v in (("d_out", d_out), ("d_in", d_in)))
        check_rank_and_alpha(rank, alpha)
        if rank > min(d_out, d_in):
            raise ValueError(
                f"rank {rank} is larger than min(d_out, d_in) = {min(d_out, d_in)}; B A has no "
                f"more rank than that, so a larger one only costs"
            )
        check_probability("dropout", dropout)
        weight = Tensor(base_weight)
        if weight.dtype.kind != "f":
            raise TypeError(f"base_weight must be of floats, not {weight.dtype}")
        if weight.shape not in ((d_out, d_in), (d_out * d_in,)):
            raise ValueError(
                f"base_weight has shape {weight.shape}; for d_out={d_out} and d_in={d_in} it must "
                f"be {(d_out, d_in)}, or flat with {d_out * d_in} elements"
            )
        self.base_weight = Parameter.sharing(weight.detach().reshape(d_out, d_in))
        self.bias = None if bias is None else Parameter.sharing(Tensor(bias, dtype=weight.dtype))
        if self.bias is not None and self.bias.shape != (d_out,):
            raise ValueError(f"bias has shape {self.bias.shape}; it must be {(d_out,)}")
        self.lora_a = Parameter(np.empty((rank, d_in), weight.dtype))
        self.lora_b = Parameter(np.zeros((d_out, rank), weight.dtype))
        init.normal_(self.lora_a, 0.0, 1 / rank, rng=rng)
        self._alpha = float(alpha)
        self._scaling = LoRAScaling(scaling)
        self.scale = self._scaling.scale(self._alpha, self.rank)
        self.dropout = dropout
        self.rng = rng
        self.enabled = True
        self._merged: _Merged | None = None
        self._panels: Any = None

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
        """An adapter on `linear`, whose weight and bias it shares and does not change."""
        return cls(
            linear.weight,
            linear.out_features,
            linear.in_features,
            rank,
            alpha,
            scaling=scaling,
            bias=linear.bias,
            dropout=dropout,
            rng=rng,
        )

    def to_linear(self) -> Linear:
        """A plain layer with the weight W + scale B A, and nothing shared.

        Raises:
            RuntimeError: if the layer is merged, and A, B, W or the scale were changed since.
        """
        if self._merged is not None:
            self._check_fresh(self._merged)
        linear = Linear.__new__(Linear)
        linear.weight = Parameter(self.merged_weight())
        linear.bias = None if self.bias is None else Parameter(self.bias)
        return linear

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return len(self.lora_a._data)

    @property
    def alpha(self) -> float:
        """The strength that the layer was made with; to change what is in force, assign `scale`."""
        return self._alpha

    @property
    def scaling(self) -> LoRAScaling:
        """How the first scale was made from alpha and the rank."""
        return self._scaling

    @property
    def d_in(self) -> int:
        """The size of an input vector."""
        return self.base_weight.shape[1]

    @property
    def d_out(self) -> int:
        """The size of an output vector."""
        return self.base_weight.shape[0]

    def trainable_params(self) -> list[Parameter]:
        """A and B: what to hand to an optimiser."""
        return [self.lora_a, self.lora_b]

    def forward(self, x: Any) -> Tensor:
        """x W^T + b + scale (x A^T) B^T.

        Raises:
            RuntimeError: if the layer is merged, and A, B or the scale were changed since, or a
                gradient for A or B would be lost.
        """
        x = x if isinstance(x, Tensor) else Tensor(x)
        # Detached: no gradient gets to the base, even if someone has set its flag.
        bias = None if self.bias is None else self.bias.detach()
        if self.enabled and self._merged is not None:
            self._check_fresh(self._merged)
            self._check_not_training()
            return ops.linear(x, self._merged.weight, bias)
        weight = self.base_weight.detach()
        if not self.enabled:
            return ops.linear(x, weight, bias)
        if not (self.dropout and self.training):
            # W stays as it is from step to step, so what is prepared for its products may stay too.
            self._panels = panels = kernels.panels.panels_of(weight._data)
            return ops.lora_linear(x, weight, self.lora_a, self.lora_b, bias, self.scale, panels)
        dropped = functional.dropout(x, self.dropout, rng=self.rng)
        update = ops.linear(ops.linear(dropped, self.lora_a) * self.scale, self.lora_b)
        return ops.linear(x, weight, bias) + update

    # ----------------------------------------------------------------------------------------------
    # Merging
    # ----------------------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Whether calls use the merged weight."""
        return self._merged is not None

    def merged_weight(self) -> Tensor:
        """W + scale B A, a new tensor."""
        with no_grad():
            return ops.add(self.base_weight, (self.lora_b @ self.lora_a) * self.scale)

    def merge(self) -> None:
        """Use W + scale B A from now on; W stays beside it as it is. Merging twice changes nothing.

        What was merged before A, B or the scale were changed is merged anew.
        """
        self._merged = _Merged(
            self.merged_weight(),
            self.lora_a._data.copy(),
            self.lora_b._data.copy(),
            self.scale,
            self.base_weight,
            next(clock),
        )

    def unmerge(self) -> None:
        """Use W, A and B again, and drop the merged weight. Unmerging twice changes nothing."""
        self._merged = None

    def _check_fresh(self, merged: _Merged) -> None:
        """Refuse to compute with a merged weight that is out of date."""
        changed = merged.changed(self)
        if changed:
            raise RuntimeError(
                f"{changed} changed since merge(), so the merged weight is out of date; call "
                f"merge() again to merge what it is now, or unmerge() to use A and B themselves"
            )

    def _check_not_training(self) -> None:
        """Refuse to lose a gradient: none gets from the merged weight to A and B."""
        if mode.grad_enabled and (self.lora_a.requires_grad or self.lora_b.requires_grad):
            raise RuntimeError(
                "the layer is merged, so no gradient would reach A and B, and training would "
                "change nothing; call unmerge() to train, or predict under no_grad(), or freeze A "
                "and B with requires_grad_(False)"
            )

    def extra_repr(self) -> str:
        """The sizes, the rank and the scale."""
        parts = [f"{self.d_in}, {self.d_out}, rank={self.rank}, alpha={self.alpha:g}"]
        parts.append(f"scale={self.scale:.4g}")
        parts += [f"dropout={self.dropout:g}"] if self.dropout else []
        parts += ["merged"] if self.merged else []
        parts += [] if self.enabled else ["disabled"]
        return ", ".join(parts)


@dataclass(frozen=True)
class _Merged:
    """A merged weight, and what it was made of."""

    weight: Tensor
    lora_a: NDArray[Any]
    lora_b: NDArray[Any]
    scale: float
    base: Parameter
    time: int

    def changed(self, layer: LoRALayer) -> str:
        """What of `layer` is no longer as it was, or nothing.

        A and B are compared with copies, which a raw write cannot escape; W, which may be large, by
        the time of its last write.
        """
        if not _same(self.lora_a, layer.lora_a._data):
            return "lora_a"
        if not _same(self.lora_b, layer.lora_b._data):
            return "lora_b"
        if self.scale != layer.scale:
            return "scale"
        written = last_written(layer.base_weight._data) > self.time
        return "base_weight" if written or layer.base_weight is not self.base else ""


def _same(x: NDArray[Any], y: NDArray[Any]) -> bool:
    return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)


def check_rank_and_alpha(rank: Any, alpha: Any) -> None:
    """Refuse a rank that is no positive integer, and an alpha that is no positive number.

    Raises:
        TypeError: if the rank is no integer, or alpha no number.
        ValueError: if one is not positive, or alpha not finite.
    """
    if _size("rank", rank) and (isinstance(alpha, bool) or not isinstance(alpha, numbers.Real)):
        raise TypeError(f"alpha must be a number, not {alpha!r}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number, not {alpha!r}")


def _size(name: str, value: Any) -> int:
    """`value` as a positive int, or an error."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return operator.index(value)
