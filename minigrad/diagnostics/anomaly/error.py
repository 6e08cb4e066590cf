"""AnomalyError, and what it says of arrays: shape, range, and how much of them is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.core.tensor import Tensor
from minigrad.diagnostics.source_line import SourceLine

SHOWN = 6  # operands that a message lists, besides those that are not finite


class AnomalyError(FloatingPointError):
    """The first NaN or Inf, and what made it. Raised inside `detect_anomaly`.

    Attributes:
        op: the name of the op. For a loss, it is the op that made it, or "leaf"; for the sum of all
            gradients of a leaf, "leaf"; for a step, the class of the optimiser.
        phase: "forward", "backward" or "step" (of an optimiser).
        origin: the user's line that called the op, also if its derivative failed; otherwise the
            line that called `backward()` or `step()`. None if the op was called before
            `detect_anomaly` began, or in another thread.
        operands: what the op, or its derivative, computed with, and last its result.
    """

    def __init__(
        self,
        message: str,
        op: str = "",
        phase: str = "",
        origin: SourceLine | None = None,
        operands: tuple[Operand, ...] = (),
    ) -> None:
        super().__init__(message)
        self.op = op
        self.phase = phase
        self.origin = origin
        self.operands = operands


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
        size: how many elements there are.
        first: the index of the first element that is not finite, or None.
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
        """Summarise a Tensor, an array or a number."""
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

    @property
    def kind(self) -> str:
        """The name of what is wrong with it: "NaN" if there is one, otherwise "Inf"."""
        return "NaN" if self.nan else "Inf"

    def counted(self) -> str:
        """Say how many elements are not finite, of how many, and the index of the first."""
        kinds = [f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n]
        first = f", first at {list(self.first)}" if self.first and self.size > 1 else ""
        return f"{' and '.join(kinds) or 'none'} of {self.size}{first}"

    def __str__(self) -> str:
        text = f"{self.name}: {self.shape} {self.dtype}, "
        known = f"{self.low:.6g}" + (f" .. {self.high:.6g}" if self.high != self.low else "")
        if self.first is None:
            return text + (known if self.size else "empty")
        alone = self.nan + self.inf == self.size
        return text + self.counted() + ("" if alone else f", the others {known}")


def anomaly(
    headline: str,
    op: str,
    phase: str,
    line: SourceLine | None,
    operands: Sequence[Operand],
    hint: str | None = None,
    module: str | None = None,
    entered: str | None = None,
) -> AnomalyError:
    """Build the error with its message. `entered` says where an Inf came in, if that is known."""
    shown = [
        str(x)
        for i, x in enumerate(operands)
        if i < SHOWN or x.first is not None or x is operands[-1]
    ]
    left = len(operands) - len(shown)
    shown[SHOWN:SHOWN] = [f"... {left} more"] * (left > 0)
    details = [f"at {line}" if line else "", f"in {module}" if module else "", *shown, hint or ""]
    details.append(f"an Inf came in first with {entered}" if entered else "")
    text = "\n  ".join([f"{phase}: {headline}", *filter(None, details)])
    return AnomalyError(text, op, phase, line, tuple(operands))


def values_of(value: Any) -> np.ndarray[Any, Any]:
    """Return the array of a Tensor, of an array or of a number."""
    return np.asarray(value.data if isinstance(value, Tensor) else value)
