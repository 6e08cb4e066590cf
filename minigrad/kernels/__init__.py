"""Kernels: compiled loops over arrays. Only this part of the library imports numba.

A loop belongs here if numpy cannot express it, or if a measurement shows that numpy is too slow.
Each kernel reads and writes plain arrays, knows nothing of tensors and gradients, and gives the
same bits on any number of threads. The function that calls a kernel computes the same in numpy if
there is no kernel. Tests use this as the reference; under NUMBA_DISABLE_JIT=1 it is all that runs.

Where to read:

* `jit`, `cache` and `threads` decide for all kernels how they are compiled, where the machine code
  is stored, and when they use threads; `start` imports numba, `warmup` compiles the kernels in
  advance, and `first_run` shows the user what is being compiled.
* `launch` has the class `Kernel`: a loop that is compiled once, and run by one thread or shared by
  several. Its parameters are annotated with their types, which `jit` lists.
* `fused` makes a kernel from a function of one element (as in `activation`) or of one row (as in
  `softmax`); `optim` makes a kernel from an update of many tensors.
* `gemm` is the matrix product; its docstring explains its files. `lora` uses it.
* `convolution` has such a docstring too; `pooling`, `channel_norm` and `recurrent` have the other
  loops for images and sequences.
* `vector` has the vector instructions, and `vector_math` has exp, log, erf and similar functions.

Each module is imported when it is first used, because numba takes longer to import than the rest of
the library.
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
            return import_module(f"{__name__}.{name}")  # and Python makes it an attribute
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
