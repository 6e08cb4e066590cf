"""The two forms of data that a `Trainer` accepts: two arrays with rows, or micro-batches.

A micro-batch is a tuple `(*inputs, target)` that goes through the model at once. In every epoch,
the Trainer groups rows into new micro-batches. It does not change micro-batches that the caller
has made, so their inputs may have any shapes and types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.core.tensor import Tensor, as_array

MicroBatch = tuple[Any, ...]
Data = tuple[Any, Any] | Sequence[MicroBatch]
Items = NDArray[np.int64]


class Rows:
    """Features and target of the same length; an item is a row."""

    def __init__(self, x: NDArray[Any], y: NDArray[Any], batch_size: int) -> None:
        self.x, self.y, self.batch_size = x, y, batch_size
        self.compared = [x, y, batch_size]  # by several ranks, before they use these data

    def __len__(self) -> int:
        return len(self.x)

    def micro_batches(self, items: Items) -> list[MicroBatch]:
        """Return the given rows, in micro-batches of `batch_size` rows."""
        x, y = self.x[items], self.y[items]
        size = self.batch_size
        return [(Tensor(x[i : i + size]), y[i : i + size]) for i in range(0, len(x), size)]


class MicroBatches:
    """Micro-batches that the caller has made; an item is one of them."""

    batch_size = 1  # the number of items that go through the model at once

    def __init__(self, given: Sequence[MicroBatch], name: str) -> None:
        self.given, self.name = given, name
        self.compared = [len(given)]  # the items may be made only when they are taken

    def __len__(self) -> int:
        return len(self.given)

    def micro_batches(self, items: Items) -> list[MicroBatch]:
        """Return the given micro-batches."""
        taken = [self.given[item] for item in items.tolist()]
        for each in taken:
            if not isinstance(each, tuple) or len(each) < 2:
                raise ValueError(
                    f"{self.name}: a micro-batch is a tuple (*inputs, target), not {each!r:.60}"
                )
        return taken


@dataclass
class UnfinishedEpoch:
    """An epoch that has begun: the order of its items, how many are done, and the counts."""

    order: Items
    position: int = 0  # the number of items that are done
    counts: list[float] = field(default_factory=list)  # the count of the loss in each step


def prepared(data: Any, name: str, batch_size: int, dtype: DTypeLike | None) -> Rows | MicroBatches:
    """Return data in one of the two forms, checked; rows of floats are converted to `dtype`."""
    if isinstance(data, (Rows, MicroBatches)):
        return data
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    if isinstance(data, Sequence) and not isinstance(data, (tuple, str)) and len(data):
        first = data[0]
        # A list of two tuples of numbers is a pair (features, target), not two micro-batches.
        if isinstance(first, tuple) and not (is_pair and first and np.isscalar(first[0])):
            return MicroBatches(data, name)
    is_of_lists = isinstance(data, list) and all(
        isinstance(part, list) and part and isinstance(part[0], (np.ndarray, Tensor))
        for part in data
    )
    if not is_pair or is_of_lists:  # two batches of `minigrad.data.batches` are not a pair
        of = f" of {type(data[0]).__name__}" if isinstance(data, (list, tuple)) and data else ""
        raise ValueError(
            f"{name} must be a pair (features, target), or a list of micro-batches, which are "
            f"tuples (*inputs, target), as in [(x, y) for x, y in loader], not "
            f"{type(data).__name__}{of}"
        )
    try:
        x, y = (as_data(part, dtype) for part in data)
    except (TypeError, ValueError) as error:
        error.args = (f"{name}: {error}",)
        raise
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(f"{name}: features and target need an axis of rows")
    if len(x) != len(y):
        raise ValueError(f"{name}: {len(x)} rows of features, but {len(y)} of the target")
    if len(x) == 0:
        raise ValueError(f"{name}: the data are empty")
    return Rows(x, y, batch_size)


def as_data(values: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    """Return an array, with floats in the dtype of the model: float64 would be slower."""
    array = as_array(values)
    # Convert the data themselves: the floats of a list may have more digits than float32.
    return array if array.dtype.kind != "f" or dtype is None else as_array(values, dtype)
