"""Products of a large matrix and one with few rows or columns, as in LoRA's x A^T and g^T h.

Such a product does few multiply-adds for each number that it reads, so reading memory takes most of
its time. The large matrix is not packed, and is read only once, in the order of its addresses.

* `dots` is for a few columns, and a large matrix whose rows run along k. The sums run along k: each
  number of C has a vector of partial sums, which are added up at the end. (512, 768) @ (768, 8)
  takes half the time of a register tile, for which the matrix must be transposed into panels.
* `inner` is for one row and one column.
* `stream` is for a few rows, as in the gradients d^T x and g^T h of LoRA. The register tile moves
  along a strip of rows of the matrix, and then along the next strip. A strip has so few rows that
  a processor predicts the addresses in each of them.
* `sweep` is for one row. It adds eight rows of the matrix at a time to the row of the result.
  (1, 4096) @ (4096, 4096) takes a third of the time of a register tile, which would read the matrix
  by columns, with each number on another page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from minigrad.kernels.gemm.microkernel import CACHE_LINE, first_line, tile_of_size
from minigrad.kernels.gemm.packing import Matrix
from minigrad.kernels.gemm.products import blocks_of, columns_before_line, matrix_of
from minigrad.kernels.jit import WORD, Integers, Strided, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, share, span
from minigrad.kernels.vector import (
    I32,
    MASKS_ARE_CHEAP,
    REGISTERS,
    VECTOR,
    Emitter,
    address_of,
    copy_vector,
    instruction,
    keep_alive,
    load,
    store,
)

ROW = 3072  # bytes of a row in a block: then the rows of a tile stay in the level-1 cache
ONLY_ROW = 32768  # the same if there is one column, and no other column reads the rows again
HEIGHT = 64  # rows in a block
AHEAD = 2048  # bytes: how far ahead complete rows are prefetched
STRIP = 16  # rows of the matrix in a strip of `stream`
EVEN = 8 if REGISTERS == 32 else 4  # rows of a tile that divide many numbers of rows
SWEPT = 8  # rows that `sweep` adds up at once
SPAN = 4096  # numbers of the result in a piece of `sweep`: they stay in the level-1 cache
CHAINS = 8  # independent sums of an inner product, because a multiply-add takes four cycles
BLOCK = 16384  # numbers of an inner product in one sum; to add several sums is more exact
ZERO = WORD(0)


def dot_shapes() -> list[tuple[int, int]]:
    """Return the sizes of the tiles of `dots`, from wide to narrow: rows of A, and columns.

    A tile of R x S needs R + S loads for R * S multiply-adds, and R * S + R + 1 registers.
    """
    sums = REGISTERS // 2
    return [(2, sums // 2), (4, sums // 4), (4, 1)]


def fold(e: Emitter, vectors: list[Any]) -> list[Any]:
    """Emit the sum over the lanes of each vector, and return the sums.

    Two vectors [x0 x1 ..] and [y0 y1 ..] become one, [x0+x1 y0+y1 ..]. This is repeated until a
    vector holds one sum in each lane, which takes a quarter of the additions of separate sums.
    """
    builder, count = e.builder, len(vectors)
    d = 1
    while d < e.lanes:
        lanes = range(e.lanes)
        if len(vectors) == 1:
            other = e.shuffle(vectors[0], vectors[0], [lane ^ d for lane in lanes])
            vectors = [builder.fadd(vectors[0], other)]
        else:
            vectors = vectors + vectors[-1:] * (len(vectors) % 2)
            keep = [e.lanes + lane if lane & d else lane for lane in lanes]
            cross = [(e.lanes if lane & d else 0) + (lane ^ d) for lane in lanes]
            vectors = [
                builder.fadd(e.shuffle(x, y, keep), e.shuffle(x, y, cross))
                for x, y in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        d *= 2
    return [builder.extract_element(vectors[i // e.lanes], I32(i % e.lanes)) for i in range(count)]


def _for_each_vector(
    e: Emitter, count: Any, values: list[Any],
    body: Callable[[Any, Any, list[Any]], list[Any] | None], first: Any = ZERO,
) -> list[Any]:  # fmt: skip
    """Emit `body(offset, mask, values)` for each vector of `count` adjacent numbers.

    Offsets are in bytes and begin at `first`. The mask is None, except for the last numbers if they
    do not fill a vector. `body` returns the values for the next vector.
    """
    builder = e.builder
    rest = builder.urem(count, WORD(e.lanes))
    end = builder.mul(builder.sub(count, rest), WORD(e.item))
    values = e.for_range(first, end, e.vector_bytes, values, lambda at, old: body(at, None, old))
    has_rest = builder.icmp_signed(">", rest, ZERO)
    return e.choose([(has_rest, lambda: body(end, e.first_lanes(rest), values))], lambda: values)


@instruction()
def tile_of_dots(
    e: Emitter, rows: Any, cols: Any, a: Any, a_row: Any, b: Any, b_row: Any, depth: Any,
    c: Any, c_row: Any, c_col: Any, add: Any, ahead: Any, _zero: Any,
) -> None:  # fmt: skip
    """Compute C[i, j] = or += the sum of a[i, :depth] * b[j, :depth], rows of adjacent numbers.

    The tile is the narrowest in `dot_shapes` with at least `cols` columns, or else the widest. Only
    its first `rows` rows exist in A. Meanwhile the tile prefetches what is `ahead` bytes behind
    what it reads of A.
    """
    builder = e.builder

    def emit(shape: tuple[int, int]) -> None:
        R, S = shape

        # Instead of a row that does not exist, the last row is used; its sums are written twice.
        a_rows, b_rows = e.addresses(a, a_row, R, rows), e.addresses(b, b_row, S, cols)

        def multiply(done: Any, mask: Any, sums: list[Any]) -> list[Any]:
            here = [builder.add(row, done) for row in (*a_rows, *b_rows)]
            for address in here[:R] if mask is None else ():
                e.prefetch(builder.add(address, ahead), to_write=False)
            vectors = [e.load(address, e.vector, mask) for address in here]
            left, right = vectors[:R], vectors[R:]
            return [e.multiply_add(left[i // S], right[i % S], sums[i]) for i in range(R * S)]

        zeros = [ir.Constant(e.vector, None)] * (R * S)
        numbers = fold(e, _for_each_vector(e, depth, zeros, multiply))
        c_rows = e.addresses(c, c_row, R, rows)
        targets = [at for row in c_rows for at in e.addresses(row, c_col, S, cols)]
        e.store_or_add(numbers, targets, add)

    widest, *narrower = dot_shapes()
    cases = [
        (builder.icmp_signed("<=", cols, WORD(shape[1])), partial(emit, shape))
        for shape in reversed(narrower)
    ]
    e.choose(cases, partial(emit, widest))


WIDEST = dot_shapes()[0][1]  # columns of a tile


@jit(inline="always")
def steps_in_block(cols: int, item: int) -> int:
    """Return the steps of k in a block."""
    return (ROW if cols > 1 else ONLY_ROW) // item


@jit(inline="always")
def rows_apart(rows: int, tall: int) -> int:
    """Return the distance between the rows of a tile of `tall` rows, in a block of `rows` rows.

    The rows of a tile come from as many parts of a block as the tile has rows. So each part is read
    in the order of its addresses, which processors predict. Rows next to each other often lie on
    one page, and a processor predicts only one sequence of addresses on a page. The distance is
    odd, because rows at a distance of a power of two would collide in the caches. It is also the
    number of such tiles; the rows that are left are adjacent in the last tiles.
    """
    return max(0, (rows // tall - 1) | 1)


@external()
def dots_of_rows(
    piece: int, pieces: int, a: Matrix, b: Matrix, C: Matrix, m: int, cols: int, k: int, add: bool,
    packed: bool, item: int, zero: Any,
) -> None:  # fmt: skip
    """Compute C = or += A B^T for a piece of m rows of A, in blocks that stay in the caches."""
    start, stop = piece * m // pieces, (piece + 1) * m // pieces
    block = steps_in_block(cols, item)
    # Several tiles of columns read the rows of a block again, so these must stay in a cache.
    height = HEIGHT if cols > WIDEST else max(1, stop - start)
    for pc in range(0, k, block):
        depth = min(block, k - pc)
        at, b_row = b.at + pc * item, b.row
        if packed:
            at, b_row = b.at + pc * cols * item, depth * item
        for ic in range(start, stop, height):
            end = min(stop, ic + height)
            for j in range(0, cols, WIDEST):
                wide = min(WIDEST, cols - j)
                tall = 2 if wide > WIDEST // 2 else 4  # as `dot_shapes` says
                apart = rows_apart(end - ic, tall)
                for number in range((end - ic + tall - 1) // tall):
                    i, step, next_row = ic + number, apart, a.row
                    if number >= apart:
                        i, step, next_row = ic + number * tall, 1, a.row * tall
                    # If a block has a part of each row, no processor predicts where the next part
                    # begins. Processors predict complete rows, but not far enough ahead.
                    ahead = next_row if k > block else AHEAD
                    tile_of_dots(
                        min(tall, end - i), wide, a.at + i * a.row + pc * item, step * a.row,
                        at + j * b_row, b_row, depth, C.at + j * C.col + i * C.row, step * C.row,
                        C.col, add or pc > 0, ahead, zero,
                    )  # fmt: skip


@jit(inline="always")
def _pack_rows(b: Matrix, rows: int, k: int, target: int, item: int, zero: Any) -> None:
    """Copy rows, a block of k at a time: in a block each row is contiguous, and so are all rows."""
    lanes, block = VECTOR // item, steps_in_block(rows, item)
    for pc in range(0, k, block):
        depth = min(block, k - pc)
        for j in range(rows):
            here = b.at + j * b.row + pc * b.col
            done = 0
            if b.col == item:
                done = depth - depth % lanes
                for p in range(0, done, lanes):
                    copy_vector(here + p * item, target + p * item, zero)
            for p in range(done, depth):
                store(target + p * item, load(here + p * b.col, zero))
            target += depth * item


@for_each_dtype(shares=True)
def dots(
    launcher: int, pieces: int, x: Strided.D2, y: Strided.D2, out: Written.Anywhere2, add: bool
) -> None:
    """Compute out = or += x y^T, where x has contiguous rows; y is copied if that is faster."""
    m, k, n = x.shape[0], x.shape[1], y.shape[0]
    item, zero = x.itemsize, x.dtype.type(0)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    packed = m >= HEIGHT or b.col != item
    work = np.empty(n * k * item + CACHE_LINE if packed else 0, np.uint8)
    if packed:
        room = first_line(work)
        _pack_rows(b, n, k, room, item, zero)
        b = Matrix(room, b.row, item)
    share(launcher, pieces, dots_of_rows, (a, b, C, m, n, k, add, packed, item, zero))
    keep_alive(work)


@instruction()
def sum_of_products(e: Emitter, a: Any, b: Any, depth: Any, c: Any, add: Any, _zero: Any) -> None:
    """Compute c = or += the sum of a[:depth] * b[:depth], adjacent numbers, as CHAINS sums."""
    builder, stride = e.builder, e.vector_bytes * CHAINS

    def multiply(done: Any, mask: Any, sums: list[Any]) -> list[Any]:
        new = []
        for i, total in enumerate(sums):
            at = e.step(done, WORD(e.vector_bytes), i)
            x, y = (e.load(builder.add(first, at), e.vector, mask) for first in (a, b))
            new.append(e.multiply_add(x, y, total))
        return new

    length = builder.mul(depth, WORD(e.item))
    most = builder.sub(length, builder.urem(length, WORD(stride)))
    zeros = [ir.Constant(e.vector, None)] * CHAINS
    sums = e.for_range(ZERO, most, stride, zeros, lambda at, old: multiply(at, None, old))
    while len(sums) > 1:
        sums = [builder.fadd(x, y) for x, y in zip(sums[::2], sums[1::2], strict=True)]
    e.store_or_add(fold(e, _for_each_vector(e, depth, sums, multiply, first=most)), [c], add)


@for_each_dtype(threads=False)
def inner(
    _piece: int, _pieces: int, x: Strided.D2, y: Strided.D2, out: Written.Anywhere2, add: bool
) -> None:
    """Compute out = or += x y for one row x and one column y, whose numbers are adjacent."""
    k, item, zero = y.shape[0], x.itemsize, x.dtype.type(0)
    a, b, c = address_of(x), address_of(y), address_of(out)
    for p in range(0, k, BLOCK):
        depth = min(BLOCK, k - p)
        sum_of_products(a + p * item, b + p * item, depth, c, add or p > 0, zero)


@for_each_dtype()
def stream(
    piece: int, pieces: int, x: Strided.D2, y: Strided.D2, out: Written.Anywhere2, plan: Integers,
    add: bool,
) -> None:  # fmt: skip
    """Compute out = or += x y, where x has some rows, and the rows of y and out are contiguous.

    Each piece is a span of columns. For it, a thread goes through y from strip to strip of rows.
    The first columns of the result are apart, so that no vector of the others crosses from one
    cache line to the next.
    """
    m, k, n = x.shape[0], x.shape[1], y.shape[1]
    t = blocks_of(plan, x)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    edge = columns_before_line(t, C) if n > t.NR and MASKS_ARE_CHEAP else 0
    panels = (n - edge + t.NR - 1) // t.NR
    start = edge + piece * panels // pieces * t.NR if piece else 0
    stop = min(n, edge + (piece + 1) * panels // pieces * t.NR)
    height = t.MR if m % t.MR == 0 else EVEN  # so that no tile has few rows
    for pc in range(0, k, STRIP):
        depth, adds = min(STRIP, k - pc), add or pc > 0
        column, row, j = a.at + pc * a.col, b.at + pc * b.row, start
        while j < stop:
            cols, here = edge if j < edge else min(t.NR, stop - j), j * t.item
            i = 0
            while i < m:
                i += tile_of_size(
                    min(height, m - i), cols, column + i * a.row, a.row, a.col, row + here, b.row,
                    depth, C.at + i * C.row + here, C.row, adds, False, t.zero,
                )  # fmt: skip
            j += cols


def _sweep_of(count: int) -> Callable[..., None]:
    """Return the instruction c[:cols] = or += the sum of a[k] * b[k, :cols] over `count` rows."""

    @instruction()
    def swept(
        e: Emitter, a: Any, a_k: Any, b: Any, b_row: Any, cols: Any, c: Any, add: Any, _zero: Any
    ) -> None:
        builder = e.builder
        factors = [e.broadcast(e.load(e.step(a, a_k, i), e.scalar)) for i in range(count)]
        rows = [e.step(b, b_row, i) for i in range(count)]

        def vector_of_columns(done: Any, mask: Any, _none: list[Any]) -> None:
            total = builder.fmul(factors[0], e.load(builder.add(rows[0], done), e.vector, mask))
            for factor, row in zip(factors[1:], rows[1:], strict=True):
                values = e.load(builder.add(row, done), e.vector, mask)
                total = e.multiply_add(factor, values, total)
            e.store_or_add([total], [builder.add(c, done)], add, [mask])

        _for_each_vector(e, cols, [], vector_of_columns)

    return swept


swept_rows, swept_row = _sweep_of(SWEPT), _sweep_of(1)


@for_each_dtype(fastmath=())
def sweep(
    piece: int, pieces: int, x: Strided.D2, y: Strided.D2, out: Written.Anywhere2, add: bool
) -> None:
    """Compute out = or += x y, where x and out have one row and the rows of y are contiguous."""
    k, n, item, zero = y.shape[0], y.shape[1], x.itemsize, x.dtype.type(0)
    a, b, c = matrix_of(x), matrix_of(y), address_of(out)
    spans = max(pieces, (n + SPAN - 1) // SPAN)
    for number in span(piece, pieces, spans):
        j = number * n // spans
        cols, target = (number + 1) * n // spans - j, c + j * item
        done = k - k % SWEPT
        for p in range(0, done, SWEPT):
            rows = b.at + p * b.row + j * item
            swept_rows(a.at + p * a.col, a.col, rows, b.row, cols, target, add or p > 0, zero)
        for p in range(done, k):
            row = b.at + p * b.row + j * item
            swept_row(a.at + p * a.col, a.col, row, b.row, cols, target, add or p > 0, zero)
