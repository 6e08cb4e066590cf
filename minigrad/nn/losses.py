"""Losses as modules: called with a prediction and a target."""

from __future__ import annotations

from minigrad import functional
from minigrad.functional.losses import Reduction
from minigrad.nn.module import Module
from minigrad.tensor import Array, Tensor


class _Loss(Module):
    """A loss with a reduction: "mean", "sum" or "none"."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
        self.reduction = reduction

    def extra_repr(self) -> str:
        """The reduction."""
        return f"reduction={self.reduction!r}"


class MSELoss(_Loss):
    """(prediction - target)^2."""

    def forward(self, prediction: Tensor, target: Array) -> Tensor:
        """`functional.mse`."""
        return functional.mse(prediction, target, self.reduction)


class L1Loss(_Loss):
    """|prediction - target|."""

    def forward(self, prediction: Tensor, target: Array) -> Tensor:
        """`functional.l1`."""
        return functional.l1(prediction, target, self.reduction)


class CrossEntropyLoss(_Loss):
    """-log softmax(logits)[target], for integer classes."""

    def forward(self, logits: Tensor, target: Array) -> Tensor:
        """`functional.cross_entropy`."""
        return functional.cross_entropy(logits, target, self.reduction)
