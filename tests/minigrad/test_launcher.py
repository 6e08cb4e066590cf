"""Launchers: how many processes they have started, and whether mpi4py says the same."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minigrad import launcher
from minigrad.distributed import mpi, world
from minigrad.distributed.agreement import check_agreement
from minigrad.launcher import PARENT, launched
from tests.minigrad.distributed.ranks import ROOT, needs_mpi


@pytest.mark.parametrize(
    ("variables", "size", "name"),
    [
        ({}, 1, "no launcher"),
        ({"PMI_SIZE": "1"}, 1, "no launcher"),
        ({"PMI_SIZE": "4"}, 4, "mpiexec of MPICH or Intel MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3, "mpiexec of Open MPI"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"}, 2, "srun of Slurm"),
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "8"}, 8, "mpiexec of MPICH or Intel MPI"),
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "8"}, 8, "mpiexec of Open MPI"),
        ({"SLURM_NTASKS": "4"}, 1, "no launcher"),  # in the script of a job, of which there is one
        ({"SLURM_STEP_NUM_TASKS": ""}, 1, "no launcher"),
        ({"PMI_SIZE": "4", PARENT: str(os.getpid())}, 4, "mpiexec of MPICH or Intel MPI"),
        ({"PMI_SIZE": "4", PARENT: "1"}, 1, "a rank, as a child process"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}, 1, "no launcher"),
    ],
)
def test_launchers_are_known_by_their_variables(variables, size, name):
    assert launched(variables) == (size, name)


def test_torchrun_is_refused():
    with pytest.raises(RuntimeError, match=r"torchrun has started 2 processes.*by `mpiexec -n 2"):
        launched({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"})


def test_a_notebook_as_a_rank_is_refused(monkeypatch):
    monkeypatch.setattr(launcher, "in_a_notebook", lambda: True)
    assert launched({}).size == 1
    with pytest.raises(RuntimeError, match=r"this notebook is one of 3 processes .*mpiexec -n 3"):
        launched({"PMI_SIZE": "3"})


def alone(code, **variables):
    """Run Python without `mpiexec`, as if it had been started by one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", f"import sys, minigrad\n{code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_rank_that_cannot_import_minigrad_ends_all_ranks():
    ended = alone("", PMI_SIZE="2", MINIGRAD_CPU="pentium")
    assert ended.returncode == -signal.SIGTERM
    error, last = ended.stderr.splitlines()[-2:]
    assert error.startswith("ValueError: MINIGRAD_CPU is 'pentium'")
    assert last == "this rank ends all ranks, because of its error"


def test_processes_that_cannot_talk_are_refused():
    code = "sys.modules['mpi4py'] = None\nminigrad.distributed.world()"
    ended = alone(code, PMI_SIZE="2")
    assert ended.returncode == -signal.SIGTERM  # so that its launcher ends the others
    error, last = ended.stderr.splitlines()[-2:]
    assert last == "this rank ends all ranks, because of its error"
    assert error.startswith("RuntimeError: mpiexec of MPICH or Intel MPI has started 2 processes")
    assert error.endswith('pip install "minigrad-lora[distributed]", with the MPI of that launcher')


@pytest.mark.parametrize(
    ("variable", "vendor"),
    [
        ("PMI_SIZE", "Open MPI"),
        ("OMPI_COMM_WORLD_SIZE", "MPICH"),
        ("OMPI_COMM_WORLD_SIZE", "Intel MPI"),
        ("SLURM_STEP_NUM_TASKS", "Open MPI"),
    ],
)
def test_an_mpi_that_the_launcher_has_not_started_is_refused(variable, vendor, monkeypatch):
    started = []
    other = SimpleNamespace(
        COMM_WORLD=SimpleNamespace(rank=0, size=1),
        THREAD_MULTIPLE=3,
        Is_initialized=lambda: False,
        Init_thread=started.append,
        get_vendor=lambda: (vendor, (5, 0, 0)),
    )
    monkeypatch.setattr(mpi, "_mpi", lambda launch: other)
    monkeypatch.setenv(variable, "3")
    with pytest.raises(RuntimeError, match=f"3 processes.* uses {vendor}, which finds 1 of them"):
        world.__wrapped__()  # that of this process may be known already
    assert started == ([] if vendor == "MPICH" else [3])  # it would abort this process


@needs_mpi
@pytest.mark.full
@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_that_mpi_does_not_find_are_refused(variable):
    ended = alone("minigrad.distributed.world()", **{variable: "3"})
    assert ended.returncode == -signal.SIGTERM
    assert "has started 3 processes, but mpi4py uses" in ended.stderr.splitlines()[-2]


@pytest.mark.full
def test_a_child_of_a_rank_that_has_not_met_the_others_is_none():
    child = "import minigrad; print(minigrad.distributed.world().size)"
    code = f"import subprocess; subprocess.run([sys.executable, '-c', {child!r}])"
    size = "from minigrad import launcher; print(launcher.launched().size, flush=True)"
    ended = alone(f"{size}\n{code}", PMI_SIZE="2")
    assert ended.stdout == "2\n1\n", ended.stderr


def test_torchrun_without_a_size_is_one_process():
    assert launched({"TORCHELASTIC_RUN_ID": "none"}) == (1, "no launcher")


class TwoRanks:
    """A world in which rank 1 has other facts."""

    def __init__(self, other):
        self.size, self.other = 2, other

    def gather(self, facts, *_):
        return [facts, self.other]


@pytest.mark.parametrize(
    ("own", "other", "reason"),
    [
        ({"a": "1"}, {"a": "1", "b": "2"}, "rank 1 differs from rank 0 in b: 2, and none there"),
        ({"a": "1", "b": "2"}, {"a": "1"}, "rank 1 differs from rank 0 in b: none, and 2 there"),
        ({"order": "x=1,y=2"}, {"order": "y=2,x=1"}, "in order: y=2,x=1, and x=1,y=2 there"),
    ],
)
def test_facts_that_only_one_rank_has_differ(own, other, reason):
    with pytest.raises(ValueError, match=reason):
        check_agreement(TwoRanks(other), own)
