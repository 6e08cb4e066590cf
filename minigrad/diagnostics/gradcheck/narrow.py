"""Gradients that were computed with fewer digits than the differences they are held against.

A right rule in float32 is off by rounding. It is called right if it is within three times the root
of its eps, 0.1 %, or within what other roundings change it by (`roundings`), and wrong only beyond
what rounding may do to small elements that are what is left of large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigrad.diagnostics.gradcheck.judge import Judgement
from minigrad.diagnostics.gradcheck.roundings import Gradients, Spread, spread_of
from minigrad.diagnostics.gradcheck.subject import Array, Subject, largest_of

# What a float32 gradient may be off by and be called right: relative to itself, in roots of eps; in
# spreads; and relative to the largest element of all, for what is 0 but for rounding.
RIGHT_ROOTS, RIGHT_SPREADS, RIGHT_SHARE = 3, 4, 1e-9
# From what on it is called wrong: in eps of the largest element, and in spreads.
WRONG_EPS, WRONG_SPREADS = 256, 16
DOUBT_EPS = 16  # of the largest number on the way: what may be left of it inside an op, unseen


@dataclass
class Narrow:
    """Gradients that were computed in the dtype of the inputs.

    Attributes:
        dtype: the least exact of them.
        gradients: by each operand.
        spread: what rounding does to them.
        arriving: the largest number in the cotangents.
    """

    dtype: np.dtype[Any]
    gradients: Gradients
    spread: Spread
    arriving: float

    @classmethod
    def of(
        cls,
        subject: Subject,
        gradients_at: Callable[[Sequence[Array]], Gradients],
        cotangents: Sequence[Array],
        rng: np.random.Generator,
    ) -> Narrow:
        """Those that `gradients_at` gives for the operands as they came."""
        operands = subject.operands
        dtypes = [x.dtype for x in subject.of_floats(operands)]
        gradients = gradients_at(operands)
        return cls(
            max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps)),
            gradients,
            spread_of(gradients, gradients_at, operands, rng),
            largest_of(cotangents),
        )

    def judge(self, value: float, spread: float, exact: Judgement) -> Judgement:
        """Whether a number, with its spread, agrees with what differences say exactly."""
        info = np.finfo(self.dtype)
        numeric = exact.numeric
        if exact.verdict == "cannot tell" or exact.kink:
            return exact
        if not math.isfinite(value):
            if abs(numeric) > float(info.max) and value == math.copysign(math.inf, numeric):
                return replace(exact, verdict="agree", reason="")
            reason = (
                f"not finite in {self.dtype}, though it is in float64: does a number on the way "
                f"overflow, or become 0?"
            )
            return replace(exact, verdict="cannot tell", reason=reason)
        root, largest = math.sqrt(float(info.eps)), largest_of(self.gradients)
        distance, size = abs(value - numeric), max(abs(value), abs(numeric))
        right = max(
            RIGHT_ROOTS * root * size,
            RIGHT_SPREADS * spread,
            RIGHT_SHARE * largest,
            RIGHT_SPREADS * float(info.smallest_normal),
        )
        if distance <= exact.error + right:
            return replace(exact, verdict="agree", reason="")
        on_the_way = max(self.spread.largest, self.arriving)
        wrong = max(
            WRONG_EPS * float(info.eps) * largest + WRONG_SPREADS * spread,
            DOUBT_EPS * float(info.eps) * on_the_way,
        )
        if distance <= exact.error + wrong or exact.error > 0.1 * size:
            return replace(
                exact, verdict="cannot tell", reason=f"below what {self.dtype} can resolve"
            )
        return replace(exact, verdict="disagree", reason="")
