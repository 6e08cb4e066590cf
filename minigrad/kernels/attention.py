"""Multi-head attention, each head by itself, and never with all scores of a head in memory.

Each of L queries has S scores, one for each key; writing L x S numbers to memory and reading them
again would take long. So a strip of queries goes through its keys block by block, and accumulates
(Milakov and Gimelshein, 2018; Dao et al., FlashAttention, 2022):

    m: the greatest score,   l = sum(e^(score - m)),   o = sum(e^(score - m) value)

When a block has a greater m, l and o are multiplied by e^(old m - new m). At the end out = o / l.
The residual for the backward pass is lse = m + log(l), from which a weight is p = e^(score - lse):

    dv = sum p^T do,   ds = p (do v^T - sum(do out)),   dq = scale sum ds k,   dk = scale sum ds^T q

In the backward pass, the outer loop is over blocks of keys, whose dk and dv stay in a cache. The
inner loop is over blocks of queries; each block of keys adds to their dq.

The products run on the register tile of the matrix product (`gemm.microkernel`). Keys and values
are packed into panels, and scores are in a buffer. In a causal head, strips above the diagonal are
skipped. For few queries, as when a sequence grows by one, nothing is packed. Heads may share their
keys (Ainslie et al., 2023): head h of H reads head h H_k // H of H_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numba import types

from minigrad.kernels import vector_math
from minigrad.kernels.gemm import PRODUCTS
from minigrad.kernels.gemm.macrokernel import multiply_panels
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack_panels, part_of, transposed
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.gemm.skinny import dots_of_rows
from minigrad.kernels.jit import Array, Integers, Strided, Written, external, jit, nothing
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import address_of, cut_row, elements, greatest_of, keep_alive

SECONDS = 4e-11  # approximate seconds of a multiply-add
FEW = 8  # the most queries of a head for which keys and values are read in place
QUERIES = 256  # queries of a head in a piece of the forward pass
WIDE = 8  # panels of keys in a block of the forward pass: longer sums are less exact
NARROW = 4  # panels of keys in a block of the backward pass
STRIPS = 8  # strips of queries in a block of the backward pass

Booleans = Annotated[Strided.D4, types.boolean]
Logs = Annotated[Written.D3, types.float64]


@cache
def _sizes(dtype: np.dtype[Any]) -> Array:
    """Return the block sizes of products whose sums are not cut into runs."""
    sizes: Array = PRODUCTS[dtype].plans[0].copy()
    sizes[BlockSizes._fields.index("RUN")] = 1 << 40
    return sizes


def serves(query: Array, key: Array, value: Array) -> bool:
    """Return whether there are kernels for these arrays: not empty, and of the same float dtype."""
    return (
        query.dtype in forward_loop
        and query.dtype == key.dtype == value.dtype
        and 0 not in (query.size, key.size, value.size)
    )


def attention(
    query: Array, key: Array, value: Array, allowed: Array | None, added: Array | None,
    offset: int | None, scale: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Compute softmax(scale q k^T + added) v over the allowed keys; 0 if none is allowed.

    It takes arrays that the kernels serve (`serves`); others are computed by a composition of ops.

    Returns the result, `(..., L, d_v)`, and log(sum(e^scores)) of each query, `(..., L)` float64.

    Args:
        query: `(..., L, d)`; all arrays may have any strides.
        key: `(..., S, d)`; it may have fewer heads (axis -3), a divisor of the query's heads.
        value: `(..., S, d_v)`; it may have fewer heads too.
        allowed: booleans that broadcast to `(..., L, S)`, or None if all keys are allowed.
        added: floats that broadcast to `(..., L, S)`, or None for 0; -inf excludes a key.
        offset: query i may use only the keys up to i + offset; None for all keys.
        scale: the factor of the scores.
    """
    leading, q, k, v = _operands(query, key, value)
    mask = _mask(offset, allowed, added, leading, q, k)
    if q.shape[2] == 1 and k.shape[1] == v.shape[1] < q.shape[1] and k.shape[2] <= mask.offset + 1:
        # The queries of a group use the same keys, so they can be the rows of one head.
        grouped = (*k.shape[:2], -1)
        q = q.reshape(*grouped, q.shape[3])
        arrays = (x.reshape(*grouped, x.shape[3]) if x.size else x for x in mask[1:])
        mask = Mask(k.shape[2], *arrays)
    heads = max(q.shape[1], k.shape[1], v.shape[1])
    out, lse = laid_out_like(q, heads, v.shape[3]), np.empty((len(q), heads, q.shape[2]))
    work = lse.size * k.shape[2] * (k.shape[3] + v.shape[3])
    forward_loop[q.dtype](work * SECONDS, q, k, v, *mask, scale, _sizes(q.dtype), out, lse)
    shape = (*leading, query.shape[-2])
    return out.reshape(*shape, v.shape[3]), lse.reshape(shape)


