"""How many threads a kernel may use, and when it must not use any.

A kernel with parallel loops is compiled twice, with threads and without, and its entry asks here
which one to run:

    with team() as threads:
        (kernel_on_threads if threads > 1 else kernel)(...)

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
from types import TracebackType

import numba

_numba_config = numba.config

_forked = False
_workqueue = threading.Lock()


def _prefer_openmp() -> None:
    """Put OpenMP first among numba's layers, unless the user has chosen."""
    chosen = os.environ.get("NUMBA_THREADING_LAYER") or os.environ.get(
        "NUMBA_THREADING_LAYER_PRIORITY"
    )
    if not chosen and numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


_prefer_openmp()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)

_threads: int = numba.config.NUMBA_NUM_THREADS


def set_num_threads(n: int) -> None:
    """Let kernels use up to `n` threads, in the whole process; 1 means none but the caller's."""
    global _threads
    limit = numba.config.NUMBA_NUM_THREADS
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


class team:  # noqa: N801  # reads as a function: `with team() as threads`
    """The threads that one kernel call may use: a context whose value is their number."""

    __slots__ = ("_before", "_locked")

    def __enter__(self) -> int:
        self._before = 0
        self._locked = False
        threads = _threads
        if threads == 1 or _forked:
            return 1
        self._before = numba.get_num_threads()  # starts the pool at its first call
        if numba.threading_layer() == "workqueue":
            self._locked = _workqueue.acquire(blocking=False)
            if not self._locked:
                self._before = 0
                return 1
        numba.set_num_threads(threads)
        return threads

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:
            numba.set_num_threads(self._before)
        if self._locked:
            _workqueue.release()
