"""Compiled inner loops: the only part of the library that imports numba.

A loop belongs here if numpy cannot express it, or is too slow at it, with the measurement that
shows it. Each kernel reads and writes plain arrays, knows nothing of tensors and gradients,
and gives the same bits on any number of threads. The function that calls it does the same in numpy
where there is no kernel: that is its reference in the tests, and all there is under
NUMBA_DISABLE_JIT=1.

Where to read:

* `jit`, `cache` and `threads` decide once for all kernels how they are compiled, where the machine
  code is stored, and when they use threads; `warmup` compiles them ahead, and `first_run` shows
  the user what is being compiled.
* `launch` has the kernel itself: one compiled form, run by one thread or shared by several. Its
  parameters are annotated with their types, which `jit` lists.
* `fused` has the factories of functions of each element (`activation`) and of each row (`softmax`);
  that of updates of many tensors is in `optim`.
* `gemm` is the matrix product, and begins with a page on its files; `lora` is made of it.
* `vector` has the vector instructions, and `vector_math` exp, log, erf and the like.

The modules are imported when they are first used, since numba takes longer to import than the rest
of the library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigrad.kernels import (
        activation,
        attention,
        bfloat16,
        elementwise,
        gemm,
        lora,
        losses,
        narrow,
        nf4,
        normalization,
        optim,
        rope,
        softmax,
        threads,
    )

__all__ = [
    "activation",
    "attention",
    "bfloat16",
    "elementwise",
    "gemm",
    "lora",
    "losses",
    "narrow",
    "nf4",
    "normalization",
    "optim",
    "rope",
    "softmax",
    "threads",
]

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
    if any(name in os.environ for name in variables):
        return False
    if not _has_glibc():
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


def __getattr__(name: str) -> Any:
    if name in __all__:
        keep_freed_memory()
        return import_module(f"{__name__}.{name}")  # which is an attribute from then on
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
