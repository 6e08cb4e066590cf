"""Two ranks on "hosts" of their own, network namespaces, with a real TCP link that can be cut.

It takes the right to make namespaces, `ip` of iproute2, and MPICH, whose `mpiexec` lets a script
stand for ssh.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.chaos.test_ranks import SLACK, TRAINING, digest
from tests.minigrad.distributed.ranks import MPIEXEC, is_mpich, needs_mpi, run_well, started

# Both would find the memory that they share.
TCP = {"UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"}

REMOTE = """#!/bin/sh
# Runs a command as `ssh -x HOST COMMAND` would.
while [ "${{1#-}}" != "$1" ]; do shift; done
shift
exec ip netns exec {b} unshare --uts sh -c "hostname {b}; $*"
"""


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Link:
    """A link between two hosts."""

    def __init__(self, folder):
        self.a, self.b = f"a{os.getpid()}", f"b{os.getpid()}"
        self._script = folder / "remote"
        self._script.write_text(REMOTE.format(b=self.b))
        self._script.chmod(0o755)

    def make(self):
        for host in (self.a, self.b):
            ip("netns", "add", host)
        ip("link", "add", self.a, "netns", self.a, "type", "veth",
           "peer", "name", self.b, "netns", self.b)  # fmt: skip
        for host, address in ((self.a, "10.77.0.1/24"), (self.b, "10.77.0.2/24")):
            ip("-n", host, "addr", "add", address, "dev", host)
            ip("-n", host, "link", "set", host, "up")
            ip("-n", host, "link", "set", "lo", "up")
        while "state UP" not in ip("-n", self.b, "link", "show", self.b).stdout:
            time.sleep(0.01)

    def remove(self):
        for host in (self.a, self.b):
            left = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
            for pid in left.stdout.split():
                with suppress(ProcessLookupError):  # it may have ended since
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", host], capture_output=True)

    def slow_down(self):
        for host in (self.a, self.b):
            limit = ("tbf", "rate", "16mbit", "burst", "32kbit", "latency", "400ms")
            subprocess.run(["tc", "-n", host, "qdisc", "add", "dev", host, "root", *limit])

    def cut(self):
        ip("-n", self.b, "link", "set", self.b, "down")

    @property
    def mpiexec(self):
        """The command that starts one rank on each host."""
        on_a = f'hostname {self.a}; exec "$0" "$@"'
        return (
            *("ip", "netns", "exec", self.a, "unshare", "--uts", "sh", "-c", on_a),
            *(MPIEXEC, "-launcher", "ssh", "-launcher-exec", str(self._script)),
            *("-hosts", "10.77.0.1,10.77.0.2", "-iface", self.a),
        )


@pytest.fixture
def link(tmp_path):
    """Two hosts with a link between them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` to make network namespaces")
    if not is_mpich():
        pytest.skip("only the mpiexec of MPICH lets a script stand for ssh")
    made = Link(tmp_path)
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"this process may not make network namespaces: {error.stderr.strip()}")
    yield made
    made.remove()


WHERE = """
import socket
import minigrad
print(minigrad.distributed.world().gather(socket.gethostname()))
"""


@needs_mpi
@pytest.mark.full
def test_hosts_with_a_link_have_the_bits_of_one_process(link, tmp_path):
    assert run_well(2, "-c", WHERE, mpiexec=link.mpiexec, **TCP) == [f"{[link.a, link.b]}\n"] * 2
    found = run_well(2, *TRAINING, tmp_path / "run", mpiexec=link.mpiexec, **TCP)
    assert found == [f"begun\n{digest(1, tmp_path / 'whole')}\n"] * 2


LARGE = """
import time
from contextlib import suppress
import numpy as np
import minigrad
world = minigrad.distributed.world()
large = np.arange(1_200_000.0, dtype=np.float32)
for call in (world.broadcast, world.gather, lambda x: world.sum_parts(2, {parts: [x]}, [x])):
    parts = (world.rank, world.rank + 1)
    began = time.monotonic()
    call(large)
    world.barrier()
    print(time.monotonic() - began > 2)
"""


@needs_mpi
@pytest.mark.full
def test_a_message_that_takes_longer_than_the_patience_loses_nobody(link):
    link.slow_down()
    found = run_well(2, "-c", LARGE, mpiexec=link.mpiexec, **TCP, MINIGRAD_PATIENCE="2")
    assert found == ["True\n" * 3] * 2


def errors_after_the_cut(ranks, link, within):
    """Cut a link, and return what both sides have written when they have ended.

    MPICH's `mpiexec` waits for the host that it cannot reach, until one ends it.
    """
    link.cut()
    ranks.end_but(None, within)
    return [ranks.read(rank, "err") for rank in range(2)]


@needs_mpi
@pytest.mark.full
def test_a_cut_link_ends_both_sides(link, tmp_path):
    checkpoint = tmp_path / "run"
    variables = {**TCP, "MINIGRAD_PATIENCE": "2"}
    with started(2, *TRAINING, checkpoint, "0.1", mpiexec=link.mpiexec, **variables) as ranks:
        ranks.wait(checkpoint.exists, "a checkpoint")
        pids = [ranks.pid(rank) for rank in range(2)]
        errors = errors_after_the_cut(ranks, link, 2 + SLACK)
    for rank, other, host in ((0, 1, link.b), (1, 0, link.a)):
        assert f"rank {other} (process {pids[other]} on {host}) has given no sign" in errors[rank]
    assert digest(1, checkpoint) == digest(1, tmp_path / "whole")


INTERRUPT = """
import time
from contextlib import suppress
from minigrad.distributed import mpi, world
mpi._GRACE = 0.5
world()
print("begun", flush=True)
time.sleep(2)
raise KeyboardInterrupt
"""


@needs_mpi
@pytest.mark.full
def test_an_interrupt_behind_a_cut_link_ends_its_rank(link):
    """Here MPI_Abort waits for the launcher on one side, and returns on the other."""
    variables = {**TCP, "MINIGRAD_PATIENCE": "6"}
    with started(2, "-c", INTERRUPT, mpiexec=link.mpiexec, **variables) as ranks:
        for rank in range(2):
            ranks.wait_for(rank, "begun")
        errors = errors_after_the_cut(ranks, link, 2 + 0.5 + 6 + SLACK)
    assert all("KeyboardInterrupt" in text for text in errors)
