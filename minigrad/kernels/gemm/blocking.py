"""The sizes of the far caches, and the block sizes of a matrix product that follow from them.

The operating system is asked. If it does not know (macOS without sysconf names, Windows, some
containers), the sizes of common machines with these vectors are assumed: a size that is somewhat
wrong costs a few per cent of the speed, and changes no result.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.vector import masks_are_cheap, vector_registers

KIB = 1024
USUAL = {  # bytes of a vector: the sizes that are assumed
    64: (1024 * KIB, 16384 * KIB),  # AVX-512: servers and desktops
    32: (512 * KIB, 8192 * KIB),  # AVX2
    16: (1024 * KIB, 4096 * KIB),  # NEON and SSE2: phones have less, laptops have more
}
TWO_PANELS = 48 * 4 * KIB  # of the 64 to 96 pages that a core has at hand: the tiles of C need some
RUN = 256  # as exact as BLAS: twice as many steps made errors of float32 grow by a third


class Caches(NamedTuple):
    """Bytes in each level of cache behind the nearest one that one core can use."""

    level2: int
    level3: int


@cache
def cache_sizes() -> Caches:
    """Return the caches of this machine, as the system reports them, or as they usually are."""
    usual = USUAL[vector_registers()[0]]
    return Caches(*(reported_size(level) or size for level, size in enumerate(usual, start=2)))


def reported_size(level: int) -> int:
    """Return the size of a level of cache, or 0 if the system does not know it."""
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

    A panel of A and a panel of B together fill a fifth of the level-2 cache, and no more pages than
    a core finds without a walk through its page table; deeper panels than 4 RUN were slower. The
    panels of A that are packed at a time fill a quarter of the level-2 cache; those of B fill an
    eighth of the level-3 cache, which other cores use as well.
    """
    tile = tile_shape(itemsize)
    level2, level3 = cache_sizes()
    KC = min(level2 // 5, TWO_PANELS) // ((tile.AR + tile.NR) * itemsize) // RUN * RUN
    KC = min(max(KC, RUN), 4 * RUN)
    MC = tile.MR * max(1, level2 // 4 // (tile.AR * itemsize * KC))
    NC = tile.NR * min(max(4, level3 // 8 // (tile.NR * itemsize * KC)), 4096 // tile.NR)
    near, far = level2 // 8, level3 // 2
    return [*tile, MC, KC, NC, RUN, near, far, int(masks_are_cheap())]
