"""The gradient of the weight if there are several filters: a product of lines of x and rows of g.

    out[o, tap] = sum over images, rows and columns of g[o, row, col] * lines[tap + (row, col)]

A tile of the sums has some taps and the filters of one or two vectors. For each number of a plane,
it loads one number of a line for each tap, which it copies to every lane, and one number of g for
each filter. So it is the tile of a matrix product (`minigrad.kernels.gemm.microkernel`). Lines are
read in place; tables have the positions of taps and of elements of the result. Planes of g are
packed like panels of B, so that the filters are adjacent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from minigrad.kernels.convolution.lines import (
    Block,
    find_lines,
    image_size,
    lines_of,
    pixel_offsets,
)
from minigrad.kernels.convolution.plan import Lines
from minigrad.kernels.gemm.macrokernel import first_line
from minigrad.kernels.gemm.microkernel import CACHE_LINE, NV, UNROLLED, tile_shape
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack, part_of
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.jit import WORD, Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import Emitter, address_of, instruction, keep_alive

ADDRESSES = 10  # of rows: so many stay in registers, if a processor has 16 of them


@instruction()
def add_tile(
    e: Emitter, rows: Any, filters: Any, depth: Any, lines: Any, of_rows: Any, of_steps: Any,
    factors: Any, start: Any, sums: Any, _zero: Any,
) -> None:  # fmt: skip
    """Compute sums[i, :] += the sum over k of lines[of_rows[i] + of_steps[k]] * factors[k, :].

    The offsets are in bytes. `factors` and `sums` have complete vectors of `filters`: one, or NV.
    If `start` is not 0, it is the address of numbers to which each row adds the sums instead.

    The tile has at most MR rows. With one vector, it has at most ADDRESSES, because then each
    multiply-add needs a load, and there is no time to load addresses too.
    """
    builder = e.builder
    starts = builder.icmp_signed("!=", start, WORD(0))
    last = builder.sub(rows, WORD(1))
    indices = [e.at_most(i, last) for i in range(tile_shape(e.item).MR)]  # the last is repeated
    offsets = [e.load(builder.add(of_rows, builder.mul(i, WORD(8))), WORD) for i in indices]
    bases = [e.hidden(builder.add(lines, offset)) for offset in offsets]

    def emit(vectors: int) -> list[Any]:
        step = WORD(vectors * e.vector_bytes)
        height = len(bases) if vectors > 1 else min(len(bases), ADDRESSES)

        def steps_of_k(count: int, now: list[Any]) -> list[Any]:
            at, factors_at, *totals = now
            for k in range(count):
                offset, here = e.load(e.step(at, WORD(8), k), WORD), e.step(factors_at, step, k)
                row = [
                    e.load(e.step(here, WORD(e.vector_bytes), j), e.vector) for j in range(vectors)
                ]
                for i, base in enumerate(bases[:height]):
                    value = e.broadcast(e.load(builder.add(base, offset), e.scalar))
                    for j, factor in enumerate(row, i * vectors):
                        totals[j] = e.multiply_add(value, factor, totals[j])
            return [e.step(at, WORD(8), count), e.step(factors_at, step, count), *totals]

        def row_at_start() -> list[Any]:
            return [
                e.load(e.step(start, WORD(e.vector_bytes), j), e.vector) for j in range(vectors)
            ]

        row = e.choose([(starts, row_at_start)], lambda: [ir.Constant(e.vector, None)] * vectors)
        totals = e.unrolled(depth, [of_steps, factors, *row * height], steps_of_k, UNROLLED)[2:]
        rows_of_sums = [builder.add(sums, builder.mul(i, step)) for i in indices[:height]]
        targets = [e.step(r, WORD(e.vector_bytes), j) for r in rows_of_sums for j in range(vectors)]
        e.store_or_add(totals, targets, builder.select(starts, WORD(0), WORD(1)))
        return []

    is_wide = builder.icmp_signed(">", filters, WORD(e.lanes))
    e.choose([(is_wide, partial(emit, NV))], partial(emit, 1))


@jit(inline="always")
def tile_size(t: BlockSizes, filters: int) -> tuple[int, int]:
    """Return the most rows of `add_tile`, and the columns, for so many filters."""
    if filters > t.VL:
        return t.MR, t.NR
    return min(t.MR, ADDRESSES), t.VL


@jit(inline="always")
def _add_tiles(
    t: BlockSizes, start: int, end: int, filters: int, depth: int, images: int, numbers: int,
    g: Matrix, g_image: int, lines: int, pixels: int, table: int, packed: int, sums: int,
) -> None:  # fmt: skip
    """Add the sums over some rows of some images to the tiles from `start` to before `end`.

    Tiles are counted for one group: all tiles of taps for the first filters, as many as a tile has
    columns, then for the next. A row of `g` has the `numbers` that are summed of a plane; the
    planes of the next image are `g_image` bytes further on.
    """
    high, wide = tile_size(t, filters)
    tiles = (depth + high - 1) // high
    tile = start
    while tile < end:
        filter_ = tile // tiles * wide
        for image in range(images):
            planes = Matrix(g.at + image * g_image + filter_ * g.row, g.row, g.col)
            to = packed + image * numbers * wide * t.item
            pack(t, planes, min(wide, filters - filter_), numbers, wide, wide, to)
        last = min(end, (tile // tiles + 1) * tiles)
        for number in range(tile, last):
            k = number % tiles * high
            add_tile(
                min(high, depth - k), wide, images * numbers, lines, table + k * 8, pixels, packed,
                0, sums + (number - start) * high * wide * t.item, t.zero,
            )  # fmt: skip
        tile = last


@external()
def _add_block(
    t: BlockSizes, s: Lines, block: Block, start: int, end: int, filters: int, depth: int, g: Any,
    lines: int, pixels: int, table: int, packed: int, sums: int,
) -> None:  # fmt: skip
    """Add the sums over a block to the tiles from `start` to before `end`, part by part."""
    near_rows = max(1, t.RUN // s.cols)  # a tile adds up about RUN numbers before it writes
    near_images = max(1, near_rows // s.rows)
    for i in range(0, block.images, near_images):
        plane = ((block.image + i) * s.groups + block.group) * filters
        for row in range(0, block.rows, near_rows):
            _add_tiles(
                t, start, end, filters, depth, min(near_images, block.images - i),
                min(near_rows, block.rows - row) * s.cols,
                part_of(matrix_of(g), plane, (block.row + row) * s.cols),
                s.groups * filters * g.strides[0], lines,
                pixels + (i * block.rows + row) * s.cols * 8, table, packed, sums,
            )  # fmt: skip


@external()
def _write_sums(t: BlockSizes, start: int, end: int, filters: int, sums: Any, out: Any) -> None:
    """Transpose the sums of the tiles from `start` to before `end` to the rows of some filters."""
    depth, (high, wide) = out.shape[1], tile_size(t, filters)
    tiles = (depth + high - 1) // high
    for tile in range(start, end):
        filter_, k = tile // tiles * wide, tile % tiles * high
        for o in range(min(wide, filters - filter_)):
            for tap in range(min(high, depth - k)):
                out[filter_ + o, k + tap] = sums[(tile - start) * high + tap, o]


@for_each_dtype(pieces=0)
def sums_of_taps(
    piece: int, pieces: int, source: Read.D2, g: Read.D2, table: Integers, plan: Integers,
    out: Written.D2,
) -> None:  # fmt: skip
    """Compute the sums over all images and rows of the result, a row of `out` for each filter.

    If `out` is longer, it has such rows for each of some equal parts of the images.

    Each piece computes some tiles. It copies the lines, and packs the planes of g, that they read.
    """
    t, s = blocks_of(plan, source), lines_of(plan)
    filters, depth = g.shape[0] // (s.images * s.groups), out.shape[1]
    sets = out.shape[0] // filters  # of filters: one for each group of each part
    parts = sets // s.groups
    high, wide = tile_size(t, filters)
    tiles = (filters + wide - 1) // wide * ((depth + high - 1) // high)
    lines = np.zeros(0 if s.in_place else s.together * image_size(s) + t.NR, source.dtype)
    pixels = pixel_offsets(s, s.together, s.block, t.item)
    share = (sets * tiles + pieces - 1) // pieces
    sums = np.empty((min(share, tiles) * high, wide), source.dtype)
    work = np.empty(CACHE_LINE + max(t.RUN, s.cols) * wide * t.item, np.uint8)
    all_tiles = span(piece, pieces, sets * tiles)
    for number in range(sets):
        part, group = number // s.groups, number % s.groups
        start = max(0, all_tiles.start - number * tiles)
        end = min(tiles, all_tiles.stop - number * tiles)
        if start >= end:
            continue
        sums[:] = 0
        last = (part + 1) * s.images // parts
        for image in range(part * s.images // parts, last, s.together):
            images = min(s.together, last - image)
            for row in range(0, s.rows, s.block):
                block = Block(group, image, images, row, min(s.block, s.rows - row))
                at = find_lines(source, s, block, lines)
                _add_block(
                    t, s, block, start, end, filters, depth, g, at, address_of(pixels),
                    address_of(table), first_line(work), address_of(sums),
                )  # fmt: skip
        _write_sums(t, start, end, filters, sums, out[number * filters :])
    keep_alive((lines, pixels, sums, work))
