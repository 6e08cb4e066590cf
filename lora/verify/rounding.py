"""How far apart two ways to compute the same numbers may come to lie: bounds, and comparisons.

A result that is a sum of products, computed with k roundings on the way of each term, differs from
the exact one by at most gamma(k) times the same sum of absolute values, in whatever order the terms
are added. With u half the distance from 1 to the next number, and L a number,

    gamma(k) = exp(L sqrt(k) u + k u^2 / (1 - u)) - 1

holds for one result with probability 1 - 2 exp(-L^2 (1 - u)^2 / 2), if the mean of rounding errors
is 0 (Higham and Mary, 2019); (1 + u)^k - 1 holds always. With L = 8 the first fails once in 4e13
results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lora.verify.checks import Verdict

Array = NDArray[Any]

_SURE = 8.0  # the L of the formula


@dataclass(frozen=True)
class Rounding:
    """What rounds in one dtype."""

    dtype: np.dtype[Any]

    @classmethod
    def of(cls, dtype: DTypeLike) -> Rounding:
        """That of a float dtype."""
        return cls(np.dtype(dtype))

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(np.finfo(self.dtype).max)

    def gamma(self, roundings: int) -> float:
        """The relative error after so many roundings."""
        u = float(np.finfo(self.dtype).eps) / 2
        likely = _SURE * math.sqrt(roundings) * u + roundings * u * u / (1 - u)
        return math.expm1(min(likely, roundings * math.log1p(u)))

    def size(self, *factors: Array, scale: float = 1.0) -> Array:
        """The product of the absolute values of matrices: what an error is relative to.

        Each product is at least the least normal number, for below it the error is absolute. So it
        is before `scale` makes it smaller, or after: where a kernel multiplies by it is not known.
        """
        tiny = float(np.finfo(self.dtype).tiny)
        product = np.abs(factors[0].astype(np.float64))
        least = np.zeros_like(product)
        for factor in factors[1:]:
            absolute = np.abs(factor.astype(np.float64))
            product, least = product @ absolute + tiny, least @ absolute + tiny
        return scale * product + (least if scale < 1 else 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two arrays that should be equal but for rounding.

    Attributes:
        deviation: the difference at the element where it is the largest against its bound.
        bound: the bound there.
        verdict: it fails if a difference exceeds its bound; nothing can be told if all that the
            identity speaks of is smaller than the bound, for then it could not fail.
    """

    deviation: float
    bound: float
    verdict: Verdict

    @classmethod
    def of(cls, found: Array, expected: Array, bound: Array, told_by: Array) -> Comparison:
        """Compare, where `told_by` is what would be lost if the identity were wrong."""
        if not found.size:
            return NOTHING
        with np.errstate(invalid="ignore"):
            difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        limit = np.broadcast_to(bound, difference.shape)
        if not np.isfinite(difference).all():
            told = np.isfinite(expected).all() and np.isfinite(bound).all()
            return cls(math.nan, math.nan, "fails" if told else "cannot tell")
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            share = np.where(difference == 0, 0.0, difference / limit)
        worst = np.unravel_index(np.argmax(share), share.shape)
        verdict: Verdict = "holds"
        if share[worst] > 1:
            verdict = "fails"
        elif not (np.abs(told_by) > bound).any():
            verdict = "cannot tell"
        return cls(float(difference[worst]), float(limit[worst]), verdict)

    @classmethod
    def worst(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """The one that decides: a failure, else what cannot be told, else the nearest to fail."""
        order = {"fails": 2, "cannot tell": 1, "holds": 0}
        return max(
            comparisons,
            key=lambda c: (order[c.verdict], c.deviation / c.bound if c.bound else 0.0),
        )


NOTHING = Comparison(0.0, 0.0, "cannot tell")
