"""A probe of rounding: a gradient is computed again, with other roundings on the way.

Nobody can say for all functions how far off a right VJP is by rounding. But it shows in how a
gradient changes when operands and intermediate results change by a unit in the last place, up or
down at random, as they would if they were rounded differently (Vignes, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_check.checked_function import (
    Array,
    ArraysAt,
    Gradients,
    copied,
    largest_of,
)
from minigrad.diagnostics.gradient_check.tolerances import SAMPLED
from minigrad.errors import op_of


@dataclass(frozen=True)
class RoundingSpread:
    """The changes that other roundings make to some arrays."""

    each: Gradients  # how much each of their elements changes in all
    inner: Gradients  # the same by roundings on the way alone, with the operands as they are
    largest: float  # the largest number that a VJP gave on the way
    largest_of_all: float  # the largest number that a VJP or an op gave


def rounding_spread(
    arrays: Gradients,
    arrays_at: ArraysAt,
    operands: Sequence[Array],
    rng: np.random.Generator,
    inside: ArraysAt | None = None,
) -> RoundingSpread:
    """Measure how much each element of some arrays changes when roundings change.

    `arrays_at` computes the arrays, which are gradients or values, at any operands; `rng` decides
    what is rounded up, and what down. `inside` computes them from compositions, which show what is
    inside an op.
    """
    inner, outer = ([np.zeros(x.shape) for x in arrays] for _ in range(2))
    largest = largest_of_all = 0.0
    trials = [
        (compute, seed, sign)
        for compute in ((arrays_at, inside) if inside else (arrays_at,))
        for seed in (None, int(rng.integers(2**63)))
        for sign in (1, -1)  # what one run rounds up, the other rounds down
    ]
    for compute, seed, sign in trials:
        one, other = (None if seed is None else np.random.default_rng(seed) for _ in range(2))
        rounding = _Rounding(partial(_nudged, rng=one, sign=sign))
        runs = [(inner, partial(rounding.run, compute, operands))]
        if compute is arrays_at:
            nudged = [_nudged(x, other, sign) for x in operands]
            runs.append((outer, partial(compute, nudged)))
        for spread, run in runs:
            try:
                found = run()
            except Exception as error:  # of f here, or of a checkpoint that sees changes
                if op_of(error) == "gradcheck":
                    raise
                continue
            for known, x, y in zip(spread, arrays, found, strict=True):
                np.fmax(known, np.abs(x - y), out=known)
        largest = max(largest, rounding.of_vjps)
        largest_of_all = max(largest_of_all, largest, rounding.of_ops)
    each = [np.maximum(a, b) for a, b in zip(inner, outer, strict=True)]
    return RoundingSpread(each, inner, largest, largest_of_all)


def _nudged(x: Array, rng: np.random.Generator | None, sign: int) -> Array:
    """Copy x with its strides, and move each element by a unit in the last place, up or down.

    Without a generator all of them move in one direction, which shows where a comparison of two
    numbers that are nearly equal decides; at random, two moves on the way may cancel.
    """
    out = copied(x)
    up = np.ones(x.shape) if rng is None else rng.random(x.shape) - 0.5
    out[...] = np.nextafter(x, np.copysign(np.inf, sign * up).astype(x.dtype))
    return out


class _Rounding(Observer):
    """An observer that changes results of ops and VJPs by a unit in the last place, but never 0."""

    def __init__(self, nudge: Callable[[Array], Array]) -> None:
        self._nudge = nudge
        self._before: list[tuple[Array, Array]] = []
        self.of_ops = self.of_vjps = 0.0  # the largest number that an op, and that a VJP gave

    def run(self, arrays_at: ArraysAt, operands: Sequence[Array]) -> Gradients:
        """Compute the arrays, and restore what was changed: the user may own such an array."""
        try:
            with observe(self):
                return arrays_at(operands)
        finally:
            for array, before in reversed(self._before):
                array[...] = before

    def on_call(self, op: Any, inputs: Sequence[Any], result: Any) -> None:
        self.of_ops = max(self.of_ops, self._change(result, inputs))

    def on_vjp(self, node: Any, parent: Any, gradient: Any, result: Any) -> None:
        self.of_vjps = max(self.of_vjps, self._change(result, [gradient]))

    def _change(self, result: Any, sources: Sequence[Any]) -> float:
        """Change a result in place, which the graph that has saved it sees too.

        Views are not changed, nor what was only picked out, as by `max`: nothing has been rounded
        there, and a VJP may look for the exact number. Return the largest number in the result.
        """
        x, *others = (y._data if isinstance(y, Tensor) else y for y in (result, *sources))
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.flags.writeable:
            return 0.0
        others = [y for y in others if isinstance(y, np.ndarray) and y.size]
        shared = any(np.may_share_memory(x, y) for y in others)
        if x.size and not shared:
            some = x.ravel()[:: -(-x.size // SAMPLED)]
            picked = np.zeros(some.shape, bool)  # to judge by some of its elements
            for source in others:
                picked |= (source.ravel() == some[:, None]).any(axis=1)
            if not picked.all():
                self._before.append((x, x.copy()))
                x[...] = np.where(x == 0, x, self._nudge(x))
        return largest_of([x])
