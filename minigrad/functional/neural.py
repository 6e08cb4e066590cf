"""Functions of neural networks: dropout, embedding and attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels, random
from minigrad.checks import check_count, check_flag, check_integer, check_probability, check_range
from minigrad.core.grad_mode import observed
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.compositions import composition, narrowed, widened
from minigrad.functional.indexing import as_integers, check_below
from minigrad.functional.shape import repeat, swapaxes
from minigrad.ops import astype, getitem, hints, logical_and, matmul, not_equal, softmax, where
from minigrad.ops.shape import fits, reshape
from minigrad.random import Rng

Booleans = NDArray[np.bool_]


@op(linear=("x",), floats=True, cost=2, shape=lambda x: x.shape, fresh=("words",))
def dropped(x: Array, words: NDArray[np.uint16], threshold: Any, scale: float) -> Array:
    """x times `scale` where the random word is at least `threshold`, else x times 0."""
    return kernels.elementwise.drop(x, words, threshold, scale)


dropped.vjp("x", lambda g, words, threshold, scale: dropped(g, words, threshold, scale))


@composition
def dropout(x: Array, p: float = 0.5, training: bool = True, *, rng: Rng = None) -> Tensor:
    """In training, set each element of x to 0 with probability `p`; divide the others by 1 - p.

    The expectation is x (Srivastava et al., 2014). For each element, 16 random bits are drawn; it
    is dropped if they are below 2^16 `p`. This threshold is rounded up or down at random in each
    call, so that the probability is exactly `p`.

    Raises:
        ValueError: if `p` is not in [0, 1].
        TypeError: if `p` is not a number, `training` is not True or False, or `rng` is not a
            generator.
    """
    check_probability("p", p)
    check_flag("training", training)
    if not training or p == 0:
        return x  # type: ignore[no-any-return]  # a Tensor for a Tensor
    words, threshold = observed(draw_words, rng, math.prod(x.shape), float(p))
    return dropped(x, words, threshold, 1 / (1 - float(p)) if p < 1 else 0.0)


def draw_words(rng: Rng, count: int, p: float) -> tuple[NDArray[np.uint16], np.int64]:
    """Draw the random words for `dropped`, and the threshold: 2^16 `p`, randomly rounded."""
    rng = random.generator(rng)
    words = random.words(rng, count)
    return words, np.int64(math.floor(2**16 * p + rng.random()))


@composition
def embedding(indices: Array, weight: Array, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` at `indices`: `(...)` and `(count, d)` give `(..., d)`.

    Args:
        indices: integers from 0 to count - 1.
        weight: a matrix with one row for each index.
        padding_idx: the index of a row that gets no gradient.

    Raises:
        TypeError: if the indices, or `padding_idx`, are not integers.
        ValueError: if `weight` is not a matrix, or has no row `padding_idx`.
        IndexError: if an index has no row. Negative indices do not count from the end.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight has shape (count, d), not {weight.shape}")
    count = weight.shape[0]
    integers = as_integers("indices", indices)
    observed(check_below, "indices", integers, count, "rows", IndexError)
    if padding_idx is None:
        return getitem(weight, integers)
    row = check_padding_idx(padding_idx, count)
    rows = getitem(weight, integers)
    constant = rows._data if isinstance(rows, Tensor) else rows
    is_padding = observed(np.equal, integers, row)
    return where(getitem(is_padding, (..., None)), constant, rows)


def check_padding_idx(padding_idx: int, count: int) -> int:
    """Return the index of a row of padding from the front; an error if there is no such row."""
    check_integer("padding_idx", padding_idx)
    if not -count <= padding_idx < count:
        raise ValueError(f"padding_idx = {padding_idx}, but there are {count} rows")
    return padding_idx % count


# --------------------------------------------------------------------------------------------------
# Attention: a mean of value vectors, weighted by how similar their keys are to a query
# --------------------------------------------------------------------------------------------------


def _attention(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array = None,
    added: Array = None,
    offset: int | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    rng: Rng = None,
) -> Tensor:
    """softmax(q k^T scale + added) v where allowed; 0 if a query may attend to no key."""
    heads = query.shape[-3:-2]
    key, value = (
        repeat(x, heads[0] // x.shape[-3], -3) if (1,) < x.shape[-3:-2] < heads else x
        for x in (key, value)
    )
    scores = matmul(query, swapaxes(key, -1, -2)) * scale
    masked = added is not None or allowed is not None  # then a query may have no allowed key
    if added is not None:
        scores = scores + astype(added, scores.dtype)
        free = not_equal(added, -math.inf)
        allowed = free if allowed is None else logical_and(allowed, free)
    if offset is not None:
        past = observed(np.tri, query.shape[-2], key.shape[-2], offset, np.bool_)
        allowed = past if allowed is None else logical_and(allowed, past)
    if allowed is not None:
        # The lowest number instead of -inf: softmax of a row of only -inf would be nan.
        scores = where(allowed, scores, float(np.finfo(scores.dtype).min))
    weights = softmax(scores)
    if masked:
        weights = where(allowed, weights, 0.0)
    return matmul(dropout(weights, dropout_p, rng=rng), value)


def _flops(query: Array, key: Array, value: Array, out: Array) -> tuple[int, int, int]:
    """Return the size of the scores, the FLOPs of q k^T, and those of p v."""
    scores = out.size // value.shape[-1] * key.shape[-2]
    return scores, 2 * scores * query.shape[-1], 2 * scores * value.shape[-1]


def _sum(x: Array, out: Array) -> int:
    """The FLOPs of adding the gradients of a key or value x over the heads that share it."""
    shared = (1,) < x.shape[-3:-2] < out.shape[-3:-2]
    return math.prod((*out.shape[:-2], *x.shape[-2:])) if shared else 0


def _attention_hint(query: Array, key: Array, out: Array) -> str | None:
    if not (query.size and key.size and hints.are_finite((query, key))):
        return None
    most = float(np.abs(query).max()) * float(np.abs(key).max()) * query.shape[-1]
    if most > float(np.finfo(out.dtype).max):
        return hints.overflow(out.dtype, " of the products of query and key")
    return None


@op(composition=_attention, returns_residuals=True, product=True, nonfinite_hint=_attention_hint)
def fused_attention(
    query: Array,
    key: Array,
    value: Array,
    allowed: Booleans | None = None,
    added: Array = None,
    offset: int | None = None,
    scale: float = 1.0,
) -> tuple[Array, Array]:
    """Attention that never stores all weights in memory (see `minigrad.kernels.attention`).

    Its residual is one number for each query, log(sum(e^scores)).
    """
    return kernels.attention.attention(query, key, value, allowed, added, offset, scale)


def _shared(needs_input_grad: set[str], query: Array, key: Array, value: Array, out: Array) -> int:
    """The FLOPs of computing the weights again and, unless only v needs it, scores' gradients."""
    scores, by_keys, by_values = _flops(query, key, value, out)
    slopes = by_values + 2 * out.size + 2 * scores if needs_input_grad - {"value"} else 0
    return by_keys + 3 * scores + slopes if needs_input_grad else 0


