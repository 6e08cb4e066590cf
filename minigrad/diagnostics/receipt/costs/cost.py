"""What the cost of an op is: FLOPs from the shapes and options of a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.core.tensor import Tensor

if TYPE_CHECKING:
    from minigrad.core.op import Op


class Call:
    """The shapes and options of one call of an op: all that its cost depends on.

    It holds no array, so that a receipt keeps none alive.
    """

    __slots__ = ("_options", "_shapes", "out")

    def __init__(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        self.out = math.prod(np.shape(result) if not isinstance(result, Tensor) else result.shape)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._options: dict[str, Any] = {}
        # An op of many inputs is called with these alone.
        for name, value in zip(op.parameters, inputs, strict=False):
            if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
                value = value.item()  # as an op takes it
            if isinstance(value, (Tensor, np.ndarray)):
                self._shapes[name] = value.shape
            elif isinstance(value, (bool, int, float, str)):
                self._options[name] = value
            elif value is not None:
                self._shapes[name] = _shape(value)
                if isinstance(value, (tuple, list)) and all(
                    isinstance(v, (int, np.integer)) for v in value
                ):
                    self._options[name] = tuple(value)

    def has(self, name: str) -> bool:
        """Whether an argument was given, and is not None."""
        return name in self._shapes or name in self._options

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an argument, () for a number and for one that was left out."""
        return self._shapes.get(name, ())

    def size(self, name: str) -> int:
        """The number of elements of an argument, 1 for a number."""
        return math.prod(self.shape(name))

    def option(self, name: str) -> Any:
        """A number, text, or some integers that were handed over as such; None for an array."""
        return self._options.get(name)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of a list of numbers; () for what has none, as an index or prepared panels."""
    try:
        return np.shape(value)
    except (RuntimeError, TypeError, ValueError):
        return ()


Count = Callable[[Call], int]


@dataclass(frozen=True)
class Cost:
    """The FLOPs of an op.

    Attributes:
        forward: those of a call.
        rules: by the name of an input, those of its rule.
        shared: of a joint rule, those that serve several of the inputs that it is told of.
        product: whether it is a matrix product, so that what a frozen input spares is worth noting.
        own: inputs that the function around the op makes for each call: memory kept for backward.
    """

    forward: Count
    rules: Mapping[str, Count] = field(default_factory=dict)
    shared: Callable[[Call, Collection[str]], int] = lambda call, needed: 0
    product: bool = False
    own: tuple[str, ...] = ()


def nothing(call: Call) -> int:
    """Of what costs nothing."""
    return 0


def times_out(factor: int) -> Count:
    """So many for each element of the result."""
    return lambda call: factor * call.out


def per_element(forward: int | Count = 1, /, **rules: int | Count) -> Cost:
    """So many FLOPs for each element of the result, forward and in each rule."""
    counts = {n: times_out(c) if isinstance(c, int) else c for n, c in rules.items()}
    return Cost(times_out(forward) if isinstance(forward, int) else forward, counts)


def per_x(factor: int, out: int = 0) -> Count:
    """So many for each element of x, and so many for each of the result."""
    return lambda call: factor * call.size("x") + out * call.out
