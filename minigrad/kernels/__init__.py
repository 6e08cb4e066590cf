"""Kernels: compiled loops over arrays. Only this part of the library imports numba.

A loop belongs here if numpy cannot express it, or if a measurement shows that numpy is too slow.
Each kernel reads and writes plain arrays, knows nothing of tensors and gradients, and gives the
same bits on any number of threads. The function that calls a kernel computes the same in numpy if
there is no kernel, or returns None, and its caller does. Tests use this as the reference; under
NUMBA_DISABLE_JIT=1 it is all that runs.

Where to read:

* `jit`, `cache` and `threads` decide for all kernels how they are compiled, where the machine code
  is stored, and when they use threads; `trust` decides which folders and files may hold machine
  code. `start` imports numba, `warmup` compiles the kernels in advance, and `first_run` shows the
  user what is being compiled.
* `launch` has the class `Kernel`: a loop that is compiled once, and run by one thread or shared by
  several. Its parameters are annotated with their types, which `jit` lists; `unboxing` reads the
  arrays that Python passes for them.
* `fused` makes a kernel from a function of one element (as in `activation`) or of one row (as
  softmax in `reduction`, which also has the sums of rows); `optim` makes a kernel from an update of
  many tensors.
* `gemm` is the matrix product; its docstring explains its files. `lora` uses it.
* `convolution` has such a docstring too; `pooling`, `channel_norm` and `recurrent` have the other
  loops for images and sequences.
* `vector` has the vector instructions, and `vector_math` has exp, log, erf and similar functions.

Each module is imported when it is first used, because numba takes longer to import than the rest of
the library.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from minigrad.heap import prepare_heap
from minigrad.kernels import start
from minigrad.kernels.start import interrupts_held_back, load_numba

if TYPE_CHECKING:
    from minigrad.kernels import activation as activation
    from minigrad.kernels import attention as attention
    from minigrad.kernels import bfloat16 as bfloat16
    from minigrad.kernels import channel_norm as channel_norm
    from minigrad.kernels import convolution as convolution
    from minigrad.kernels import elementwise as elementwise
    from minigrad.kernels import gemm as gemm
    from minigrad.kernels import lora as lora
    from minigrad.kernels import losses as losses
    from minigrad.kernels import narrow as narrow
    from minigrad.kernels import nf4 as nf4
    from minigrad.kernels import normalization as normalization
    from minigrad.kernels import optim as optim
    from minigrad.kernels import pooling as pooling
    from minigrad.kernels import recurrent as recurrent
    from minigrad.kernels import reduction as reduction
    from minigrad.kernels import rope as rope
    from minigrad.kernels import threads as threads


def __getattr__(name: str) -> Any:
    if find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_heap()
    load_numba()
    with interrupts_held_back():
        return import_module(f"{__name__}.{name}")  # and Python makes it an attribute


def _announce(name: str, module: str, signature: str) -> None:
    """Show that the first kernel is about to be compiled."""
    from minigrad.kernels import first_run  # imports numba

    first_run.announce(name, module, signature)


start.before_compiling = _announce
