"""Compiled inner loops: the only part of the library that imports numba.

A loop belongs here if numpy cannot express it, or is too slow at it, with the measurement that
shows it. Each kernel reads and writes plain arrays, knows nothing of tensors and gradients,
and gives the same bits on any number of threads. The function that calls it does the same in numpy
where there is no kernel: that is its reference in the tests, and all there is under
NUMBA_DISABLE_JIT=1.

Where to read:

* `jit`, `cache` and `threads` decide once for all kernels how they are compiled, where the machine
  code is stored, and when they use threads; `start` imports numba, `warmup` compiles the kernels
  ahead, and `first_run` shows the user what is being compiled.
* `launch` has the kernel itself: one compiled form, run by one thread or shared by several. Its
  parameters are annotated with their types, which `jit` lists.
* `fused` has the factories of functions of each element (`activation`) and of each row (`softmax`);
  that of updates of many tensors is in `optim`.
* `gemm` is the matrix product, and begins with a page on its files; `lora` is made of it.
* `convolution` has such a page too; `pooling`, `channel_norm` and `recurrent` are the other loops
  for images and sequences.
* `vector` has the vector instructions, and `vector_math` exp, log, erf and the like.

The modules are imported when they are first used, since numba takes longer to import than the rest
of the library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigrad.heap import keep_freed_memory
from minigrad.kernels.start import interrupts_held_back, load_numba

if TYPE_CHECKING:
    from minigrad.kernels import (
        activation,
        attention,
        bfloat16,
        channel_norm,
        convolution,
        elementwise,
        gemm,
        lora,
        losses,
        narrow,
        nf4,
        normalization,
        optim,
        pooling,
        recurrent,
        rope,
        softmax,
        threads,
    )

__all__ = [
    "activation",
    "attention",
    "bfloat16",
    "channel_norm",
    "convolution",
    "elementwise",
    "gemm",
    "lora",
    "losses",
    "narrow",
    "nf4",
    "normalization",
    "optim",
    "pooling",
    "recurrent",
    "rope",
    "softmax",
    "threads",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        keep_freed_memory()
        load_numba()
        with interrupts_held_back():
            return import_module(f"{__name__}.{name}")  # which is an attribute from then on
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
