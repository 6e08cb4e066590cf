"""Plans of convolutions: everything that depends only on the shapes, found once for a shape.

The loops get a plan as arrays of integers, because compiled code accepts arrays of any length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minigrad.kernels.gemm.blocking import block_sizes, cache_sizes
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.geometry import Geometry, Shape
from minigrad.kernels.jit import Array
from minigrad.kernels.vector import MASKS_ARE_FREE

BLOCKS = 16  # blocks of rows of the result, for threads to share
LONG = 1024  # the most columns of rows that are joined
ALIAS = 256  # bytes; channels at multiples of it share few lines of the level-1 cache
PLANS = 256  # plans that are stored, because making one takes longer than a small convolution


class Lines(NamedTuple):
    """Sizes, and which lines of a source a block of rows of the result reads."""

    images: int
    groups: int
    channels: int  # channels in a group of the source
    height: int  # rows in a plane of the source
    width: int
    top: int  # the index in the source of the first line, and of the first column
    left: int
    step: int  # lines from a row of the result to the next
    phases: int  # columns of the source from a column of the result to the next
    reach: int  # lines that a row of the result reads
    line: int  # numbers in a line
    copied: int  # lines copied at a time, in each channel; in place, the rows of the source
    in_place: int  # whether the source itself is read
    block: int  # rows of the result that are computed from one copy
    rows: int  # rows in a plane of the result
    cols: int
    together: int  # images whose lines may be copied at once
    apart: int  # numbers in a line from a column of the result to the next


LoopPlan = tuple[Array, Array]
"""The integers that loops get: bytes from a line to each tap; block sizes, and then `Lines`."""


def _plan(
    shape: Shape, itemsize: int, groups: int, start: Shape, stride: Shape, taps: Sequence[Array],
    size: Shape, blocks: int, sort: bool,
) -> LoopPlan:  # fmt: skip
    """Return the plan of a result of this size, from a source of this shape.

    The first tap of the first element of the result reads the source at `start`, which may be
    negative, and that of the next element `stride` further. `taps` has the indices that all taps of
    the first element read, minus `start`, for each axis. `blocks` is the least number of blocks of
    rows, for threads to share. With `sort`, the columns of copied lines are sorted by phases.
    """
    images, planes, height, width = shape
    (rows, cols), channels = size, planes // groups
    if cols == 1:
        stride = stride[0], 1  # there is no next column
    reach = [int(indices.max()) + 1 for indices in taps]
    phases = stride[1] if sort else 1
    in_phase = -(-((cols - 1) * stride[1] + reach[1]) // phases)  # numbers of a phase in a line
    line = in_phase * phases
    ends = start[0] + (rows - 1) * stride[0] + reach[0]
    fits = phases == 1 and start == (0, 0) and line <= width and ends <= height
    line = width if fits else line
    joined = 1
    if fits and reach == [1, 1] and (height, width) == size:  # several rows are joined to one
        joined = max(n for n in range(1, rows + 1) if rows % n == 0 and n * cols <= max(cols, LONG))
    # Without masked loads, a tile that is not full would read past the last line.
    in_place = fits and (MASKS_ARE_FREE or joined * cols % tile_shape(itemsize).NR == 0)
    if in_place and joined > 1:
        height, rows, width, cols = height // joined, rows // joined, joined * width, joined * cols
        line = width
    # A copy fills at most half the level-2 cache, unless one row needs more.
    most = cache_sizes().level2 // 2 // (channels * line * itemsize)
    block = min(-(-rows * images * groups // blocks), (most - reach[0]) // stride[0] + 1)
    block = max(1, min(rows, block))
    copied = height if in_place else (block - 1) * stride[0] + reach[0]
    if not in_place and copied * line * itemsize % ALIAS == 0:
        copied += 1
    in_line = taps[1] % phases * in_phase + taps[1] // phases
    table = np.add.outer(np.arange(channels) * copied, taps[0])[..., None] * line + in_line
    together = max(1, min(images, most // copied)) if block == rows else 1
    (top, left), step = start, stride[0]
    lines = Lines(
        images, groups, channels, height, width, top, left, step, phases, reach[0], line, copied,
        in_place, block, rows, cols, together, stride[1] // phases,
    )  # fmt: skip
    sizes = np.array([*block_sizes(itemsize), *lines])
    return table.reshape(-1) * itemsize, sizes


@lru_cache(PLANS)
def forward_plan(
    shape: Shape, itemsize: int, kernel: Shape, geometry: Geometry, blocks: int, sort: bool
) -> LoopPlan:
    """Return the plan of a convolution of a source of this shape."""
    start = (-geometry.padding[0], -geometry.padding[1])
    taps = [np.arange(k) * d for k, d in zip(kernel, geometry.dilation, strict=True)]
    size = geometry.result_size(shape[2:], kernel)
    return _plan(shape, itemsize, geometry.groups, start, geometry.stride, taps, size, blocks, sort)


class _Reaching(NamedTuple):
    """The taps along an axis that reach the indices i of x with the same remainder.

    With padding p, stride s, dilation d and i + p = s m + remainder, tap t reads g at the index
    m - (d t - remainder) / s.
    """

    first: int  # the first i
    size: int  # the number of indices i
    taps: slice  # from the last to the first
    start: int  # the least index of g that is read for the first i
    offsets: Array  # for the first i: the index of g that each tap reads, minus `start`


def _reaching(size: int, kernel: int, geometry: Geometry, axis: int) -> Iterator[_Reaching]:
    """Yield the taps for each remainder that any tap reaches."""
    s, p, d = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
    for remainder in range(s):
        first = (remainder - p) % s
        taps = np.flatnonzero(np.arange(kernel) * d % s == remainder)[::-1]
        if first < size and taps.size:
            step = taps[0] - taps[1] if taps.size > 1 else 1
            every = slice(int(taps[0]), int(taps[-1]) - 1 if taps[-1] else None, -int(step))
            indices = (first + p) // s - (d * taps - remainder) // s
            yield _Reaching(
                first, -(-(size - first) // s), every, int(indices[0]), indices - indices[0]
            )


@lru_cache(PLANS)
def input_plans(
    shape: Shape, itemsize: int, kernel: Shape, size: Shape, geometry: Geometry, blocks: int
) -> list[tuple[_Reaching, _Reaching, LoopPlan]]:
    """Return plans for the gradient of x: one for each pair of remainders of a row and a column."""
    found = []
    for rows in _reaching(size[0], kernel[0], geometry, 0):
        for cols in _reaching(size[1], kernel[1], geometry, 1):
            start, taps = (rows.start, cols.start), (rows.offsets, cols.offsets)
            counts = (rows.size, cols.size)
            plan = _plan(
                shape, itemsize, geometry.groups, start, (1, 1), taps, counts, blocks, sort=False
            )
            found.append((rows, cols, plan))
    return found
