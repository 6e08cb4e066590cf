"""Compiled inner loops: the only part of the library that imports numba.

A loop belongs here if numpy cannot express it, or is too slow at it, with the measurement that
shows it. Each kernel takes and returns plain arrays, knows nothing of tensors and gradients, has a
reference in numpy that is its oracle in the tests and its stand-in under NUMBA_DISABLE_JIT=1, and
gives the same bits on any number of threads.

Where to read:

* `kernel`, `jit`, `cache` and `threads` decide once for all kernels how they are compiled, where
  the machine code is stored, and when they use threads; `warmup` compiles them ahead, and `heap`
  says what happens to freed memory.
* `elementwise` and `multi_tensor` are the factories of functions of each element (`activation`,
  `gelu_erf`) and of updates of many tensors (`optim`).
* `gemm` is the matrix product, and begins with a page on its files; `lora` is made of it.
* `flash_attention` has the loops behind `attention`; `nf4_decode` those behind `nf4`.
* `vector` has the vector instructions, and `vector_math` exp, log, erf and the like.

The modules are imported when they are first used, since numba takes longer to import than the rest
of the library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigrad.kernels.heap import keep_freed_memory

if TYPE_CHECKING:
    from minigrad.kernels import (
        activation,
        attention,
        dropout,
        elementwise,
        gelu_erf,
        gemm,
        indexing,
        lora,
        losses,
        nf4,
        nf4_decode,
        normalization,
        optim,
        softmax,
        threads,
    )

__all__ = [
    "activation",
    "attention",
    "dropout",
    "elementwise",
    "gelu_erf",
    "gemm",
    "indexing",
    "lora",
    "losses",
    "nf4",
    "nf4_decode",
    "normalization",
    "optim",
    "softmax",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        keep_freed_memory()
        return import_module(f"{__name__}.{name}")  # which is an attribute from then on
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