def attention_gradients(
    g: Array, query: Array, key: Array, value: Array, allowed: Array | None, added: Array | None,
    offset: int | None, scale: float, out: Array, lse: Array, needs_input_grad: Sequence[bool],
) -> list[Array | None]:  # fmt: skip
    """Compute those gradients of `attention` by query, key, value and `added` that are needed.

    They have the leading axes of the result. But if an operand has more than one head, and fewer
    than the result, its gradient is summed over groups. The gradient by `added` has the shape of
    the scores.
    """
    leading, q, k, v = _operands(query, key, value)
    g, out = (_four(x, leading[:-1]) for x in (g, out))
    mask = _mask(offset, allowed, added, leading, q, k)
    scores = (*g.shape[:3], k.shape[2])
    gradients = [
        laid_out_like(x, g.shape[1], x.shape[3]) if need else nothing(q.dtype, 4)
        for x, need in zip((q, k, v), needs_input_grad, strict=False)
    ]
    gradients.append(np.zeros(scores, q.dtype) if needs_input_grad[3] else nothing(q.dtype, 4))
    work = math.prod(scores) * (3 * q.shape[3] + 2 * v.shape[3])
    operands = g, q, k, v, *mask, scale, _sizes(q.dtype), out, lse.reshape(g.shape[:3])
    backward_loop[q.dtype](work * SECONDS, *operands, *gradients)
    return [
        _of_heads(x, y.shape[1], leading) if need else None
        for x, y, need in zip(gradients, (q, k, v, g), needs_input_grad, strict=True)
    ]


def _operands(q: Array, k: Array, v: Array) -> tuple[tuple[int, ...], Array, Array, Array]:
    """Return the leading axes of the result, and query, key and value as the loops need them."""
    outer = q.shape[:-3]
    if not outer == k.shape[:-3] == v.shape[:-3]:
        outer = np.broadcast_shapes(outer, k.shape[:-3], v.shape[:-3])
    heads = max(q.shape[-3:-2], k.shape[-3:-2], v.shape[-3:-2])  # () if there is no such axis
    return (*outer, *heads), _four(q, outer), _four(k, outer), _four(v, outer)


def _four(x: Array, outer: tuple[int, ...]) -> Array:
    """Return x as `(outer axes, heads, length, d)`, with a contiguous last axis."""
    x = adjacent(x)
    if x.ndim == 4 and x.shape[:1] == outer:
        return x
    x = x[(None,) * (len(outer) + 3 - x.ndim)]
    return np.broadcast_to(x, (*outer, *x.shape[-3:])).reshape(-1, *x.shape[-3:])


def _of_heads(x: Array, count: int, leading: tuple[int, ...]) -> Array:
    """Return a gradient with leading axes, summed over the groups that share the `count` heads."""
    if 1 < count < x.shape[1]:
        x = np.einsum("bhgsd->bhsd", x.reshape(len(x), count, -1, *x.shape[2:]))
    return x.reshape(*leading[:-1], *x.shape[1:] if leading else x.shape[2:])


def adjacent(x: Array) -> Array:
    """Return an array with a contiguous last axis: x itself, or a copy."""
    return x if x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def laid_out_like(x: Array, heads: int, size: int) -> Array:
    """Return an empty array with this number of heads and size of vectors, in the layout of x."""
    batch, _, length, _ = x.shape
    if abs(x.strides[1]) < abs(x.strides[2]):
        return np.empty((batch, length, heads, size), x.dtype).swapaxes(1, 2)
    return np.empty((batch, heads, length, size), x.dtype)


class Mask(NamedTuple):
    """The mask of all scores; arrays are `(batch, heads, L, S)`, or have size 0 for no mask."""

    offset: int  # query i may use the keys up to i + offset; the number of keys allows all
    allowed: Any  # booleans
    added: Any  # floats


