"""Compile the kernels in advance, for example before a class, or when a container is built."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib import import_module
from multiprocessing import get_context, parent_process
from pkgutil import iter_modules
from threading import Thread

from minigrad.kernels import cache as compiled
from minigrad.kernels import start
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.launch import KERNELS, Kernel
from minigrad.kernels.threads import get_num_threads
from minigrad.kernels.trust import PACKAGE
from minigrad.progress import progress_bar

MOST_PROCESSES = 8  # each takes about 300 MB


class WarmupError(Exception):
    """Raised if a warm-up would have no effect."""


def warmup(double: bool = False) -> str:
    """Compile the kernels of float32, and if `double` those of float64, unless they are on disk.

    numba compiles one function at a time in a process, so several processes share the work.

    Returns:
        How many kernels were compiled, how many were on disk, the time, and the folder.

    Raises:
        WarmupError: under NUMBA_DISABLE_JIT=1, or if kernels cannot be stored.
    """
    if not JIT_ENABLED:
        raise WarmupError("NUMBA_DISABLE_JIT is set, so that nothing is ever compiled")
    if compiled.writable_folder() is None:
        raise WarmupError(f"compiled kernels are {compiled.describe()}")
    began, new = time.perf_counter(), 0
    count = len(kernels_of(double))
    processes = min(count, get_num_threads(), MOST_PROCESSES)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), end_with_the_first)
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
    seconds = time.perf_counter() - began
    where = compiled.describe()
    return f"{new} kernels compiled, {count - new} were there, in {seconds:.1f} s: {where}"


@cache
def kernels_of(double: bool) -> list[Kernel]:
    """Return all kernels; those that use only float64 are left out unless `double`.

    Their order is the same in each process.
    """
    for module in iter_modules([str(PACKAGE)]):
        import_module(f"minigrad.kernels.{module.name}")
    # A kernel of float32 may have a scale in float64.
    kinds = ((kernel, str(kernel.signature)) for kernel in KERNELS)
    return [x for x, names in kinds if double or "float32" in names or "float64" not in names]


def turn(kernel: Kernel) -> int:
    """Return the turn of a kernel, from 0 on: two processes should not compile the same function.

    The first products compile the external functions that other products and attention call. The
    forward pass of attention compiles those that its backward pass calls.
    """
    name, module = kernel.function.__name__, kernel.function.__module__
    module = module.removeprefix("minigrad.kernels.").partition(".")[0]
    if name in ("gemm", "dots"):
        return 0
    if module == "attention":
        return 2 if name == "forward_loop" else 4
    return 3 if module in ("gemm", "lora", "recurrent") else 1


def end_with_the_first() -> None:
    """Let this process end when the one that started it has ended, even if that was killed."""

    def wait() -> None:
        if first := parent_process():
            first.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def compile_kernel(double: bool, number: int) -> tuple[str, bool]:
    """Compile one of the kernels, unless it is on disk; return its name, and whether it was not."""
    start.before_compiling = None
    before = len(compiled.COMPILED)
    kernel = kernels_of(double)[number]
    kernel.compile()
    return kernel.function.__name__.strip("_"), len(compiled.COMPILED) > before
