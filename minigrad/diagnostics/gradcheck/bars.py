"""How far off a right gradient, and a value of f, may be: the error bars that rounding makes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad.diagnostics.gradcheck.judge import Allowance
from minigrad.diagnostics.gradcheck.problem import Problem
from minigrad.diagnostics.gradcheck.subject import FLOAT64, largest_of

ROOTS = 3  # of eps: the tolerance for functions that do not compute in float64
SPREADS = 8  # of what changes with other roundings: the error bar
# It is at most a share of the largest number on the way, for where a tie decides, a gradient jumps,
# and that is no rounding; or some eps of 1. The share is in roots of eps for other dtypes.
SHARE, SHARE_ROOTS, EPS = 1e-8, 0.3, 64
DOUBT_EPS = 16  # of the largest number on the way: what may be left of it inside an op, unseen


def tolerance_in(dtype: np.dtype[Any], tolerance: float) -> float:
    """The relative tolerance where f computes in this dtype, if it is `tolerance` in float64."""
    if dtype == FLOAT64:
        return tolerance
    return max(tolerance, ROOTS * math.sqrt(float(np.finfo(dtype).eps)))


class Bars:
    """The error bars of the gradients of one problem, and of its values.

    Attributes:
        noise: what rounding leaves in each value.
        doubt: what it might leave there where it could not be watched, inside an op.
        allowed: what a gradient may be off by, besides its own error bar.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        eps = float(np.finfo(problem.dtype).eps)
        share = SHARE if problem.dtype == FLOAT64 else SHARE_ROOTS * math.sqrt(eps)
        noise, on_the_way = problem.noise(rng), problem.spread.largest
        self.noise = np.minimum(SPREADS * noise.inner[0], share * noise.largest_of_all)
        self.doubt = SPREADS * noise.each[0]
        self._most = share * on_the_way + EPS * eps
        # What is larger than its error bar; if nothing is, all is 0 but for rounding.
        gradients = zip(problem.ways["grad"], problem.spread.each, strict=True)
        sharp = largest_of([g[abs(g) > SPREADS * spread] for g, spread in gradients])
        self.allowed = Allowance(
            tolerance_in(problem.dtype, problem.tolerance),
            scale=min(1.0, sharp or on_the_way) or 1.0,
            doubt=DOUBT_EPS * eps * max(on_the_way, largest_of(problem.cotangents)),
        )

    def of(self, spread: float, ties: bool = False) -> Allowance:
        """What a gradient may be off by that changes by so much with other roundings.

        `ties` says that it changes because ties are decided in another way, which is no rounding.
        """
        doubt = self.allowed.doubt if ties else max(self.allowed.doubt, SPREADS * spread)
        return replace(self.allowed, own=min(SPREADS * spread, self._most), doubt=doubt)
