"""What rounding does to a gradient: it is computed again, with other roundings on the way.

How far a right rule is off by rounding nobody can say for all functions. But it shows in what a
gradient changes by when operands and intermediate results change by a unit in the last place, up or
down as chance has it, as they would if they were rounded in another way (Vignes, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradcheck.subject import Array, copied, largest_of
from minigrad.errors import op_of

Gradients = list[NDArray[np.float64]]

SAMPLED = 16  # elements of a result, which tell whether it was computed or picked out


@dataclass(frozen=True)
class Spread:
    """What rounding does to some arrays.

    Attributes:
        each: how much each element of them changes.
        inner: how much it does by roundings on the way alone, with operands as they are.
        largest: the largest number that a rule gave on the way.
        largest_of_all: the same of rules and ops.
    """

    each: Gradients
    inner: Gradients
    largest: float
    largest_of_all: float

    def __or__(self, other: Spread) -> Spread:
        """The larger of both, number by number."""
        return Spread(
            [np.maximum(one, two) for one, two in zip(self.each, other.each, strict=True)],
            [np.maximum(one, two) for one, two in zip(self.inner, other.inner, strict=True)],
            max(self.largest, other.largest),
            max(self.largest_of_all, other.largest_of_all),
        )


def spread_of(
    arrays: Gradients,
    arrays_at: Callable[[Sequence[Array]], Gradients],
    operands: Sequence[Array],
    rng: np.random.Generator,
    nudged: bool = True,
) -> Spread:
    """By how much each element of some arrays changes where roundings change.

    Args:
        arrays: gradients or values, at the point.
        arrays_at: computes them.
        operands: the point.
        rng: says what is rounded up, and what down.
        nudged: whether to change operands too, and not only what is computed from them.
    """
    inner, outer = ([np.zeros(x.shape) for x in arrays] for _ in range(2))
    largest = largest_of_all = 0.0
    for seed in (None, int(rng.integers(2**63))):
        for sign in (1, -1):  # what one run rounds up, the other rounds down
            rounding = _Rounding(_Nudge(seed, sign))
            runs = [(inner, partial(rounding.run, arrays_at, operands))]
            if nudged:
                nudge = _Nudge(seed, sign)
                moved = [nudge(x) if x.dtype.kind == "f" else x for x in operands]
                runs.append((outer, partial(arrays_at, moved)))
            for spread, run in runs:
                try:
                    others = run()
                except Exception as error:  # of f here, or of a checkpoint that sees changes
                    if op_of(error) == "gradcheck":
                        raise
                    continue
                for known, x, other in zip(spread, arrays, others, strict=True):
                    np.fmax(known, np.abs(x - other), out=known)
            largest = max(largest, rounding.of_rules)
            largest_of_all = max(largest_of_all, largest, rounding.of_ops)
    each = [np.maximum(one, two) for one, two in zip(inner, outer, strict=True)]
    return Spread(each, inner, largest, largest_of_all)


class _Nudge:
    """Moves numbers by a unit in the last place, up or down as chance has it.

    Without a seed they all move the same way, which shows where a comparison of two numbers that
    are nearly equal decides; at random, two moves on the way may cancel.
    """

    def __init__(self, seed: int | None, sign: int) -> None:
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._sign = sign

    def __call__(self, x: Array) -> Array:
        """A copy with the strides of x."""
        out = copied(x)
        up = np.ones(x.shape) if self._rng is None else self._rng.random(x.shape) - 0.5
        out[...] = np.nextafter(x, np.copysign(np.inf, self._sign * up).astype(x.dtype))
        return out


class _Rounding(Observer):
    """Changes each result of an op or a rule by a unit in the last place, and leaves 0 as it is.

    Attributes:
        of_ops: the largest number that an op gave.
        of_rules: the largest one that a rule gave.
    """

    def __init__(self, nudge: _Nudge) -> None:
        self._nudge = nudge
        self._before: list[tuple[Array, Array]] = []
        self.of_ops = self.of_rules = 0.0

    def run(
        self, arrays_at: Callable[[Sequence[Array]], Gradients], operands: Sequence[Array]
    ) -> Gradients:
        """The arrays. What was changed is as before in the end: the user may keep such an array."""
        try:
            with observe(self):
                return arrays_at(operands)
        finally:
            for array, before in reversed(self._before):
                array[...] = before

    def on_call(self, op: Any, inputs: Sequence[Any], result: Any) -> None:
        self.of_ops = max(self.of_ops, self._change(result, inputs))

    def on_rule(self, node: Any, place: Any, gradient: Any, result: Any) -> None:
        self.of_rules = max(self.of_rules, self._change(result, [gradient]))

    def _change(self, result: Any, sources: Sequence[Any]) -> float:
        """In place, which the graph that has saved it sees too; and the largest number in it.

        Not what is a view, nor what was only picked out, as by `max`: nothing has been rounded
        there, and a rule may look for the very number.
        """
        x = _array(result)
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.flags.writeable:
            return 0.0
        others = [y for y in map(_array, sources) if isinstance(y, np.ndarray) and y.size]
        shared = any(np.may_share_memory(x, y) for y in others)
        if x.size and not shared and not _is_picked(x, others):
            self._before.append((x, x.copy()))
            x[...] = np.where(x == 0, x, self._nudge(x))
        return largest_of([x])


def _is_picked(x: Array, sources: Sequence[Array]) -> bool:
    """Whether the elements of x are elements of the sources; some of them tell."""
    some = x.ravel()[:: -(-x.size // SAMPLED)]
    known = np.zeros(some.shape, bool)
    for source in sources:
        known |= (source.ravel() == some[:, None]).any(axis=1)
    return bool(known.all())


def _array(value: Any) -> Any:
    return value._data if isinstance(value, Tensor) else value
