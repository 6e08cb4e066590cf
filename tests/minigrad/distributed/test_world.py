"""`world()`: its calls, and what it is in processes that are not ranks."""

import copy

import pytest

from minigrad.distributed import mpi
from tests.minigrad.distributed import calls
from tests.minigrad.distributed.ranks import needs_mpi, run_well


@needs_mpi
@pytest.mark.full
def test_calls_give_what_one_process_has():
    every = run_well(3, "-m", "tests.minigrad.distributed.calls")
    assert every == [f"{rank} 3\ndone\n" for rank in range(3)]


def test_a_world_of_one_process_has_these_calls_too():
    calls.gather_and_broadcast()
    calls.refusals()
    calls.errors_of_the_first()
    calls.barrier_and_any()
    assert copy.deepcopy(calls.world) is calls.world
    assert repr(calls.world) == "World(rank=0, size=1)"


# Each rank works longer than the patience: in Python, in the compiler, and not at all.
WORK = """
import time, minigrad, numba
world = minigrad.distributed.world()
began = time.monotonic()
while time.monotonic() < began + 4:
    if world.rank == 1:
        numba.njit("f8(f8)")(lambda x: x + began)
    elif world.rank == 2:
        time.sleep(4)
world.barrier()
"""


@needs_mpi
@pytest.mark.full
def test_a_rank_that_works_longer_than_the_patience_is_not_lost():
    run_well(3, "-c", WORK, MINIGRAD_PATIENCE="2")


# Signs of life every 50 ms, beside thousands of calls.
OFTEN = """
import os, time
import numpy as np
from minigrad.distributed import mpi, world

class Often(mpi.Heartbeat):
    def __init__(self, comm, names, patience):
        super().__init__(comm, names, 0.25)
        time.sleep(0.02)  # in which the thread reads it
        self._patience = patience

def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

mpi.Heartbeat = Often
world = world()
like = [np.ones(3000, np.float32)]
for count in range(6000):
    total, = world.sum_parts(2, {(world.rank, world.rank + 1): like}, like)
    assert (total == 2).all()
    if count == 1000:
        before = memory()
print(memory() - before)
"""


@needs_mpi
@pytest.mark.full
def test_many_calls_beside_many_signs_of_life_take_no_memory():
    pages = {"MALLOC_TOP_PAD_": "131072"}  # with a setting for malloc, the heap has small pages
    assert all(int(grown) < 2_000_000 for grown in run_well(2, "-c", OFTEN, **pages))


@needs_mpi
def test_ranks_share_the_cores_of_their_host_unless_a_number_is_set():
    code = """
import os, minigrad
os.environ.pop("NUMBA_NUM_THREADS")  # numba has read it
from minigrad.kernels import threads
threads.get_max_threads = lambda: 8
{}
minigrad.distributed.world()
print(minigrad.get_num_threads())
"""
    for before, after in (
        ("", "4"),
        ("minigrad.get_num_threads()", "4"),
        ("minigrad.set_num_threads(6)", "6"),
    ):
        assert run_well(2, "-c", code.format(before)) == [f"{after}\n"] * 2


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "soon", "1e400", "60 s"])
def test_impossible_patience_is_refused(text, monkeypatch):
    monkeypatch.setenv(mpi.PATIENCE, text)
    with pytest.raises(ValueError, match=f"MINIGRAD_PATIENCE is the number of .* not {text!r}"):
        mpi.patience()