def _mask(
    offset: int | None, allowed: Array | None, added: Array | None, leading: tuple[int, ...],
    q: Array, k: Array,
) -> Mask:  # fmt: skip
    """Return the mask of the scores of these queries and keys."""
    keys = k.shape[2]

    def of_scores(x: Array | None, dtype: np.dtype[Any]) -> Array:
        if x is None:
            return nothing(dtype, 4)
        # If all keys have the same number, it is repeated.
        x = x.astype(dtype, copy=False)
        x = np.broadcast_to(x, (*(x.shape[:-1] or (1,)), keys))
        heads = leading[-1] if leading else 1
        return np.broadcast_to(_four(x, leading[:-1]), (len(q), heads, q.shape[2], keys))

    masks = of_scores(allowed, np.dtype(np.bool_)), of_scores(added, q.dtype)
    return Mask(keys if offset is None else offset, *masks)


# --------------------------------------------------------------------------------------------------
# Blocks of a head
# --------------------------------------------------------------------------------------------------


@jit()
def _matrix(x: Any, b: int, h: int, heads: int, row: int) -> Matrix:
    """Return the matrix that head h of `heads` reads in sequence b, from a row on."""
    h = h * x.shape[1] // heads
    at = address_of(x) + b * x.strides[0] + h * x.strides[1] + row * x.strides[2]
    return Matrix(at, x.strides[2], x.strides[3])


@jit()
def _part(x: Any, row: int, column: int) -> Matrix:
    """Return the part of an array from a row and a column on, as a matrix."""
    return part_of(matrix_of(x), row, column)


@jit()
def _packed(x: Any, depth: int, row: int) -> Matrix:
    """Return the panels in an array, from a row of the array on; each has `depth` rows.

    The steps are those from row to row, and from panel to panel.
    """
    return Matrix(address_of(x) + row * x.strides[0], x.strides[0], depth * x.strides[0])


@jit()
def vector_at(x: Any, b: int, h: int, i: int) -> Any:
    """Return x[b, h, i] as an array that the compiler knows to be contiguous."""
    at = address_of(x) + b * x.strides[0] + h * x.strides[1] + i * x.strides[2]
    return elements(at, 0, x.shape[3], x)


