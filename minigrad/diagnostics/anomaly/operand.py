"""What to say of an array in a message: its shape, its range, and how much of it is no number."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.core.tensor import Tensor


@dataclass(frozen=True)
class Operand:
    """A summary of one array.

    Attributes:
        name: what it is to the op, such as "input x".
        shape: its shape.
        dtype: its dtype, by name.
        low: the least of its finite elements; nan if there is none.
        high: the largest of them.
        nan: how many elements are NaN.
        inf: how many are Inf, of either sign.
        size: how many there are.
        first: the index of the first that is not finite, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nan: int
    inf: int
    size: int
    first: tuple[int, ...] | None

    @classmethod
    def of(cls, name: str, value: Any) -> Operand:
        """The summary of a Tensor, an array or a number."""
        array = values_of(value)
        wide = array.astype(np.float64)
        finite = np.isfinite(wide)
        known = wide[finite]
        first = None if finite.all() else tuple(int(i) for i in np.argwhere(~finite)[0])
        return cls(
            name,
            array.shape,
            str(array.dtype),
            float(known.min()) if known.size else math.nan,
            float(known.max()) if known.size else math.nan,
            int(np.isnan(wide).sum()),
            int(np.isinf(wide).sum()),
            array.size,
            first,
        )

    def counted(self) -> str:
        """How many elements are not finite, of how many, and where the first of them is."""
        kinds = [f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n]
        place = f", first at {list(self.first)}" if self.first and self.size > 1 else ""
        return f"{' and '.join(kinds) or 'none'} of {self.size}{place}"

    def __str__(self) -> str:
        text = f"{self.name}: {self.shape} {self.dtype}, "
        known = f"{self.low:.6g}" + (f" .. {self.high:.6g}" if self.high != self.low else "")
        if self.first is None:
            return text + (known if self.size else "empty")
        alone = self.nan + self.inf == self.size
        return text + self.counted() + ("" if alone else f", the others {known}")


def values_of(value: Any) -> np.ndarray[Any, Any]:
    """The array of a Tensor, of an array or of a number."""
    return np.asarray(value.data if isinstance(value, Tensor) else value)


def is_numeric(value: Any) -> bool:
    """Whether a message can give a range of it: an array or a number, and no option."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.dtype.kind in "iuf"
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Entries:
    """Where the Inf came in that an array holds, for those that were passed on."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], str]] = {}

    def note(self, value: Any, where: str) -> None:
        """The Inf of `value`, the result of an op, came in there; kept as long as its array is."""
        array = values_of(value)
        key, known = id(array), self._known
        known[key] = (weakref.ref(array, lambda _: known.pop(key, None)), where)

    def first(self, values: Iterable[Any]) -> str | None:
        """Where the first one known came in, of these."""
        for value in values:
            array = values_of(value)
            for held in (array, array.base):
                reference, where = self._known.get(id(held), (None, None))
                if reference is not None and reference() is held:
                    return where
        return None
