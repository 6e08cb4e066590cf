"""Importing numba when the first kernel is used, and what must be known before that.

If Ctrl-C interrupts an import, Python keeps the parts of the package that were imported, and numba
can then not be imported again. So Ctrl-C waits until an import has ended. It also waits until a
kernel is compiled.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

try:
    WORKING_FOLDER = os.getcwd()
except OSError:  # it has been deleted
    WORKING_FOLDER = ""
"""The working folder when minigrad was imported, or ""; `NUMBA_CACHE_DIR` may be relative to it."""

before_compiling: Callable[[str, str, str], None] | None = None
"""A function to call with name, module and signature of a function before it is compiled."""

after_compiling: Callable[[], None] | None = None
"""A function to call after each kernel, whether it was compiled, loaded or failed."""


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Delay Ctrl-C until the block has ended."""
    before, held = signal.getsignal(signal.SIGINT), []
    if not callable(before):  # Ctrl-C is ignored, or ends the process, or C code handles it
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda *received: held.append(received))
    except ValueError:  # this is not the main thread, so no signal interrupts it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for received in held[:1]:
            before(*received)


def complete(restore: Callable[[], None]) -> None:
    """Call a function of a `finally` clause with interrupts held back, so that it runs to its end.

    An interrupt that comes before they are held back does not leave it out either.
    """
    has_begun = False
    try:
        with interrupts_held_back():
            has_begun = True
            restore()
    finally:
        if not has_begun:
            restore()


@cache
def load_numba() -> Any:
    """Import and return numba, with OpenMP as its first threading layer unless the user has chosen.

    Raises:
        RuntimeError: if `NUMBA_NUM_THREADS` is not a whole number of at least 1.
    """
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not threads.strip().isdecimal() or int(threads) < 1:
        raise RuntimeError(
            f"NUMBA_NUM_THREADS is {threads!r}; it must be a whole number of at least 1, or not set"
        )
    with interrupts_held_back():
        import numba

    has_chosen = bool(os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"))
    if not has_chosen and numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    return numba
