"""The loop of the forward pass if there are many filters: a product whose columns are filters.

    out[o, pixel] = bias[o] + sum over taps of weight[o, tap] * lines[pixel + tap]

A tile of the sums has some elements (pixels) of the planes of the result, and the filters of one or
two vectors. A tile may begin and end anywhere in a row, so no lane is empty, whatever the length of
a row. In the result, pixels are adjacent, and not filters; so the sums are transposed at the end.
The tile is that of `minigrad.kernels.convolution.tap_sums`, with pixels and taps exchanged.
"""

from __future__ import annotations

import numpy as np

from minigrad.kernels.convolution.lines import find_lines, image_size, lines_of, pixel_offsets
from minigrad.kernels.convolution.tap_sums import add_tile, tile_size
from minigrad.kernels.gemm.macrokernel import first_line
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack
from minigrad.kernels.gemm.products import blocks_of
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


@for_each_dtype(pieces=0)
def sums_of_pixels(
    piece: int, pieces: int, source: Read.D2, weight: Read.D2, bias: Read.D1, table: Integers,
    plan: Integers, out: Written.D2,
) -> None:  # fmt: skip
    """Compute the result, block by block: some rows of an image, or some complete images."""
    t, s = blocks_of(plan, source), lines_of(plan)
    filters, depth = weight.shape[0] // s.groups, weight.shape[1]
    # Blocks are as large as possible, because weights are packed for each; but a piece gets two.
    all_images = s.images * s.groups  # each group counts as an image
    block = min(s.block, max(1, s.rows * all_images // (2 * pieces)))
    together = min(s.together, max(1, all_images // (2 * pieces))) if block == s.rows else 1
    lines = np.empty(0 if s.in_place else together * image_size(s) + t.NR, source.dtype)
    offsets = pixel_offsets(s, together, block, t.item)
    before = -1  # the first row of the last block
    most = t.MR * t.VL // 2  # pixels whose sums are computed before they are transposed
    sums, start = np.empty(most * t.NR, source.dtype), np.zeros(t.NR, source.dtype)
    work = np.empty(CACHE_LINE + depth * t.NR * t.item, np.uint8)
    packed = first_line(work)
    blocks = (s.rows + block - 1) // block
    in_group = (s.images + together - 1) // together * blocks
    plane = s.rows * s.cols * t.item
    image_bytes = s.groups * filters * plane
    for number in span(piece, pieces, s.groups * in_group):
        group, image = number // in_group, number % in_group // blocks * together
        first = number % blocks * block
        images, rows = min(together, s.images - image), min(block, s.rows - first)
        at = find_lines(source, s, group, image, images, first, rows, lines, first != before)
        before = first
        in_image = rows * s.cols  # pixels of an image in this block
        step = max(1, most // in_image)  # images whose sums are computed at a time
        for o in range(group * filters, (group + 1) * filters, t.NR):
            now = min(t.NR, (group + 1) * filters - o)
            _, wide = tile_size(t, now)
            weights = Matrix(address_of(weight) + o * depth * t.item, depth * t.item, t.item)
            pack(t, weights, now, depth, wide, wide, packed)
            if bias.size:
                for i in range(now):
                    start[i] = bias[o + i]
            corner = address_of(out) + image * image_bytes + o * plane + first * s.cols * t.item
            for i in range(0, images, step):
                some = min(step, images - i)
                for p in range(0, in_image, most):
                    pixels = min(most, in_image - p)  # of each image
                    target = corner + i * image_bytes + p * t.item
                    _prefetch_planes(target, some, image_bytes, now, plane, pixels * t.item)
                    _sum_over_taps(
                        t, some * pixels, now, depth, at,
                        address_of(offsets) + (i * in_image + p) * 8, address_of(table), packed,
                        address_of(start), address_of(sums),
                    )  # fmt: skip
                    for j in range(some):
                        _write_planes(
                            t.VL, address_of(sums) + j * pixels * wide * t.item, wide, now,
                            pixels, target + j * image_bytes, plane, t.item, t.zero,
                        )  # fmt: skip
    keep_alive(lines)
    keep_alive(offsets)
    keep_alive(start)
    keep_alive(sums)
    keep_alive(work)
