"""The best approximation of a matrix by one of lower rank, as two factors.

    M = U S V^T   ->   B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T

B A is the nearest to M of all matrices of rank r in the Frobenius norm, and its distance is the
root of the sum of squares of the singular values that are left out (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Approximation:
    """B A for a matrix M, `(d_out, d_in)`, in float64.

    Attributes:
        a: A, `(rank, d_in)`.
        b: B, `(d_out, rank)`.
        error: the Frobenius norm of M - B A.
        norm: that of M.
    """

    a: Array
    b: Array
    error: float
    norm: float

    @property
    def relative_error(self) -> float:
        """The error as a share of the norm; 0 for M = 0."""
        return self.error / self.norm if self.norm else 0.0

    @property
    def energy(self) -> float:
        """The share of the squared norm of M that B A has."""
        return 1 - self.relative_error**2

    @classmethod
    def of_decomposition(cls, u: Array, s: Array, vt: Array, rank: int) -> Approximation:
        """That of U S V^T, with S in descending order; of a rank that is no larger than theirs."""
        root = np.sqrt(s[:rank])
        # hypot, since the square of a small number may be 0, and that of a large one infinite.
        error, norm = math.hypot(*s[rank:]), math.hypot(*s)
        return cls(root[:, None] * vt[:rank], u[:, :rank] * root, error, norm)

    @classmethod
    def of_product(cls, a: Array, b: Array, rank: int) -> Approximation:
        """That of B A, which is never formed: the factors are rotated to a core of their rank."""
        (left, upper), (right, lower) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(upper @ lower.T, full_matrices=False)
        return cls.of_decomposition(left @ u, s, vt @ right.T, rank)


def singular_values(a: Array, b: Array) -> Array:
    """Those of B A, descending, of which no more than the rank can be other than 0.

    They are NaN if there is NaN or Inf in A or B.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(a), np.nan)
    (_, upper), (_, lower) = np.linalg.qr(b), np.linalg.qr(a.T)
    found: Array = np.linalg.svd(upper @ lower.T, compute_uv=False)
    return found
