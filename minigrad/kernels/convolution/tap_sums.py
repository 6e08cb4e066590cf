"""The gradient of the weight if there are several filters: a product of lines of x and rows of g.

    out[o, tap] = sum over images, rows and columns of g[o, row, col] * lines[tap + (row, col)]

A tile of the sums has MR taps and the filters of one or two vectors. For each number of a plane, it
loads one number of a line for each tap, which it copies to every lane, and one number of g for each
filter. So it is the tile of a matrix product (`minigrad.kernels.gemm.microkernel`). Lines are read
in place; a table has the position of each tap. Planes of g are packed like panels of B, so that the
filters are adjacent.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from minigrad.kernels.convolution.lines import copy_images, lines_of
from minigrad.kernels.convolution.plan import Lines
from minigrad.kernels.gemm.macrokernel import first_line
from minigrad.kernels.gemm.microkernel import CACHE_LINE, NV, UNROLLED, tile_shape
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack, part_of
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.jit import WORD, Integers, Read, Written, external
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import Emitter, address_of, instruction, keep_alive


@instruction()
def _tile_of_taps(
    e: Emitter, taps: Any, filters: Any, images: Any, rows: Any, cols: Any, g: Any, lines: Any,
    line: Any, lines_image: Any, table: Any, out: Any, _zero: Any,
) -> None:  # fmt: skip
    """Compute out[i, :] += the sum over all numbers of g of lines[table[i] + its position] * g[:].

    The tile has at most MR `taps`. Packed g and `out` have complete vectors of `filters`: one, or
    NV. The next row of lines is `line` bytes further on, and the next image `lines_image` bytes.
    """
    builder, zero, item = e.builder, WORD(0), WORD(e.item)
    MR, last = tile_shape(e.item).MR, builder.sub(taps, WORD(1))
    indices = [e.at_most(i, last) for i in range(MR)]  # after the last tap, it is repeated
    steps = [e.load(builder.add(table, builder.mul(i, WORD(8))), WORD) for i in indices]
    bases = [e.hidden(builder.add(lines, step)) for step in steps]

    def emit(vectors: int) -> list[Any]:
        g_step = WORD(vectors * e.vector_bytes)

        def columns(count: int, now: list[Any]) -> list[Any]:
            at, g_at, *sums = now
            for k in range(count):
                here = e.step(g_at, g_step, k)
                factors = [
                    e.load(e.step(here, WORD(e.vector_bytes), j), e.vector) for j in range(vectors)
                ]
                for i, base in enumerate(bases):
                    number = e.load(builder.add(base, e.step(at, item, k)), e.scalar)
                    value = e.broadcast(number)
                    for j, factor in enumerate(factors, i * vectors):
                        sums[j] = e.multiply_add(value, factor, sums[j])
            return [e.step(at, item, count), e.step(g_at, g_step, count), *sums]

        def row(_row: Any, now: list[Any]) -> list[Any]:
            return [builder.add(now[0], line), *e.unrolled(cols, now, columns, UNROLLED)[1:]]

        def image(_image: Any, now: list[Any]) -> list[Any]:
            rest = e.for_range(zero, rows, 1, now, row, may_be_empty=False)[1:]
            return [builder.add(now[0], lines_image), *rest]

        first = [zero, g, *[ir.Constant(e.vector, None)] * (MR * vectors)]
        sums = e.for_range(zero, images, 1, first, image, may_be_empty=False)[2:]
        rows_of_out = [builder.add(out, builder.mul(i, g_step)) for i in indices]
        targets = [e.step(r, WORD(e.vector_bytes), j) for r in rows_of_out for j in range(vectors)]
        e.store_or_add(sums, targets, WORD(1))
        return []

    is_wide = builder.icmp_signed(">", filters, WORD(e.lanes))
    e.choose([(is_wide, partial(emit, NV))], partial(emit, 1))


@external()
def _add_block(
    t: BlockSizes, s: Lines, start: int, end: int, wide: int, filters: int, depth: int, images: int,
    rows: int, g: Matrix, g_image: int, lines: int, table: int, packed: int, sums: int,
) -> None:  # fmt: skip
    """Add the sums over some rows of some images to the tiles from `start` to before `end`.

    Tiles are counted for one group: all tiles of taps for the first `wide` filters, then for the
    next. A row of `g` is what is summed of a plane; the planes of the next image are `g_image`
    bytes further on.
    """
    tiles, numbers = (depth + t.MR - 1) // t.MR, rows * s.cols
    tile = start
    while tile < end:
        filter_ = tile // tiles * wide
        for image in range(images):
            planes = Matrix(g.at + image * g_image + filter_ * g.row, g.row, g.col)
            to = packed + image * numbers * wide * t.item
            pack(t, planes, min(wide, filters - filter_), numbers, wide, wide, to)
        last = min(end, (tile // tiles + 1) * tiles)
        for number in range(tile, last):
            k = number % tiles * t.MR
            _tile_of_taps(
                min(t.MR, depth - k), wide, images, rows, s.cols, packed, lines,
                s.step * s.line * t.item, s.channels * s.lines * s.line * t.item, table + k * 8,
                sums + (number - start) * t.MR * wide * t.item, t.zero,
            )  # fmt: skip
        tile = last


@for_each_dtype(pieces=0)
def sums_of_taps(
    piece: int, pieces: int, source: Read.D2, g: Read.D2, table: Integers, plan: Integers,
    out: Written.D2,
) -> None:  # fmt: skip
    """Compute the sums over all images and rows of the result, a row of `out` for each filter.

    Each piece computes some tiles. It copies the lines, and packs the planes of g, that they read.
    """
    t, s = blocks_of(plan, source), lines_of(plan)
    filters, depth = out.shape[0] // s.groups, out.shape[1]
    wide = t.VL if filters <= t.VL else t.NR
    in_panel = (depth + t.MR - 1) // t.MR
    tiles = (filters + wide - 1) // wide * in_panel
    size = s.channels * s.lines * s.line
    lines = np.empty(s.together * size, source.dtype)
    cleared_for = -1
    near_rows = max(1, t.RUN // s.cols)  # a tile adds up about RUN numbers before it writes
    near_images = max(1, near_rows // s.rows)
    near = max(near_rows, near_images * s.rows) * s.cols * wide * t.item
    share = (s.groups * tiles + pieces - 1) // pieces
    sums = np.empty((min(share, tiles) * t.MR, wide), source.dtype)
    work = np.empty(CACHE_LINE + near, np.uint8)
    all_tiles = span(piece, pieces, s.groups * tiles)
    for group in range(s.groups):
        start = max(0, all_tiles.start - group * tiles)
        end = min(tiles, all_tiles.stop - group * tiles)
        if start >= end:
            continue
        sums[:] = 0
        for image in range(0, s.images, s.together):
            images = min(s.together, s.images - image)
            for first in range(0, s.rows, s.block):
                rows = min(s.block, s.rows - first)
                cleared_for = copy_images(
                    source, s, group, image, images, first, rows, lines, cleared_for
                )
                for i in range(0, images, near_images):
                    planes = ((image + i) * s.groups + group) * filters
                    for row in range(0, rows, near_rows):
                        _add_block(
                            t, s, start, end, wide, filters, depth, min(near_images, images - i),
                            min(near_rows, rows - row),
                            part_of(matrix_of(g), planes, (first + row) * s.cols),
                            s.groups * filters * g.strides[0],
                            address_of(lines) + (i * size + row * s.step * s.line) * t.item,
                            address_of(table), first_line(work), address_of(sums),
                        )  # fmt: skip
        for tile in range(start, end):
            filter_, k = tile // in_panel * wide, tile % in_panel * t.MR
            for o in range(min(wide, filters - filter_)):
                for tap in range(min(t.MR, depth - k)):
                    total = sums[(tile - start) * t.MR + tap, o]
                    out[group * filters + filter_ + o, k + tap] = total
    keep_alive(lines)
    keep_alive(sums)
    keep_alive(work)
