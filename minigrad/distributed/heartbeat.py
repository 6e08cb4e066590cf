"""Heartbeats: each rank sends a message every second, so that no rank waits forever.

Each rank sends a heartbeat to rank 0, and rank 0 sends one to each rank. A heartbeat is a number:
that of a lost rank, or -1. This runs in a thread, so a rank that compiles, saves or waits sends
heartbeats too. A rank sends none if it was stopped, its machine is down, or its link is cut. (It
also sends none while a single call of C code holds Python's lock.) If rank 0 misses those of a rank
for longer than the patience, it tells the others which one, and all print this and end within three
seconds. A rank that misses those of rank 0 ends in the same way. The launcher ends the rest.

If a rank is killed, the launcher notices it and kills the others at once. If MPICH's launcher
cannot reach a machine, all ranks end, but the launcher itself waits until Ctrl-C.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

RESUME = (
    "all ranks end now; if mpiexec waits for a lost machine, press Ctrl-C; to continue from a "
    "checkpoint, start `lora train` with --resume, or a script that calls trainer.load(FILE) "
    "before fit, on any number of ranks"
)


class Heartbeat:
    """Send heartbeats, and wait for those of other ranks, until `close`.

    Args:
        comm: an MPI communicator that nothing else uses.
        names: the names of the ranks in messages.
        patience: the seconds without a heartbeat after which a rank counts as lost.
    """

    def __init__(self, comm: Any, names: Sequence[str], patience: float) -> None:
        self._comm, self._names, self._patience = comm, names, patience
        self._rank: int = comm.rank
        self._peers = list(range(1, comm.size)) if self._rank == 0 else [0]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the heartbeats; all ranks must call this."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        """Exchange heartbeats until the end, or end this process if MPI cannot send any more."""
        try:
            self._exchange()
        except Exception as error:
            end(self._rank, f"no heartbeat can be sent or received ({error}); {RESUME}")

    def _exchange(self) -> None:
        pause = min(1.0, self._patience / 5)
        sent = np.array([-1])
        received = {peer: sent.copy() for peer in self._peers}
        receives = {peer: self._comm.Irecv(lost, source=peer) for peer, lost in received.items()}
        sends: dict[int, Any] = {}
        heard = dict.fromkeys(self._peers, time.monotonic())
        turn = time.monotonic()
        while not self._closing.wait(pause):
            late, turn = time.monotonic() - turn - pause, time.monotonic()
            for peer in self._peers:
                if peer not in sends or sends[peer].Test():
                    sends[peer] = self._comm.Isend(sent, dest=peer)
                while receives[peer].Test():
                    heard[peer] = turn
                    if (lost := int(received[peer][0])) >= 0:
                        self._end(lost)
                    receives[peer] = self._comm.Irecv(received[peer], source=peer)
                # If this rank itself was stopped for a while, do not count that time.
                heard[peer] = min(heard[peer] + late, turn)
                if turn - heard[peer] > self._patience:
                    self._end(peer)
        self._comm.Barrier()  # after it, every message has arrived
        for peer, receive in receives.items():
            while receive.Test():
                receive = self._comm.Irecv(received[peer], source=peer)
            receive.Cancel()
            receive.Free()

    def _end(self, lost: int) -> None:
        """Say which rank is lost, and end this process; rank 0 tells the others."""
        number = np.array([lost])
        for peer in self._peers if self._rank == 0 else []:
            self._comm.Isend(number, dest=peer)
        end(
            self._rank,
            f"{self._names[lost]} has given no sign for {self._patience:g} seconds: it was stopped "
            f"or killed, its machine is down, or the link to it is cut; {RESUME}",
            delay=min(1.0, self._patience / 5) + 0.5,
        )


def end(rank: int, sentence: str, delay: float = 0.0) -> None:
    """End this process, even if its threads wait; the launcher ends the others at once.

    `delay` are the seconds in which others can learn the same, and print it too.
    """
    os.write(2, f"rank {rank}: {sentence}.\n".encode())
    time.sleep(delay)
    os._exit(1)
