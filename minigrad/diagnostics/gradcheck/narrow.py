"""Gradients that were computed with fewer digits than the differences they are held against.

A right rule in float32 is off by rounding, by how much nobody can say for all functions. Three
things bound it: three times the root of its eps, 0.1 %, relative to the element itself; the size of
the largest element, since small ones may be what is left of large ones; and what an element changes
by when operands and intermediate results change by a unit in the last place, up or down as chance
has it, as they would if they were rounded in another way (Vignes, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradcheck.differences import Judgement
from minigrad.diagnostics.gradcheck.subject import Array, Subject, copied, largest_of
from minigrad.mode import Observer, observe
from minigrad.tensor import Tensor

Gradients = list[NDArray[np.float64]]

NUDGES = 3  # by a unit in the last place, to see what rounding does to a gradient


@dataclass
class Narrow:
    """Gradients that were computed in the dtype of the inputs.

    Attributes:
        dtype: the least exact of them.
        gradients: by each operand.
        spread: how much they change when all numbers change by a unit in the last place.
        finite: whether the values of f are finite in this dtype.
    """

    dtype: np.dtype[Any]
    gradients: Gradients
    spread: Gradients
    finite: bool

    @classmethod
    def of(
        cls,
        subject: Subject,
        gradients_at: Callable[[Sequence[Array]], Gradients],
        rng: np.random.Generator,
    ) -> Narrow:
        """Those that `gradients_at` gives for the operands as they came."""
        operands = subject.operands
        dtypes = [x.dtype for x in subject.of_floats(operands)]
        gradients = gradients_at(operands)
        spread = [np.zeros(g.shape) for g in gradients]
        for _ in range(NUDGES):
            nudged = [_nudged(x, rng) if x.dtype.kind == "f" else x for x in operands]
            for others in _rounded_otherwise(gradients_at, nudged, rng):
                for known, g, other in zip(spread, gradients, others, strict=True):
                    np.fmax(known, np.abs(g - other), out=known)
        return cls(
            max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps)),
            gradients,
            spread,
            bool(np.isfinite(subject.values(operands)).all()),
        )

    def judge(self, value: float, spread: float, exact: Judgement) -> Judgement:
        """Whether a number, with its spread, agrees with what differences say exactly."""
        info = np.finfo(self.dtype)
        numeric, hidden = exact.numeric, f"below what {self.dtype} can resolve"
        if exact.verdict == "cannot tell" or exact.kink:
            return exact
        if not math.isfinite(value):
            if abs(numeric) > float(info.max) and value == math.copysign(math.inf, numeric):
                return replace(exact, verdict="agree", reason="")
            fair = self.finite and abs(numeric) < 0.01 * float(info.max)
            reason = f"not finite in {self.dtype}"
            return replace(exact, verdict="disagree" if fair else "cannot tell", reason=reason)
        root = math.sqrt(float(info.eps))
        largest = largest_of(self.gradients)
        distance, size = abs(value - numeric), max(abs(value), abs(numeric))
        near = max(16 * float(info.eps) * largest, 4 * float(info.smallest_normal))
        if distance <= exact.error + max(3 * root * size, near):
            return replace(exact, verdict="agree", reason="")
        if (
            distance <= exact.error + 256 * float(info.eps) * largest + 16 * spread
            or exact.error > 0.1 * size
        ):
            return replace(exact, verdict="cannot tell", reason=hidden)
        return replace(exact, verdict="disagree", reason="")


def _nudged(x: Array, rng: np.random.Generator) -> Array:
    """Each element one unit in the last place up or down, as chance has it."""
    out = copied(x)
    out[...] = np.nextafter(x, np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype))
    return out


def _rounded_otherwise(
    gradients_at: Callable[[Sequence[Array]], Gradients],
    operands: Sequence[Array],
    rng: np.random.Generator,
) -> Iterator[Gradients]:
    """The gradients from these operands, and from other roundings on the way."""
    yield gradients_at(operands)
    try:
        with observe(_Rounding(rng)):
            yield gradients_at(operands)
    except RuntimeError:  # from a checkpoint, which finds that its results have changed
        return


class _Rounding(Observer):
    """Changes each result of an op or a rule by a unit in the last place, and leaves 0 as it is."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

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
        others = [array for array in map(_array, sources) if isinstance(array, np.ndarray)]
        picked = bool(others) and np.isin(x, np.concatenate([y.ravel() for y in others])).all()
        if not picked and not any(np.may_share_memory(x, other) for other in others):
            eps = float(np.finfo(x.dtype).eps)
            x *= np.where(self._rng.random(x.shape) < 0.5, 1 - eps, 1 + eps).astype(x.dtype)


def _array(value: Any) -> Any:
    return value._data if isinstance(value, Tensor) else value
