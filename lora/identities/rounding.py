"""Bounds on how far two computations of the same result may differ, and comparisons.

A result that is a sum of products, computed with k roundings of each term, differs from the exact
one by at most gamma(k) times the same sum of absolute values, in whatever order the terms are
added. With u half the distance from 1 to the next number, and L a number,

    gamma(k) = exp(L sqrt(k) u + k u^2 / (1 - u)) - 1

holds for one result with probability 1 - 2 exp(-L^2 (1 - u)^2 / 2), if the mean of rounding errors
is 0 (Higham and Mary, 2019); (1 + u)^k - 1 holds always. With L = 8 the first fails once in 4e13
results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora.frozen import Array

Verdict = Literal["holds", "fails", "cannot tell"]

_SURE = 8.0  # the L of the formula


@dataclass(frozen=True)
class Rounding:
    """The rounding errors of computations in one dtype."""

    dtype: np.dtype[Any]

    def gamma(self, roundings: int) -> float:
        """Bound the relative error after so many roundings."""
        u = float(np.finfo(self.dtype).eps) / 2
        likely = _SURE * math.sqrt(roundings) * u + roundings * u * u / (1 - u)
        return math.expm1(min(likely, roundings * math.log1p(u)))

    def size(self, *factors: Array, scale: float = 1.0) -> Array:
        """Multiply the absolute values of matrices: errors are relative to this.

        Each product is at least the least normal number, since below it the error is absolute; both
        before `scale` makes it smaller and after, since a kernel may multiply by it anywhere.
        """
        tiny = float(np.finfo(self.dtype).tiny)
        product = np.abs(factors[0].astype(np.float64))
        least = np.zeros_like(product)
        for factor in factors[1:]:
            absolute = np.abs(factor.astype(np.float64))
            product, least = product @ absolute + tiny, least @ absolute + tiny
        return scale * product + (least if scale < 1 else 0.0)


@dataclass(frozen=True)
class Agreement:
    """The agreement of two arrays that should be equal up to rounding."""

    deviation: float  # the difference at the element where it is the largest share of its bound
    bound: float  # the bound there
    # "fails" if a difference exceeds its bound; "cannot tell" if all that the identity
    # compares is smaller than the bound, since then it could not fail
    verdict: Verdict

    @classmethod
    def of(cls, found: Array, expected: Array, bound: Array, evidence: Array) -> Agreement:
        """Compare two arrays; `evidence` is what would be lost if the identity were wrong."""
        if not found.size:
            return NOTHING
        with np.errstate(invalid="ignore"):
            difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        limit = np.broadcast_to(bound, difference.shape)
        if not np.isfinite(difference).all():
            decided = np.isfinite(expected).all() and np.isfinite(bound).all()
            return cls(math.nan, math.nan, "fails" if decided else "cannot tell")
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            share = np.where(difference == 0, 0.0, difference / limit)
        worst = np.unravel_index(np.argmax(share), share.shape)
        verdict: Verdict = "holds"
        if share[worst] > 1:
            verdict = "fails"
        elif not (np.abs(evidence) > bound).any():
            verdict = "cannot tell"
        return cls(float(difference[worst]), float(limit[worst]), verdict)

    @classmethod
    def worst(cls, comparisons: Sequence[Agreement]) -> Agreement:
        """Choose the decisive one: a failure, or no verdict, or else the nearest to fail."""
        order = {"fails": 2, "cannot tell": 1, "holds": 0}
        return max(
            comparisons,
            key=lambda c: (order[c.verdict], c.deviation / c.bound if c.bound else 0.0),
        )


NOTHING = Agreement(0.0, 0.0, "cannot tell")
