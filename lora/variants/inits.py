"""Initial values of A and B, for which the first output always equals the output of the base.

    gaussian    A normal with standard deviation 1 / rank, B = 0
    kaiming     A uniform in +-1 / sqrt(d_in), B = 0, as PEFT does by default
    orthogonal  A and B random, mixed by orthogonal matrices so that B A = 0, up to rounding
    pissa       s B A is the principal part of W; the initial s B_0 A_0 is subtracted
    pissa_niter_4   the same, with singular vectors from 4 rounds of subspace iteration
    mica        A = 0, B the left singular vectors of the smallest singular values of W; only A
                trains (Minor Component Adaptation, arXiv:2604.01694, as in PEFT)

With B = 0, only B has a nonzero gradient at first. With orthogonal factors, both have one.

PiSSA (Meng et al., 2024) trains the largest singular values of W, and freezes the rest:
W = U S V^T, B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_r^T. Other implementations overwrite the
base by W - s B A. Here the base does not change, for other adapters and for `detach`. The update is
s (B A - B_0 A_0), with the initial factors A_0 and B_0, and is 0 at first. Computing all singular
vectors of a large W takes long; a few rounds of subspace iteration (Halko et al., 2011, algorithm
4.4) compute only the first ones.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np

from lora.frozen import Array, FrozenMatrix
from lora.scaling import check_rank_fits
from lora.spectra import Approximation
from minigrad.random import generator

INITS = ("gaussian", "kaiming", "orthogonal", "pissa", "mica")

_ROUNDS = re.compile(r"pissa_niter_([0-9]+)")
_SPARE = 8  # extra columns, which make the last singular vectors of subspace iteration accurate


class Factors(NamedTuple):
    """A and B in float64; with `from_start` (PiSSA) the update is s (B A - B_0 A_0)."""

    a: Array
    b: Array
    from_start: bool = False


def check_init(init: Any) -> None:
    """Raise a ValueError that lists the known names, unless `init` is one of them."""
    if not isinstance(init, str) or (init not in INITS and not _ROUNDS.fullmatch(init)):
        raise ValueError(
            f"init is one of {', '.join(INITS)} and pissa_niter_<rounds>, not {init!r}"
        )


def check_rank(init: str, rank: int) -> None:
    """Raise a ValueError if the rank of orthogonal factors is odd."""
    if init == "orthogonal" and rank % 2:
        raise ValueError(
            f'init="orthogonal" shares the rank out between A and B, so it must be even, not {rank}'
        )


def draw(
    init: str, weight: FrozenMatrix, rank: int, scale: float, rng: np.random.Generator | None
) -> Factors:
    """Draw the initial A, `(rank, d_in)`, and B, `(d_out, rank)`, for the update scale B A of W.

    In several groups, B is `(d_out, rank / groups)`, and `init` is "gaussian" or "kaiming". Only
    PiSSA and MiCA read W. A ValueError is raised if the rank is odd with "orthogonal", or above
    min(d_out, d_in) with PiSSA or MiCA.
    """
    d_out, d_in = weight.shape[0], weight.shape[1] * weight.groups
    check_rank(init, rank)
    if init.startswith(("pissa", "mica")):  # W has no more singular vectors
        check_rank_fits(rank, d_out, d_in)
    rng = generator(rng)
    zeros = np.zeros((d_out, rank // weight.groups))
    if init == "gaussian":
        return Factors(rng.normal(0.0, 1 / rank, (rank, d_in)), zeros)
    if init == "kaiming":
        bound = 1 / math.sqrt(d_in)
        return Factors(rng.uniform(-bound, bound, (rank, d_in)), zeros)
    if init == "mica":
        u = np.linalg.svd(weight.dense(), full_matrices=False)[0]
        return Factors(np.zeros((rank, d_in)), u[:, -rank:])
    if init == "orthogonal":
        # Half of the rows of a random orthogonal matrix mix A, the other half B (as in PEFT).
        rotation = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
        a = rotation[0::2].T @ rng.standard_normal((rank // 2, d_in)) / 10
        return Factors(a, rng.standard_normal((d_out, rank // 2)) @ rotation[1::2] / 10)
    # PiSSA, with an exact decomposition or after some rounds of iteration.
    w, rounds = weight.dense(), _ROUNDS.fullmatch(init)
    if rounds is None:
        u, s, v = np.linalg.svd(w, full_matrices=False)
    else:
        size = min(rank + _SPARE, *w.shape)
        basis = np.linalg.qr(w @ rng.standard_normal((d_in, size)))[0]
        for _ in range(int(rounds[1])):
            basis = np.linalg.qr(w @ np.linalg.qr(w.T @ basis)[0])[0]
        u, s, v = np.linalg.svd(basis.T @ w, full_matrices=False)
        u = basis @ u
    best = Approximation.of_decomposition(u, s / scale, v, rank)
    return Factors(best.a, best.b, from_start=True)
