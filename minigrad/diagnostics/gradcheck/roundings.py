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

REPEATS = 3  # of a gradient with other roundings
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
    for _ in range(REPEATS):
        for others in _otherwise(arrays_at, operands, rng, nudged):
            for known, x, other in zip(spread, arrays, others, strict=True):
                np.fmax(known, np.abs(x - other), out=known)
    return spread


def _otherwise(
    arrays_at: Callable[[Sequence[Array]], Gradients],
    operands: Sequence[Array],
    rng: np.random.Generator,
    nudged: bool,
) -> Iterator[Gradients]:
    """The arrays from other operands, and from other roundings on the way."""
    if nudged:
        yield arrays_at([_nudged(x, rng) if x.dtype.kind == "f" else x for x in operands])
    rounding = _Rounding(rng)
    try:
        with rounding.undone(), observe(rounding):
            arrays = arrays_at(operands)
    except RuntimeError:  # from a checkpoint, which finds that its results have changed
        return
    yield arrays


def _nudged(x: Array, rng: np.random.Generator) -> Array:
    """A copy with each element one unit in the last place up or down, as chance has it."""
    out = copied(x)
    out[...] = np.nextafter(x, _ends(x, rng))
    return out


def _ends(x: Array, rng: np.random.Generator) -> Array:
    return np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)


class _Rounding(Observer):
    """Changes each result of an op or a rule by a unit in the last place, and leaves 0 as it is."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
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
            x[...] = np.where(x == 0, x, np.nextafter(x, _ends(x, self._rng)))


def _is_picked(x: Array, sources: Sequence[Array]) -> bool:
    """Whether the elements of x are elements of the sources; some of them tell."""
    some = x.ravel()[:: -(-x.size // SAMPLED)]
    known = np.zeros(some.shape, bool)
    for source in sources:
        known |= (source.ravel() == some[:, None]).any(axis=1)
    return bool(known.all())


def _array(value: Any) -> Any:
    return value._data if isinstance(value, Tensor) else value
