"""How many threads a kernel may use, and when it must not use any.

A kernel with parallel loops is compiled twice, with threads and without, and its entry asks here
which one to run:

    with team(seconds) as threads:
        (kernel_on_threads if threads > 1 else kernel)(...)

where `seconds` is what the work takes one thread, about: little work is not worth a start.

Both give the same bits: the shape of the data decides how the work is cut, threads only take
pieces of it. So the answer may change from call to call, and does in three cases that would
otherwise end in a crash or a hang:

* In a process made by `os.fork` the threads of the parent are gone, and the OpenMP pool kills a
  child that asks for them. All kernels run without threads there.
* The `workqueue` layer aborts the process when two Python threads enter it at once. The second
  one runs its kernel without threads.
* numba's own setting is kept for each Python thread apart: set it in the main thread, and a data
  loader's thread still takes every core. Ours holds for the whole process.

Of the threading layers that numba offers we ask for OpenMP first: it hands work to its waiting
threads in about 3 us, `workqueue` takes about 85.
"""

from __future__ import annotations

import operator
import os
import threading
from functools import cache
from types import TracebackType
from typing import Any

import numba

_numba: Any = numba  # its own annotations leave these functions out

WORTH_A_TEAM = 30e-6  # seconds of work, ten times what a start takes
WORTH_A_WORKQUEUE = 2e-3  # the same where the layer is `workqueue`

_forked = False
_workqueue = threading.Lock()


def _prefer_openmp() -> None:
    """Put OpenMP first among numba's layers, unless the user has chosen."""
    chosen = os.environ.get("NUMBA_THREADING_LAYER") or os.environ.get(
        "NUMBA_THREADING_LAYER_PRIORITY"
    )
    if not chosen and _numba.config.THREADING_LAYER == "default":
        _numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


_prefer_openmp()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)

_threads: int = _numba.config.NUMBA_NUM_THREADS


def set_num_threads(n: int) -> None:
    """Let kernels use up to `n` threads, in the whole process; 1 means none but the caller's."""
    global _threads
    limit = _numba.config.NUMBA_NUM_THREADS
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if not 1 <= count <= limit:
        raise ValueError(
            f"set_num_threads: got {n!r}, expected a whole number from 1 to {limit} (the cores "
            "this process may use, or NUMBA_NUM_THREADS if it is set before the start)"
        )
    _threads = count


def get_num_threads() -> int:
    """How many threads a kernel may use at most (see `set_num_threads`)."""
    return _threads


@cache
def _layer() -> str:
    """The threading layer in use; it is fixed once the pool has started."""
    layer: str = _numba.threading_layer()
    return layer


class team:  # noqa: N801  # reads as a function: `with team(seconds) as threads`
    """A context for one kernel call: its value is the number of threads the call may use.

    `seconds` is a guess at the time one thread would take.
    """

    __slots__ = ("_before", "_locked", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before = 0  # numba's own setting for this Python thread, if we change it
        self._locked = False

    def __enter__(self) -> int:
        threads = _threads
        if threads == 1 or _forked or self._seconds < WORTH_A_TEAM:
            return 1
        before = _numba.get_num_threads()  # starts the pool, the first time
        if _layer() == "workqueue":
            if self._seconds < WORTH_A_WORKQUEUE or not _workqueue.acquire(blocking=False):
                return 1
            self._locked = True
        self._before = before
        _numba.set_num_threads(threads)
        return threads

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:
            _numba.set_num_threads(self._before)
        if self._locked:
            _workqueue.release()
