"""What rounding does to a gradient: it is computed again, with other roundings on the way.

How far a right rule is off by rounding nobody can say for all functions. But it shows in what a
gradient changes by when operands and intermediate results change by a unit in the last place, up or
down as chance has it, as they would if they were rounded in another way (Vignes, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradcheck.subject import Array, copied
from minigrad.mode import Observer, observe
from minigrad.tensor import Tensor

Gradients = list[NDArray[np.float64]]

PAIRS = 2  # of roundings: in one of a pair all that the other rounds up is rounded down
SAMPLED = 16  # elements of a result, which tell whether it was computed or picked out


def spread_of(
    arrays: Gradients,
    arrays_at: Callable[[Sequence[Array]], Gradients],
    operands: Sequence[Array],
    rng: np.random.Generator,
    nudged: bool = True,
) -> Gradients:
    """By how much each element of some arrays changes where roundings change.

    Args:
        arrays: gradients or values, at the point.
        arrays_at: computes them.
        operands: the point.
        rng: says what is rounded up, and what down.
        nudged: whether to change operands too, and not only what is computed from them.
    """
    spread = [np.zeros(x.shape) for x in arrays]
    for seed in (None, *map(int, rng.integers(2**63, size=PAIRS))):
        for sign in (1, -1):
            for others in _otherwise(arrays_at, operands, seed, sign, nudged):
                for known, x, other in zip(spread, arrays, others, strict=True):
                    np.fmax(known, np.abs(x - other), out=known)
    return spread


def _otherwise(
    arrays_at: Callable[[Sequence[Array]], Gradients],
    operands: Sequence[Array],
    seed: int | None,
    sign: int,
    nudged: bool,
) -> Iterator[Gradients]:
    """The arrays from other operands, and from other roundings on the way."""
    if nudged:
        nudge = _Nudge(seed, sign)
        yield arrays_at([nudge(x) if x.dtype.kind == "f" else x for x in operands])
    rounding = _Rounding(_Nudge(seed, sign))
    try:
        with rounding.undone(), observe(rounding):
            arrays = arrays_at(operands)
    except RuntimeError:  # from a checkpoint, which finds that its results have changed
        return
    yield arrays


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
    """Changes each result of an op or a rule by a unit in the last place, and leaves 0 as it is."""

    def __init__(self, nudge: _Nudge) -> None:
        self._nudge = nudge
        self._before: list[tuple[Array, Array]] = []

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What was changed is as before at the end: it may be an array that the user keeps."""
        try:
            yield
        finally:
            for array, before in reversed(self._before):
                array[...] = before
            self._before.clear()

    def on_call(self, op: Any, inputs: Sequence[Any], result: Any) -> None:
        self._change(result, inputs)

    def on_rule(self, node: Any, place: Any, gradient: Any, result: Any) -> None:
        self._change(result, [gradient])

    def _change(self, result: Any, sources: Sequence[Any]) -> None:
        """In place, which the graph that has saved it sees too.

        Not what is a view, nor what was only picked out, as by `max`: nothing has been rounded
        there, and a rule may look for the very number.
        """
        x = _array(result)
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.flags.writeable:
            return
        others = [y for y in map(_array, sources) if isinstance(y, np.ndarray) and y.size]
        shared = any(np.may_share_memory(x, y) for y in others)
        if x.size and not shared and not _is_picked(x, others):
            self._before.append((x, x.copy()))
            x[...] = np.where(x == 0, x, self._nudge(x))


def _is_picked(x: Array, sources: Sequence[Array]) -> bool:
    """Whether the elements of x are elements of the sources; some of them tell."""
    some = x.ravel()[:: -(-x.size // SAMPLED)]
    known = np.zeros(some.shape, bool)
    for source in sources:
        known |= (source.ravel() == some[:, None]).any(axis=1)
    return bool(known.all())


def _array(value: Any) -> Any:
    return value._data if isinstance(value, Tensor) else value
