"""`MPIWorld`: the processes that an MPI launcher has started.

Every rank runs the same script and makes the same calls in the same order. At the beginning of each
call, the ranks exchange the name of the call. If a rank is in another call, this is an error, not
an endless wait. A waiting rank sleeps between its checks, so that other processes can use its core.
"""

from __future__ import annotations

import atexit
import builtins
import faulthandler
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.distributed.agreement import check_agreement, facts_of_process
from minigrad.distributed.heartbeat import Heartbeat
from minigrad.distributed.message import as_builtin, decoded, encoded, joined, shares_of
from minigrad.distributed.tree import Part, block, parts, sum_of
from minigrad.distributed.worlds import Array, Arrays, World, add_lists
from minigrad.kernels import cache, start, threads
from minigrad.launcher import INSTALL, Launch, end_others

PATIENCE = "MINIGRAD_PATIENCE"
"""The variable with the seconds without a heartbeat after which a rank counts as lost."""

_LEFT = "an error"  # the name of the call of a rank that has an error
_GRACE = 5.0  # seconds after which a rank that waits with an error reports it
_PIECE = 2**20  # bytes that are sent at once; on a slow link, heartbeats wait for them
_SPIN = 2e-4  # seconds of waiting before the first sleep
_SLOWEST = 200e6  # bytes in a second of a transfer during which a rank does not sleep
_LONGEST_SLEEP = 1e-3
_yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))  # Windows has no sched_yield
_CALL = np.dtype([("number", np.int64), ("name", "S40")])  # what ranks exchange at a call


