"""Copying lines, and the loop of the forward pass of a convolution."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels.convolution.plan import Lines
from minigrad.kernels.gemm.microkernel import lines_in_tile, tile_over_taps
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, part_of
from minigrad.kernels.gemm.products import SIZES, blocks_of, matrix_of
from minigrad.kernels.jit import Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.vector import VECTOR, address_of, copy_some, copy_vector, keep_alive

NEAR = 24 * 1024  # bytes of weights that stay in the level-1 cache while rows are read
LOW = 4  # rows of a tile; with fewer, its sums are so few that each waits for its last addition


@jit(inline="always")
def lines_of(plan: Any) -> Lines:
    """Return the part of a plan after the block sizes."""
    p = plan[SIZES:]
    return Lines(
        p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13],
        p[14], p[15], p[16], p[17],
    )  # fmt: skip


@jit(inline="always")
def image_size(s: Lines) -> int:
    """Return how many numbers the copied lines of one image have, in all channels of a group."""
    return s.channels * s.copied * s.line


@jit(inline="always")
def _copy_numbers(at: int, to: int, count: int, item: int, zero: Any) -> None:
    """Copy adjacent numbers. Zeros may be written after them, up to a complete vector."""
    lanes = VECTOR // item
    if 0 < count < lanes:
        copy_some(at, to, count, zero)
        return
    for i in range(0, count, lanes):
        step = min(i, count - lanes) * item  # the last vector may overlap
        copy_vector(at + step, to + step, zero)


class Block(NamedTuple):
    """Some rows of the result in some images, for one group: its lines are copied at once."""

    group: int
    image: int  # the first image
    images: int
    row: int  # the first row
    rows: int


@jit(inline="always")
def count_blocks(s: Lines, images: int, rows: int) -> int:
    """Return the number of blocks with at most so many images, and so many rows."""
    in_plane = (s.rows + rows - 1) // rows
    return (s.images + images - 1) // images * s.groups * in_plane


@jit(inline="always")
def block_of(s: Lines, images: int, rows: int, number: int) -> Block:
    """Return block `number`: all rows of a group come first, then other groups, then images."""
    in_plane = (s.rows + rows - 1) // rows
    plane, row = number // in_plane, number % in_plane * rows
    image = plane // s.groups * images
    return Block(
        plane % s.groups, image, min(images, s.images - image), row, min(rows, s.rows - row)
    )


@external()
def copy_lines(source: Any, s: Lines, block: Block, lines: Any) -> None:
    """Copy the lines that a block of the result reads into an array that is 0 at first.

    The columns are sorted by their remainder after division by the number of phases. Around the
    lines, the array stays 0 if all blocks have all rows. Otherwise the lines of another block may
    have been there. Up to one vector may be written after the last line.
    """
    if block.rows < s.rows:
        lines[:] = 0
    item, zero = source.itemsize, source.dtype.type(0)
    first, count = block.row * s.step, (block.rows - 1) * s.step + s.reach
    length = s.line // s.phases
    start, end = max(0, -s.top - first), min(count, s.height - s.top - first)
    for phase in range(s.phases):
        x = s.left + phase  # the column of the first number; the step is the number of phases
        before = max(0, (s.phases - 1 - x) // s.phases)
        size = min(length, (s.width - x + s.phases - 1) // s.phases) - before
        for n in range(block.images * s.channels):
            image = block.image + n // s.channels
            plane = (image * s.groups + block.group) * s.channels + n % s.channels
            here = (s.top + first + start) * s.width + x + before * s.phases
            there = (n * s.copied + start) * s.line + phase * length + before
            for _ in range(start, end):
                if s.phases == 1:
                    at = address_of(source) + (plane * s.height * s.width + here) * item
                    # What is written after the numbers of a line, the next line overwrites.
                    _copy_numbers(at, address_of(lines) + there * item, size, item, zero)
                elif size > 0:
                    numbers, target = source[plane, here:], lines[there : there + size]
                    if s.phases == 2:
                        for j in range(size):
                            target[j] = numbers[2 * j]  # this becomes vector code
                    else:
                        for j in range(size):
                            target[j] = numbers[j * s.phases]
                here += s.width
                there += s.line


@jit(inline="always")
def find_lines(source: Any, s: Lines, block: Block, lines: Any) -> int:
    """Return the address of the lines of a block, which are copied unless they are in place."""
    if s.in_place:
        plane = (block.image * s.groups + block.group) * s.channels
        start = (plane * s.height + block.row * s.step) * s.line
        address: int = address_of(source) + start * source.itemsize
        return address
    copy_lines(source, s, block, lines)
    address = address_of(lines)
    return address


@external()
def pixel_offsets(s: Lines, images: int, rows: int, item: int) -> Any:
    """Return the bytes from the first line to the first tap of each element of the result."""
    offsets = np.empty((images, rows, s.cols), np.int64)
    planes = s.channels * (s.groups if s.in_place else 1)  # of an image
    for image in range(images):
        for row in range(rows):
            for col in range(s.cols):
                line = image * planes * s.copied + row * s.step
                offsets[image, row, col] = (line * s.line + col * s.apart) * item
    return offsets


@for_each_dtype()
def correlate(
    piece: int, pieces: int, source: Read.D2, weight: Read.D2, bias: Read.D1, table: Integers,
    plan: Integers, out: Written.D2,
) -> None:  # fmt: skip
    """Compute the result, block of rows by block of rows, for each image and each group."""
    t, s = blocks_of(plan, source), lines_of(plan)
    filters, depth = weight.shape[0] // s.groups, weight.shape[1]
    lines = np.zeros(0 if s.in_place else image_size(s) + t.NR, source.dtype)
    for number in span(piece, pieces, count_blocks(s, 1, s.block)):
        block = block_of(s, 1, s.block, number)
        at = find_lines(source, s, block, lines)
        filter_ = block.group * filters
        plane, start = block.image * s.groups * filters + filter_, block.row * s.cols
        if bias.size:
            for o in range(filters):
                target = out[plane + o, start : start + block.rows * s.cols]
                for i in range(target.size):
                    target[i] = bias[filter_ + o]
        weights = part_of(matrix_of(weight), filter_, 0)
        corner = part_of(matrix_of(out), plane, start)
        result = Matrix(corner.at, corner.row, s.cols * t.item)
        _multiply_block(
            t, s, block.rows, filters, depth, weights, at, address_of(table), result, bias.size > 0
        )
    keep_alive(lines)


@external()
def _multiply_block(
    t: BlockSizes, s: Lines, rows: int, filters: int, depth: int, weights: Matrix, lines: int,
    table: int, out: Matrix, add: bool,
) -> None:  # fmt: skip
    """Compute, or add to, `rows` rows of the planes of some filters, from lines at an address.

    A sum of many taps is cut into runs of about equal length. The number of filters at a time is
    such that their weights stay in the level-1 cache while the rows are read.
    """
    runs = (depth + t.RUN - 1) // t.RUN
    for run in range(runs):
        k, end = run * depth // runs, (run + 1) * depth // runs
        height = max(1, NEAR // ((end - k) * t.item * t.MR)) * t.MR
        for o in range(0, filters, height):
            for col in range(0, s.cols, t.NR):
                wide = min(t.NR, s.cols - col)
                for row in range(0, rows, lines_in_tile(t.VL, wide)):
                    left = min(height, filters - o)
                    a = weights.at + o * weights.row + k * t.item
                    b = lines + (row * s.step * s.line + col) * t.item
                    c = out.at + o * out.row + row * out.col + col * t.item
                    while left > 0:
                        most = left
                        if t.MR < left < t.MR + LOW:
                            most = (left + 1) // 2
                        done = tile_over_taps(
                            most, rows - row, wide, a, weights.row, b, s.step * s.line * t.item,
                            table + k * 8, end - k, c, out.row, out.col, add or k > 0, t.zero,
                        )  # fmt: skip
                        left -= done
                        a += done * weights.row
                        c += done * out.row
