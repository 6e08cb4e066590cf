"""The loops of attention: one head at a time, and never all of its scores.

Each of L queries has S scores, one for each key, and L x S numbers are too many to write down and
read again. So a strip of queries goes along its keys block by block, and keeps what the keys so far
add up to (Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022):

    m: the greatest score,   l = sum(e^(score - m)),   o = sum(e^(score - m) value)

When a block has a greater m, l and o are multiplied by e^(old m - new m). At the end out = o / l,
and for the way back lse = m + log(l) is noted, so that p = e^(score - lse) is a weight at once:

    dv = sum p^T do,   ds = p (do v^T - sum(do out)),   dq = scale sum ds k,   dk = scale sum ds^T q

There the outer loop is over blocks of keys, whose dk and dv stay near, and the inner one over
blocks of queries, to whose dq each block of keys adds.

The products run on the register tile of the matrix product, so that its operands are what the tile
wants: keys and values packed in panels, scores in a block of their own. Of a causal head, what is
above the diagonal is left out, to the strip.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from minigrad.kernels.jit import jit
from minigrad.kernels.micro import CACHE_LINE, tile_strided
from minigrad.kernels.pack import Blocks, Matrix, pack_columns
from minigrad.kernels.places import elements
from minigrad.kernels.products import blocks_of
from minigrad.kernels.scores import (
    Mask,
    exponentials,
    greatest_of,
    limited,
    nothing_allowed,
    weights_and_slopes,
)
from minigrad.kernels.vector import address_of, keep_alive

prange: Any = numba.prange

QUERIES = 256  # of a head that are one piece of the forward's work
WIDE = 8  # panels of keys in a block of the forward: longer sums are less exact
NARROW = 4  # panels of keys in a block of the backward
STRIPS = 8  # strips of queries in a block of the backward


@jit(inline="always")
def _matrix(x: Any, b: int, h: int, row: int) -> Matrix:
    """The matrix of head h of sequence b, from a row on."""
    at = address_of(x) + b * x.strides[0] + h * x.strides[1] + row * x.strides[2]
    return Matrix(at, x.strides[2], x.strides[3])


@jit(inline="always")
def _vector(x: Any, b: int, h: int, i: int) -> Any:
    """x[b, h, i], of which the compiler knows that its numbers are adjacent."""
    return elements(_matrix(x, b, h, i).at, 0, x.shape[3], x)


@jit()
def _room(rows: int, columns: int, like: Any) -> Any:
    """An array that begins with a cache line, as `like` in dtype."""
    lines = (rows * columns * like.itemsize + 2 * CACHE_LINE - 1) // CACHE_LINE
    work = np.empty(lines * (CACHE_LINE // like.itemsize), like.dtype)
    skipped = -address_of(work) % CACHE_LINE // like.itemsize
    return work[skipped : skipped + rows * columns].reshape((rows, columns))


@jit(inline="always")
def _panels(t: Blocks, columns: int) -> int:
    return (columns + t.NR - 1) // t.NR


@jit()
def _pack(t: Blocks, b: Matrix, depth: int, columns: int, target: Any) -> None:
    """All panels of a matrix, one behind another, each `depth` rows of NR numbers."""
    pack_columns(t, b, columns, depth, 0, address_of(target), _panels(t, columns))
    keep_alive(target)


@jit()
def _multiply(
    t: Blocks, rows: int, panels: int, depth: int, a: Matrix, b: int, b_next: int, c: int,
    c_row: int, add: bool,
) -> None:  # fmt: skip
    """C = A B or += : B packed, from address `b` on, and as many columns of C as panels have."""
    line = t.NR * t.item
    for panel in range(panels):
        done = 0
        while done < rows:
            done += tile_strided(
                rows - done, a.at + done * a.row, a.row, a.col, b + panel * b_next, line, depth,
                c + panel * line + done * c_row, c_row, add, t.zero,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Forward
# --------------------------------------------------------------------------------------------------


def forward_loop(
    pieces: int, q: Any, k: Any, v: Any, causal: bool, allowed: Any, added: Any, scale: float,
    sizes: Any, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Write `out` and `lse` of all heads."""
    heads, queries = q.shape[1], q.shape[2]
    chunks = (queries + QUERIES - 1) // QUERIES
    count = q.shape[0] * heads * chunks
    for number in prange(pieces):
        for task in range(number * count // pieces, (number + 1) * count // pieces):
            b, h, start = task // chunks // heads, task // chunks % heads, task % chunks * QUERIES
            mask = Mask(causal, allowed, added)
            end = min(queries, start + QUERIES)
            _forward(q, k, v, mask, scale, sizes, b, h, start, end, out, lse)


@jit(inline="always")
def _forward(
    q: Any, k: Any, v: Any, mask: Mask, scale: float, sizes: Any, b: int, h: int, start: int,
    end: int, out: Any, lse: Any,
) -> None:  # fmt: skip
    """The forward of the queries from `start` to `end` of a head."""
    t = blocks_of(sizes, q)
    number = q.dtype.type
    d, d_v, item = q.shape[3], v.shape[3], t.item
    keys = min(k.shape[2], end) if mask.causal else k.shape[2]
    width, wide = _panels(t, d_v) * t.NR, min(WIDE, _panels(t, keys)) * t.NR
    columns, values = _room(_panels(t, keys) * d, t.NR, q), _room(width * keys // t.NR, t.NR, q)
    of_keys, of_values = _matrix(k, b, h, 0), _matrix(v, b, h, 0)
    _pack(t, Matrix(of_keys.at, of_keys.col, of_keys.row), d, keys, columns)
    _pack(t, of_values, keys, d_v, values)
    scores, sums = _room(t.MR, wide + t.NR, q), _room(t.MR, width, q)
    most, total = np.empty(t.MR, q.dtype), np.empty(t.MR, np.float64)
    score_row, sum_row = (wide + t.NR) * item, width * item
    for i in range(start, end, t.MR):
        high = min(t.MR, end - i)
        seen = min(keys, i + high) if mask.causal else keys
        most[:], total[:] = -np.inf, 0.0
        for j in range(0, seen, wide):
            step = min(wide, seen - j)
            panels = _panels(t, step)
            _multiply(
                t, high, panels, d, _matrix(q, b, h, i), address_of(columns) + j * d * item,
                d * t.NR * item, address_of(scores), score_row, False,
            )  # fmt: skip
            for r in range(high):
                row = scores[r, : panels * t.NR]
                left = limited(row, number(scale), mask, b, h, i + r, j, step)
                at = address_of(scores) + r * score_row
                before, greatest = most[r], greatest_of(at, row.size, t.zero) * left
                if not greatest > before:
                    greatest = before
                elif j > 0:
                    shrunk = number(math.exp(before - greatest))
                    total[r] *= shrunk
                    for c in range(width):
                        sums[r, c] *= shrunk
                most[r] = greatest
                if greatest == -np.inf:
                    row[:] = 0
                else:
                    total[r] += exponentials(row, left, greatest)
            _multiply(
                t, high, width // t.NR, step, Matrix(address_of(scores), score_row, item),
                address_of(values) + j * t.NR * item, keys * t.NR * item, address_of(sums), sum_row,
                j > 0,
            )  # fmt: skip
        for r in range(high):
            lse[b, h, i + r] = most[r] + math.log(total[r])
            share = number(1 / total[r])
            if most[r] == -np.inf:
                nothing = nothing_allowed(mask, b, h, i + r, keys)
                share = number(0 if nothing else np.nan)
                lse[b, h, i + r] = 0 if nothing else np.nan
            target = _vector(out, b, h, i + r)
            for c in range(d_v):
                target[c] = sums[r, c] * share
    keep_alive(columns)
    keep_alive(values)
    keep_alive(scores)
    keep_alive(sums)


# --------------------------------------------------------------------------------------------------
# Backward
# --------------------------------------------------------------------------------------------------


def backward_loop(
    pieces: int, g: Any, q: Any, k: Any, v: Any, causal: bool, allowed: Any, added: Any,
    scale: float, sizes: Any, out: Any, lse: Any, dq: Any, dk: Any, dv: Any, ds: Any,
) -> None:  # fmt: skip
    """Write `dq`, `dk`, `dv` and `ds`, but for those of size 0; `ds` is 0 where nothing is."""
    heads = q.shape[1]
    count = q.shape[0] * heads
    for number in prange(pieces):
        for task in range(number * count // pieces, (number + 1) * count // pieces):
            mask = Mask(causal, allowed, added)
            b, h = task // heads, task % heads
            _backward(g, q, k, v, mask, scale, sizes, b, h, out, lse, dq, dk, dv, ds)


@jit(fastmath={"contract"})
def _means(g: Any, out: Any, b: int, h: int, means: Any) -> None:
    """The products of rows of g with those of `out`.

    Each is summed from the first number to the last, as the tile does it: where a query has one
    key only, the difference from its slope is then 0. Four at once, since a sum waits for itself.
    """
    last = means.size - 1
    for i in range(0, means.size, 4):
        rows = i, min(i + 1, last), min(i + 2, last), min(i + 3, last)
        x0, y0 = _vector(g, b, h, rows[0]), _vector(out, b, h, rows[0])
        x1, y1 = _vector(g, b, h, rows[1]), _vector(out, b, h, rows[1])
        x2, y2 = _vector(g, b, h, rows[2]), _vector(out, b, h, rows[2])
        x3, y3 = _vector(g, b, h, rows[3]), _vector(out, b, h, rows[3])
        zero = g.dtype.type(0)
        s0, s1, s2, s3 = zero, zero, zero, zero
        for n in range(x0.size):
            s0 += x0[n] * y0[n]
            s1 += x1[n] * y1[n]
            s2 += x2[n] * y2[n]
            s3 += x3[n] * y3[n]
        means[rows[3]], means[rows[2]], means[rows[1]], means[i] = s3, s2, s1, s0


@jit()
def _write(rows: int, source: Any, scale: Any, b: int, h: int, start: int, target: Any) -> None:
    """target[b, h, start + r] = scale source[r], of as many columns as the target has."""
    for r in range(rows):
        x, y = source[r], _vector(target, b, h, start + r)
        for c in range(y.size):
            y[c] = x[c] * scale


@jit(inline="always")
def _backward(
    g: Any, q: Any, k: Any, v: Any, mask: Mask, scale: float, sizes: Any, b: int, h: int, out: Any,
    lse: Any, dq: Any, dk: Any, dv: Any, ds: Any,
) -> None:  # fmt: skip
    """The backward of one head."""
    t = blocks_of(sizes, q)
    number, item, line = q.dtype.type, t.item, t.NR * t.item
    queries, keys, d, d_v = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    width, width_v = _panels(t, d) * t.NR, _panels(t, d_v) * t.NR
    wide, high = min(NARROW, _panels(t, keys)) * t.NR, min(STRIPS * t.MR, queries)

    mean = np.empty(queries, q.dtype)
    _means(g, out, b, h, mean)
    q_rows = _room(queries * width // t.NR, t.NR, q)
    g_rows = _room(queries * width_v // t.NR, t.NR, q)
    _pack(t, _matrix(q, b, h, 0), queries, d, q_rows)
    _pack(t, _matrix(g, b, h, 0), queries, d_v, g_rows)
    q_sums, k_sums = _room(queries, width, q), _room(wide, width, q)
    v_sums = _room(wide, width_v, q)
    q_sums[:] = 0
    k_rows = _room(wide * width // t.NR, t.NR, q)
    k_columns, v_columns = _room(wide // t.NR * d, t.NR, q), _room(wide // t.NR * d_v, t.NR, q)
    weights, slopes = _room(high, wide, q), _room(high, wide, q)
    p_row = wide * item

    for j in range(0, keys, wide):
        step = min(wide, keys - j)
        of_keys, of_values = _matrix(k, b, h, j), _matrix(v, b, h, j)
        _pack(t, of_keys, step, d, k_rows)
        _pack(t, Matrix(of_keys.at, of_keys.col, of_keys.row), d, step, k_columns)
        _pack(t, Matrix(of_values.at, of_values.col, of_values.row), d_v, step, v_columns)
        k_sums[:], v_sums[:] = 0, 0
        for i in range(j if mask.causal else 0, queries, high):
            rows = min(high, queries - i)
            for s in range(0, rows, t.MR):
                strip = min(t.MR, rows - s)
                seen = min(step, i + s + strip - j) if mask.causal else step
                panels = _panels(t, seen)
                scores_at = address_of(weights) + s * p_row
                slopes_at = address_of(slopes) + s * p_row
                _multiply(
                    t, strip, panels, d, _matrix(q, b, h, i + s), address_of(k_columns), d * line,
                    scores_at, p_row, False,
                )  # fmt: skip
                _multiply(
                    t, strip, panels, d_v, _matrix(g, b, h, i + s), address_of(v_columns),
                    d_v * line, slopes_at, p_row, False,
                )  # fmt: skip
                for r in range(s, s + strip):
                    n = i + r
                    row, slope = weights[r, : panels * t.NR], slopes[r, : panels * t.NR]
                    left = limited(row, number(scale), mask, b, h, n, j, seen)
                    weights_and_slopes(row, slope, left, number(lse[b, h, n]), mean[n])
                    if ds.size:
                        ds[b, h, n, j : j + seen] = slope[:seen]
                    weights[r, panels * t.NR :] = 0
                    slopes[r, panels * t.NR :] = 0
                _multiply(
                    t, strip, width // t.NR, seen, Matrix(slopes_at, p_row, item),
                    address_of(k_rows), step * line, address_of(q_sums) + (i + s) * width * item,
                    width * item, True,
                )  # fmt: skip
            for s in range(0, step, t.MR):
                strip = min(t.MR, step - s)
                first = min(rows, max(0, j + s - i)) if mask.causal else 0  # that sees these keys
                if first == rows:
                    break
                at, count = s * item + first * p_row, rows - first
                _multiply(
                    t, strip, width_v // t.NR, count, Matrix(address_of(weights) + at, item, p_row),
                    address_of(g_rows) + (i + first) * line, queries * line,
                    address_of(v_sums) + s * width_v * item, width_v * item, True,
                )  # fmt: skip
                _multiply(
                    t, strip, width // t.NR, count, Matrix(address_of(slopes) + at, item, p_row),
                    address_of(q_rows) + (i + first) * line, queries * line,
                    address_of(k_sums) + s * width * item, width * item, True,
                )  # fmt: skip
        if dk.size:
            _write(step, k_sums, number(scale), b, h, j, dk)
        if dv.size:
            _write(step, v_sums, number(1), b, h, j, dv)
    if dq.size:
        _write(queries, q_sums, number(scale), b, h, 0, dq)
    for used in (
        q_rows,
        g_rows,
        q_sums,
        k_sums,
        v_sums,
        k_rows,
        k_columns,
        v_columns,
        weights,
        slopes,
    ):
        keep_alive(used)