fused_attention.joint_vjp(
    ("query", "key", "value", "added"),
    lambda g, needs_input_grad, query, key, value, allowed, added, offset, scale, out, residuals: (
        kernels.attention.attention_gradients(
            g, query, key, value, allowed, added, offset, scale, out, residuals, needs_input_grad
        )
    ),
    cost={
        "query": lambda query, key, value, out: _flops(query, key, value, out)[1],
        "key": lambda query, key, value, out: _flops(query, key, value, out)[1] + _sum(key, out),
        "value": lambda query, key, value, out: (
            _flops(query, key, value, out)[2] + _sum(value, out)
        ),
        "shared": _shared,
    },
)


@composition
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: int = 0,
    rng: Rng = None,
) -> Tensor:
    """softmax(q k^T scale + mask) v (Vaswani et al., 2017, section 3.2.1).

    The scores and the weights are not kept in memory, except with dropout. The gradient of a float
    mask is as large as the scores.

    Query, key and value have the shapes `(..., L, d)`, `(..., S, d)` and `(..., S, d_v)`; the
    result has the shape `(..., L, d_v)`.

    Args:
        query: L vectors.
        key: S vectors that are compared with each query.
        value: S vectors, of which each query gets a weighted mean.
        attn_mask: an array that can be broadcast to `(..., L, S)`: booleans, True where attention
            is allowed, or floats to add to the scores. If a query may attend to no key, its result
            is 0.
        dropout_p: the probability of dropping a weight. The function does not know whether the
            model is in training: pass 0 in evaluation.
        is_causal: query i attends only to keys 0 to i + `causal_offset`; not together with a mask.
        scale: the factor of the scores; None for 1 / sqrt(d).
        enable_gqa: whether each head of keys and values may serve a group of heads of queries
            (Ainslie et al., 2023). Heads are along axis -3; query head h of H uses key head
            h // (H / H_k), as in PyTorch. Nothing is repeated in memory.
        causal_offset: the number of keys before the first query, such as keys in a cache.
        rng: the generator that chooses the dropped weights.

    Raises:
        ValueError: if shapes do not match, there are no keys, both a mask and `is_causal` are
            given, `dropout_p` is not in [0, 1], `scale` is infinite, or `causal_offset` is not an
            integer of at least 0, or is given without `is_causal`.
        TypeError: if the mask does not contain booleans or floats, a flag is not True or False,
            `scale` or `dropout_p` is not a number, or `rng` is not a generator.
    """
    check_probability("dropout_p", dropout_p)
    check_count("causal_offset", causal_offset)
    check_flag("is_causal", is_causal)
    check_flag("enable_gqa", enable_gqa)
    if causal_offset and not is_causal:
        raise ValueError(f"causal_offset = {causal_offset} has no effect without is_causal=True")
    shape = _attention_shape(query, key, value, enable_gqa)
    offset = min(causal_offset, shape[-1]) if is_causal else None
    allowed, added = _mask(attn_mask, is_causal, shape)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    else:
        check_range("scale", scale, -math.inf, math.inf)
        scale = float(scale)
    given = query
    if query.dtype == key.dtype == value.dtype == np.float16:  # their products could overflow
        query, key, value = (widened(x) for x in (query, key, value))
    if dropout_p == 0 and kernels.attention.serves(query, key, value):
        if added is not None and added.dtype != query.dtype:
            added = astype(added, query.dtype)
        out = fused_attention(query, key, value, allowed, added, offset, scale)
    else:
        out = _attention(query, key, value, allowed, added, offset, scale, dropout_p, rng)
    return out if given is query else narrowed(out, given)


