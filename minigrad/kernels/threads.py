"""How many threads a kernel may use, and when it must not use any.

A kernel asks here before it starts (see `minigrad.kernels.launch`):

    with team(seconds) as threads:
        ...

where `seconds` estimates the time of the work on one thread. It only asks if the work is long
enough to share it with threads that are awake. Threads sleep soon after a call, and waking one
takes longer than a short work. So after a pause, the calling thread works alone, until the calls
in a row are long enough together.

Any number of threads gives the same bits: the shape of the data decides how sums are cut, and
threads only share the pieces. So the number of threads may differ from call to call. It does in
three cases, in which numba would crash, abort the process or use cores that it must not use:

* In a process made by `os.fork`, the threads of the parent do not exist, and the OpenMP pool kills
  a child that needs them. There, all kernels run without threads.
* The `workqueue` layer aborts the process when two Python threads enter it at once. Here, the
  second Python thread runs its kernel without threads.
* numba has a separate setting for each Python thread: a setting in the main thread does not limit a
  data loader's thread, which still uses every core. `set_num_threads` here is for the process.

Of numba's threading layers, OpenMP is tried first. It gives work to its waiting threads in 2 us, or
in 15 us if they sleep; `workqueue` needs about 85 us.
"""

from __future__ import annotations

import operator
import os
import threading
from functools import cache
from time import perf_counter

from minigrad.kernels.start import load_numba

MIN_SECONDS_FOR_THREADS = 18e-6  # the least seconds of work that are shared with threads awake
MIN_SECONDS_FOR_WAKING = 120e-6  # the same if they sleep, in a row: waking one takes 15 to 45 us
MIN_SECONDS_FOR_WORKQUEUE = 2e-3  # the same for the layer `workqueue`
SPIN_COUNT = 5_000  # how often a thread of OpenMP looks for work before it sleeps: 55 to 150 us
SPIN_SECONDS = 50e-6  # the time for which such a thread is certainly awake

forked = False
"""Whether this process was made by a fork."""

_workqueue = threading.Lock()
_last_end = 0.0  # when the last call ended, by `perf_counter`
_seconds_in_a_row = 0.0  # of the calls without a pause in which threads may have gone to sleep


def _after_fork_in_child() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)

_threads = 0  # 0: not known yet
_is_chosen = False  # whether `set_num_threads` has set the number


def set_num_threads(n: int) -> None:
    """Let all kernels of the process use up to `n` threads; 1 means only the calling thread.

    Raises:
        ValueError: if `n` is not an integer from 1 to the number of cores.
    """
    global _threads, _is_chosen
    limit = get_max_threads()
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = 0
    if not 1 <= count <= limit:
        raise ValueError(
            f"set_num_threads: got {n!r}, expected a whole number from 1 to {limit} (the cores "
            "this process may use, or NUMBA_NUM_THREADS if it is set before the start)"
        )
    _threads, _is_chosen = count, True


def share_cores(processes: int) -> None:
    """Let this process, one of `processes`, use its share of the cores, unless a number is set."""
    global _threads
    if not _is_chosen and "NUMBA_NUM_THREADS" not in os.environ:
        _threads = max(1, get_max_threads() // processes)


def get_num_threads() -> int:
    """Return the largest number of threads that a kernel may use (see `set_num_threads`)."""
    global _threads
    if not _threads:
        _threads = get_max_threads()
    return _threads


def get_max_threads() -> int:
    """Return the largest number that `set_num_threads` accepts."""
    return int(load_numba().config.NUMBA_NUM_THREADS)


@cache
def threading_layer() -> str:
    """Start the pool of threads, once, and return its layer: "omp", "tbb" or "workqueue".

    By default, threads of OpenMP that wait for work spin for milliseconds. That is fast if every
    thread has its own core. But if another process needs a core, a spinning thread keeps it, and
    work of 20 us may take 15 ms. So the threads here sleep after a short time, unless the user has
    set how they wait.
    """
    short = not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    if short:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)  # is read when the pool's library is loaded
    try:
        load_numba().get_num_threads()  # starts the pool
    finally:
        if short:
            del os.environ["GOMP_SPINCOUNT"]
    return str(load_numba().threading_layer())


class team:  # noqa: N801  # reads as a function: `with team(seconds) as threads`
    """A context for one kernel call: its value is the number of threads the call may use."""

    __slots__ = ("_locked", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._locked = False

    def __enter__(self) -> int:
        global _seconds_in_a_row
        if perf_counter() - _last_end > SPIN_SECONDS:
            _seconds_in_a_row = 0.0
        _seconds_in_a_row += self._seconds
        if forked or _seconds_in_a_row < MIN_SECONDS_FOR_WAKING:
            return 1
        if threading_layer() == "workqueue":
            if self._seconds < MIN_SECONDS_FOR_WORKQUEUE or not _workqueue.acquire(blocking=False):
                return 1
            self._locked = True
        return get_num_threads()

    def __exit__(self, *_error: object) -> None:
        global _last_end
        _last_end = perf_counter()
        if self._locked:
            _workqueue.release()
