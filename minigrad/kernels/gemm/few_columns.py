"""Products of a large matrix, whose rows run along k, with a few columns: LoRA's x A^T.

Such a product does few multiply-adds for each number it reads, so nothing may be spent on getting
that number: nothing is packed, and memory is read in the order in which it lies. The sums run along
k, a vector of them for each number of C, and are folded at the end. (512, 768) @ (768, 8) takes
half the time of a register tile, which needs the matrix transposed into panels first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types

from minigrad.kernels.gemm.packing import Matrix
from minigrad.kernels.jit import intrinsic, jit
from minigrad.kernels.vector import (
    ADDRESS,
    Emitter,
    address_of,
    copy_vector,
    keep_alive,
    load,
    store,
    vector_registers,
)

NEAR = 24 * 1024  # bytes of the few columns that stay in the level-1 cache while rows pass by
HEIGHT = 64  # rows in a block


def dot_shapes() -> list[tuple[int, int]]:
    """Return the tiles of `dots`, from wide to narrow: rows of A, and columns.

    A tile of R x S needs R + S loads for R * S multiply-adds, and R * S + R + 1 registers.
    """
    sums = vector_registers()[1] // 2
    return [(2, sums // 2), (4, sums // 4), (4, 1)]


def _fold(e: Emitter, vectors: list[Any]) -> list[Any]:
    """Emit the sum over the lanes of each vector, and return the sums.

    Neighbours are added crosswise, [x0 x1 ..] and [y0 y1 ..] to [x0+x1 y0+y1 ..], until one
    vector holds the sums of as many as it has lanes: a quarter of the additions of folding each.
    """
    builder, count = e.builder, len(vectors)
    d = 1
    while d < e.lanes:
        lanes = range(e.lanes)
        if len(vectors) == 1:
            other = e.shuffle(vectors[0], vectors[0], [lane ^ d for lane in lanes])
            vectors = [builder.fadd(vectors[0], other)]
        else:
            keep = [e.lanes + lane if lane & d else lane for lane in lanes]
            cross = [(e.lanes if lane & d else 0) + (lane ^ d) for lane in lanes]
            vectors = [
                builder.fadd(e.shuffle(x, y, keep), e.shuffle(x, y, cross))
                for x, y in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        d *= 2
    return [
        builder.extract_element(vectors[i // e.lanes], ir.Constant(ir.IntType(32), i % e.lanes))
        for i in range(count)
    ]


def _emit_dots(e: Emitter, shape: tuple[int, int], args: Any) -> None:
    """Emit a tile of `shape`, of which `rows` rows and `cols` columns exist."""
    rows, cols, a, a_row, b, b_row, depth, c, c_row, c_col, add = args
    R, S = shape
    builder = e.builder

    def addresses(first: Any, step: Any, number: int, exist: Any) -> list[Any]:
        # A row that does not exist is the last one once more: its sums are written there twice.
        last = builder.sub(exist, ADDRESS(1))
        found = []
        for i in range(number):
            exists = builder.icmp_signed("<", ADDRESS(i), last)
            found.append(
                builder.add(first, builder.mul(step, builder.select(exists, ADDRESS(i), last)))
            )
        return found

    a_rows, b_rows = addresses(a, a_row, R, rows), addresses(b, b_row, S, cols)
    vector = ADDRESS(e.vector_bytes)
    rest = builder.urem(depth, ADDRESS(e.lanes))
    length = builder.mul(builder.sub(depth, rest), ADDRESS(e.item))
    zero = ir.Constant(e.vector, None)

    def multiply(sums: list[Any], load: Any) -> list[Any]:
        left, right = [load(p) for p in a_rows], [load(p) for p in b_rows]
        return [e.multiply_add(left[i // S], right[i % S], sums[i]) for i in range(R * S)]

    def multiply_rest(sums: list[Any], mask: Any) -> list[Any]:
        return multiply(sums, lambda p: e.load_some(builder.add(p, length), mask))

    def step_of_k(now: list[Any]) -> tuple[list[Any], Any]:
        done, *sums = now
        for address in a_rows:  # the next rows, since a row is too short to be guessed from
            next_rows = builder.add(address, builder.mul(a_row, ADDRESS(R)))
            e.prefetch(builder.add(next_rows, done), to_write=False)
        new = multiply(sums, lambda p: e.load(builder.add(p, done), e.vector))
        then = builder.add(done, vector)
        return [then, *new], builder.icmp_signed("<", then, length)

    def chosen(condition: Any, values: list[Any], emit: Callable[[], list[Any]]) -> list[Any]:
        """Emit code that runs on a condition, and return its values, or else the given ones."""
        before = builder.block
        with builder.if_then(condition):
            others = emit()
            end = builder.block
        phis = [builder.phi(e.vector) for _ in values]
        for phi, value, other in zip(phis, values, others, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(other, end)
        return phis

    zeros = [zero] * (R * S)
    has_vectors = builder.icmp_signed(">", length, ADDRESS(0))
    full = chosen(has_vectors, zeros, lambda: e.loop([ADDRESS(0), *zeros], step_of_k)[1:])
    has_rest = builder.icmp_signed(">", rest, ADDRESS(0))
    totals = chosen(  # lanes past the end are 0 in both operands
        has_rest, full, lambda: multiply_rest(full, e.first_lanes(rest))
    )
    numbers = _fold(e, totals)
    c_rows, c_cols = addresses(c, c_row, R, rows), addresses(ADDRESS(0), c_col, S, cols)
    targets = [builder.add(row, col) for row in c_rows for col in c_cols]
    with builder.if_else(builder.icmp_signed("!=", add, ADDRESS(0))) as (to_old, as_new):
        with to_old:
            old = [e.load(address, e.scalar) for address in targets]  # all before the first store
            for value, number, address in zip(old, numbers, targets, strict=True):
                e.store(builder.fadd(value, number), address)
        with as_new:
            for number, address in zip(numbers, targets, strict=True):
                e.store(number, address)


@intrinsic
def tile_of_dots(
    _typing: Any, rows: Any, cols: Any, a: Any, a_row: Any, b: Any, b_row: Any, depth: Any,
    c: Any, c_row: Any, c_col: Any, add: Any, zero: Any,
) -> Any:  # fmt: skip
    """Compute C[i, j] = or += the sum of a[i, :depth] * b[j, :depth], rows of adjacent numbers.

    The tile is the narrowest of `dot_shapes` that has `cols` columns, or the widest; of it
    `rows` rows exist.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        e = Emitter(builder, zero)
        cols = args[1]
        end = builder.append_basic_block("dots.end")
        widest, *narrower = dot_shapes()
        for shape in reversed(narrower):
            fits = builder.append_basic_block("dots")
            wider = builder.append_basic_block("dots.wider")
            builder.cbranch(builder.icmp_signed("<=", cols, ADDRESS(shape[1])), fits, wider)
            builder.position_at_end(fits)
            _emit_dots(e, shape, args[:-1])
            builder.branch(end)
            builder.position_at_end(wider)
        _emit_dots(e, widest, args[:-1])
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 11, zero), emit


