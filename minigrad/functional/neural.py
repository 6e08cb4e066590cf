"""Functions of neural networks that are more than an activation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels, random
from minigrad.checks import check_probability
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.composition import composition
from minigrad.functional.indexing import check_below
from minigrad.ops import getitem, where

__all__ = ["dropout", "embedding"]


@op(floats=True, cost=2, shape=lambda x: x.shape, fresh=("words",))
def dropped(
    x: Array, words: NDArray[np.uint16] | None = None, threshold: int = 0, scale: float = 1.0
) -> Array:
    """x times `scale` where the random word is at least `threshold`, else x times 0."""
    assert words is not None
    return kernels.dropout.drop(x, words, threshold, scale)


dropped.vjp("x", lambda g, words, threshold, scale: dropped(g, words, threshold, scale))


@composition
def dropout(
    x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | None = None
) -> Tensor:
    """x with each element dropped with probability `p`, else divided by 1 - p; only in training.

    The expectation is x (Srivastava et al., 2014). An element is dropped if 16 bits drawn for it
    are below 2^16 `p`, rounded up or down at random in each call, so that the probability is `p` to
    the last digit.

    Raises:
        ValueError: if `p` is not in [0, 1].
    """
    check_probability("p", p)
    if not training or p == 0:
        return x  # type: ignore[no-any-return]  # a Tensor for a Tensor
    rng = random.generator(rng)
    words = random.words(rng, math.prod(x.shape))
    threshold = math.floor(2**16 * float(p) + rng.random())
    return dropped(x, words, threshold, 1 / (1 - float(p)) if p < 1 else 0.0)


@composition
def embedding(indices: Array, weight: Array, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` at `indices`: `(...)` and `(count, d)` give `(..., d)`.

    Args:
        indices: integers from 0 to count - 1.
        weight: one row for each index.
        padding_idx: a row that gets no gradient.

    Raises:
        TypeError: if the indices are not integers.
        ValueError: if `weight` is not a matrix, or has no row `padding_idx`.
        IndexError: if there is no row for an index; negative ones do not count from the end.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight has shape (count, d), not {weight.shape}")
    count = weight.shape[0]
    integers = as_array(indices)
    if integers.dtype.kind not in "iu":
        raise TypeError(f"indices are integers, not {integers.dtype}")
    check_below("indices", integers, count, "rows", IndexError)
    if padding_idx is not None and not -count <= padding_idx < count:
        raise ValueError(f"padding_idx = {padding_idx}, but there are {count} rows")
    rows = getitem(weight, integers)
    if padding_idx is None:
        return rows
    constant = rows._data if isinstance(rows, Tensor) else rows
    return where((integers == padding_idx % count)[..., None], constant, rows)
