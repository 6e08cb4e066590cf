"""The start: numba is imported when the first kernel is used, and what is noted before that.

Python does not forget the parts of a package whose import was broken off, and numba cannot be
imported from them again. So Ctrl-C waits until an import has ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


def working_folder() -> str:
    """Return the working folder, or "" if it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


WORKING_FOLDER = working_folder()
"""The working folder when minigrad was imported, from which `NUMBA_CACHE_DIR` counts; or ""."""


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C take effect after the block only."""
    before, held = signal.getsignal(signal.SIGINT), []
    if not callable(before):  # it is ignored, or ends the process, or C code handles it
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


@cache
def load_numba() -> Any:
    """Return numba, with OpenMP first among its layers unless the user has chosen.

    Raises:
        RuntimeError: if `NUMBA_NUM_THREADS` is no whole number of at least 1.
    """
    threads = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not threads.strip().isdecimal() or int(threads) < 1:
        raise RuntimeError(
            f"NUMBA_NUM_THREADS is {threads!r}; it must be a whole number of at least 1, or not set"
        )
    with interrupts_held_back():
        import numba

    chosen = os.environ.get("NUMBA_THREADING_LAYER") or os.environ.get(
        "NUMBA_THREADING_LAYER_PRIORITY"
    )
    if not chosen and numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    return numba
