"""Ranks of a training are killed or stopped at random instants, and other numbers of ranks resume.

MPI's launcher notices a kill by itself and kills the others with a text of its own. Of a rank that
was stopped, or whose machine is gone, it notices nothing: here the heartbeats count. A rank that
is stopped while MPI starts or ends leaves the others without a name, but not without an end.
Open MPI's launcher may wait for itself then, when all ranks have ended.
"""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.chaos import seeds
from tests.minigrad.distributed.ranks import is_mpich, needs_mpi, run_well, started

ATTACKS = 3  # of each kind of signal and number of ranks at least one
PATIENCE = 2  # seconds
SLACK = 8  # seconds that an end may take beyond: 3 by itself, the others on a machine with a load
STARTING = 5 * PATIENCE + 10  # seconds that ranks may wait while one starts, and before they wait

TRAINING = ("-m", "tests.chaos.training")


def digest(size, checkpoint):
    """Train to the end on some ranks, and return the digest of the weights."""
    every = run_well(size, *TRAINING, checkpoint)
    assert len(set(every)) == 1
    begun, found = every[0].split()
    assert begun == "begun"
    return found


def attack(size, victim, command, instant, checkpoint, **environment):
    """Kill or stop a rank some seconds after its start; return what came of it, and seconds."""
    variables = {"MINIGRAD_PATIENCE": str(PATIENCE), **environment}
    with started(size, *TRAINING, checkpoint, "0.02", **variables) as ranks:
        pid = ranks.pid(victim)
        time.sleep(instant)
        has_begun = all(ranks.read(rank, "out") for rank in range(size))
        if victim in ranks.running():
            os.kill(pid, command)
        limit = PATIENCE + SLACK if has_begun else STARTING
        seconds = ranks.end_but(victim, limit)
        texts = [ranks.read(rank, "err") for rank in range(size)]
        if len(ranks.read(victim, "out").split()) == 2:  # it had done its work
            return "after its end", seconds
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)  # it sees then that it has been left
        ranks.end_but(None, limit)
        with suppress(subprocess.TimeoutExpired):
            ranks.process.wait(limit)
        assert ranks.process.returncode or not (is_mpich() or has_begun), texts
    if command == signal.SIGKILL:
        return "killed", seconds
    if any(f"rank {victim} (process {pid} on " in text for text in texts):
        return "stopped, and named", seconds
    assert any("Timeout (0:00:" in text for text in texts), texts  # and a traceback
    return "stopped while MPI started or ended", seconds


@pytest.mark.full
@needs_mpi
def test_a_rank_that_stops_is_named_and_one_process_resumes(tmp_path):
    expected = digest(1, tmp_path / "whole")
    checkpoint = tmp_path / "run"
    with started(2, *TRAINING, checkpoint, "0.1", MINIGRAD_PATIENCE="1") as ranks:
        ranks.wait(checkpoint.exists, "a checkpoint")
        pid = ranks.pid(1)
        os.kill(pid, signal.SIGSTOP)
        ended = ranks.end(within=15)
    assert ended.status != 0
    assert f"rank 1 (process {pid} on" in ended.err[0]
    assert "has given no sign for 1 seconds" in ended.err[0]
    assert "to continue from a checkpoint, start `lora train` with --resume" in ended.err[0]
    assert digest(1, checkpoint) == expected


@needs_mpi
@pytest.mark.full
def test_a_run_that_lost_a_rank_ends_with_the_bits_of_one_that_did_not(tmp_path):
    expected = digest(1, tmp_path / "whole")
    began = time.monotonic()
    assert digest(3, tmp_path / "on 3") == expected
    usual = time.monotonic() - began + 1  # second that the steps take longer
    counts, longest = {}, {}
    for seed in seeds(ATTACKS):
        draw = random.Random(seed)
        size = draw.choice((2, 3))
        command = draw.choice((signal.SIGKILL, signal.SIGSTOP))
        checkpoint = tmp_path / f"run {seed}"
        environment = {}
        if seed % 10 == 0:  # while it compiles
            environment["NUMBA_CACHE_DIR"] = str(tmp_path / f"kernels {seed}")
        instant = draw.uniform(0, usual * (3 if environment else 1))
        victim = draw.randrange(size)
        what, seconds = attack(size, victim, command, instant, checkpoint, **environment)
        counts[what] = counts.get(what, 0) + 1
        longest[what] = max(longest.get(what, 0.0), seconds)
        # Each rank takes a second to start. So only one seed of eight has more ranks go on.
        others = 4 if seed % 8 == 1 else draw.choice([n for n in (1, 2) if n != size])
        assert digest(others, checkpoint) == expected, seed
        print(
            f"{seed}: {command.name} of rank {victim} of {size} at {instant:.1f} s: {what} after "
            f"{seconds:.1f} s; {others} went on",
            flush=True,
        )
    for what, count in counts.items():
        print(f"{what}: {count} of {len(seeds(ATTACKS))}, the others after {longest[what]:.1f} s")
    assert counts.keys() != {"after its end"}
