"""WorkerPool: map a function over tasks, in this process or in several that open the files too."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from multiprocessing import get_context
from threading import Thread
from typing import Any, Generic, TypeVar

from minigrad.checks import check_positive
from minigrad.io.tensor_file import Closing
from minigrad.kernels import start
from minigrad.kernels.threads import get_num_threads, set_num_threads
from minigrad.progress import progress_bar

O = TypeVar("O")  # noqa: E741  # the open files
T = TypeVar("T")  # a task
R = TypeVar("R")  # the result of a task


class WorkerPool(Closing, Generic[O]):
    """Worker processes that each have the same files open.

    A worker is a new Python process, because a fork would not have the threads of this process. It
    imports the main script again. So the script needs `if __name__ == "__main__":`, and cannot be
    read from standard input. The workers share the threads of kernels, whose number changes no bit.
    Each has as many BLAS threads as this process, because their number changes the last digits of a
    decomposition.

    `opening` opens the files: at once in this process, as `opened`, and in each worker. `workers`
    is the number of processes, 1 for only this one, and can be set to 1 later. `close` ends the
    workers, even in the middle of a task, and closes the files. A ValueError is raised if `workers`
    is not positive.
    """

    def __init__(
        self, opening: Callable[[], AbstractContextManager[O]], workers: int, progress: bool
    ) -> None:
        check_positive("workers", workers)
        self.workers, self._opening, self._progress = workers, opening, progress
        self._stack = ExitStack()
        self.opened = self._stack.enter_context(opening())

    def map(
        self, function: Callable[[O, T], R], tasks: Sequence[T], what: str, unit: str
    ) -> Iterator[R]:
        """Yield the results of `function(files, task)`, in the order of the tasks.

        The function must be importable from a module. A ChildProcessError is raised if a worker was
        killed; errors of the function are passed on.
        """
        try:
            if min(self.workers, len(tasks)) > 1:
                results = self._submit(partial(do_task, function), tasks)
            else:
                results = (function(self.opened, task) for task in tasks)
            total, shown = len(tasks), self._progress
            yield from progress_bar(results, what=what, unit=unit, total=total, shown=shown)
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker was killed or could not start; if memory has run out, use fewer workers; "
                'a script needs `if __name__ == "__main__":` around its calls; a merge into a '
                "folder, or an extraction, continues when the same command is started again"
            ) from None

    def _submit(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        # Workers inherit this mask: they ignore Ctrl-C, after which the first process ends them.
        if sys.platform != "win32":
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # `pool.map` would cancel tasks after an error, and the pool of Python 3.11 cannot end
            # its workers then.
            futures = deque(self._pool.submit(function, task) for task in tasks)
        finally:
            if sys.platform != "win32":
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while futures:
            yield futures.popleft().result()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        context = get_context("spawn")
        end, ours = context.Pipe(duplex=False)
        arguments = self._opening, max(1, get_num_threads() // self.workers), end
        pool = ProcessPoolExecutor(self.workers, context, _begin, arguments)
        self._stack.enter_context(pool)
        self._stack.callback(ours.close)  # runs before the pool waits for the workers
        return pool


_files = ExitStack()  # of a worker
_opened: Any = None


def _begin(opening: Callable[[], AbstractContextManager[Any]], threads: int, end: Any) -> None:
    """Start a worker; it ends when the main process closes its end of a pipe, or dies."""
    global _opened

    def wait() -> None:
        end.poll(None)
        os._exit(1)  # in the middle of a task too

    Thread(target=wait, daemon=True).start()
    start.before_compiling = None
    set_num_threads(threads)
    _opened = _files.enter_context(opening())


def do_task(function: Callable[[Any, T], R], task: T) -> R:
    """Do one task in a worker, with what was opened when it started."""
    return function(_opened, task)
