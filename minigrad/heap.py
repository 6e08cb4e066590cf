"""The heap of the process: how much free memory the C library keeps for it."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from contextlib import suppress
from pathlib import Path

KEPT = 256 * 1024 * 1024  # bytes of free memory that the process keeps
LARGEST = 32 * 1024 * 1024  # bytes of the largest block from the heap; the C library's limit

CGROUP = "/sys/fs/cgroup"  # where Linux has the limits of a container

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers of these options in malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep memory that it frees; return whether the C library does so.

    By default, the C library of Linux returns large freed blocks to the system. New blocks come
    from the system page by page, and the system fills each page with zeros. A training step
    allocates and frees the same arrays in every step. This made the step of an MLP of width 512 a
    tenth slower (for LoRA, with its smaller gradients, it did not matter). So the process keeps up
    to `KEPT` bytes of free memory. Settings of the user in the environment have priority
    (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` or `GLIBC_TUNABLES`). Other C libraries are
    not changed.
    """
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if not _has_glibc() or any(name in os.environ for name in variables):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))


def give_back_memory() -> None:
    """Give memory that is free at present back to the system, if the C library is Linux's."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def physical_memory() -> int | None:
    """Return the memory of this machine in bytes, or None if the system does not provide it.

    In a container with a limit, it is the limit.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # on Windows, for example
        return None
    return min(memory, _container_limit(CGROUP)) if memory > 0 else None


@functools.cache
def _container_limit(cgroup: str) -> int:
    """Return the limit of a container; without one, a number that is larger than any memory."""
    limit = sys.maxsize
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        with suppress(OSError, ValueError):  # the text may be "max"
            limit = min(limit, int(Path(cgroup, name).read_text()))
    return limit


def _has_glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
