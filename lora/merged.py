"""Merged: a merged weight, and what it was made of, so that a change is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapter import DEFAULT, Adapter
from minigrad.core.tensor import Tensor
from minigrad.nn import Parameter
from minigrad.versions import clock, last_written

Array = NDArray[Any]


@dataclass(frozen=True)
class Merged:
    """A merged weight, and what it was made of.

    Attributes:
        weight: W + dW, as the layer stores W.
        parts: for each adapter in it its scale, and copies of its parameters.
        base: the weight of the base.
        time: when it was made.
    """

    weight: Tensor
    parts: dict[str, tuple[float, dict[str, Array]]]
    base: Any
    time: int

    @classmethod
    def of(cls, weight: Tensor, base: Any, adapters: Mapping[str, Adapter]) -> Merged:
        """With copies of everything that the weight follows from, but for the base."""
        parts = {
            name: (adapter.scale, {key: x.copy() for key, x in _arrays(adapter).items()})
            for name, adapter in adapters.items()
        }
        return cls(weight, parts, base, next(clock))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters in it."""
        return tuple(self.parts)

    def changed(self, base: Any, adapters: Mapping[str, Adapter]) -> str:
        """What is no longer as it was, or nothing.

        A and B are compared with copies, which a raw write cannot escape; W, which may be large, by
        the time of its last write.
        """
        for name, (scale, values) in self.parts.items():
            own = "" if name == DEFAULT else f"{name}."
            if scale != adapters[name].scale:
                return f"{own}scale"
            now = _arrays(adapters[name])
            for key, value in values.items():
                if key not in now or not _same(value, now[key]):
                    return own + key
        if base is not self.base:
            return "base_weight"
        written = isinstance(base, Tensor) and last_written(base._data) > self.time
        return "base_weight" if written else ""


def _arrays(adapter: Adapter) -> dict[str, Array]:
    """The parameters of an adapter."""
    return {key: part._data for key, part in adapter.contents() if isinstance(part, Parameter)}


def _same(x: Array, y: Array) -> bool:
    return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)
