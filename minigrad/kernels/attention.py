"""Attention of many heads at once, without all of its scores in memory.

This is the entry to the loops in `minigrad.kernels.flash_attention`, which work on addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from minigrad.kernels import flash_attention
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.kernel import NUMBERS, Array, Kernel, strided, written

SECONDS = 4e-11  # that a multiply-add takes, about


def serves(query: Array, key: Array, value: Array) -> bool:
    """Return whether the loops take these arrays: one float dtype, two leading axes at most."""
    return (
        query.dtype in NUMBERS
        and query.dtype == key.dtype == value.dtype
        and max(query.ndim, key.ndim, value.ndim) <= 4
        and 0 not in (query.size, key.size, value.size)
    )


def attention(
    query: Array, key: Array, value: Array, allowed: Array | None, added: Array | None,
    causal: bool, scale: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Compute softmax(scale q k^T + added) v over the allowed keys; 0 if none is allowed.

    Returns the result, `(..., L, d_v)`, and log(sum(e^scores)) of each query, `(..., L)` float64.

    Args:
        query: `(..., L, d)`, of any strides, like the other arrays.
        key: `(..., S, d)`.
        value: `(..., S, d_v)`.
        allowed: booleans that broadcast to `(..., L, S)`, or None for all.
        added: floats that broadcast to it, or None for 0.
        causal: whether query i is allowed only the keys up to i.
        scale: the factor of the scores.
    """
    leading = np.broadcast_shapes(*(x.shape[:-2] for x in (query, key, value)))
    q, k, v = (_four(x, leading) for x in (query, key, value))
    out = _like(q, v.shape[3])
    masks = _masks(allowed, added, (*leading, q.shape[2], k.shape[2]), q.dtype)
    work = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
    lse = np.empty(q.shape[:3])
    if JIT_ENABLED:
        kernel = _KERNELS[q.dtype, "forward"]
        kernel(work * SECONDS, q, k, v, causal, *masks, scale, _SIZES[q.dtype], out, lse)
    else:
        out[...], lse[...] = forward_reference(q, k, v, causal, *masks, scale)
    return out.reshape(*leading, *out.shape[2:]), lse.reshape(*leading, q.shape[2])


def attention_gradients(
    g: Array, query: Array, key: Array, value: Array, allowed: Array | None, added: Array | None,
    causal: bool, scale: float, out: Array, lse: Array, needs_input_grad: Sequence[bool],
) -> list[Array | None]:  # fmt: skip
    """Compute the gradients of `attention` by query, key, value and `added`, each if it is needed.

    They have all leading axes of the result; the last one has the shape of the scores.
    """
    leading = lse.shape[:-1]
    g, q, k, v, out = (_four(x, leading) for x in (g, query, key, value, out))
    masks = _masks(allowed, added, (*leading, q.shape[2], k.shape[2]), q.dtype)
    nothing = np.empty((0, 0, 0, 0), q.dtype)
    gradients = [
        _like(x, x.shape[3]) if need else nothing
        for x, need in zip((q, k, v), needs_input_grad, strict=False)
    ]
    gradients.append(
        np.zeros((*q.shape[:3], k.shape[2]), q.dtype) if needs_input_grad[3] else nothing
    )
    work = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])
    logs = lse.reshape(q.shape[:3])
    if JIT_ENABLED:
        kernel = _KERNELS[q.dtype, "backward"]
        kernel(
            work * SECONDS, g, q, k, v, causal, *masks, scale, _SIZES[q.dtype], out, logs,
            *gradients,
        )  # fmt: skip
    else:
        gradients = list(backward_reference(g, q, k, v, causal, *masks, scale, out, logs))
    return [
        x.reshape(*leading, *x.shape[2:]) if need else None
        for x, need in zip(gradients, needs_input_grad, strict=True)
    ]


def _four(x: Array, leading: tuple[int, ...]) -> Array:
    """Return x with two leading axes, and vectors of adjacent numbers, as the loops need it."""
    x = _adjacent(x)
    x = np.broadcast_to(x, (*leading, *x.shape[-2:])) if x.shape[:-2] != leading else x
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


