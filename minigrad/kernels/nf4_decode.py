"""Decoding NF4: a code of 4 bits stands for one of 16 levels, times the absmax of a block.

The 16 levels are a vector of float32, or two of eight, and a code is an index into it. So a machine
that can permute the lanes of a vector looks up 16 codes in one instruction (AVX-512) or in four
(AVX2). On any other a level is chosen by the bits of its code, one after the other. Both take a
quarter to a half of the time of a table in memory, and less time than a matrix of floats takes to
come from memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types

from minigrad.kernels.jit import JIT_ENABLED, intrinsic
from minigrad.kernels.kernel import NUMBERS, Array, Kernel, read, written
from minigrad.kernels.vector import I32, Emitter, address_of, keep_alive

SECONDS = 1.5e-10  # that an element takes, about
GROUP = 256  # blocks whose absmax share an offset and a scale
AT_ONCE = 16  # codes: those of 8 bytes


LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The values of the codes, ascending, as published (Dettmers et al., 2023, appendix E).

They are quantiles of a normal distribution, scaled to [-1, 1]: 7 below 0, 0 itself, and 8 above.
Each side goes in even steps of probability from a half, which is 0, to the mean of 1 - 1/30 and
1 - 1/32: half a step from the end, if all 15 or 16 steps had the size of that side's.
"""


def decode(codes: Array, absmax: Array, block_size: int, out: Array) -> None:
    """Write the values of codes to `out`.

    Args:
        codes: `(rows, (cols + 1) // 2)` uint8, two in each byte: the first in the upper half.
        absmax: `(rows, blocks)` float32: the factor of the levels of each block.
        block_size: how many elements of a row are a block; the last of a row may be shorter.
        out: `(rows, cols)` of floats, C-contiguous.
    """
    kernel = _DECODE.get(out.dtype) if JIT_ENABLED else None
    if kernel is None:
        out[...] = decode_reference(codes, absmax, block_size, out.shape[1], out.dtype)
    else:
        kernel(out.size * SECONDS, codes, absmax, LEVELS, min(block_size, out.shape[1]), out)


def decode_reference(
    codes: Array, absmax: Array, block_size: int, cols: int, dtype: np.dtype[Any]
) -> Array:
    """Compute `decode` in numpy, and return `(rows, cols)`."""
    wide = np.result_type(dtype, np.float32)
    pairs = np.stack([codes >> 4, codes & 15], axis=-1)
    levels = LEVELS[pairs.reshape(len(codes), -1)[:, :cols]].astype(wide)
    return np.asarray((levels * spread(absmax, block_size, cols)).astype(dtype, copy=False))


def absmax_of(codes: Array, start: int, offset: Array, scale: Array) -> Array:
    """Return absmax after double quantisation: `offset + scale * code / 127`, at least 0.

    Args:
        codes: `(n,)` int8, of the blocks from number `start` on.
        start: the number of the first block.
        offset: float32, one for each `GROUP` of blocks, for all groups.
        scale: float32, one for each group too.
    """
    if JIT_ENABLED:
        out = np.empty(len(codes), np.float32)
        _ABSMAX(0.0, codes, start, offset, scale, out)
        return out
    group = np.arange(start, start + len(codes)) // GROUP
    # Rounded to below 0, it would reverse signs.
    steps = codes.astype(np.float32) / np.float32(127)
    found: Array = np.maximum(offset[group] + scale[group] * steps, np.float32(0))
    return found


def spread(values: Array, block_size: int, cols: int) -> Array:
    """Repeat the value of each block for its elements: `(rows, blocks)` -> `(rows, cols)`."""
    return np.repeat(values, min(block_size, cols), axis=1)[:, :cols]


@intrinsic
def _decode_sixteen(_typing: Any, source: Any, factor: Any, target: Any) -> Any:
    """Write the levels of the codes in 8 bytes, times `factor`, in its dtype."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, number, target = args
        e = Emitter(builder, factor, lanes=AT_ONCE)
        packed = e.load(source, ir.VectorType(ir.IntType(8), AT_ONCE // 2))
        twice = e.shuffle(packed, packed, [lane // 2 for lane in range(AT_ONCE)])
        wide = ir.VectorType(I32, AT_ONCE)
        codes = builder.lshr(builder.zext(twice, wide), ir.Constant(wide, [4, 0] * (AT_ONCE // 2)))
        codes = builder.and_(codes, ir.Constant(wide, [15] * AT_ONCE))
        # They are found in float32, the dtype of the levels, and then converted.
        found = Emitter(builder, types.float32, lanes=AT_ONCE).look_up(LEVELS.tolist(), codes)
        found = found if e.item == 4 else builder.fpext(found, e.vector)
        e.store(builder.fmul(found, e.broadcast(number)), target)
        return context.get_dummy_value()

    return types.void(types.intp, factor, types.intp), emit


def _absmax_loop(_pieces: int, codes: Any, start: int, offset: Any, scale: Any, out: Any) -> None:
    for i in range(codes.size):
        group = (start + i) // GROUP
        steps = np.float32(codes[i]) / np.float32(127)
        out[i] = max(offset[group] + scale[group] * steps, np.float32(0))


def _decode_loop(
    pieces: int, codes: Any, absmax: Any, levels: Any, block_size: int, out: Any
) -> None:
    rows, cols = out.shape
    blocks = absmax.shape[1]
    count = rows * blocks
    for number in prange(pieces):
        for block in range(number * count // pieces, (number + 1) * count // pieces):
            i = block // blocks
            begin = (block - i * blocks) * block_size
            end = min(begin + block_size, cols)
            largest = out.dtype.type(absmax[i, block - i * blocks])
            if begin & 1:  # its byte began in the block before
                out[i, begin] = levels[np.intp(codes[i, begin >> 1]) & 15] * largest
                begin += 1
            source = address_of(codes) + i * codes.shape[1] + (begin >> 1)
            target = address_of(out) + (i * cols + begin) * out.itemsize
            steps = (end - begin) // AT_ONCE
            for _ in range(steps):
                _decode_sixteen(source, largest, target)
                source += AT_ONCE // 2
                target += AT_ONCE * out.itemsize
            for j in range(begin + AT_ONCE * steps, end):
                shift = 0 if j & 1 else 4
                out[i, j] = levels[(np.intp(codes[i, j >> 1]) >> shift) & 15] * largest
    keep_alive(codes)
    keep_alive(out)


_FLOATS = read(types.float32, 1)
_DECODE = {
    dtype: Kernel(
        _decode_loop,
        (
            *(read(types.uint8, 2), read(types.float32, 2), _FLOATS, types.intp),
            written(number, 2),
        ),
    )
    for dtype, number in NUMBERS.items()
}
_ABSMAX = Kernel(
    _absmax_loop,
    (read(types.int8, 1), types.intp, _FLOATS, _FLOATS, written(types.float32, 1)),
    fastmath=(),  # for the bits of the reference: its product is rounded before the sum
    threads=False,
)
