"""How many threads a kernel may use, and when it must not use any.

A kernel asks here before it starts (see `minigrad.kernels.launch`):

    with team(seconds) as threads:
        ...

where `seconds` is a guess at the time the work takes one thread, for work that is worth a start.

Any number of threads gives the same bits: the shape of the data decides how sums are cut, threads
only take pieces of the work. So the answer may change from call to call, and it does in three cases
where numba would crash, abort the process or take cores that it was asked to leave:

* In a process made by `os.fork` the threads of the parent are gone, and the OpenMP pool kills a
  child that asks for them. There all kernels run without threads.
* The `workqueue` layer aborts the process when two Python threads enter it at once. The second
  one runs its kernel without threads.
* numba's own setting is one for each Python thread: set it in the main thread, and a data loader's
  thread still takes every core. Ours is one for the process.

Of the threading layers that numba offers we ask for OpenMP first: it hands work to its waiting
threads in 3 us, in 15 where they have gone to sleep; `workqueue` takes about 85.
"""

from __future__ import annotations

import operator
import os
import threading
from functools import cache

from minigrad.kernels.start import load_numba

WORTH_A_TEAM = 30e-6  # seconds of work from which on waking a thread (in 22 us) pays
WORTH_A_WORKQUEUE = 2e-3  # the same where the layer is `workqueue`
SPIN_COUNT = 5_000  # looks for work before a thread of OpenMP sleeps: some 150 microseconds

forked = False
"""Whether a fork has made this process."""

_workqueue = threading.Lock()


def _after_fork_in_child() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)

_threads = 0  # 0: as many as there are


def set_num_threads(n: int) -> None:
    """Let kernels use up to `n` threads, in all of the process; 1 means only the calling thread."""
    global _threads
    limit = get_max_threads()
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


def share(processes: int) -> None:
    """Let this process use its share of the cores, unless a number has been set."""
    global _threads
    if not _threads and "NUMBA_NUM_THREADS" not in os.environ:
        _threads = max(1, get_max_threads() // processes)


def get_num_threads() -> int:
    """Return how many threads a kernel may use at most (see `set_num_threads`)."""
    global _threads
    if not _threads:
        _threads = get_max_threads()
    return _threads


def get_max_threads() -> int:
    """Return how many threads `set_num_threads` accepts at most."""
    limit: int = load_numba().config.NUMBA_NUM_THREADS
    return limit


@cache
def threading_layer() -> str:
    """Start the pool of threads, once, and return its layer: "omp", "tbb" or "workqueue".

    Threads of OpenMP that wait for work spin, by default for milliseconds. That is fast while every
    thread has a core to itself, and a disaster if another process needs one: a spinning thread
    occupies the core that the other waits for, and what takes 20 us may take 15 ms. So ours go to
    sleep after a short while, unless the user has set how they wait.
    """
    short = not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    if short:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)  # is read when the pool's library is loaded
    try:
        load_numba().get_num_threads()  # starts the pool
    finally:
        if short:
            del os.environ["GOMP_SPINCOUNT"]
    layer: str = load_numba().threading_layer()
    return layer


class team:  # noqa: N801  # reads as a function: `with team(seconds) as threads`
    """A context for one kernel call: its value is the number of threads the call may use."""

    __slots__ = ("_before", "_locked", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before = 0  # numba's own setting for this Python thread, if we change it
        self._locked = False

    def __enter__(self) -> int:
        threads = get_num_threads()
        if forked:
            return 1
        if threading_layer() == "workqueue":
            if self._seconds < WORTH_A_WORKQUEUE or not _workqueue.acquire(blocking=False):
                return 1
            self._locked = True
        before = load_numba().get_num_threads()
        if before != threads:
            self._before = before
            load_numba().set_num_threads(threads)
        return threads

    def __exit__(self, *_error: object) -> None:
        if self._before:
            load_numba().set_num_threads(self._before)
        if self._locked:
            _workqueue.release()