def _adjacent(x: Array) -> Array:
    """Return an array whose last axis has adjacent numbers: x itself, or a copy."""
    return x if x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def _like(x: Array, size: int) -> Array:
    """Return an empty array with the axes of x, the last of another size, and the same layout."""
    if abs(x.strides[1]) < abs(x.strides[2]):
        return np.empty((x.shape[0], x.shape[2], x.shape[1], size), x.dtype).swapaxes(1, 2)
    return np.empty((*x.shape[:3], size), x.dtype)


def _masks(
    allowed: Array | None, added: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    first = _ANY if allowed is None else _mask(allowed, shape)
    if added is None:
        return first, _NO_SCORES[dtype]
    return first, _mask(added.astype(dtype, copy=False), shape)


def _mask(x: Array, shape: tuple[int, ...]) -> Array:
    """Return a mask of the scores' shape; if one number stands for all keys, it is repeated."""
    x = _adjacent(np.broadcast_to(x, (*x.shape[:-1], shape[-1])))
    return _four(np.broadcast_to(x, shape), shape[:-2])


# The references, which also run if nothing is compiled


def _weights(q: Array, k: Array, causal: bool, allowed: Array, added: Array, scale: float) -> Any:
    """Return the weights p, and log(sum(e^scores))."""
    scores = np.matmul(q, k.swapaxes(-1, -2)) * scale
    free = np.ones(scores.shape, np.bool_)
    if added.size:
        scores = scores + added
        free &= ~np.isneginf(added)
    if allowed.size:
        free &= allowed
    if causal:
        free &= np.tri(*scores.shape[-2:], dtype=np.bool_)
    some = free.any(-1, keepdims=True)
    scores = np.where(free, scores, -np.inf)
    most = np.where(some, scores.max(-1, keepdims=True), 0.0)
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - most)
    total = np.where(some, e.sum(-1, keepdims=True), 1.0)
    lse = (most + np.log(total))[..., 0]
    return (e / total).astype(q.dtype), lse


def forward_reference(
    q: Array, k: Array, v: Array, causal: bool, allowed: Array, added: Array, scale: float
) -> tuple[Array, Array]:
    """Compute the result and log(sum(e^scores)) in numpy."""
    p, lse = _weights(q, k, causal, allowed, added, scale)
    return np.matmul(p, v), lse


def backward_reference(
    g: Array, q: Array, k: Array, v: Array, causal: bool, allowed: Array, added: Array,
    scale: float, out: Array, lse: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Compute the gradients by q, k, v and `added` in numpy."""
    p, _ = _weights(q, k, causal, allowed, added, scale)
    slopes = np.matmul(g, v.swapaxes(-1, -2)) - np.sum(g * out, -1, keepdims=True)
    ds = p * slopes
    dq, dk = np.matmul(ds, k) * scale, np.matmul(ds.swapaxes(-1, -2), q) * scale
    return dq, dk, np.matmul(p.swapaxes(-1, -2), g), ds


_KERNELS: dict[tuple[np.dtype[Any], str], Kernel] = {}
for _dtype, _number in NUMBERS.items():
    _given, _new = strided(_number, 4), types.Array(_number, 4, "A")
    _options = (
        *(types.boolean, strided(types.boolean, 4), _given, types.float64),
        written(types.int64, 1),
    )
    _logs = written(types.float64, 3)
    _KERNELS[_dtype, "forward"] = Kernel(
        flash_attention.forward_loop, (_given, _given, _given, *_options, _new, _logs)
    )
    _KERNELS[_dtype, "backward"] = Kernel(
        flash_attention.backward_loop,
        (*[_given] * 4, *_options, _given, _logs, _new, _new, _new, _new),
    )
_SIZES = {dtype: np.array(tile_shape(dtype.itemsize), np.int64) for dtype in NUMBERS}
_ANY = np.empty((0, 0, 0, 0), np.bool_)
_NO_SCORES = {dtype: np.empty((0, 0, 0, 0), dtype) for dtype in NUMBERS}
