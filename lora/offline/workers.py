"""Crew: the same work done in this process, or in several, each with files of its own open.

A worker is a new Python: a fork would lack the threads of this process, and `multiprocessing` would
run the user's script again. Tasks and results go through pipes. A worker ends when its pipe does,
so that none outlives this process, however that ends.

A worker has its share of the threads of kernels, which change no bit. It has as many threads of
BLAS as this process, since their number does change the last digits of a decomposition.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from queue import SimpleQueue
from subprocess import PIPE, Popen
from typing import Any, Generic, TypeVar

from minigrad.checks import check_positive
from minigrad.io.tensor_file import Closing
from minigrad.kernels import cache
from minigrad.kernels.threads import get_num_threads, set_num_threads
from minigrad.progress import progress_bar

O = TypeVar("O")  # noqa: E741  # what is open
T = TypeVar("T")  # a task
R = TypeVar("R")  # its result

Update = Callable[[int], object]  # of a progress bar

_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends its workers
sys.path[:] = {path!r}
from lora.offline.workers import serve
serve()
"""


class Crew(Closing, Generic[O]):
    """Workers that have the same files open.

    Args:
        opening: opens the files, in this process at once, and in each worker that is started.
        workers: the number of processes; 1 for this one alone.
        progress: show progress bars.

    Attributes:
        opened: what is open in this process.

    A ValueError is raised if the number is not positive, and what `opening` raises.
    """

    def __init__(
        self, opening: Callable[[], AbstractContextManager[O]], workers: int, progress: bool
    ) -> None:
        check_positive("workers", workers)
        self.workers, self._opening, self._progress = workers, opening, progress
        self._processes: list[Popen[bytes]] = []
        self._files = ExitStack()
        self.opened = self._files.enter_context(opening())

    def each(
        self, function: Callable[..., R], tasks: Sequence[T], *update: Update
    ) -> Iterator[tuple[T, R]]:
        """Yield each task with its result, in the order in which they end.

        Args:
            function: called with what is open, a task, and with `update` a function that counts
                progress. It is a function or method that a module has by name.
            tasks: what there is to do; no more workers are started than there are tasks.
            update: called here with what a worker counts.

        Raises:
            ChildProcessError: if a worker was killed.
            BaseException: the error that a worker has raised.
        """
        left, count = deque(tasks), min(self.workers, len(tasks))
        if count <= 1:
            for task in left:
                yield task, function(self.opened, task, *update)
            return
        while len(self._processes) < count:
            program = _PROGRAM.format(path=[*map(str, sys.path)])
            command = [sys.executable, "-P", "-c", program]
            self._processes.append(Popen(command, stdin=PIPE, stdout=PIPE))
        job = max(1, get_num_threads() // self.workers), self._opening, function, bool(update)
        messages: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        for process in self._processes[:count]:
            arguments = process, job, left, messages
            threading.Thread(target=_supply, args=arguments, daemon=True).start()
        while count:
            kind, content = messages.get()
            if kind == "error":
                raise content
            if kind == "result":
                yield content
            elif kind == "update":
                update[0](content)
            else:
                count -= 1

    def found(
        self, function: Callable[..., R], tasks: Sequence[T], what: str, unit: str
    ) -> dict[T, R]:
        """Return the result of each task, in the order of the tasks, which a bar counts."""
        options: Any = {"unit": unit, "shown": self._progress, "total": len(tasks)}
        results = dict(progress_bar(self.each(function, tasks), what=what, **options))
        return {task: results[task] for task in tasks}

    def close(self) -> None:
        """End the workers, whatever they do, and close the files."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(OSError), process:  # a pipe may be broken
                pass
        self._files.close()


def _send(pipe: Any, *content: Any) -> None:
    pickle.dump(content, pipe)
    pipe.flush()


def _supply(
    process: Any, job: tuple[Any, ...], tasks: deque[Any], messages: SimpleQueue[Any]
) -> None:
    """Give a worker one task after the other, and pass on what it says."""
    task, kind = None, "result"
    try:
        while kind == "result" and tasks:
            with suppress(IndexError):  # another worker has taken the last one
                task = tasks.popleft()
                _send(process.stdin, *job, task)
                kind = "update"
                while kind == "update":
                    kind, content = pickle.load(process.stdout)
                    messages.put((kind, (task, content) if kind == "result" else content))
        messages.put(("end", None))
    except (OSError, EOFError, pickle.UnpicklingError):
        status = process.wait()
        how = f"was killed ({signal.strsignal(-status)})" if status < 0 else f"ended with {status}"
        advice = "if memory has run out, take fewer; a merge into a folder can go on"
        problem = ChildProcessError(f"worker {process.pid} {how} at work on {task}; {advice}")
        messages.put(("error", problem))
    except Exception as error:  # that of a worker may be of no kind that can be sent
        messages.put(("error", error))


def serve() -> None:
    """Do the tasks that come through standard input, as a worker, until it is closed."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no message
    cache.announces = False
    tasks: SimpleQueue[Any] = SimpleQueue()

    def receive() -> None:
        try:
            while True:
                tasks.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(1)  # in the middle of a task too

    def update(n: int) -> None:
        _send(sink, "update", n)

    threading.Thread(target=receive, daemon=True).start()
    with ExitStack() as stack:
        opened = None
        while True:
            threads, opening, function, counts, task = tasks.get()
            try:
                set_num_threads(threads)
                opened = opened or stack.enter_context(opening())
                answer = "result", function(opened, task, *[update] * counts)
            except BaseException as error:
                error.add_note(f"in a worker:\n{traceback.format_exc()}")
                answer = "error", error
            _send(sink, *answer)
