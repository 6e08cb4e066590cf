"""Compiled inner loops: the only place of the library that knows numba.

What comes in here is a loop that numpy cannot say, or says too slowly, with the measurement that
shows it. Each kernel takes and returns plain arrays, knows nothing of tensors and gradients, has
a twin in numpy that is its oracle in the tests and its stand-in under NUMBA_DISABLE_JIT=1, and
gives the same bits on any number of threads.

Read `vector` (vector instructions), `micro` (the register tile), `pack` and `loops` (blocks and
caches) and `gemm` (the checked entry) for the matrix product; `jit` and `threads` hold what is
decided once for all kernels: how they are compiled, and when they use threads.
"""

from minigrad.kernels.gemm import matmul
from minigrad.kernels.threads import get_num_threads, set_num_threads

__all__ = ["get_num_threads", "matmul", "set_num_threads"]
