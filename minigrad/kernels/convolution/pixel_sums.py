"""The loop of the forward pass if there are many filters: a product whose columns are filters.

    out[o, pixel] = bias[o] + sum over taps of weight[o, tap] * lines[pixel + tap]

A tile of the sums has some elements (pixels) of the planes of the result, and the filters of one or
two vectors. A tile may begin and end anywhere in a row, so no lane is empty, whatever the length of
a row. In the result, pixels are adjacent, and not filters; so the sums are transposed at the end.
The tile is that of `minigrad.kernels.convolution.tap_sums`, with pixels and taps exchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels.convolution.lines import (
    block_of,
    count_blocks,
    find_lines,
    image_size,
    lines_of,
    pixel_offsets,
)
from minigrad.kernels.convolution.tap_sums import add_tile, tile_size
from minigrad.kernels.gemm.macrokernel import first_line
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.gemm.packing import BlockSizes, pack, part_of
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.jit import Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import address_of, keep_alive, load, prefetch, store, transpose_block


@external()
def _write_planes(
    lanes: int, sums: int, wide: int, filters: int, pixels: int, target: int, plane: int, item: int,
    zero: float,
) -> None:  # fmt: skip
    """Transpose the sums of some pixels, in rows of `wide`, to planes `plane` bytes apart."""
    done = filters - filters % lanes if pixels >= lanes else 0
    for o in range(0, done, lanes):
        for i in range(0, pixels, lanes):
            first = min(i, pixels - lanes)  # the last block may overlap
            transpose_block(
                sums + (first * wide + o) * item, wide * item, lanes - 1,
                target + o * plane + first * item, plane, zero,
            )  # fmt: skip
    for o in range(done, filters):
        for i in range(pixels):
            store(target + o * plane + i * item, load(sums + (i * wide + o) * item, zero))


@jit(inline="always")
def _prefetch_planes(at: int, images: int, image: int, filters: int, plane: int, size: int) -> None:
    """Prefetch the first `size` bytes of some planes of some images, which are written soon.

    The planes of an image are `plane` bytes apart, and the images `image` bytes.
    """
    for number in range(images * filters):
        here = at + number // filters * image + number % filters * plane
        for byte in range(0, size, CACHE_LINE):
            prefetch(here + byte)


@jit(inline="always")
def _sum_over_taps(
    t: BlockSizes, pixels: int, filters: int, depth: int, lines: int, offsets: int, table: int,
    weights: int, start: int, sums: int,
) -> None:  # fmt: skip
    """Compute the sums of some pixels, a row for each; all begin with the numbers at `start`.

    A sum of many taps is cut into runs of about equal length. All arguments after `depth` are
    addresses: of the lines, the offsets of pixels and taps, and the packed weights of the filters.
    """
    high, wide = tile_size(t, filters)
    runs = (depth + t.RUN - 1) // t.RUN
    for run in range(runs):
        k, end = run * depth // runs, (run + 1) * depth // runs
        for pixel in range(0, pixels, high):
            add_tile(
                min(high, pixels - pixel), wide, end - k, lines, offsets + pixel * 8,
                table + k * 8, weights + k * wide * t.item, 0 if k else start,
                sums + pixel * wide * t.item, t.zero,
            )  # fmt: skip


@external()
def _compute_planes(
    t: BlockSizes, images: int, pixels: int, filters: int, depth: int, lines: int, offsets: int,
    table: int, weights: int, start: int, sums: Any, planes: int, image_bytes: int, plane: int,
) -> None:  # fmt: skip
    """Compute some `pixels` of the planes of some filters in some images, as many as fit in `sums`.

    The planes of an image are `plane` bytes apart, and the images `image_bytes`.
    """
    _, wide = tile_size(t, filters)
    most = sums.size // t.NR  # pixels whose sums are computed before they are transposed
    step = max(1, most // pixels)  # images of which all pixels are computed at a time
    for image in range(0, images, step):
        some = min(step, images - image)
        for p in range(0, pixels, most):
            now = min(most, pixels - p)  # of each image
            target = planes + image * image_bytes + p * t.item
            _prefetch_planes(target, some, image_bytes, filters, plane, now * t.item)
            _sum_over_taps(
                t, some * now, filters, depth, lines, offsets + (image * pixels + p) * 8, table,
                weights, start, address_of(sums),
            )  # fmt: skip
            for i in range(some):
                _write_planes(
                    t.VL, address_of(sums) + i * now * wide * t.item, wide, filters, now,
                    target + i * image_bytes, plane, t.item, t.zero,
                )  # fmt: skip


@for_each_dtype(pieces=0)
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
