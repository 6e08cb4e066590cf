"""Rotary position embeddings: rotate pairs of numbers by angles that depend on the position."""

from __future__ import annotations

import numpy as np

from minigrad.kernels.attention import adjacent, laid_out_like, vector_at
from minigrad.kernels.jit import Array, Strided, Written
from minigrad.kernels.launch import for_each_dtype, span

SECONDS = 4e-10  # approximate seconds of an element


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Compute (a cos - b sin, b cos + a sin) for the halves a and b of the vectors of x.

    For (1, 9, 256, 64), the kernel's one pass over memory takes a quarter of the time of numpy's
    six passes. `cos` and `sin` have the dtype of x and a last axis that is half as long; they may
    lack leading axes.
    """
    kernel = rope_loop.get(x.dtype)
    if kernel is None or not x.size:
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    if x.ndim > 4:  # the first axes become one
        whole = (np.broadcast_to(y, (*x.shape[:-1], y.shape[-1])) for y in (cos, sin))
        return rope(*(y.reshape(-1, *y.shape[-3:]) for y in (x, *whole))).reshape(x.shape)
    rows, cos, sin = _with_four_axes(x), _with_four_axes(cos), _with_four_axes(sin)
    out = laid_out_like(rows, rows.shape[1], rows.shape[3])
    kernel(x.size * SECONDS, rows, cos, sin, out)
    return out.reshape(x.shape)


def _with_four_axes(x: Array) -> Array:
    """Return x with leading axes of size 1 up to four axes, and with a contiguous last axis."""
    x = adjacent(x)
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


@for_each_dtype()
def rope_loop(
    piece: int, pieces: int, x: Strided.D4, cos: Strided.D4, sin: Strided.D4,
    out: Written.Anywhere4,
) -> None:  # fmt: skip
    """Write `out`, vector by vector; if a table lacks an axis, its step along this axis is 0."""
    heads, length, half = x.shape[1], x.shape[2], x.shape[3] // 2
    for n in span(piece, pieces, x.shape[0] * heads * length):
        b, h, i = n // length // heads, n // length % heads, n % length
        row, target = vector_at(x, b, h, i), vector_at(out, b, h, i)
        c, s = vector_at(cos, b, h, i), vector_at(sin, b, h, i)
        for j in range(half):
            first, second = row[j], row[j + half]
            target[j] = first * c[j] - second * s[j]
            target[j + half] = second * c[j] + first * s[j]
