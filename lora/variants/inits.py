"""How A and B begin: such that the first output is that of the base.

    gaussian    A normal with standard deviation 1 / rank, B = 0
    kaiming     A uniform in +-1 / sqrt(d_in), B = 0, as PEFT does by default
    orthogonal  A and B normal, in rows of A and columns of B that are orthogonal: B A = 0,
                but for rounding
    pissa       s B A is the principal part of W, which is taken off at the same time
    pissa_niter_4   the same, with singular vectors from so many rounds of subspace iteration

With B = 0 only B has a gradient at first. With orthogonal factors both have one.

PiSSA (Meng et al., 2024) trains the largest singular values of W and leaves the rest:
W = U S V^T, B = U_r sqrt(S_r / s), A = sqrt(S_r / s) V_r^T. Others write W - s B A over the base.
Here the base stays as it is, for all other adapters and for `detach`; the update is the difference
to the first factors, s (B A - B_0 A_0), which is 0 at first. All singular vectors of a large W take
long; a few rounds of subspace iteration (Halko et al., 2011, algorithm 4.4) give the first ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minigrad.random import generator

Array = NDArray[Any]

_ROUNDS = re.compile(r"pissa_niter_([0-9]+)")
_SPARE = 8  # columns beyond the rank, by which subspace iteration gets the last ones right


class Factors(NamedTuple):
    """A and B in float64, and whether the update is the difference to them."""

    a: Array
    b: Array
    from_start: bool = False


class Asked(NamedTuple):
    """What is to be drawn.

    Attributes:
        d_out, d_in, rank: the sizes.
        scale: what B A will be multiplied by.
        weight: gives W, `(d_out, d_in)` in float64.
        rng: where numbers are drawn from.
    """

    d_out: int
    d_in: int
    rank: int
    scale: float
    weight: Callable[[], Array]
    rng: np.random.Generator


def check_init(init: Any) -> None:
    """Refuse a name that is none.

    Raises:
        ValueError: with the names there are.
    """
    if not isinstance(init, str) or (init not in INITS and not _ROUNDS.fullmatch(init)):
        raise ValueError(
            f"init is one of {', '.join(INITS)} and pissa_niter_<rounds>, not {init!r}"
        )


def check_rank(init: str, rank: int) -> None:
    """Refuse an odd rank for orthogonal factors.

    Raises:
        ValueError: in that case.
    """
    if init == "orthogonal" and rank % 2:
        raise ValueError(
            f'init="orthogonal" shares the rank out between A and B, so it must be even, not {rank}'
        )


def draw(
    init: str,
    d_out: int,
    d_in: int,
    rank: int,
    scale: float,
    weight: Callable[[], Array],
    rng: np.random.Generator | None,
) -> Factors:
    """The first A, `(rank, d_in)`, and B, `(d_out, rank)`.

    Raises:
        ValueError: if the rank is odd, for orthogonal factors.
    """
    check_rank(init, rank)
    asked = Asked(d_out, d_in, rank, scale, weight, generator(rng))
    rounds = _ROUNDS.fullmatch(init)
    return _pissa(asked, int(rounds[1])) if rounds else INITS[init](asked)


def _gaussian(asked: Asked) -> Factors:
    a = asked.rng.normal(0.0, 1 / asked.rank, (asked.rank, asked.d_in))
    return Factors(a, np.zeros((asked.d_out, asked.rank)))


def _kaiming(asked: Asked) -> Factors:
    bound = 1 / math.sqrt(asked.d_in)
    a = asked.rng.uniform(-bound, bound, (asked.rank, asked.d_in))
    return Factors(a, np.zeros((asked.d_out, asked.rank)))


def _orthogonal(asked: Asked) -> Factors:
    """Half of the rows of a random rotation mix A, the other half B (as PEFT's orthogonal init)."""
    half, rng = asked.rank // 2, asked.rng
    rotation = np.linalg.qr(rng.standard_normal((asked.rank, asked.rank)))[0]
    a = rotation[0::2].T @ rng.standard_normal((half, asked.d_in)) / 10
    b = rng.standard_normal((asked.d_out, half)) @ rotation[1::2] / 10
    return Factors(a, b)


def _pissa(asked: Asked, rounds: int | None = None) -> Factors:
    w = asked.weight()
    if rounds is None:
        u, s, v = np.linalg.svd(w, full_matrices=False)
    else:
        size = min(asked.rank + _SPARE, *w.shape)
        basis = np.linalg.qr(w @ asked.rng.standard_normal((asked.d_in, size)))[0]
        for _ in range(rounds):
            basis = np.linalg.qr(w @ np.linalg.qr(w.T @ basis)[0])[0]
        u, s, v = np.linalg.svd(basis.T @ w, full_matrices=False)
        u = basis @ u
    root = np.sqrt(s[: asked.rank] / asked.scale)
    return Factors(root[:, None] * v[: asked.rank], u[:, : asked.rank] * root, from_start=True)


INITS: dict[str, Callable[[Asked], Factors]] = {
    "gaussian": _gaussian,
    "kaiming": _kaiming,
    "orthogonal": _orthogonal,
    "pissa": _pissa,
}
