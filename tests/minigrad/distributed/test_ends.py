"""The ends of ranks: by an error, an exit or an interrupt of one, or of all of them."""

import os
import signal
import time

import pytest

from tests.minigrad.distributed.ranks import is_mpich, needs_mpi, run, started

START = """
import os, signal, sys, time
from collections import defaultdict
import numpy as np
import minigrad as mg
from minigrad.distributed import mpi, world
from minigrad.training import Trainer

mpi._GRACE = 1.0
RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", 0)))

def fit(on_step=(), on_epoch=(), epochs=3):
    rng = np.random.default_rng(0)
    mg.manual_seed(0)
    model = mg.nn.Linear(3, 1, rng=rng)
    options = {"batch_size": 2, "accumulation_steps": 4, "on_step": on_step, "on_epoch": on_epoch}
    optimizer = mg.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer, mg.mse, progress=False, **options)
    trainer.fit((rng.random((32, 3), np.float32), rng.random((32, 1), np.float32)), epochs)

def fail(trainer=None):
    if RANK == 1:
        raise ZeroDivisionError("on purpose")

def leave(trainer=None):
    if RANK == 1:
        sys.exit(3)
"""

CAUGHT = """
try:
    {}
except ZeroDivisionError:
    print("caught")
fit()
print("good")
"""

ERRORS = {  # on rank 1
    "between": "world(); fail(); fit()",
    "in a step": "fit(on_step=fail)",
    "in a sum": "one = [np.ones(9)]; world().sum_parts(2, defaultdict(fail, {(0, 1): one}), one)",
    "in an epoch": "fit(on_epoch=fail)",
    "in fit, caught": CAUGHT.format("fit(on_step=fail)"),
    "after": "fit(); fail()",
}

QUICK = "in fit, caught"


def cases(named):
    """The cases of a table, of which all but one are slow."""
    return [n if n == QUICK else pytest.param(n, marks=pytest.mark.full) for n in named]


@needs_mpi
@pytest.mark.parametrize("case", cases(ERRORS))
def test_an_error_on_one_rank_ends_all(case):
    ended = run(2, "-c", START + ERRORS[case])
    assert ended.status != 0
    assert "good" not in "".join(ended.out)
    assert "rank 1 ends all ranks:\nTraceback" in ended.err[1]
    assert "\nZeroDivisionError: on purpose\n" in ended.err[1]
    assert "Error" not in ended.err[0]


@needs_mpi
@pytest.mark.full
def test_an_error_before_the_ranks_meet_ends_all_at_once():
    """Open MPI may then wait for itself."""
    code = f"{START}print('flushed'); fail(); fit()"
    with started(3, "-c", code) as ranks:
        ranks.wait(lambda: "ZeroDivisionError: on purpose\n" in ranks.read(1, "err"), "an error")
        ranks.end_but(None, within=5)
        assert "this rank ends all ranks" in ranks.read(1, "err")
        assert ranks.read(1, "out") == "flushed\n"
        assert not is_mpich() or ranks.end().status != 0


@needs_mpi
@pytest.mark.full
def test_an_exit_before_the_ranks_meet_ends_all_in_a_limited_time():
    """Those of MPICH wait for it; Open MPI ends them at once, but may then wait for itself."""
    with started(2, "-c", f"{START}leave(); fit()", MINIGRAD_PATIENCE="1") as ranks:
        assert ranks.pid(0)
        ranks.end_but(None, within=5 + 10)
        assert "in _wait_for_all_ranks_to_start" in ranks.read(0, "err") or not is_mpich()


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize(
    "call",
    [
        "fit(lambda trainer: 1 / 0)",
        "fail()\n    1 / 0",
        "fit(on_epoch=lambda trainer: time.sleep(3 * RANK) or 1 / 0)",
    ],
)
def test_an_error_that_all_ranks_catch_ends_none(call):
    ended = run(2, "-c", START + CAUGHT.format(call))
    assert (ended.status, ended.out) == (0, ["caught\ngood\n"] * 2), ended
    is_late = "sleep" in call  # on rank 1, so that rank 0 says what it waits with
    assert ("rank 0 waits for the others with an error:\nTraceback" in ended.err[0]) == is_late
    assert ended.err[1] == ""


@needs_mpi
@pytest.mark.full
def test_an_error_waits_for_a_rank_that_makes_its_next_call_late():
    ended = run(2, "-c", f"{START}world(); fail(); time.sleep(2.5); fit(); print('good')")
    assert ended.status != 0
    assert "rank 1 waits for the others with an error:\nTraceback" in ended.err[1]
    assert "rank 1 ends all ranks:\nTraceback" in ended.err[1]
    assert ended.out[0] == ended.err[0] == ""


HOOK = "sys.excepthook = lambda *error: print('seen', error[1], flush=True); world()\n"


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize(
    ("code", "seen"),
    [("1 / 0", ["seen division by zero\n", ""]), ("fail()", ["", "seen on purpose\n"])],
)
def test_the_hook_of_a_script_sees_an_error_that_nobody_has_caught(code, seen):
    ended = run(2, "-c", f"{START}{HOOK}{code}\nworld().barrier()")
    assert ended.status != 0
    assert ended.out == seen, ended