@jit(inline="always")
def block_depth(cols: int, widest: int, item: int) -> int:
    """Return how many steps of k a block has, such that the columns of a tile stay near."""
    return NEAR // (min(cols, widest) * item)


@jit()
def dots_of_rows(
    a: Matrix, b: Matrix, C: Matrix, rows: int, cols: int, k: int, add: bool, packed: bool,
    item: int, zero: Any, widest: int,
) -> None:  # fmt: skip
    """Compute C = or += A B^T for some rows of A, in blocks that stay in the caches."""
    block = block_depth(cols, widest, item)
    for pc in range(0, k, block):
        depth = min(block, k - pc)
        at, b_row = b.at + pc * item, b.row
        if packed:
            at, b_row = b.at + pc * cols * item, depth * item
        for ic in range(0, rows, HEIGHT):
            end = min(rows, ic + HEIGHT)
            for j in range(0, cols, widest):
                wide = min(widest, cols - j)
                step = 2 if wide > widest // 2 else 4  # as `dot_shapes` says
                for i in range(ic, end, step):
                    tile_of_dots(
                        min(step, end - i), wide,
                        a.at + i * a.row + pc * item, a.row, at + j * b_row, b_row,
                        depth, C.at + i * C.row + j * C.col, C.row, C.col, add or pc > 0, zero,
                    )  # fmt: skip


@jit()
def pack_rows_in_blocks(
    b: Matrix, rows: int, k: int, block: int, target: int, item: int, zero: Any, lanes: int
) -> None:
    """Copy rows so that each is contiguous, and so are all rows of a block of k."""
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


def dots(pieces: int, x: Any, y: Any, out: Any, widest: int, lanes: int, add: bool) -> None:
    """Compute out = or += x y^T; the rows of x are contiguous, and those of y are made so."""
    m, k, n = x.shape[0], x.shape[1], y.shape[0]
    item, zero = x.itemsize, x.dtype.type(0)
    b = Matrix(address_of(y), y.strides[0], y.strides[1])
    packed = m >= HEIGHT or b.col != item
    work = np.empty(n * k * item if packed else 0, np.uint8)
    at, row = b.at, b.row
    if packed:
        at = address_of(work)
        pack_rows_in_blocks(b, n, k, block_depth(n, widest, item), at, item, zero, lanes)
    a_at, a_row = address_of(x), x.strides[0]
    c_at, c_row, c_col = address_of(out), out.strides[0], out.strides[1]
    for piece in prange(pieces):
        i, end = piece * m // pieces, (piece + 1) * m // pieces
        dots_of_rows(
            Matrix(a_at + i * a_row, a_row, item), Matrix(at, row, item),
            Matrix(c_at + i * c_row, c_row, c_col), end - i, n, k, add, packed, item, zero,
            widest,
        )  # fmt: skip
    keep_alive(work)
