"""The sizes of the level-2 and level-3 caches, and the block sizes that follow from them.

The operating system reports the cache sizes. If it does not know them (macOS without sysconf names,
Windows, some containers), this module assumes the sizes of common machines with such vectors. A
size that is somewhat wrong costs a few per cent of the speed, and changes no result.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minigrad.kernels.gemm.matrix_unit import BLOCK, SIDE
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.vector import VECTOR

KIB = 1024
USUAL = {  # the bytes of a vector: the assumed bytes of the level-2 and level-3 caches
    64: (1024 * KIB, 16384 * KIB),  # AVX-512: servers and desktops
    32: (512 * KIB, 8192 * KIB),  # AVX2
    16: (1024 * KIB, 4096 * KIB),  # NEON and SSE2: phones have less, laptops have more
}
TWO_PANELS = 48 * 4 * KIB  # 48 of the 64 to 96 pages in a core's first TLB; tiles of C need some
UNIT_DEPTH = 576  # steps of k in a block for the matrix unit
RUN = 256  # steps of k: as exact as BLAS; with 512, errors of float32 are a third larger


class Caches(NamedTuple):
    """The bytes of the level-2 and the level-3 cache that one core can use."""

    level2: int
    level3: int


@cache
def cache_sizes() -> Caches:
    """Return the cache sizes that the system reports, or usual ones if it reports none."""
    usual = USUAL[VECTOR]
    return Caches(*(reported_size(level) or size for level, size in enumerate(usual, start=2)))


def reported_size(level: int) -> int:
    """Return the bytes of a level of cache, or 0 if the system does not know them."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) == level:
                return int((index / "size").read_text().strip().removesuffix("K")) * KIB
        except (OSError, ValueError):
            continue
    try:
        return max(0, os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0


def block_sizes(itemsize: int) -> list[int]:
    """Return the sizes at the head of a plan, in the order of `gemm.packing.BlockSizes`.

    A panel of A and a panel of B together fill at most an eighth of the level-2 cache. They also
    fit in the pages whose addresses a core keeps in its TLB. Panels deeper than 4 RUN were slower.

    The panels of A that are packed at a time fill a quarter of the level-2 cache. The panels of B
    fill an eighth of the level-3 cache, which other cores use as well.
    """
    tile = tile_shape(itemsize)
    level2, level3 = cache_sizes()
    KC = min(level2 // 8, TWO_PANELS) // ((tile.AR + tile.NR) * itemsize) // RUN * RUN
    KC = min(max(KC, RUN), 4 * RUN)
    MC = tile.MR * max(1, level2 // 4 // (tile.AR * itemsize * KC))
    NC = tile.NR * min(max(4, level3 // 8 // (tile.NR * itemsize * KC)), 4096 // tile.NR)
    near = level2 // 8
    return [*tile, MC, KC, NC, RUN, near, 0, 0]


def unit_block_sizes() -> list[int]:
    """Return the sizes for products on the matrix unit, whose panels have SIDE rows or columns.

    The addresses of the unit's functions, the last two, are left out.
    """
    level2, level3 = cache_sizes()
    panel = UNIT_DEPTH // SIDE * BLOCK  # bytes
    MC = SIDE * max(1, level2 // 4 // panel)
    NC = SIDE * min(max(4, level3 // 8 // panel), 4096 // SIDE)
    return [SIDE, SIDE, SIDE // 2, SIDE, MC, UNIT_DEPTH, NC, SIDE, level2 // 8, 0, 0]