@external()
def _room(rows: int, columns: int, like: Any) -> Any:
    """Return an empty array of the dtype of `like` that begins at a cache line."""
    lines = (rows * columns * like.itemsize + 2 * CACHE_LINE - 1) // CACHE_LINE
    work = np.empty(lines * (CACHE_LINE // like.itemsize), like.dtype)
    skipped = -address_of(work) % CACHE_LINE // like.itemsize
    return work[skipped : skipped + rows * columns].reshape((rows, columns))


@jit()
def _panels(t: BlockSizes, columns: int) -> int:
    return (columns + t.NR - 1) // t.NR


# --------------------------------------------------------------------------------------------------
# Rows of scores: those of some queries with a block of keys, in a buffer that is as wide as the
# panels of keys that the register tile has multiplied. The weight of a score of -inf is 0.
# --------------------------------------------------------------------------------------------------


_exp = vector_math.by_dtype(vector_math.exp_below, lambda x: math.exp(x))


@jit()
def _row(x: Matrix, r: int, columns: int, like: Any) -> Any:
    """Return a row of a contiguous buffer as an array that does not own the memory."""
    return elements(x.at + r * x.row, 0, columns, like)


@jit()
def _factors(mask: Mask, scale: Any, one: Any) -> tuple[Any, Any]:
    """Return the factors of scores before and after masks are applied, 1 and the scale if possible.

    The loop of exponentials can apply the scale if it does not change the order of the scores.
    """
    return (one, scale) if mask.added.size == 0 and scale > 0 else (scale, one)


@external()
def mask_scores(
    scores: Matrix, rows: int, columns: int, keys: int, factor: Any, mask: Mask, b: int, h: int,
    i: int, j: int, like: Any,
) -> None:  # fmt: skip
    """Apply a factor and the masks to the scores of some queries from i on, with keys from j on.

    The scores of a query are `columns` numbers, complete vectors. Only the first `keys` of them are
    of keys, and only some of these keys may be used; all other scores become -inf.
    """
    for r in range(rows):
        count = max(min(keys, i + r + 1 + mask.offset - j), 0)
        row = _row(scores, r, count, like)
        if factor != 1:
            for n in range(count):
                row[n] *= factor
        if mask.added.size:
            added = vector_at(mask.added, b, h, i + r)[j : j + count]
            for n in range(count):
                row[n] = row[n] + added[n] if added[n] != -np.inf else like.dtype.type(-np.inf)
        if mask.allowed.size:
            allowed = vector_at(mask.allowed, b, h, i + r)[j : j + count]
            for n in range(count):
                row[n] = row[n] if allowed[n] else like.dtype.type(-np.inf)
        cut_row(scores.at + r * scores.row, count, columns, like.dtype.type(0))


@external(fastmath={"contract"})
def raise_peaks(
    scores: Matrix, rows: int, columns: int, scale: Any, most: Any, total: Any, sums: Any, add: bool
) -> None:  # fmt: skip
    """Raise m of each query to its greatest score; if it rises, l and o shrink as above.

    Without `add`, nothing has been added to l and o yet.
    """
    for r in range(rows):
        before, greatest = most[r], greatest_of(_row(scores, r, columns, most))
        if greatest > before:
            most[r] = greatest
            if add:
                factor = most.dtype.type(math.exp((before - greatest) * scale))
                total[r] *= factor
                for c in range(sums.shape[1]):
                    sums[r, c] *= factor


@external(fastmath={"reassoc", "contract"})
def exponentials(
    scores: Matrix, rows: int, columns: int, scale: Any, most: Any, total: Any
) -> None:
    """Replace the scores of all rows by e^(scale (score - most)), and add their sums to `total`.

    The difference comes first: it is exactly 0 for the greatest score. A scaled score of 1e9 is
    rounded by more than 88, and a fused multiplication and subtraction rounds only one of the two.
    """
    for r in range(rows):
        row, added = _row(scores, r, columns, most), most.dtype.type(0)
        # If no score is above -inf yet, each is -inf, of weight 0, or nan, which stays.
        peak = most[r] if most[r] > -np.inf else most.dtype.type(0)
        for n in range(row.size):
            e = _exp((row[n] - peak) * scale)
            row[n] = e
            added += e
        total[r] += added


@external()
def nothing_allowed(mask: Mask, b: int, h: int, i: int, keys: int) -> bool:
    """Return whether query i may not use any key."""
    for j in range(min(keys, i + 1 + mask.offset)):
        allowed = mask.allowed.size == 0 or mask.allowed[b, h, i, j]
        if allowed and not (mask.added.size and mask.added[b, h, i, j] == -np.inf):
            return False
    return True


@external()
def write_results(
    rows: int, sums: Any, most: Any, scale: Any, total: Any, mask: Mask, b: int, h: int, i: int,
    keys: int, out: Any, lse: Any,
) -> None:  # fmt: skip
    """Write o / l and scale m + log(l) of queries from i on; 0 for those that may use no key."""
    for r in range(rows):
        log, share = most[r] * scale + math.log(total[r]), most.dtype.type(1 / total[r])
        if most[r] == -np.inf:
            log = 0.0 if nothing_allowed(mask, b, h, i + r, keys) else np.nan
            share = most.dtype.type(log)
        lse[b, h, i + r] = log
        target = vector_at(out, b, h, i + r)
        for c in range(target.size):
            target[c] = sums[r, c] * share


@external(fastmath={"contract"})
def weights_and_slopes(
    scores: Matrix, slopes: Matrix, rows: int, columns: int, scale: Any, lse: Any, mean: Any
) -> None:
    """Replace scores by weights p = e^(scale score - lse), and slopes by p (slope - mean).

    A loop of its own scales scores, so that the product is rounded, as in lse (`exponentials`).
    """
    for r in range(rows):
        row, slope = _row(scores, r, columns, mean), _row(slopes, r, columns, mean)
        log, middle = mean.dtype.type(lse[r]), mean[r]
        for n in range(columns):
            row[n] *= scale
        for n in range(columns):
            p = _exp(row[n] - log)
            row[n] = p
            slope[n] = p * (slope[n] - middle)


@for_each_dtype()
def forward_loop(
    piece: int, pieces: int, q: Strided.D4, k: Strided.D4, v: Strided.D4, offset: int,
    allowed: Booleans, added: Strided.D4, scale: float, sizes: Integers, out: Written.Anywhere4,
    lse: Logs,
) -> None:  # fmt: skip
    """Write `out` and `lse` of all heads; the pieces are chunks of the queries of a head."""
    mask, t, number = Mask(offset, allowed, added), blocks_of(sizes, q), q.dtype.type
    factor, last = _factors(mask, number(scale), number(1))
    heads, queries, d, d_v = lse.shape[1], q.shape[2], q.shape[3], v.shape[3]
    few, chunks = queries <= FEW, (queries + QUERIES - 1) // QUERIES
    all_keys = min(k.shape[2], queries + offset)  # those of the last chunk
    width, wide = _panels(t, d_v) * t.NR, min(WIDE, _panels(t, all_keys)) * t.NR
    columns = _room(_panels(t, all_keys) * d, t.NR, q)
    values = _room(width * all_keys // t.NR, t.NR, q)
    scores, sums = _room(t.MR, wide + t.NR, q), _room(t.MR, width, q)
    most, total = np.empty(t.MR, q.dtype), np.empty(t.MR, np.float64)
    S, SV = _part(scores, 0, 0), _part(sums, 0, 0)
    for task in span(piece, pieces, q.shape[0] * heads * chunks):
        b, h, start = task // chunks // heads, task // chunks % heads, task % chunks * QUERIES
        end = min(queries, start + QUERIES)
        keys = min(k.shape[2], end + offset)
        K, V = _matrix(k, b, h, heads, 0), _matrix(v, b, h, heads, 0)
        if not few:
            pack_panels(t, transposed(K), keys, d, address_of(columns))
        if few and d_v == width:
            V = Matrix(V.at, V.row, t.NR * t.item)  # the steps of packed panels
        else:
            pack_panels(t, V, d_v, keys, address_of(values))
            V = _packed(values, keys, 0)
        for i in range(start, end, t.MR):
            high = min(t.MR, end - i)
            seen = min(keys, i + high + offset)
            Q = _matrix(q, b, h, heads, i)
            most[:], total[:] = -np.inf, 0.0
            for j in range(0, seen, wide):
                step = min(wide, seen - j)
                padded = _panels(t, step) * t.NR
                if few:
                    dots_of_rows(
                        0, 1, part_of(K, j, 0), Q, transposed(S), step, high, d, False, False,
                        t.item, t.zero,
                    )  # fmt: skip
                else:
                    K_T = _packed(columns, d, j // t.NR * d)
                    multiply_panels(t, high, padded, d, Q, K_T, S, False)
                mask_scores(S, high, padded, step, factor, mask, b, h, i, j, q)
                raise_peaks(S, high, padded, last, most, total, sums, j > 0)
                exponentials(S, high, padded, last, most, total)
                multiply_panels(t, high, width, step, S, part_of(V, j, 0), SV, j > 0)
            write_results(high, sums, most, last, total, mask, b, h, i, keys, out, lse)
    keep_alive((columns, values, scores, sums))


@external(fastmath={"contract"})
def _means(g: Any, out: Any, b: int, h: int, means: Any) -> None:
    """Write the dot product of each row of g with the row of `out`.

    Each is summed from the first number to the last, as in the tile. So if a query has only one
    key, the difference between its slope and this product is exactly 0.
    """
    for i in range(means.size):
        x, y, total = vector_at(g, b, h, i), vector_at(out, b, h, i), g.dtype.type(0)
        for n in range(x.size):
            total += x[n] * y[n]
        means[i] = total


@external()
def _write(
    rows: int, columns: int, source: Matrix, scale: Any, b: int, h: int, i: int, j: int, target: Any
) -> None:  # fmt: skip
    """Write target[b, h, i + r, j + c] = scale source[r, c]."""
    for r in range(rows):
        x, y = _row(source, r, columns, target), vector_at(target, b, h, i + r)
        y = elements(address_of(y), j, columns, y)
        for c in range(columns):
            y[c] = x[c] * scale


@external()
def add_to_keys(
    t: BlockSizes, weights: Any, slopes: Any, rows: int, keys: int, reach: int, Q: Matrix,
    G: Matrix, k_sums: Any, v_sums: Any,
) -> None:  # fmt: skip
    """Add slopes^T q to the sums for dk of some keys, and weights^T do to those for dv.

    The first of the `rows` queries may use keys up to number `reach`, which may be negative.
    """
    for s in range(0, keys, t.MR):
        strip, first = min(t.MR, keys - s), max(0, s - reach)  # the first query for these keys
        if first >= rows:
            break
        P, dP = _part(weights, first, s), _part(slopes, first, s)
        dK, dV, count = _part(k_sums, s, 0), _part(v_sums, s, 0), rows - first
        Q_now, G_now = part_of(Q, first, 0), part_of(G, first, 0)
        multiply_panels(t, strip, v_sums.shape[1], count, transposed(P), G_now, dV, True)
        multiply_panels(t, strip, k_sums.shape[1], count, transposed(dP), Q_now, dK, True)


@for_each_dtype()
def backward_loop(
    piece: int, pieces: int, g: Strided.D4, q: Strided.D4, k: Strided.D4, v: Strided.D4,
    offset: int, allowed: Booleans, added: Strided.D4, scale: float, sizes: Integers,
    out: Strided.D4, lse: Logs, dq: Written.Anywhere4, dk: Written.Anywhere4,
    dv: Written.Anywhere4, ds: Written.Anywhere4,
) -> None:  # fmt: skip
    """Write `dq`, `dk`, `dv` and `ds`, except those of size 0; `ds` is 0 above the diagonal."""
    mask, t, number = Mask(offset, allowed, added), blocks_of(sizes, q), q.dtype.type
    factor, last = _factors(mask, number(scale), number(1))
    heads, queries, keys, d, d_v = g.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    width, width_v = _panels(t, d) * t.NR, _panels(t, d_v) * t.NR
    wide, high = min(NARROW, _panels(t, keys)) * t.NR, min(STRIPS * t.MR, queries)
    mean = np.empty(queries, q.dtype)
    q_rows = _room(queries * width // t.NR, t.NR, q)
    g_rows = _room(queries * width_v // t.NR, t.NR, q)
    q_sums = _room(queries, width, q)
    k_sums, v_sums = _room(wide, width, q), _room(wide, width_v, q)
    k_rows = _room(wide * width // t.NR, t.NR, q)
    k_columns, v_columns = _room(wide // t.NR * d, t.NR, q), _room(wide // t.NR * d_v, t.NR, q)
    weights, slopes = _room(high, wide, q), _room(high, wide, q)
    for task in span(piece, pieces, q.shape[0] * heads):
        b, h = task // heads, task % heads
        _means(g, out, b, h, mean)
        pack_panels(t, _matrix(q, b, h, heads, 0), d, queries, address_of(q_rows))
        pack_panels(t, _matrix(g, b, h, heads, 0), d_v, queries, address_of(g_rows))
        q_sums[:] = 0
        for j in range(0, keys, wide):
            step = min(wide, keys - j)
            K, V = _matrix(k, b, h, heads, j), _matrix(v, b, h, heads, j)
            pack_panels(t, K, d, step, address_of(k_rows))
            pack_panels(t, transposed(K), step, d, address_of(k_columns))
            pack_panels(t, transposed(V), step, d_v, address_of(v_columns))
            k_sums[:], v_sums[:] = 0, 0
            for i in range(max(0, j - offset), queries, high):
                rows = min(high, queries - i)
                for s in range(0, rows, t.MR):
                    n, strip = i + s, min(t.MR, rows - s)
                    seen = min(step, n + strip + offset - j)
                    columns = _panels(t, seen) * t.NR
                    Q, G = _matrix(q, b, h, heads, n), _matrix(g, b, h, heads, n)
                    P, dP = _part(weights, s, 0), _part(slopes, s, 0)
                    K_T, V_T = _packed(k_columns, d, 0), _packed(v_columns, d_v, 0)
                    multiply_panels(t, strip, columns, d, Q, K_T, P, False)
                    multiply_panels(t, strip, columns, d_v, G, V_T, dP, False)
                    mask_scores(P, strip, columns, seen, factor, mask, b, h, n, j, q)
                    logs, means = lse[b, h, n : n + strip], mean[n : n + strip]
                    weights_and_slopes(P, dP, strip, columns, last, logs, means)
                    if ds.size:
                        _write(strip, seen, dP, number(1), b, h, n, j, ds)
                    if columns < wide:
                        weights[s : s + strip, columns:] = 0
                        slopes[s : s + strip, columns:] = 0
                    K_rows, dQ = _packed(k_rows, step, 0), _part(q_sums, n, 0)
                    multiply_panels(t, strip, width, seen, dP, K_rows, dQ, True)
                Q, G = _packed(q_rows, queries, i), _packed(g_rows, queries, i)
                add_to_keys(t, weights, slopes, rows, step, i + offset - j, Q, G, k_sums, v_sums)
            if dk.size:
                _write(step, d, _part(k_sums, 0, 0), number(scale), b, h, j, 0, dk)
            if dv.size:
                _write(step, d_v, _part(v_sums, 0, 0), number(1), b, h, j, 0, dv)
        if dq.size:
            _write(queries, d, _part(q_sums, 0, 0), number(scale), b, h, 0, 0, dq)
    keep_alive((q_rows, g_rows, q_sums, k_sums, v_sums, k_rows, k_columns, v_columns))
    keep_alive((weights, slopes))