EXITS = {  # of rank 1; the others say "good" at the end of their script
    "before": ("world(); leave(); fit()", "'the end of its script'"),
    "in a step": ("fit(on_step=leave)", "SystemExit: 3"),
}


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("case", EXITS)
def test_an_exit_of_one_rank_ends_all_with_its_name(case):
    code, sentence = EXITS[case]
    ended = run(2, "-c", f"{START}{code}; print('good')")
    assert ended.status != 0
    assert sentence in ended.err[1]
    assert ended.out == ["", ""]


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("code", ["fit(); leave()", "fit(); sys.exit(3)"])
def test_the_status_of_a_rank_that_exits_after_all_is_kept(code):
    assert run(2, "-c", f"{START}{code}").status == 3


LONG = "fit(lambda trainer: (print('begun', flush=True), time.sleep(0.3)))"


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_an_interrupt_of_mpiexec_or_of_a_rank_ends_all(rank):
    with started(3, "-c", START + LONG) as ranks:
        ranks.wait_for(0, "begun")
        pid = ranks.process.pid if rank is None else ranks.pid(rank)
        os.kill(pid, signal.SIGINT)
        ended = ranks.end(within=20)
    assert ended.status != 0
    if rank is not None:
        assert "KeyboardInterrupt" in ended.err[rank]


CATCH = """
try:
    fit({}, epochs=1_000_000)
except KeyboardInterrupt:
    print("caught", flush=True)
world().barrier()
print("good", flush=True)
"""


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("is_at_one_line", [False, True])
def test_an_interrupt_ends_all_ranks_even_if_they_catch_it(is_at_one_line):
    """It may come before a step on one rank, and after it on another."""
    call = "signal.raise_signal(signal.SIGINT)" if is_at_one_line else "print('begun', flush=True)"
    with started(2, "-c", START + CATCH.format(f"lambda trainer: {call}")) as ranks:
        if not is_at_one_line:
            ranks.wait_for(0, "begun")
            for rank in range(2):
                os.kill(ranks.pid(rank), signal.SIGINT)
        ended = ranks.end(within=20)
    assert ended.status != 0
    assert "caught" not in "".join(ended.out)
    assert any("KeyboardInterrupt" in text for text in ended.err)


AT_ONCE = {
    "an interrupt in on_first": (
        """
def interrupted():
    raise KeyboardInterrupt
try:
    world().on_first(interrupted)
except KeyboardInterrupt:
    pass
world().on_first(lambda: None)
""",
        "rank 0 ends all ranks:\nTraceback",
    ),
    "fit in two threads": (
        """
import threading
world()
threads = [threading.Thread(target=fit, kwargs={"epochs": 100}) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
        "calls the world of this rank, or fit, while another thread does",
    ),
}


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("case", AT_ONCE)
def test_what_would_mix_up_the_calls_of_ranks_ends_all(case):
    code, sentence = AT_ONCE[case]
    ended = run(2, "-c", f"{START}{code}print('good')", within=30)
    assert ended.status != 0
    assert sentence in "".join(ended.err)
    assert ended.out == ["", ""]


@needs_mpi
@pytest.mark.full
def test_ranks_that_were_suspended_together_go_on():
    with started(3, "-c", f"{START}{LONG}\nprint('good')", MINIGRAD_PATIENCE="2") as ranks:
        ranks.wait_for(0, "begun")
        for command in (signal.SIGSTOP, signal.SIGCONT):
            for rank in range(3):
                os.kill(ranks.pid(rank), command)
            if command == signal.SIGSTOP:
                time.sleep(5)
        ended = ranks.end()
    assert ended.status == 0, ended
    assert all("good" in out for out in ended.out)


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_name_the_rank_that_is_lost(lost):
    with started(3, "-c", START + LONG, MINIGRAD_PATIENCE="2") as ranks:
        for rank in range(3):
            ranks.wait_for(rank, "begun")
        pid = ranks.pid(lost)
        os.kill(pid, signal.SIGSTOP)
        ended = ranks.end(within=20)
    assert ended.status != 0
    for rank in {0, 1, 2} - {lost}:
        assert f"rank {rank}: rank {lost} (process {pid} on" in ended.err[rank]


@needs_mpi
@pytest.mark.full
def test_a_rank_that_was_suspended_for_long_does_not_wait_longer_for_others():
    with started(2, "-c", START + LONG, MINIGRAD_PATIENCE="1") as ranks:
        for rank in range(2):
            ranks.wait_for(rank, "begun")
        pids = [ranks.pid(rank) for rank in range(2)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(8)
        os.kill(pids[0], signal.SIGCONT)  # and not the other
        ended = ranks.end(within=6)
    assert f"rank 1 (process {pids[1]} on" in ended.err[0]
