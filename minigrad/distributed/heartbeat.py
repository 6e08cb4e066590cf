"""A sign of life from each rank every second, so that nobody waits for ever.

Each rank sends one to rank 0, and rank 0 sends one to each, which says who is lost. It happens in a
thread, so a rank that compiles, saves or waits gives signs too, and one that was stopped, whose
machine is down or whose link is cut gives none. (Nor does one whose thread cannot run, when a
single call of C code keeps Python's lock for all this time.) A rank that misses signs for longer
than the patience ends itself with a sentence, within three seconds. The launcher ends the others,
and those that it does not reach end in the same manner.

A launcher notices by itself that a rank was killed, and kills the others at once. That of MPICH
waits for a machine that it cannot reach until Ctrl-C, when all ranks have ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

RESUME = (
    "all ranks end now; if mpiexec waits for a machine that is gone, Ctrl-C ends it. Start again "
    "with the same command: from a checkpoint a run goes on, on any number of ranks"
)


class Heartbeat:
    """Sends signs of life and waits for those of others, until `close`.

    Args:
        comm: a communicator of MPI for nothing else.
        names: what to call the ranks.
        patience: the seconds without a sign after which a rank counts as lost.
    """

    def __init__(self, comm: Any, names: Sequence[str], patience: float) -> None:
        self._comm, self._names, self._patience = comm, names, patience
        self._rank: int = comm.rank
        self._is_lost = np.zeros(comm.size, np.bool_)
        self._peers = list(range(1, comm.size)) if self._rank == 0 else [0]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sending and waiting, when all ranks call this."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        """Exchange signs until the end, or end this process if MPI cannot send any more."""
        try:
            self._exchange()
        except Exception as error:
            end(self._rank, f"no sign of life can be sent or received ({error}); {RESUME}")

    def _exchange(self) -> None:
        pause = min(1.0, self._patience / 5)
        received = {peer: np.zeros_like(self._is_lost) for peer in self._peers}
        receives = {p: self._comm.Irecv(part, source=p) for p, part in received.items()}
        sends: dict[int, tuple[Any, Any]] = {}
        heard = dict.fromkeys(self._peers, time.monotonic())
        turn = time.monotonic()
        while not self._closing.wait(pause):
            late, turn = time.monotonic() - turn - pause, time.monotonic()
            for peer, lost in received.items():
                if peer not in sends or sends[peer][0].Test():
                    sent = self._is_lost.copy()  # must not change before it has arrived
                    sends[peer] = self._comm.Isend(sent, dest=peer), sent
                while receives[peer].Test():
                    heard[peer] = turn
                    self._is_lost |= lost  # what rank 0 knows of others
                    receives[peer] = self._comm.Irecv(lost, source=peer)
                # This rank may have been stopped itself, and heard nobody.
                heard[peer] = min(heard[peer] + late, turn)
                if turn - heard[peer] > self._patience:
                    self._is_lost[peer] = True
            for rank in np.flatnonzero(self._is_lost).tolist():
                self._end(rank)
        self._comm.Barrier()  # then all that was sent has arrived
        for peer, receive in receives.items():
            while receive.Test():
                receive = self._comm.Irecv(received[peer], source=peer)
            receive.Cancel()
            receive.Free()

    def _end(self, lost: int) -> None:
        """Tell the others which rank is lost, and end this process."""
        if self._rank == 0:
            for peer in self._peers:
                self._comm.Isend(self._is_lost, dest=peer)
            time.sleep(min(1.0, self._patience / 5) + 0.5)  # in which they learn of it
        end(
            self._rank,
            f"{self._names[lost]} has given no sign for {self._patience:g} seconds: it was stopped "
            f"or killed, its machine is down, or the link to it is cut; {RESUME}",
        )


def end(rank: int, sentence: str) -> None:
    """End this process at once, whatever its threads wait for; the launcher ends the others."""
    os.write(2, f"rank {rank}: {sentence}.\n".encode())
    os._exit(1)
