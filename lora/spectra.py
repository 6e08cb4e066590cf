"""Spectra: the singular values of an update, its effective rank, and the best low-rank factors.

    M = U S V^T   ->   B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T

Of all matrices of rank r, B A is the nearest to M in the Frobenius norm. The square of its distance
is the sum of squares of the singular values that are left out (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lora.frozen import Array


@dataclass(frozen=True)
class Approximation:
    """The product B A that approximates a matrix M, `(d_out, d_in)`, in float64."""

    a: Array  # A, `(rank, d_in)`
    b: Array  # B, `(d_out, rank)`, or `(d_out, rank / groups)`
    error: float  # the Frobenius norm of M - B A
    norm: float  # the Frobenius norm of M

    @property
    def relative_error(self) -> float:
        """The error as a share of the norm; 0 for M = 0."""
        return self.error / self.norm if self.norm else 0.0

    @property
    def energy(self) -> float:
        """The share of B A in the squared norm of M."""
        return 1 - self.relative_error**2

    @classmethod
    def of_matrix(cls, m: Array, rank: int) -> Approximation:
        """Approximate M by a product of this rank, or of min(d_out, d_in) if that is smaller."""
        return cls.of_decomposition(*np.linalg.svd(m, full_matrices=False), rank)

    @classmethod
    def of_product(cls, a: Array, b: Array, rank: int, groups: int = 1) -> Approximation:
        """Approximate B A without forming it: QR reduces it to a matrix as small as its rank.

        In several groups, the product B_g A_g of each is approximated by rank / groups, rounded
        down.
        """
        parts = []
        for a_g, b_g in zip(np.split(a, groups), np.split(b, groups), strict=True):
            (left, upper), (right, lower) = np.linalg.qr(b_g), np.linalg.qr(a_g.T)
            u, s, vt = np.linalg.svd(upper @ lower.T, full_matrices=False)
            parts.append(cls.of_decomposition(left @ u, s, vt @ right.T, rank // groups))
        return cls(
            np.concatenate([part.a for part in parts]),
            np.concatenate([part.b for part in parts]),
            math.hypot(*(part.error for part in parts)),
            math.hypot(*(part.norm for part in parts)),
        )

    @classmethod
    def of_decomposition(cls, u: Array, s: Array, vt: Array, rank: int) -> Approximation:
        """Approximate U S V^T, with S in descending order."""
        root = np.sqrt(s[:rank])
        # hypot, because the square of a small number may be 0, and of a large number infinite.
        error, norm = math.hypot(*s[rank:]), math.hypot(*s)
        return cls(root[:, None] * vt[:rank], u[:, :rank] * root, error, norm)


def block_diagonal(b: Array, groups: int) -> Array:
    """Return the B, `(d_out, rank)`, with which B A has the rows B_g A_g of all groups.

    `b` has the B_g below each other, `(d_out, rank / groups)`; with one group it is B itself.
    """
    if groups == 1:
        return b
    rows, columns = b.shape
    found = np.zeros((groups, rows // groups, groups, columns), b.dtype)
    each = np.arange(groups)
    found[each, :, each] = b.reshape(groups, -1, columns)
    return found.reshape(rows, groups * columns)


def singular_values(a: Array, b: Array) -> Array:
    """Compute the singular values of B A, in descending order; at most `rank` of them.

    They are NaN if there is NaN or Inf in A or B, or B A is too large for float64.
    """
    # With B = Q R and A^T = P S, R S^T has the same ones, and is at most rank x rank.
    with np.errstate(all="ignore"):
        core = np.linalg.qr(b, mode="r") @ np.linalg.qr(a.T, mode="r").T
    if not np.isfinite(core).all():
        return np.full(len(core), np.nan)
    return np.linalg.svd(core, compute_uv=False)


@dataclass(frozen=True)
class Spectral:
    """The base class of descriptions of an update dW: its norm and effective rank."""

    name: str  # the name of the layer
    rank: int  # the largest rank that dW can have
    singular_values: tuple[float, ...]  # the singular values of dW, descending; missing ones are 0

    @property
    def norm(self) -> float:
        """The Frobenius norm of dW."""
        return math.hypot(*self.singular_values)

    @property
    def effective_rank(self) -> float:
        """The number of directions that dW uses: from 1 to the rank, and 0 for an update of 0.

        It is exp of the entropy of the singular values as shares of their sum (Roy and Vetterli,
        The effective rank, 2007).
        """
        largest = max(self.singular_values, default=0.0)
        if not 0 < largest < math.inf:
            return 0.0 if largest == 0 else math.nan
        relative = [value / largest for value in self.singular_values]  # no sum of them overflows
        total = math.fsum(relative)
        shares = [value / total for value in relative]
        return math.exp(-math.fsum(share * math.log(share) for share in shares if share))
