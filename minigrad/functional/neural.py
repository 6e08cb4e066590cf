"""Functions of neural networks that are more than an activation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from minigrad import random
from minigrad.functional.composition import composition
from minigrad.functional.indexing import check_below
from minigrad.functional.shape import swapaxes
from minigrad.ops import getitem, matmul, multiply, softmax, where
from minigrad.tensor import Array, Tensor, as_array

__all__ = ["dropout", "embedding", "scaled_dot_product_attention"]


@composition
def dropout(
    x: Array, p: float = 0.5, training: bool = True, *, rng: np.random.Generator | None = None
) -> Tensor:
    """In training, each element is 0 with probability `p`, else x / (1 - p); otherwise x itself.

    The expectation is x (Srivastava et al., 2014).

    Raises:
        ValueError: if `p` is not in [0, 1].
    """
    random.check_probability("p", p)
    if not training or p == 0:
        return x  # type: ignore[no-any-return]  # a Tensor for a Tensor
    keep = random.generator(rng).random(x.shape, np.float32) >= p
    scale = 1 / (1 - float(p)) if p < 1 else 0.0
    dtype = x.dtype if x.dtype.kind == "f" else np.float32
    return multiply(x, np.where(keep, scale, 0.0).astype(dtype))


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
    places = as_array(indices)
    if places.dtype.kind not in "iu":
        raise TypeError(f"indices are integers, not {places.dtype}")
    check_below("indices", places, count, "rows", IndexError)
    if padding_idx is not None and not -count <= padding_idx < count:
        raise ValueError(f"padding_idx = {padding_idx}, but there are {count} rows")
    rows = getitem(weight, places)
    if padding_idx is None:
        return rows
    constant = rows.detach() if isinstance(rows, Tensor) else rows
    return where((places == padding_idx % count)[..., None], constant, rows)


@composition
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """softmax(q k^T scale + mask) v (Vaswani et al., 2017, section 3.2.1).

    Shapes are `(..., L, d)`, `(..., S, d)` and `(..., S, d_v)`, and give `(..., L, d_v)`.

    Args:
        query: L vectors that ask.
        key: S vectors that are compared with each of them.
        value: S vectors, of which each asking one gets a weighted mean.
        attn_mask: what goes with `(..., L, S)`: booleans, True where attention may go, or floats
            to add to the scores. A query that may attend to nothing gets 0.
        dropout_p: the probability with which a weight is dropped. It is applied whenever it is not
            0: pass 0 in evaluation.
        is_causal: query i attends to keys 0 to i only; not together with a mask.
        scale: the factor of the scores; None for 1 / sqrt(d).
        rng: where the dropped ones are drawn from.

    Raises:
        ValueError: if shapes do not match, there are no keys, or both a mask and `is_causal` are
            given.
        TypeError: if the mask is neither of booleans nor of floats.
    """
    random.check_probability("dropout_p", dropout_p)
    shape = _attention_shape(query, key, value)
    allowed, mask = _mask(attn_mask, is_causal, shape)
    scores = matmul(query, swapaxes(key, -1, -2))
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores + mask.astype(scores.dtype)
    if allowed is not None:
        # The least number, not -inf: a row of nothing else would become nan.
        scores = where(allowed, scores, float(np.finfo(scores.dtype).min))
    weights = softmax(scores)
    if allowed is not None and not allowed.any(-1).all():
        weights = where(allowed, weights, 0.0)
    return matmul(dropout(weights, dropout_p, rng=rng), value)


def _attention_shape(query: Array, key: Array, value: Array) -> tuple[int, ...]:
    """The shape of the scores, `(..., L, S)`, when everything fits."""
    shapes = query.shape, key.shape, value.shape
    if any(len(shape) < 2 for shape in shapes):
        raise ValueError(f"takes stacks of vectors (..., L, d), not shapes {shapes}")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"query, key and value have shapes (..., L, d), (..., S, d) and (..., S, d_v), "
            f"not {shapes}"
        )
    if 0 in key.shape[-2:]:
        raise ValueError(f"there is nothing to attend to in shapes {shapes}")
    try:
        leading = np.broadcast_shapes(*(shape[:-2] for shape in shapes))
    except ValueError:
        raise ValueError(f"the leading axes of {shapes} do not broadcast") from None
    return (*leading, query.shape[-2], key.shape[-2])


def _mask(
    attn_mask: Array, is_causal: bool, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_] | None, Array]:
    """Where attention may go, or None for everywhere; and what to add to the scores, or None."""
    if is_causal:
        if attn_mask is not None:
            raise ValueError(
                "give a mask or is_causal, not both; for both, put the mask and a lower "
                "triangle together with &"
            )
        return np.tri(*shape[-2:], dtype=np.bool_), None
    if attn_mask is None:
        return None, None
    values = as_array(attn_mask)
    try:
        fits = np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"a mask of shape {values.shape} does not go with scores of shape {shape}")
    if values.dtype == np.bool_:
        return values, None
    if values.dtype.kind != "f":
        raise TypeError(f"a mask is of booleans or of floats, not of {values.dtype}")
    forbidden = np.isneginf(values)
    return ~forbidden if forbidden.any() else None, attn_mask
