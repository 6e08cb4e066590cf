"""Losses as modules: called with a prediction and a target."""

from __future__ import annotations

from dataclasses import KW_ONLY, field

from minigrad import functional
from minigrad.checks import check_above_0, check_probability
from minigrad.core.tensor import Array
from minigrad.functional.losses import Reduction, check_ignore_index, check_reduction
from minigrad.nn.module import FunctionModule

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss", "NLLLoss"]


class Loss(FunctionModule):
    """Base class of losses, with a reduction "mean", "sum" or "none"."""

    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        check_reduction(self.reduction)


class MSELoss(Loss):
    """(prediction - target)^2."""

    function = functional.mse


class L1Loss(Loss):
    """|prediction - target|."""

    function = functional.l1


class HuberLoss(Loss):
    """0.5 d^2 if the error |d| is at most `delta`, else delta (|d| - 0.5 delta) (Huber, 1964).

    Raises:
        ValueError: if `delta` is not positive, or the reduction is unknown.
    """

    function = functional.huber
    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_0("HuberLoss: delta", self.delta)


class BCEWithLogitsLoss(Loss):
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits), for targets t in [0, 1].

    Args:
        reduction: "mean", "sum" or "none".
        weight: a factor for each loss, broadcast.
        pos_weight: a factor for the first term, broadcast. If it is above 1, a missed positive
            costs more.
    """

    function = functional.binary_cross_entropy_with_logits
    _: KW_ONLY
    weight: Array = field(default=None, repr=False)
    pos_weight: Array = field(default=None, repr=False)


class CrossEntropyLoss(Loss):
    """-log softmax(logits)[target], for targets that are class indices or class probabilities.

    Args:
        reduction: "mean", "sum" or "none".
        weight: `(classes,)`, the weight of each class.
        ignore_index: targets of this value have no loss, and do not count in the mean.
        label_smoothing: the share of the probability that is spread evenly over all classes.

    Raises:
        ValueError: if `label_smoothing` is not in [0, 1], or the reduction is unknown.
    """

    function = functional.cross_entropy
    _: KW_ONLY
    weight: Array = field(default=None, repr=False)
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ignore_index(self.ignore_index)
        check_probability("CrossEntropyLoss: label_smoothing", self.label_smoothing)


class NLLLoss(Loss):
    """-log_probabilities[target]: together with `LogSoftmax`, the same as `CrossEntropyLoss`.

    `reduction`, `weight` and `ignore_index` are as in `CrossEntropyLoss`; targets are class
    indices.
    """

    function = functional.nll
    _: KW_ONLY
    weight: Array = field(default=None, repr=False)
    ignore_index: int = -100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ignore_index(self.ignore_index)
