"""Spectral: what the singular values of an update say, wherever the update comes from."""

from __future__ import annotations

import math


class Spectral:
    """Base of descriptions of an update dW that have these attributes.

    Attributes:
        name: of the layer.
        rank: of dW, at most.
        singular_values: of dW, descending; those that are left out are 0.
    """

    name: str
    rank: int
    singular_values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The Frobenius norm of dW."""
        return math.hypot(*self.singular_values)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values as shares of their sum: from 1 to the rank.

        0 for an update of 0 (Roy and Vetterli, The effective rank, 2007).
        """
        total = math.fsum(self.singular_values)
        if not total or not math.isfinite(total):
            return 0.0 if not total else math.nan
        shares = [value / total for value in self.singular_values if value]
        return math.exp(-math.fsum(share * math.log(share) for share in shares))
