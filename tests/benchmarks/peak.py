"""The roof of the machine: the most it can compute in a second, and the most it can read.

Both are measured by loops that do nothing else. Chains of multiply-adds on registers, more of
them than a core has under way at once, give the peak of arithmetic; adding up an array gives the
rate at which memory of its size is read: the caches' for small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import WORD, dispatcher
from minigrad.kernels.threads import get_num_threads
from minigrad.kernels.vector import (
    DTYPE,
    I32,
    VECTOR,
    Emitter,
    instruction,
)
from tests.benchmarks.workload import Run

CHAINS = 12  # a core has about 8 multiply-adds under way; 12 chains fit in 16 registers
CACHE_LINE = 64  # bytes
LOOPS = {"float32": types.float32, "float64": types.float64}


@instruction(DTYPE)
def _chains(e: Emitter, count: Any, factor: Any, term: Any) -> Any:
    """`count` times s = s * factor + term in every lane of all chains; returns the first lane."""
    factors, terms = e.broadcast(factor), e.broadcast(term)

    def multiply_add_all(now: list[Any]) -> tuple[list[Any], Any]:
        left, *sums = now
        left = e.builder.sub(left, WORD(1))
        new = [e.multiply_add(s, factors, terms) for s in sums]
        return [left, *new], e.builder.icmp_signed(">", left, WORD(0))

    # Every chain begins elsewhere, or the compiler would make one of them all.
    first = [ir.Constant(e.vector, [float(i)] * e.lanes) for i in range(CHAINS)]
    total, *sums = e.loop([count, *first], multiply_add_all)[1:]
    for s in sums:
        total = e.builder.fadd(total, s)
    return e.builder.extract_element(total, I32(0))


def _multiply_adds(count: int, factor: Any, term: Any) -> Any:
    return _chains(count, factor, term)


def _read(array: Any, times: int) -> Any:
    total = array[0]
    for _ in range(times):
        for i in range(array.shape[0]):
            total += array[i]
    return total


def chains(dtype: str) -> Callable[[int, Any, Any], Any]:
    """The kernel (see `_chains`) for one dtype."""
    number = LOOPS[dtype]
    return _compiled(_multiply_adds, (types.intp, number, number))


def multiply_adds(dtype: str, count: int) -> Run:
    """Work of at least `count` multiply-adds, done by as many threads as ours may use."""
    kernel = chains(dtype)
    threads = get_num_threads()
    times = -(-count // (threads * adds_of_a_turn(dtype)))
    constants = np.array([0.5, 1.0], dtype)
    # s = s / 2 + 1 goes to 2: neither overflow nor numbers too small to be fast.
    return _on_threads(threads, lambda _: kernel(times, *constants))


def adds_of_a_turn(dtype: str) -> int:
    """How many multiply-adds one turn of the loop does."""
    return CHAINS * VECTOR // np.dtype(dtype).itemsize


def reads(size: int, total: int) -> Run:
    """Work that reads about `total` bytes, on each thread from `size` bytes of its own."""
    number = types.float32
    operand = types.Array(number, 1, "C")
    kernel = _compiled(_read, (operand, types.intp), {"reassoc"})
    threads = get_num_threads()
    arrays = [_ones(size // 4) for _ in range(threads)]
    times = max(1, total // (threads * size))
    return _on_threads(threads, lambda i: kernel(arrays[i], times))


def _compiled(
    function: Callable[..., Any], signature: tuple[Any, ...], fastmath: Iterable[str] = ()
) -> Callable[..., Any]:
    """The function, compiled for these types of arguments alone."""
    made = dispatcher(function, fastmath, from_python=True)
    made.compile(signature)
    made.disable_compile()
    return made


def _ones(count: int) -> NDArray[np.float32]:
    """Ones from the beginning of a cache line on: a vector across two lines takes two reads."""
    block = np.ones(count + CACHE_LINE // 4, np.float32)
    first = -block.ctypes.data % CACHE_LINE // 4
    return block[first : first + count]


def _on_threads(threads: int, work: Callable[[int], Any]) -> Run:
    """`work(0)` to `work(threads - 1)` at once; the kernels release the GIL."""
    if threads == 1:
        return lambda: work(0)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(work, range(threads)))
