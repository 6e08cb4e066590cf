"""The heap of the process: the size of its pages, and the free memory that it keeps."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path

MIB = 1024 * 1024
HUGE = 2 * MIB  # bytes of a huge page on most processors
RESERVED = 1536 * MIB  # bytes of the heap that are on huge pages, at most
KEPT = 256 * MIB  # bytes of free memory that the process keeps apart from those
LARGEST = 32 * MIB  # bytes of the largest block from the heap; the C library's limit

CGROUP = "/sys/fs/cgroup"  # where Linux has the limits of a container
HUGE_SIZE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"  # where it has the bytes of a page
OVERCOMMIT = "/proc/sys/vm/overcommit_memory"  # where it has whether it counts unused addresses

# The numbers of these options in malloc.h, and the usual value of the last.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_USUAL_MMAP_MAX = 65536


@functools.cache
def prepare_heap() -> bool:
    """Put the heap on huge pages and keep freed memory; return whether the C library does so.

    A core remembers the addresses of one or two thousand pages. To find another page, it reads
    tables in memory, which can take longer than reading the 4 KB of a usual page, above all in a
    virtual machine. So Linux has huge pages of 2 MB, but usually only for memory for which a
    program asks for them. numpy asks for arrays of at least 4 MB; smaller ones are on the heap.
    With the heap on huge pages, too, a training step of a language model with 135 million
    parameters took half of the time on a virtual machine. So the heap gets addresses for `RESERVED`
    bytes, or for a quarter of the memory if that is less. It takes memory only when it is used.

    By default, the C library of Linux returns large freed blocks to the system. New blocks come
    from the system page by page, and the system fills each page with zeros. A training step
    allocates and frees the same arrays in every step. This made the step of an MLP of width 512 a
    tenth slower (for LoRA, with its smaller gradients, it did not matter). So the process keeps the
    reserved part of the heap, and up to `KEPT` bytes of free memory more.

    Settings of the user in the environment have priority (`MALLOC_...` or `GLIBC_TUNABLES`). Other
    C libraries are not changed.
    """
    set_by_user = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if set_by_user or not _has_glibc():
        return False
    mallopt, reserved = ctypes.CDLL(None).mallopt, _bytes_to_reserve()
    done = mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, reserved + KEPT)
    if reserved:
        mallopt(_TOP_PAD, reserved)  # this much stays when the end of the heap is given back
        _reserve(reserved)
    return bool(done)


def give_back_memory() -> None:
    """Give memory that is free at present back to the system, if the C library is Linux's."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)
        if prepare_heap() and (reserved := _bytes_to_reserve()):
            _reserve(reserved)


def _bytes_to_reserve() -> int:
    """Return how many bytes of the heap should be on huge pages; 0 if they cannot be reserved.

    They cannot if the system has no huge pages of the usual size, or if unused addresses count:
    for a limit that the user has set (`ulimit -v` or `-d`), or for the memory of all processes.
    """
    import resource  # does not exist on Windows

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    try:
        fits = int(Path(HUGE_SIZE).read_text()) == HUGE and int(Path(OVERCOMMIT).read_text()) != 2
    except (OSError, ValueError):
        return 0
    if not fits or any(limit != resource.RLIM_INFINITY for limit in limits):
        return 0
    return min(RESERVED, (physical_memory() or 0) // 4 // HUGE * HUGE)


def _reserve(size: int) -> None:
    """Add addresses to the end of the heap until `size` bytes are free there, on huge pages."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.mallopt(_MMAP_MAX, 0)  # so that the block is on the heap, although it is large
    block = library.malloc(size)
    library.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
    if block:
        start = (block + HUGE - 1) // HUGE * HUGE
        library.madvise(start, block + size - start, mmap.MADV_HUGEPAGE)
        library.free(block)


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
