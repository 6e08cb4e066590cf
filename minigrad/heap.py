"""The heap of the process: what the C library keeps of it, and how much memory there is."""

from __future__ import annotations

import ctypes
import functools
import os

KEPT = 256 * 1024 * 1024  # bytes of free memory that stay with the process
LARGEST = 32 * 1024 * 1024  # bytes of a block that comes from the heap: the C library takes no more

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, once; return whether the C library does so.

    The C library of Linux gives large blocks back to the system when they are freed, and gets new
    ones, page by page, each of which the system fills with zeros first. A training step allocates
    and frees the same arrays again and again: of an MLP of width 512 it took a tenth longer (a step
    of LoRA, with its smaller gradients, did not). So up to `KEPT` bytes of free memory stay with
    the process. The user's own settings (`MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` or
    `GLIBC_TUNABLES` in the environment) are respected; other C libraries are left alone.
    """
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if not _has_glibc() or any(name in os.environ for name in variables):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))


def give_back_memory() -> None:
    """Give what is free now back to the system, where the C library is that of Linux."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def physical_memory() -> int | None:
    """Return the bytes of memory of this machine, or None if the system does not say."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # such as Windows
        return None
    return memory if memory > 0 else None


def _has_glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
