"""Losses as modules: called with a prediction and a target."""

from __future__ import annotations

from minigrad import functional
from minigrad.checks import check_probability
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.losses import Reduction, check_reduction
from minigrad.nn.module import Module


class _Loss(Module):
    """A loss with a reduction: "mean", "sum" or "none"."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        check_reduction(reduction)
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


class HuberLoss(_Loss):
    """0.5 d^2 for an error |d| <= `delta`, and delta (|d| - 0.5 delta) beyond (Huber, 1964).

    Raises:
        ValueError: if `delta` is not positive, or there is no such reduction.
    """

    def __init__(self, reduction: Reduction = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss: delta must be positive, not {delta!r}")
        self.delta = delta

    def forward(self, prediction: Tensor, target: Array) -> Tensor:
        """`functional.huber`."""
        return functional.huber(prediction, target, self.reduction, self.delta)

    def extra_repr(self) -> str:
        """The reduction, and where the loss turns linear."""
        return f"{super().extra_repr()}, delta={self.delta}"


class BCEWithLogitsLoss(_Loss):
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits), for targets t in [0, 1].

    Args:
        reduction: "mean", "sum" or "none".
        pos_weight: a factor for the first term, broadcast: above 1, it is worse to miss a positive.
    """

    def __init__(self, reduction: Reduction = "mean", *, pos_weight: Array = None) -> None:
        super().__init__(reduction)
        self.pos_weight = pos_weight

    def forward(self, logits: Tensor, target: Array) -> Tensor:
        """`functional.binary_cross_entropy_with_logits`."""
        return functional.binary_cross_entropy_with_logits(
            logits, target, self.reduction, pos_weight=self.pos_weight
        )


class CrossEntropyLoss(_Loss):
    """-log softmax(logits)[target], for integer classes or for probabilities of the classes.

    Args:
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, how much each class counts.
        ignore_index: targets of this value have no loss, and do not count in the mean.
        label_smoothing: this much of the probability is spread evenly over all classes.

    Raises:
        ValueError: if `label_smoothing` is not in [0, 1], or there is no such reduction.
    """

    def __init__(
        self,
        reduction: Reduction = "mean",
        *,
        weight: Array = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        check_probability("CrossEntropyLoss: label_smoothing", label_smoothing)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Array) -> Tensor:
        """`functional.cross_entropy`."""
        return functional.cross_entropy(
            logits,
            target,
            self.reduction,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """The reduction, and what is not as usual."""
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return super().extra_repr() + _ignored(self.ignore_index) + smoothing


class NLLLoss(_Loss):
    """-log_probabilities[target], for integer classes: `CrossEntropyLoss` after a `LogSoftmax`.

    Args:
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, how much each class counts.
        ignore_index: targets of this value have no loss, and do not count in the mean.
    """

    def __init__(
        self, reduction: Reduction = "mean", *, weight: Array = None, ignore_index: int = -100
    ) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.ignore_index = ignore_index

    def forward(self, log_probabilities: Tensor, target: Array) -> Tensor:
        """`functional.nll`."""
        return functional.nll(
            log_probabilities,
            target,
            self.reduction,
            weight=self.weight,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """The reduction, and the target that is ignored."""
        return super().extra_repr() + _ignored(self.ignore_index)


def _ignored(index: int) -> str:
    return f", ignore_index={index}" if index != -100 else ""
