"""Metrics of predictions, for regression and for classification."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.core.tensor import as_array
from minigrad.errors import named_errors
from minigrad.functional.indexing import check_below
from minigrad.renamed import hint_names


@named_errors
def mse(prediction: Any, target: Any) -> float:
    """Return the mean squared error, mean((prediction - target)^2), computed in float64.

    Prediction and target are Tensors, arrays or lists of numbers of one shape.

    Raises:
        ValueError: if the shapes differ, or there are no numbers.
        TypeError: if they are not numbers.
    """
    return float(np.mean(_errors(prediction, target) ** 2))


@named_errors
def rmse(prediction: Any, target: Any) -> float:
    """Return the root of `mse`, in the unit of the target; the errors are those of `mse`."""
    return float(np.sqrt(mse(prediction, target)))


@named_errors
def mae(prediction: Any, target: Any) -> float:
    """Return the mean absolute error, mean(|prediction - target|), in the unit of the target.

    Raises:
        ValueError, TypeError: as in `mse`.
    """
    return float(np.mean(np.abs(_errors(prediction, target))))


@named_errors
def r2(prediction: Any, target: Any) -> float:
    """Return the share of the target's variance that is explained, 1 - SS_error / SS_total.

    1 is perfect. 0 is as good as predicting the mean of the target (of each column, if there are
    several). There is no lower bound.

    Raises:
        ValueError: if the target is constant, because the share is not defined then; if the shapes
            differ; or if there is no axis of rows, or no number.
        TypeError: if prediction or target are not numbers.
    """
    errors = _errors(prediction, target)
    y = as_array(target, np.float64)
    if y.ndim == 0:
        raise ValueError("r2 needs an axis of rows, and a single number has none")
    if (y == y[:1]).all():  # rounding may make their computed variance positive
        raise ValueError("r2 is not defined for a target that is constant")
    total = float(np.sum((y - y.mean(axis=0)) ** 2))
    if total == 0:
        raise ValueError("r2 is not defined: the squares of the target's deviations underflow to 0")
    return 1.0 - float(np.sum(errors**2)) / total


@named_errors
def accuracy(prediction: Any, target: Any) -> float:
    """Return the accuracy: the share of targets whose class has the highest score.

    The shapes of prediction and target are `(..., classes)` and `(...)`. If a score is nan, the
    result is nan.

    Raises:
        TypeError: if the targets are not integers.
        ValueError: if the shapes do not match, there are no targets, or a target is not a class.
    """
    scores, classes = (as_array(x, how="a metric") for x in (prediction, target))
    if classes.dtype.kind not in "iu":
        raise TypeError(f"targets are integer classes, not {classes.dtype}")
    if scores.shape[:-1] != classes.shape or scores.ndim == 0:
        raise ValueError(
            f"scores (..., classes) go with targets (...), not {scores.shape} with {classes.shape}"
        )
    if scores.size == 0:
        raise ValueError("there are no predictions to judge")
    check_below("targets", classes, scores.shape[-1], "classes")
    if np.isnan(scores).any():
        return float("nan")
    return float(np.mean(scores.argmax(-1) == classes))


def _errors(prediction: Any, target: Any) -> Any:
    p, y = (as_array(x, np.float64, "a metric") for x in (prediction, target))
    if p.shape != y.shape:
        raise ValueError(f"the prediction has shape {p.shape}, the target {y.shape}")
    if p.size == 0:
        raise ValueError("there are no predictions to judge")
    return p - y


hint_names(__name__, lists_all=True)
