"""The gradient of the weight if there are few filters: products of rows of g and lines of x."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from minigrad.kernels.convolution.lines import NEAR, Block, copy_lines, image_size, lines_of
from minigrad.kernels.convolution.plan import Lines
from minigrad.kernels.gemm.microkernel import first_line
from minigrad.kernels.gemm.packing import BlockSizes, part_of
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.gemm.skinny import fold
from minigrad.kernels.jit import WORD, Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import (
    MASKS_ARE_FREE,
    REGISTERS,
    VECTOR,
    Emitter,
    address_of,
    copy_some,
    copy_vector,
    instruction,
    keep_alive,
)

FILTERS, TAPS = 4, 4 if REGISTERS > 16 else 3  # in a tile


@instruction()
def _tile_of_row_products(
    e: Emitter, filters: Any, taps: Any, images: Any, rows: Any, cols: Any, g: Any, g_plane: Any,
    lines: Any, line: Any, lines_image: Any, table: Any, out: Any, out_row: Any, _zero: Any,
) -> None:  # fmt: skip
    """Compute out[i, j] += the sum over images and rows of g[i, row, :] * lines[table[j] + row, :].

    A tile has a plane of g for each filter, FILTERS or one, and `taps` steps of the table, at most
    TAPS. The planes are `g_plane` bytes apart, with rows as `_pack_rows` writes them. The next row
    reads `line` numbers further on, and the next image `lines_image` bytes.

    Complete vectors are read, also past the end of a row; lanes past the end must not change the
    sums. If masks have their own registers, the multiply-adds are masked, because this takes no
    longer, while a masked load does. Otherwise these lanes are 0 in the lines, as in packed g. Rows
    that fill at most half a vector are multiplied two at a time.
    """
    builder, half, item = e.builder, e.of_lanes(e.lanes // 2), WORD(e.item)
    zero, vector_bytes, every_lane = WORD(0), WORD(e.vector_bytes), list(range(e.lanes))
    nothing = ir.Constant(e.vector, None)
    steps = e.addresses(table, WORD(8), TAPS, taps)
    b_rows = [builder.add(lines, e.load(step, WORD)) for step in steps]
    b_step = builder.mul(line, item)
    before_last = builder.udiv(builder.sub(cols, WORD(1)), WORD(e.lanes))
    rest = e.first_lanes(builder.sub(cols, builder.mul(before_last, WORD(e.lanes))))
    before_last = builder.mul(before_last, vector_bytes)

    def multiply(sums: list[Any], g_at: Any, values: list[Any], mask: Any) -> list[Any]:
        new, height = [], len(sums) // TAPS
        if mask is not None and not MASKS_ARE_FREE:
            values = [builder.select(mask, value, nothing) for value in values]
            mask = None
        for i in range(height):
            factor = e.load(e.step(g_at, g_plane, i), e.vector)
            for value, old in zip(values, sums[i * TAPS : (i + 1) * TAPS], strict=True):
                total = e.multiply_add(factor, value, old)
                new.append(total if mask is None else builder.select(mask, total, old))
        return new

    def row_of_vectors(_row: Any, now: list[Any]) -> list[Any]:
        g_at, b_at, *sums = now

        def vector(done: Any, sums: list[Any], mask: Any = None) -> list[Any]:
            b_now = builder.add(b_at, done)
            values = [e.load(builder.add(row, b_now), e.vector) for row in b_rows]
            return multiply(sums, builder.add(g_at, done), values, mask)

        sums = e.for_range(zero, before_last, e.vector_bytes, sums, vector)
        sums = vector(before_last, sums, rest)
        g_at = builder.add(g_at, builder.add(before_last, vector_bytes))
        return [g_at, builder.add(b_at, b_step), *sums]

    def two_rows(row: Any, now: list[Any]) -> list[Any]:
        g_at, b_at, *sums = now
        one = builder.icmp_signed("==", builder.sub(rows, row), WORD(1))
        second_row = builder.select(one, zero, b_step)  # if there is no second row, it is masked
        values = []
        for b_row in b_rows:
            at = builder.add(b_row, b_at)
            pair = [half.load(p, half.vector) for p in (at, builder.add(at, second_row))]
            values.append(e.shuffle(pair[0], pair[1], every_lane))
        masks = [half.first_lanes(builder.select(one, n, cols)) for n in (cols, zero)]
        new = multiply(sums, g_at, values, e.shuffle(masks[0], masks[1], every_lane))
        return [builder.add(g_at, vector_bytes), e.step(b_at, b_step, 2), *new]

    def emit(height: int) -> None:
        first = [g, zero, *[nothing] * (height * TAPS)]

        def sums_over(step: int, row: Callable[..., list[Any]]) -> list[Any]:
            def image(_image: Any, now: list[Any]) -> list[Any]:
                g_at, _, *sums = e.for_range(zero, rows, step, now, row)
                return [g_at, builder.add(now[1], lines_image), *sums]

            return e.for_range(zero, images, 1, first, image)[2:]

        is_short = builder.icmp_signed("<=", cols, WORD(half.lanes))
        sums = e.choose(
            [(is_short, lambda: sums_over(2, two_rows))], lambda: sums_over(1, row_of_vectors)
        )
        out_rows = [e.step(out, out_row, i) for i in range(height)]
        targets = [at for row in out_rows for at in e.addresses(row, item, TAPS, taps)]
        e.store_or_add(fold(e, sums), targets, WORD(1))

    all_filters = builder.icmp_signed("==", filters, WORD(FILTERS))
    e.choose([(all_filters, partial(emit, FILTERS))], partial(emit, 1))


@jit(inline="always")
def _pack_rows(at: int, rows: int, cols: int, to: int, item: int, zero: Any) -> int:
    """Copy rows of `cols` columns, each into vectors of its own; two short rows share a vector.

    Return the address after them. Up to one vector may be written there too.
    """
    lanes = VECTOR // item
    for _ in range(rows):
        for j in range(0, cols, lanes):
            if cols - j >= lanes:
                copy_vector(at + j * item, to, zero)
            else:
                copy_some(at + j * item, to, cols - j, zero)
            to += VECTOR if 2 * cols > lanes else VECTOR // 2
        at += cols * item
    return (to + VECTOR - 1) // VECTOR * VECTOR


@jit(inline="always")
def _packed_row(t: BlockSizes, s: Lines) -> int:
    """Return the bytes of a row of packed g: complete vectors."""
    return (s.cols + t.VL - 1) // t.VL * VECTOR


@external()
def _add_block(
    t: BlockSizes, s: Lines, block: Block, start: int, end: int, filters: int, g: Any, lines: Any,
    table: int, packed: int, out: Any,
) -> None:  # fmt: skip
    """Add the sums over a block to the rows of `out` for the filters from `start` to before `end`.

    Filters are counted in the block's group. `packed` is the address of memory for FILTERS planes.
    """
    depth, line = out.shape[1], s.step * s.line
    near_rows = max(1, NEAR // (FILTERS * _packed_row(t, s)))  # whose packed g stays in the cache
    near_images = max(1, near_rows // s.rows)
    for i in range(0, block.images, near_images):
        images = min(near_images, block.images - i)
        for row in range(0, block.rows, near_rows):
            rows = min(near_rows, block.rows - row)
            first = address_of(lines) + (i * image_size(s) + row * line) * t.item
            o = start
            while o < end:
                planes = FILTERS if end - o >= FILTERS else 1
                to = packed
                for filter_ in range(o, o + planes):
                    for image in range(block.image + i, block.image + i + images):
                        plane = (image * s.groups + block.group) * filters + filter_
                        at = part_of(matrix_of(g), plane, (block.row + row) * s.cols).at
                        to = _pack_rows(at, rows, s.cols, to, t.item, t.zero)
                plane_bytes = (to - packed) // planes
                sums = part_of(matrix_of(out), block.group * filters + o, 0)
                for k in range(0, depth, TAPS):
                    _tile_of_row_products(
                        planes, min(TAPS, depth - k), images, rows, s.cols, packed, plane_bytes,
                        first, line, image_size(s) * t.item, table + k * 8, sums.at + k * t.item,
                        sums.row, t.zero,
                    )  # fmt: skip
                o += planes


@for_each_dtype()
def weight_sums(
    piece: int, pieces: int, source: Read.D2, g: Read.D2, table: Integers, plan: Integers,
    out: Written.D2,
) -> None:  # fmt: skip
    """Add the sums over all images and rows of the result to `out`, a row for each filter.

    Each piece computes some filters, and copies the lines that they read.
    """
    t, s = blocks_of(plan, source), lines_of(plan)
    filters = out.shape[0] // s.groups
    lines = np.zeros(s.together * image_size(s) + t.NR, source.dtype)
    packed = np.empty(NEAR + (FILTERS + 3) * _packed_row(t, s), np.uint8)
    tiles = (filters + FILTERS - 1) // FILTERS
    all_tiles = span(piece, pieces, s.groups * tiles)
    for group in range(s.groups):
        start = max(0, all_tiles.start - group * tiles) * FILTERS
        end = min(filters, (all_tiles.stop - group * tiles) * FILTERS)
        if start >= end:
            continue
        for image in range(0, s.images, s.together):
            images = min(s.together, s.images - image)
            for row in range(0, s.rows, s.block):
                block = Block(group, image, images, row, min(s.block, s.rows - row))
                copy_lines(source, s, block, lines)
                _add_block(
                    t, s, block, start, end, filters, g, lines, address_of(table),
                    first_line(packed), out,
                )  # fmt: skip
    keep_alive((lines, packed))
