"""The loops for many filters: products whose columns are filters.

    out[o, pixel] = bias[o] + sum over taps of weight[o, tap] * lines[pixel + tap]
    dweight[o, tap] = sum over images and pixels of g[o, pixel] * lines[tap + pixel]

A tile of the sums has some pixels (elements of the planes of the result) or some taps, and the
filters of one or two vectors. For each step of a sum, it loads one number of a line for each pixel
or tap, which it copies to every lane, and one number of the weight or of g for each filter. So it
is the tile of a matrix product (`minigrad.kernels.gemm.microkernel`). Lines are read in place;
tables have the positions of taps and of pixels. The weight, or planes of g, are packed like panels
of B, so that the filters are adjacent. A tile of pixels may begin and end anywhere in a row of the
result, so no lane is empty, whatever the length of a row. In the result and in the weight, filters
are not adjacent; so the sums are transposed at the end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from minigrad.kernels.convolution.lines import (
    Block,
    block_of,
    count_blocks,
    find_lines,
    image_size,
    lines_of,
    pixel_offsets,
)
from minigrad.kernels.convolution.plan import Lines
from minigrad.kernels.gemm.microkernel import CACHE_LINE, NV, UNROLLED, first_line, tile_shape
from minigrad.kernels.gemm.packing import BlockSizes, pack, part_of
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.jit import WORD, Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import (
    Emitter,
    address_of,
    instruction,
    keep_alive,
    load,
    store,
    transpose_block,
)

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
    offsets = e.addresses(of_rows, WORD(8), tile_shape(e.item).MR, rows)
    bases = [e.hidden(builder.add(lines, e.load(offset, WORD))) for offset in offsets]

    def emit(vectors: int) -> None:
        step = WORD(vectors * e.vector_bytes)
        height = len(bases) if vectors > 1 else min(len(bases), ADDRESSES)

        def row_at(first: Any) -> list[Any]:
            places = [e.step(first, WORD(e.vector_bytes), j) for j in range(vectors)]
            return [e.load(place, e.vector) for place in places]

        def steps_of_k(count: int, now: list[Any]) -> list[Any]:
            at, factors_at, *totals = now
            for k in range(count):
                offset, here = e.load(e.step(at, WORD(8), k), WORD), e.step(factors_at, step, k)
                row = row_at(here)
                for i, base in enumerate(bases[:height]):
                    value = e.broadcast(e.load(builder.add(base, offset), e.scalar))
                    for j, factor in enumerate(row, i * vectors):
                        totals[j] = e.multiply_add(value, factor, totals[j])
            return [e.step(at, WORD(8), count), e.step(factors_at, step, count), *totals]

        zeros = [ir.Constant(e.vector, None)] * vectors
        row = e.choose([(starts, partial(row_at, start))], lambda: zeros)
        totals = e.unrolled(depth, [of_steps, factors, *row * height], steps_of_k, UNROLLED)[2:]
        rows_of_sums = e.addresses(sums, step, height, rows)
        targets = [e.step(r, WORD(e.vector_bytes), j) for r in rows_of_sums for j in range(vectors)]
        e.store_or_add(totals, targets, builder.select(starts, WORD(0), WORD(1)))

    is_wide = builder.icmp_signed(">", filters, WORD(e.lanes))
    e.choose([(is_wide, partial(emit, NV))], partial(emit, 1))


@jit(inline="always")
def tile_size(t: BlockSizes, filters: int) -> tuple[int, int]:
    """Return the most rows of `add_tile`, and the columns, for so many filters."""
    if filters > t.VL:
        return t.MR, t.NR
    return min(t.MR, ADDRESSES), t.VL


@external()
def _write_planes(
    t: BlockSizes, sums: int, wide: int, filters: int, pixels: int, target: int, plane: int
) -> None:
    """Transpose rows of `wide` sums, of a pixel or tap each, to planes `plane` bytes apart."""
    done = filters - filters % t.VL if pixels >= t.VL else 0
    for o in range(0, done, t.VL):
        for i in range(0, pixels, t.VL):
            first = min(i, pixels - t.VL)  # the last block may overlap
            here, there = sums + (first * wide + o) * t.item, target + o * plane + first * t.item
            transpose_block(here, wide * t.item, t.VL, there, plane, t.zero)
    for o in range(done, filters):
        for i in range(pixels):
            number = load(sums + (i * wide + o) * t.item, t.zero)
            store(target + o * plane + i * t.item, number)


@external()
def _compute_planes(
    t: BlockSizes, images: int, pixels: int, filters: int, depth: int, lines: int, offsets: int,
    table: int, weights: int, start: int, sums: Any, planes: int, image_bytes: int, plane: int,
) -> None:  # fmt: skip
    """Compute some `pixels` of the planes of some filters in some images, as many as fit in `sums`.

    The planes of an image are `plane` bytes apart, and the images `image_bytes`. A sum of many taps
    is cut into runs of about equal length; it begins with the numbers at `start`. The other
    arguments after `depth` are addresses: of the lines, the offsets of pixels and taps, and the
    packed weights of the filters.
    """
    high, wide = tile_size(t, filters)
    runs = (depth + t.RUN - 1) // t.RUN
    most = sums.size // t.NR  # pixels whose sums are computed before they are transposed
    step = max(1, most // pixels)  # images of which all pixels are computed at a time
    for image in range(0, images, step):
        some = min(step, images - image)
        for p in range(0, pixels, most):
            now = min(most, pixels - p)  # of each image
            target = planes + image * image_bytes + p * t.item
            of_rows = offsets + (image * pixels + p) * 8
            for run in range(runs):
                k, end = run * depth // runs, (run + 1) * depth // runs
                for pixel in range(0, some * now, high):
                    add_tile(
                        min(high, some * now - pixel), wide, end - k, lines, of_rows + pixel * 8,
                        table + k * 8, weights + k * wide * t.item, 0 if k else start,
                        address_of(sums) + pixel * wide * t.item, t.zero,
                    )  # fmt: skip
            for i in range(some):
                here = address_of(sums) + i * now * wide * t.item
                _write_planes(t, here, wide, filters, now, target + i * image_bytes, plane)


@for_each_dtype()
def sums_of_pixels(
    piece: int, pieces: int, source: Read.D2, weight: Read.D2, bias: Read.D1, table: Integers,
    plan: Integers, out: Written.D2,
) -> None:  # fmt: skip
    """Compute the result, block by block: some rows of an image, or some complete images."""
    t, s = blocks_of(plan, source), lines_of(plan)
    filters, depth = weight.shape[0] // s.groups, weight.shape[1]
    # Blocks are as large as possible, because weights are packed for each; but a piece gets two.
    share = max(1, s.images * s.groups // (2 * pieces))  # of images; each group counts as an image
    most_rows = min(s.block, max(1, s.rows * s.images * s.groups // (2 * pieces)))
    most_images = min(s.together, share) if most_rows == s.rows else 1
    lines = np.zeros(0 if s.in_place else most_images * image_size(s) + t.NR, source.dtype)
    offsets = pixel_offsets(s, most_images, most_rows, t.item)
    sums = np.empty(t.MR * t.VL // 2 * t.NR, source.dtype)
    start = np.zeros(t.NR, source.dtype)
    work = np.empty(CACHE_LINE + depth * t.NR * t.item, np.uint8)
    for number in span(piece, pieces, count_blocks(s, most_images, most_rows)):
        block = block_of(s, most_images, most_rows, number)
        at = find_lines(source, s, block, lines)
        for o in range(block.group * filters, (block.group + 1) * filters, t.NR):
            now = min(t.NR, (block.group + 1) * filters - o)
            _, wide = tile_size(t, now)
            pack(t, part_of(matrix_of(weight), o, 0), now, depth, wide, wide, first_line(work))
            if bias.size:
                for i in range(now):
                    start[i] = bias[o + i]
            plane = block.image * s.groups * filters + o
            _compute_planes(
                t, block.images, block.rows * s.cols, now, depth, at, address_of(offsets),
                address_of(table), first_line(work), address_of(start), sums,
                part_of(matrix_of(out), plane, block.row * s.cols).at,
                s.groups * filters * out.strides[0], out.strides[0],
            )  # fmt: skip
    keep_alive((lines, offsets, start, sums, work))


@external()
def _add_block(
    t: BlockSizes, s: Lines, block: Block, start: int, end: int, filters: int, depth: int, g: Any,
    lines: int, pixels: int, table: int, packed: int, sums: int,
) -> None:  # fmt: skip
    """Add the sums over a block to the tiles from `start` to before `end`, part by part.

    Tiles are counted for one group: all tiles of taps for the first filters, as many as a tile has
    columns, then for the next.
    """
    high, wide = tile_size(t, filters)
    tiles = (depth + high - 1) // high
    near_rows = max(1, t.RUN // s.cols)  # a tile adds up about RUN numbers before it writes
    near_images = max(1, near_rows // s.rows)
    for i in range(0, block.images, near_images):
        images = min(near_images, block.images - i)
        for row in range(0, block.rows, near_rows):
            numbers = min(near_rows, block.rows - row) * s.cols  # that are summed of each plane
            of_steps = pixels + (i * block.rows + row) * s.cols * 8
            tile = start
            while tile < end:
                filter_ = tile // tiles * wide
                for image in range(images):
                    plane = ((block.image + i + image) * s.groups + block.group) * filters + filter_
                    planes = part_of(matrix_of(g), plane, (block.row + row) * s.cols)
                    to = packed + image * numbers * wide * t.item
                    pack(t, planes, min(wide, filters - filter_), numbers, wide, wide, to)
                last = min(end, (tile // tiles + 1) * tiles)
                for number in range(tile, last):
                    k = number % tiles * high
                    add_tile(
                        min(high, depth - k), wide, images * numbers, lines, table + k * 8,
                        of_steps, packed, 0, sums + (number - start) * high * wide * t.item, t.zero,
                    )  # fmt: skip
                tile = last


@for_each_dtype()
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
    tiles_of_taps = (depth + high - 1) // high
    tiles = (filters + wide - 1) // wide * tiles_of_taps
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
        for tile in range(start, end):
            o, k = tile // tiles_of_taps * wide, tile % tiles_of_taps * high
            corner = part_of(matrix_of(out), number * filters + o, k)
            here = address_of(sums) + (tile - start) * high * wide * t.item
            columns, rows = min(wide, filters - o), min(high, depth - k)
            _write_planes(t, here, wide, columns, rows, corner.at, corner.row)
    keep_alive((lines, pixels, sums, work))
