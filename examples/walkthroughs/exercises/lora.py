"""The exercises of "LoRA"."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import Checker, Exercise

Matrix = NDArray[np.float64]
Pair = tuple[Matrix, Matrix]

_RNG = np.random.default_rng(7)


def _normal(*shape: int) -> Matrix:
    return _RNG.standard_normal(shape)


# --------------------------------------------------------------------------------------------------
# 1 and 2. How large the rank can be, and how large it must be
# --------------------------------------------------------------------------------------------------


def largest_rank(d_out: int, d_in: int) -> int:
    """Return the largest rank whose factors have fewer entries than the matrix."""
    return (d_out * d_in - 1) // (d_out + d_in)


def smallest_rank(delta: Matrix, share: float) -> int:
    """Return the smallest rank of which a matrix misses at most this share of delta's norm."""
    s = np.linalg.svd(delta, compute_uv=False)
    return _first(np.linalg.norm(s[r:]) <= share * np.linalg.norm(s) for r in range(len(s) + 1))


def _first(conditions: Any) -> int:
    """Return the number of the first condition that holds."""
    return next(r for r, holds in enumerate(conditions) if holds)


def _without_squares(delta: Matrix, share: float) -> int:
    s = np.linalg.svd(delta, compute_uv=False)
    return _first(s[r:].sum() <= share * s.sum() for r in range(len(s) + 1))


def _without_root(delta: Matrix, share: float) -> int:
    s = np.linalg.svd(delta, compute_uv=False)
    return _first((s[r:] ** 2).sum() <= share * (s**2).sum() for r in range(len(s) + 1))


def _largest_discarded(delta: Matrix, share: float) -> int:
    s = np.append(np.linalg.svd(delta, compute_uv=False), 0.0)
    return _first(s[r] <= share * s[0] for r in range(len(s)))


def _kept(delta: Matrix, share: float) -> int:
    s = np.linalg.svd(delta, compute_uv=False)
    return _first(np.linalg.norm(s[:r]) >= share * np.linalg.norm(s) for r in range(len(s) + 1))


def _rest_is_kept(delta: Matrix, share: float) -> int:
    return _kept(delta, 1 - share)


def _absolute(delta: Matrix, share: float) -> int:
    s = np.linalg.svd(delta, compute_uv=False)
    return _first(np.linalg.norm(s[r:]) <= share for r in range(len(s) + 1))


# --------------------------------------------------------------------------------------------------
# 3 and 4. The gradients of the factors
# --------------------------------------------------------------------------------------------------


def gradients(x: Matrix, a: Matrix, b: Matrix, scale: float, g: Matrix) -> Pair:
    """Return the gradients with respect to A and B, where g arrives at scale (x A^T) B^T."""
    return scale * (g @ b).T @ x, scale * g.T @ (x @ a.T)


def _with(change: Any) -> Any:
    """Return a slip that changes the two gradients, from the arguments and the right ones."""

    def slip(x: Matrix, a: Matrix, b: Matrix, scale: float, g: Matrix) -> Any:
        return change(scale, len(x), *gradients(x, a, b, scale, g))

    return slip


def other_gradients(grad_a: Matrix, grad_b: Matrix, c: Matrix) -> Pair:
    """Return the gradients at the pair (C A, B C^-1), from the gradients at (A, B)."""
    return np.linalg.inv(c).T @ grad_a, grad_b @ c.T


# --------------------------------------------------------------------------------------------------
# 5. What swapping by addition and subtraction does
# --------------------------------------------------------------------------------------------------


def changed(weight: Any, updates: Any) -> int:
    """Return how many entries differ after adding and subtracting each update in turn."""
    return int((_swapped(weight, updates) != weight).sum())


def _swapped(weight: Any, updates: Any) -> Any:
    for update in updates:
        weight = (weight + update) - update
    return weight


def _all_then_none(weight: Any, updates: Any) -> int:
    changing = weight
    for update in updates:
        changing = changing + update
    for update in updates:
        changing = changing - update
    return int((changing != weight).sum())


def _once_changed(weight: Any, updates: Any) -> int:
    """Count the entries that differ at some time, even if they come back by chance."""
    states = [_swapped(weight, updates[: i + 1]) for i in range(len(updates))]
    return int(np.any([state != weight for state in states], axis=0).sum())


def _changes(weight: Any, updates: Any) -> int:
    """Count every change of an entry, from one update to the next."""
    states = [_swapped(weight, updates[:i]) for i in range(len(updates) + 1)]
    return sum(int((a != b).sum()) for a, b in pairwise(states))


