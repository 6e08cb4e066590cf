"""Losses as modules: called with a prediction and a target."""

from __future__ import annotations

from dataclasses import KW_ONLY, field
from typing import ClassVar

from minigrad import functional
from minigrad.checks import check_above_0, check_probability
from minigrad.core.tensor import Array
from minigrad.functional.losses import Reduction, check_ignore_index, check_reduction
from minigrad.nn.module import FunctionModule

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss", "NLLLoss"]


class Loss(FunctionModule):
    """Base class of losses, with a reduction "mean", "sum" or "none"."""

    _checks: ClassVar = {"reduction": check_reduction}
    reduction: Reduction = "mean"


class MSELoss(Loss):
    """The squared error (prediction - target)^2: its mean, its sum, or each value, as `mse`.

    Errors are those of `mse`; for the reduction alone, when the loss is made.
    """

    function = functional.mse


class L1Loss(Loss):
    """The absolute error |prediction - target|: its mean, its sum, or each value, as `l1`.

    Errors are those of `l1`; for the reduction alone, when the loss is made.
    """

    function = functional.l1


class HuberLoss(Loss):
    """0.5 d^2 if the error |d| is at most `delta`, else delta (|d| - 0.5 delta) (Huber, 1964).

    Errors are those of `huber`; for an option alone, when the loss is made.
    """

    function = functional.huber
    _checks: ClassVar = {**Loss._checks, "delta": check_above_0}
    delta: float = 1.0


class BCEWithLogitsLoss(Loss):
    """-t log s - (1 - t) log(1 - s) with s = sigmoid(logits), for targets t in [0, 1].

    Args:
        reduction: "mean", "sum" or "none".
        weight: a factor for each loss, broadcast.
        pos_weight: a factor for the first term, broadcast. If it is above 1, a missed positive
            costs more.

    Errors are those of `binary_cross_entropy_with_logits`; for the reduction alone, when the loss
    is made.
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

    Errors are those of `cross_entropy`; for an option other than `weight`, when the loss is made.
    """

    function = functional.cross_entropy
    _checks: ClassVar = {
        **Loss._checks,
        "ignore_index": check_ignore_index,
        "label_smoothing": check_probability,
    }
    _: KW_ONLY
    weight: Array = field(default=None, repr=False)
    ignore_index: int = -100
    label_smoothing: float = 0.0


class NLLLoss(Loss):
    """-log_probabilities[target]: together with `LogSoftmax`, the same as `CrossEntropyLoss`.

    `reduction`, `weight` and `ignore_index` are as in `CrossEntropyLoss`; targets are class
    indices. Errors are those of `nll`; for an option other than `weight`, when the loss is made.
    """

    function = functional.nll
    _checks: ClassVar = {**Loss._checks, "ignore_index": check_ignore_index}
    _: KW_ONLY
    weight: Array = field(default=None, repr=False)
    ignore_index: int = -100
