"""Compiled inner loops: the only place of the library that knows numba.

What comes in here is a loop that numpy cannot say, or says too slowly, with the measurement that
shows it. Each kernel takes and returns plain arrays, knows nothing of tensors and gradients, has
a twin in numpy that is its oracle in the tests and its stand-in under NUMBA_DISABLE_JIT=1, and
gives the same bits on any number of threads.

Read `vector` (vector instructions), `micro` (the register tile), `pack` and `loops` (blocks and
caches), `products` (whole ones and batches) and `gemm` (the checked entry) for the matrix product,
`dots` and `streams` for thin ones, `panels` for a weight that stays as it is, `codes` and `nf4` for
one kept in four bits. `jit`, `cache`, `kernel`, `threads` and `heap` hold what is decided once for
all kernels: how they are compiled, where they are kept, when they use threads, and what becomes of
freed memory; `warmup` compiles them ahead.
The others are what their names say.

The modules are imported when they are first used, for with them comes numba, which takes longer to
import than the rest of the library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigrad.kernels.heap import keep_freed_memory

if TYPE_CHECKING:
    from minigrad.kernels import (
        activation,
        attention,
        codes,
        dropout,
        elementwise,
        gemm,
        indexing,
        lora,
        losses,
        nf4,
        normal,
        normalization,
        optim,
        panels,
        softmax,
        threads,
    )

__all__ = [
    "activation",
    "attention",
    "codes",
    "dropout",
    "elementwise",
    "gemm",
    "indexing",
    "lora",
    "losses",
    "nf4",
    "normal",
    "normalization",
    "optim",
    "panels",
    "softmax",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        keep_freed_memory()
        return import_module(f"{__name__}.{name}")  # which is an attribute from then on
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