def _wide(weight: Any, updates: Any) -> int:
    return changed(weight.astype(np.float64), [update.astype(np.float64) for update in updates])


def _float32(*shape: int) -> Any:
    return _normal(*shape).astype(np.float32)


# --------------------------------------------------------------------------------------------------
# 6. Rank, scale and the start of A
# --------------------------------------------------------------------------------------------------


def _factors(
    kaiming_standard: float, kaiming_rslora: float, gaussian_standard: float, gaussian_rslora: float
) -> dict[str, float]:
    return {
        "kaiming, standard": kaiming_standard,
        "kaiming, rslora": kaiming_rslora,
        "gaussian, standard": gaussian_standard,
        "gaussian, rslora": gaussian_rslora,
    }


check = Checker(
    {
        1: Exercise(
            largest_rank,
            trials=[(24, 32), (4096, 4096), (3, 100), (1, 1)],
            slips={
                "A and B together have r (d_in + d_out) entries: both sizes count.": (
                    lambda d_out, d_in: (d_out * d_in - 1) // d_in
                ),
                "This is the first rank that trains as many parameters or more; the last one "
                "that trains fewer is one less.": (
                    lambda d_out, d_in: (d_out * d_in - 1) // (d_out + d_in) + 1
                ),
                "With this rank, LoRA can train exactly as many parameters as the matrix has; "
                "the question is for fewer.": lambda d_out, d_in: d_out * d_in // (d_out + d_in),
                "A product of this rank can be any matrix of this shape, but it has more "
                "parameters.": min,
                "A rank is a whole number.": lambda d_out, d_in: d_out * d_in / (d_out + d_in),
            },
        ),
        2: Exercise(
            smallest_rank,
            trials=[
                (np.diag([4.0, 2.0, 1.0, 0.5, 0.25]), 0.3),
                (_normal(8, 6), 0.5),
                (3 * _normal(9, 12), 0.1),
                (_normal(10, 4) @ _normal(4, 10), 0.01),
            ],
            slips={
                "The norm of a matrix is the root of the sum of the *squares* of its singular "
                "values; here the values themselves have been added.": _without_squares,
                "This compares squared norms with the share, and the question is about the "
                "norms: a root is missing.": _without_root,
                "This compares only the largest discarded singular value with the largest of "
                "all; the others that are discarded count too.": _largest_discarded,
                "This is the rank that *keeps* the share, and the question is at which rank only "
                "the share is *missing*.": _kept,
                "If a tenth of the norm is missing, more than nine tenths are kept: it is the "
                "squares of the two parts that add up to 1.": _rest_is_kept,
                "The share is one of the norm of delta, and not a distance: the result must be "
                "the same for delta and for 2 delta.": _absolute,
                "This is one too many: the rank r keeps the values s[0] to s[r - 1].": (
                    lambda delta, share: smallest_rank(delta, share) + 1
                ),
                "This is one too few: it is the index of the last value that must be kept, and "
                "the first index is 0.": lambda delta, share: smallest_rank(delta, share) - 1,
            },
        ),
        3: Exercise(
            gradients,
            trials=[
                (_normal(5, 4), _normal(2, 4), _normal(3, 2), 4.0, _normal(5, 3)),
                (_normal(6, 3), _normal(3, 3), np.zeros((3, 3)), 0.5, _normal(6, 3)),
            ],
            slips={
                "The scale is missing from both: the output grows with the product B A at the "
                "rate `scale`.": _with(lambda s, n, a, b: (a / s, b / s)),
                "The scale is missing from the gradient of A: the model would still learn, with "
                "a wrong step for one factor.": _with(lambda s, n, a, b: (a / s, b)),
                "The scale is missing from the gradient of B; that of A has it.": _with(
                    lambda s, n, a, b: (a, b / s)
                ),
                "The scale enters twice. It is one factor of the output, so it is one factor of "
                "each gradient.": _with(lambda s, n, a, b: (s * a, s * b)),
                "Each gradient has the shape of its parameter, and these are transposed.": _with(
                    lambda s, n, a, b: (a.T, b.T)
                ),
                "These are the right arrays in the wrong order: first A, then B.": _with(
                    lambda s, n, a, b: (b, a)
                ),
                "These are means over the rows. A mean belongs to the loss, and g already "
                "contains it: here the rows are added up.": _with(
                    lambda s, n, a, b: (a / n, b / n)
                ),
                "The signs are wrong: a gradient points uphill, and only the step goes "
                "against it.": _with(lambda s, n, a, b: (-a, -b)),
                "The gradient of A is zero only while B is zero; here the B of the first trial "
                "is not.": _with(lambda s, n, a, b: (0 * a, b)),
            },
        ),
        4: Exercise(
            other_gradients,
            trials=[
                (_normal(3, 4), _normal(5, 3), np.eye(3) + np.diag([2.0, 1.0], 1)),
                (_normal(3, 5), _normal(4, 3), _normal(3, 3)),
            ],
            slips={
                "The output is the same, but the gradients are not: each gradient is multiplied "
                "by the *other* factor, and that has changed.": lambda a, b, c: (a, b),
                "This is how the factors change. A gradient does not change as its parameter "
                "does: look at what multiplies G in each formula.": (
                    lambda a, b, c: (c @ a, b @ np.linalg.inv(c))
                ),
                "Both transposes are missing. In dA = s B^T G, it is the transpose of the new B "
                "that counts.": lambda a, b, c: (np.linalg.inv(c) @ a, b @ c),
                "The gradient of A is right. In that of B the transpose is missing: it is "
                "multiplied by the transpose of the new A.": (
                    lambda a, b, c: (np.linalg.inv(c).T @ a, b @ c)
                ),
                "The gradient of B is right. In that of A the transpose is missing: it is "
                "multiplied by the transpose of the new B.": (
                    lambda a, b, c: (np.linalg.inv(c) @ a, b @ c.T)
                ),
                "Here C and its inverse have changed places: the new B has the inverse, and it is "
                "B that multiplies the gradient of A.": (
                    lambda a, b, c: (c.T @ a, b @ np.linalg.inv(c).T)
                ),
                "Only the gradient of A has changed here, but A has changed too, and it is in the "
                "gradient of B.": lambda a, b, c: (np.linalg.inv(c).T @ a, b),
            },
        ),
        5: Exercise(
            changed,
            trials=[
                (_float32(6, 8), [_float32(6, 8)]),
                (_float32(20, 30), [(i + 1) * _float32(20, 30) for i in range(10)]),
            ],
            slips={
                "No entry differs here. Either you compute in float64, where the rounding is finer "
                "than these float32 numbers can show; or the start has changed too, because `+=` "
                "writes to the array that you compare with.": _wide,
                "Each update starts here at the weight of the beginning. The server does not have "
                "that any more: it goes on with what the last swap left.": (
                    lambda weight, updates: changed(weight, updates[-1:])
                ),
                "All updates are added before the first is subtracted. Only one adapter at a "
                "time is in the weight.": _all_then_none,
                "This counts entries that differed at some time. Some come back by chance; "
                "compare only the last weight with the first.": _once_changed,
                "This counts each change of an entry, and some entries change often. Compare the "
                "last weight with the first.": _changes,
                "This is the number of entries that are equal, and those that differ are "
                "wanted.": lambda weight, updates: weight.size - changed(weight, updates),
                "This is a distance; the number of entries that differ is wanted.": (
                    lambda weight, updates: float(abs(_swapped(weight, updates) - weight).max())
                ),
            },
        ),
        6: Exercise(
            _factors(1 / 2, 1.0, 1 / 8, 1 / 4),
            tolerance=1e-2,
            slips={
                "The entries of the r products have random signs, so a sum of four times as many "
                "is not four times as large.": _factors(1.0, 2.0, 1 / 4, 1 / 2),
                "With the Gaussian start, the entries of A themselves get smaller with the rank: "
                "this adds a factor.": _factors(1 / 2, 1.0, 1 / 2, 1.0),
                "With the Gaussian start, 1 / rank is the standard deviation of the entries of A, "
                "and not their variance.": _factors(1 / 2, 1.0, 1 / 4, 1 / 2),
                "These are the factors by which the size is *divided*: more than 1 means that it "
                "grows.": _factors(2.0, 1.0, 8.0, 4.0),
                "The two scales have changed places: `standard` is alpha / rank.": _factors(
                    1.0, 1 / 2, 1 / 4, 1 / 8
                ),
                "This is the size of B A. The layer multiplies it by the scale, which depends on "
                "the rank too.": _factors(2.0, 2.0, 1 / 2, 1 / 2),
                "The sum of more terms is larger, and this counts only the scale and the start of "
                "A.": _factors(1 / 4, 1 / 2, 1 / 16, 1 / 8),
            },
        ),
    }
)