def _attention_shape(query: Array, key: Array, value: Array, enable_gqa: bool) -> tuple[int, ...]:
    """Return the shape of the scores, `(..., L, S)`, after checking that all shapes fit."""
    q, k, v = shapes = query.shape, key.shape, value.shape
    if min(len(q), len(k), len(v)) < 2 or q[-1] != k[-1] or k[-2] != v[-2]:
        wanted = "(..., L, d), (..., S, d) and (..., S, d_v)"
        raise ValueError(f"query, key and value have shapes {wanted}, not {shapes}")
    if 0 in k[-2:]:
        raise ValueError(f"there is nothing to attend to in shapes {shapes}")
    axes = q[:-2], k[:-2], v[:-2]
    if enable_gqa:
        if not all(axes) or 0 in (k[-3], v[-3]) or q[-3] % k[-3] or q[-3] % v[-3]:
            wanted = "the heads, axis -3, of key and value divide those of the query"
            raise ValueError(f"with enable_gqa, {wanted}, not as in shapes {shapes}")
        axes = axes[0], (*k[:-3], q[-3]), (*v[:-3], q[-3])
    try:
        leading = axes[0] if axes[0] == axes[1] == axes[2] else np.broadcast_shapes(*axes)
    except ValueError:
        hint = "" if enable_gqa else "; for fewer heads of key and value pass enable_gqa=True"
        raise ValueError(f"the leading axes of {shapes} do not broadcast{hint}") from None
    return (*leading, q[-2], k[-2])


def _mask(
    attn_mask: Array, is_causal: bool, shape: tuple[int, ...]
) -> tuple[Booleans | None, Array]:
    """Split a mask into booleans (None if all is allowed) and terms to add to scores (or None)."""
    if attn_mask is None:
        return None, None
    if is_causal:
        raise ValueError(
            "give a mask or is_causal, not both; for both, pass mask & a lower triangle"
        )
    values = as_array(attn_mask)
    if not fits(values.shape, shape):
        raise ValueError(f"a mask of shape {values.shape} does not fit scores of shape {shape}")
    if values.dtype == np.bool_:
        return values, None
    if values.dtype.kind != "f":
        raise TypeError(f"a mask contains booleans or floats, not {values.dtype}")
    return None, attn_mask if values.ndim else reshape(attn_mask, (1, 1))
