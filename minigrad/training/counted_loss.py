"""What a loss function returns: a mean, and perhaps the count that it is a mean over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minigrad.checks import check_range
from minigrad.core.tensor import Tensor

Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Any]]


def loss_and_count(result: Any) -> tuple[Tensor, float | None]:
    """Check the result of a loss function; return the loss and its count, or None without one.

    Raises:
        TypeError: if the result is neither a Tensor of one element, nor such a Tensor and a number.
        ValueError: if the count is negative or not finite.
    """
    loss, count = result, None
    if isinstance(loss, tuple) and len(loss) == 2:
        loss, count = loss
        count = count.item() if isinstance(count, (Tensor, np.ndarray)) else count
        check_range("the count of a loss", count, 0, math.inf)
        count = float(count)
    if not isinstance(loss, Tensor) or loss.size != 1:
        what = loss.describe() if isinstance(loss, Tensor) else f"{loss!r:.60}"
        raise TypeError(
            f"the loss must return a Tensor of one element, or that and a count, not {what}"
        )
    return loss, count


def rows_of(target: Any) -> float:
    """Return the number of rows of a target; nan for a number, or a tuple or dict of parts."""
    if isinstance(target, (tuple, Mapping, str)):
        return math.nan
    try:
        return len(target)
    except TypeError:
        return math.nan


def count_or_rows(count: float | None, target: Any) -> float:
    """Return the count of a loss, or if it returned only a mean, the number of rows.

    A TypeError is raised if there is no count, and the target has no rows.
    """
    found = rows_of(target) if count is None else count
    if math.isnan(found):
        raise TypeError(
            f"the target {target!r:.60} has no rows to count; let the loss return (mean, count)"
        )
    return found
