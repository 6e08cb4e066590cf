"""Freed memory: it stays with the process, where the next step uses it.

The C library of Linux gives large blocks back to the system when they are freed, and gets new ones,
page by page, each of which the system fills with zeros first. A training step allocates and frees
the same arrays again and again: of an MLP of width 512 it took a tenth longer (a step of LoRA, with
its smaller gradients, did not). So up to `KEPT` bytes of free memory stay with the process. The
user's own settings (`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` or `GLIBC_TUNABLES` in
the environment) are respected; other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

KEPT = 256 * 1024 * 1024
LARGEST = 32 * 1024 * 1024  # bytes of a block that comes from the heap: the C library takes no more

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


@cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, once; return whether the C library does so."""
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in variables):
        return False
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))