class MPIWorld(World):
    """This process among those that an MPI launcher has started.

    Args:
        launch: the number of processes, and the launcher.
        forget: a function that removes this world in a forked child process, which is not a rank.

    Errors are those of `world`.
    """

    def __init__(self, launch: Launch, forget: Callable[[], None]) -> None:
        self._forget = forget
        self._patience = patience()
        self._calling = threading.RLock()  # held by the thread that is in a call
        self._mpi = _mpi(launch)
        # No heartbeats are possible before MPI runs, and its start waits for missing ranks.
        with _time_limit(5 * self._patience):
            self._wait_for_all_ranks_to_start(launch)
        self._share_cores()
        if not self.is_first:
            start.before_compiling = None
            if cache.writable_folder() is None:
                cache.say_once(f"compiled kernels are {cache.describe()}")
        atexit.unregister(end_others)
        atexit.register(self._finish)
        self._hook, sys.excepthook = sys.excepthook, self._report  # the script may have set a hook
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
            os.register_at_fork(after_in_child=self._leave_to_parent)
        check_agreement(self, facts_of_process())

    def _wait_for_all_ranks_to_start(self, launch: Launch) -> None:
        """Start MPI and the heartbeats; if a rank does not start, tracebacks show this name."""
        mpi = self._mpi
        vendor, _ = mpi.get_vendor()
        # Under Open MPI's mpiexec, other MPIs start as single processes, but MPICH aborts.
        if vendor != "MPICH" or "Open MPI" not in launch.launcher:
            if not mpi.Is_initialized():  # the script may have started it
                mpi.Init_thread(mpi.THREAD_MULTIPLE)
            self.rank, self.size, self.sent = mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size, 0
        if self.size != launch.size:
            raise RuntimeError(
                f"{launch.launcher} has started {launch.size} processes, but mpi4py uses {vendor}, "
                f"which finds {self.size} of them; start them by the mpiexec of {vendor}"
            )
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            raise RuntimeError(
                f"this build of {vendor} does not let two threads communicate at the same time, "
                f"which heartbeats need; use another build"
            )
        comm = mpi.COMM_WORLD
        self._comm = comm.Dup()
        names = self.gather(f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})")
        self._heartbeat = Heartbeat(comm.Dup(), names, self._patience)

    def _share_cores(self) -> None:
        """Divide the cores of a host among its ranks, unless the user has set the threads."""
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        every = self.gather([socket.gethostname(), sorted(cores)])
        host, mine = every[self.rank]
        sharing = sum(name == host and not set(mine).isdisjoint(each) for name, each in every)
        threads.share_cores(sharing)

    # ----------------------------------------------------------------------------------------------
    # Calls
    # ----------------------------------------------------------------------------------------------

    def _rendezvous(self, call: str, number: int = 0) -> list[int]:
        """Exchange a number with all ranks; an error if they do not make the same call."""
        mine = np.array([(number, call.encode()[:40])], _CALL)
        every = np.empty(self.size, _CALL)
        with self._together():
            self._wait(self._comm.Iallgather(mine.view(np.uint8), every.view(np.uint8)))
        calls = [name.decode(errors="replace") for name in every["name"].tolist()]
        if len(set(calls)) > 1:
            if _LEFT in calls and call != _LEFT:
                with _time_limit(self._patience):
                    self._wait_to_be_ended()
            where = ", ".join(f"rank {rank} at {name!r}" for rank, name in enumerate(calls))
            raise RuntimeError(
                f"the ranks do not make the same calls: {where:.500}. Every rank must call fit, "
                f"evaluate, predict, load and what is in a world; only printing and writing files "
                f"belongs below `if world().rank == 0`"
            )
        return every["number"].tolist()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """End all ranks if a call is interrupted, or comes while another thread is in one.

        After an interrupt, other ranks may make other MPI calls; and messages of two threads would
        be mixed up.
        """
        if not self._calling.acquire(blocking=False):
            message = (
                f"{threading.current_thread().name} calls the world of this rank, or fit, while "
                f"another thread does; let one thread make these calls, or one after the other"
            )
            self._end_all(RuntimeError(message))
        try:
            yield
        except KeyboardInterrupt as error:
            self._end_all(error)
        finally:
            self._calling.release()

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """End all ranks if an error comes while they wait for messages of this rank."""
        try:
            yield
        except BaseException as error:
            self._end_all(error)

    def _wait(self, request: Any, spin: float = _SPIN) -> None:
        """Wait until a request is done; after `spin` seconds, sleep between checks."""
        started = time.monotonic()
        while not request.Test():
            elapsed = time.monotonic() - started
            if elapsed < spin:
                _yield_core()
            else:
                time.sleep(min(elapsed / 8, _LONGEST_SLEEP))

    def _transfer(self, *transfers: tuple[Callable[[Array, int], Any], Array, int]) -> None:
        """Send and receive bytes at the same time, in pieces.

        Each transfer has a method of MPI, the bytes to send or the memory for them, and a rank.
        """
        step = _PIECE // len(transfers) + 1
        for first in range(0, max(len(content) for _, content, _ in transfers), step):
            pieces = [(start, content[first:][:step], rank) for start, content, rank in transfers]
            # Another rank sends no empty piece after its last one, and receives none.
            requests = [
                (start(piece, rank), len(piece)) for start, piece, rank in pieces if len(piece)
            ]
            for request, size in requests:
                # MPI moves some of the bytes at each check, so sleep would make a transfer slow.
                self._wait(request, _SPIN + size / _SLOWEST)

    def _exchange(self, sent: Sequence[Array], sizes: Sequence[int]) -> list[Array]:
        """Send bytes to each rank, and return the bytes that each of them sends, of these sizes."""
        received = [np.empty(size, np.uint8) for size in sizes]
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._transfer(
            *((self._comm.Irecv, received[rank], rank) for rank in others),
            *((self._comm.Isend, sent[rank], rank) for rank in others),
        )
        received[self.rank] = sent[self.rank]
        self.sent += sum(len(sent[rank]) for rank in others)
        return received

    def gather(self, value: Any, call: str = "gather") -> list[Any]:
        """Return the values of all ranks, on each of them."""
        mine = encoded(value)
        with self._together():
            sizes = self._rendezvous(call, len(mine))
            with self._sending():
                return [decoded(each) for each in self._exchange([mine] * self.size, sizes)]

    def broadcast(self, value: Any, call: str = "broadcast") -> Any:
        """Return the value of rank 0 on each rank."""
        content = encoded(value if self.is_first else None)
        with self._together():
            size, *_ = self._rendezvous(call, len(content))
            with self._sending():
                content = content if self.is_first else np.empty(size, np.uint8)
                self._transfer((self._comm.Ibcast, content, 0))
                self.sent += len(content) if self.is_first else 0
                return decoded(content)

    def on_first(self, function: Callable[[], Any], call: str = "on_first") -> Any:
        """Call a function on rank 0 only, and return its result, or raise its error, on all."""
        value, failure = None, None
        with self._together():
            if self.is_first:
                try:
                    value = function()
                    encoded(value)  # only to raise an error if it cannot be sent
                except Exception as error:
                    failure = error
            problem = self.broadcast(None if failure is None else as_builtin(failure), call)
            if failure is not None:
                raise failure
            if problem is not None:
                name, arguments = problem
                raise getattr(builtins, name)(*arguments)
            return self.broadcast(value, call)

    def barrier(self, call: str = "barrier") -> None:
        """Wait until all ranks have called this."""
        self._rendezvous(call)

    def any(self, flag: bool, call: str = "any") -> bool:
        """Return whether the flag is set on some rank."""
        return any(self._rendezvous(call, int(bool(flag))))

    def sum_parts(
        self, count: int, own: Mapping[Part, Arrays], like: Sequence[Any]
    ) -> list[Array | None]:
        """Return the sums of all lists, added in the order of `pairwise`.

        Each rank adds up a share of the numbers: it gets this share of the lists from the others,
        and sends them the sums. So a rank with one part of the tree sends less than twice the bytes
        of a list, for any number of ranks.
        """
        shares = shares_of(like, self.size)
        mine, size = shares[self.rank], sum(each.size * each.dtype.itemsize for each in like)
        parts_of = [list(parts(0, count, block(count, i, self.size))) for i in range(self.size)]
        with self._together():
            self._rendezvous(f"a sum of {count} lists of {size} bytes")
            with self._sending():
                # Flat arrays once for all shares: this may be a copy.
                lists = [
                    [None if array is None else array.reshape(-1) for array in own[part]]
                    for part in parts_of[self.rank]
                ]
                sent = [[share.packed(share.cut(each)) for each in lists] for share in shares]
                contents = self._exchange(
                    [np.array(each, np.uint8).reshape(-1) for each in sent],
                    [mine.size * len(each) for each in parts_of],
                )
                sums = {
                    part: mine.unpacked(content[i * mine.size :])
                    for content, each in zip(contents, parts_of, strict=True)
                    for i, part in enumerate(each)
                }
                total = mine.packed(sum_of(sums, 0, count, add_lists))
                totals = self._exchange([total] * self.size, [share.size for share in shares])
                return joined(like, shares, totals)

    # ----------------------------------------------------------------------------------------------
    # The end
    # ----------------------------------------------------------------------------------------------

    def check_left_together(self, error: BaseException) -> None:
        """Return if all ranks have an error; else print the error of this rank, and end all.

        An interrupt ends all: it may come before a step on one rank, and after it on another.
        """
        if isinstance(error, KeyboardInterrupt):
            self._end_all(error)
        trace = "".join(traceback.format_exception(error))
        text = f"rank {self.rank} waits for the others with an error:\n{trace}"
        note = threading.Timer(_GRACE, os.write, (2, text.encode(errors="replace")))
        note.daemon = True
        note.start()
        try:
            self._rendezvous(_LEFT)
        except RuntimeError:
            self._end_all(error)
        finally:
            note.cancel()

    def _report(self, kind: Any, error: BaseException, trace: Any) -> None:
        """Print an uncaught error: only on rank 0 if all ranks have one, else on this rank."""
        self.check_left_together(error)
        if self.is_first:
            self._hook(kind, error, trace)

    def _end_all(self, error: BaseException) -> None:
        """Print the error of this rank, and end all ranks with a status that is not 0."""
        print(f"rank {self.rank} ends all ranks:", file=sys.stderr, flush=True)
        try:
            self._hook(type(error), error, error.__traceback__)
            sys.stderr.flush()
            sys.stdout.flush()
        finally:
            # If the link to the launcher is cut, MPICH waits here, or returns.
            with _time_limit(self._patience):
                self._comm.Abort(1)
            os._exit(1)

    @staticmethod
    def _wait_to_be_ended() -> None:
        """Wait until a rank with an error ends this process; if not, tracebacks show this name."""
        while True:
            time.sleep(1.0)

    def _leave_to_parent(self) -> None:
        """In a forked child process, which is not a rank: let it end without MPI."""
        self._forget()
        atexit.unregister(self._finish)
        sys.excepthook = self._hook

    def _finish(self) -> None:
        """At the end of the script, wait for the other ranks, and end MPI."""
        try:
            self._rendezvous("the end of its script")
        except RuntimeError as error:
            self._end_all(error)
        with _time_limit(self._patience):
            self._wait_for_all_ranks_to_end()

    def _wait_for_all_ranks_to_end(self) -> None:
        """End the heartbeats and MPI; if a rank does not end, tracebacks show this name."""
        self._heartbeat.close()
        self._mpi.Finalize()


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End this process with a traceback if the block takes longer, even if it holds the GIL."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def patience() -> float:
    """Return the seconds without a heartbeat after which a rank counts as lost."""
    text = os.environ.get(PATIENCE, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"{PATIENCE} is the number of seconds without a heartbeat after which a rank counts as "
            f"lost, such as 60, not {text!r:.60}"
        )
    return seconds


def _mpi(launch: Launch) -> Any:
    """Import MPI without starting it."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"{launch.launcher} has started {launch.size} processes, and they cannot communicate, "
            f"because mpi4py is missing or finds no MPI ({error}): {INSTALL}, with the MPI of that "
            f"launcher"
        ) from error
    return MPI
