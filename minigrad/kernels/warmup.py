"""Compiling the kernels ahead, for example before a class, or when a container is built."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib import import_module
from multiprocessing import get_context

from minigrad import kernels
from minigrad.kernels import cache as compiled
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.launch import KERNELS, Kernel, launcher
from minigrad.kernels.threads import get_num_threads, threading_layer
from minigrad.progress import progress_bar

MOST_PROCESSES = 8  # each takes some 300 MB


class WarmupError(Exception):
    """Raised if a warm-up would have no effect."""


def warmup(double: bool = False) -> str:
    """Compile the kernels of float32, and those of float64 if `double`, unless they are on disk.

    numba compiles one function at a time, so as many processes share the work as threads would.

    Returns:
        How many were compiled, how many were there, the time, and where they are.

    Raises:
        WarmupError: if nothing is to be compiled, under NUMBA_DISABLE_JIT=1, or cannot be kept.
    """
    if not JIT_ENABLED:
        raise WarmupError("NUMBA_DISABLE_JIT is set, so that nothing is ever compiled")
    if compiled.writable_folder() is None:
        raise WarmupError(f"compiled kernels are {compiled.describe()}")
    start, new = time.perf_counter(), 0
    count = len(kernels_of(double))
    processes = min(count, get_num_threads(), MOST_PROCESSES)
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    bar = progress_bar(
        total=count, what="compiling", unit="kernel", shown=True, delay=0.0, dynamic_ncols=True
    )
    try:
        order = sorted(range(count), key=lambda number: turn(kernels_of(double)[number]))
        jobs = [pool.submit(compile_kernel, double, number) for number in order]
        for job in as_completed(jobs):
            name, is_new = job.result()
            new += is_new
            bar.set_postfix_str(name, refresh=False)
            bar.update()
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - start
    where = compiled.describe()
    return f"{new} kernels compiled, {count - new} were there, in {seconds:.1f} s: {where}"


@cache
def kernels_of(double: bool) -> list[Kernel]:
    """Return all kernels, without those of float64 alone unless `double`.

    Their order is the same in each process.
    """
    for module in kernels.__all__:
        import_module(f"minigrad.kernels.{module}")
    # A kernel of float32 may have a scale in float64.
    kinds = ((kernel, str(kernel.signature)) for kernel in KERNELS)
    return [x for x, names in kinds if double or "float32" in names or "float64" not in names]


def turn(kernel: Kernel) -> int:
    """Return the turn of a kernel, by which few external functions are compiled by two processes.

    The first products compile the functions that other products call, and attention too; the
    forward pass of attention compiles those that its backward pass calls.
    """
    name, module = kernel.function.__name__, kernel.function.__module__
    if name in ("gemm", "dots"):
        return 0
    if module == "minigrad.kernels.attention":
        return 2 if name == "forward_loop" else 4
    callers = "gemm", "lora", "recurrent"
    multiplies = module.startswith(tuple(f"minigrad.kernels.{name}" for name in callers))
    return 3 if multiplies else 1


def compile_kernel(double: bool, number: int) -> tuple[str, bool]:
    """Compile one of the kernels; return its name, and whether it was not on disk."""
    compiled.announces = False
    if number == 0 and get_num_threads() > 1:
        threading_layer()
        launcher()
    before = len(compiled.COMPILED)
    kernel = kernels_of(double)[number]
    kernel.compile()
    return kernel.function.__name__.strip("_"), len(compiled.COMPILED) > before
