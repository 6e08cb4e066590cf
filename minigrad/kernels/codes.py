"""Reading the codes of NF4: 4 bits that stand for one of 16 levels, times the absmax of a block.

The 16 levels are a vector of float32, or two of eight, and a code is a place in it. So a machine
that can take lanes of a vector in any order looks up 16 codes in one instruction (AVX-512) or in
four (AVX2). On any other a level is chosen by the bits of its code, one after the other. It takes a
quarter of the time of a table in memory, or half of it, and less than a matrix of floats takes to
come from memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, intrinsic
from minigrad.kernels.kernel import Kernel
from minigrad.kernels.vector import I32, Emitter, address_of, keep_alive

prange: Any = numba.prange

Array = NDArray[Any]

SECONDS = 1.5e-10  # what a number takes to be read, about
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
"""What codes stand for, ascending, as published (Dettmers et al., 2023, appendix E).

They are quantiles of a normal distribution, scaled to [-1, 1]: 7 below 0, 0 itself, and 8 above.
Each side goes in even steps of probability from a half, which is 0, to the mean of 1 - 1/30 and
1 - 1/32: half a step from the end, were all 15 or 16 steps of a side's kind.
"""


def read(codes: Array, absmax: Array, block_size: int, out: Array) -> None:
    """Write what the codes stand for to `out`.

    Args:
        codes: `(rows, (cols + 1) // 2)` uint8, two in each byte: the first in the upper half.
        absmax: `(rows, blocks)` float32: what the levels of each block are multiplied by.
        block_size: how many numbers of a row are a block; the last of a row may be shorter.
        out: `(rows, cols)` of floats, C-contiguous.
    """
    kernel = _READ.get(out.dtype) if JIT_ENABLED else None
    if kernel is None:
        out[...] = read_twin(codes, absmax, block_size, out.shape[1], out.dtype)
    else:
        kernel(out.size * SECONDS, codes, absmax, LEVELS, min(block_size, out.shape[1]), out)


def read_twin(
    codes: Array, absmax: Array, block_size: int, cols: int, dtype: np.dtype[Any]
) -> Array:
    """What the kernel reads, in numpy: `(rows, cols)`."""
    wide = np.result_type(dtype, np.float32)
    pairs = np.stack([codes >> 4, codes & 15], axis=-1)
    levels = LEVELS[pairs.reshape(len(codes), -1)[:, :cols]].astype(wide)
    return np.asarray((levels * spread(absmax, block_size, cols)).astype(dtype, copy=False))


def absmax_of(codes: Array, start: int, offset: Array, scale: Array) -> Array:
    """What double quantisation has kept of absmax: `offset + scale * code / 127`, at least 0.

    Args:
        codes: `(n,)` int8, of the blocks from number `start` on.
        start: where they begin.
        offset: of each `GROUP` of blocks, float32, of all of them.
        scale: likewise.
    """
    if JIT_ENABLED:
        out = np.empty(len(codes), np.float32)
        _ABSMAX(0.0, codes, start, offset, scale, out)
        return out
    group = np.arange(start, start + len(codes)) // GROUP
    # Rounded to below 0, it would turn signs around.
    steps = codes.astype(np.float32) / np.float32(127)
    found: Array = np.maximum(offset[group] + scale[group] * steps, np.float32(0))
    return found


def spread(values: Array, block_size: int, cols: int) -> Array:
    """`(rows, blocks)` -> `(rows, cols)`: what is of a block, for each of its numbers."""
    return np.repeat(values, min(block_size, cols), axis=1)[:, :cols]


@intrinsic
def _read_sixteen(_typing: Any, source: Any, factor: Any, target: Any) -> Any:
    """Write the levels of the codes in 8 bytes, times `factor`, as numbers of its dtype."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, number, target = args
        e = Emitter(builder, factor, lanes=AT_ONCE)
        packed = e.load(source, ir.VectorType(ir.IntType(8), AT_ONCE // 2))
        twice = e.shuffle(packed, packed, [lane // 2 for lane in range(AT_ONCE)])
        wide = ir.VectorType(I32, AT_ONCE)
        codes = builder.lshr(builder.zext(twice, wide), ir.Constant(wide, [4, 0] * (AT_ONCE // 2)))
        codes = builder.and_(codes, ir.Constant(wide, [15] * AT_ONCE))
        # In float32, in which the levels are given, and only then in the dtype of the factor.
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


def _read_loop(
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
                _read_sixteen(source, largest, target)
                source += AT_ONCE // 2
                target += AT_ONCE * out.itemsize
            for j in range(begin + AT_ONCE * steps, end):
                shift = 0 if j & 1 else 4
                out[i, j] = levels[(np.intp(codes[i, j >> 1]) >> shift) & 15] * largest
    keep_alive(codes)
    keep_alive(out)


def _kernel(number: Any) -> Kernel:
    codes = types.Array(types.uint8, 2, "C", readonly=True)
    absmax = types.Array(types.float32, 2, "C", readonly=True)
    levels = types.Array(types.float32, 1, "C", readonly=True)
    return Kernel(_read_loop, (codes, absmax, levels, types.intp, types.Array(number, 2, "C")))


_READ = {np.dtype(str(number)): _kernel(number) for number in (types.float32, types.float64)}

_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_ABSMAX = Kernel(
    _absmax_loop,
    (
        types.Array(types.int8, 1, "C", readonly=True),
        types.intp,
        *(_FLOATS, _FLOATS, types.Array(types.float32, 1, "C")),
    ),
    fastmath=(),  # the twin's bits: its product is rounded before the sum
    threads=False,
)
