"""Find out how many processes an MPI launcher has started, and end all if one fails early."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Mapping
from typing import NamedTuple

from minigrad.progress import in_a_notebook

PARENT = "MINIGRAD_RANK"
"""The variable that tells child processes of a rank that they are not ranks."""

_SIZES = {
    "PMI_SIZE": "mpiexec of MPICH or Intel MPI",
    "OMPI_COMM_WORLD_SIZE": "mpiexec of Open MPI",
    "MV2_COMM_WORLD_SIZE": "mpiexec of MVAPICH",
    "SLURM_STEP_NUM_TASKS": "srun of Slurm",
    "FLUX_JOB_SIZE": "flux run",
}
"""The variables in which launchers store the number of processes."""

INSTALL = 'pip install "minigrad-lora[distributed]"'


class Launch(NamedTuple):
    """The number of processes that a launcher has started, and the name of the launcher."""

    size: int
    launcher: str


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the variables of a launcher; without a launcher, there is one process.

    Errors are those of `world`.
    """
    count = environment.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in environment and count != "1":
        raise RuntimeError(
            f"torchrun has started {count} processes, but minigrad's communicate by MPI: start "
            f"them by `mpiexec -n {count} python train.py`"
        )
    if environment.get(PARENT, str(os.getpid())) != str(os.getpid()):
        return Launch(1, "a rank, as a child process")
    launch = _started(environment)
    if launch.size > 1 and in_a_notebook():
        raise RuntimeError(
            f"this notebook is one of {launch.size} processes that {launch.launcher} has started, "
            f"and each would run cells of its own; put the training into a script, and start "
            f"that: mpiexec -n {launch.size} python train.py"
        )
    return launch


def _started(environment: Mapping[str, str]) -> Launch:
    for variable, launcher in _SIZES.items():
        text = environment.get(variable, "")
        if text.isdecimal() and int(text) > 1:
            return Launch(int(text), launcher)
    return Launch(1, "no launcher")


def prepare_rank() -> None:
    """If this is a rank, tell its later child processes that they are none; see `end_others`."""
    if _started(os.environ).size > 1:
        os.environ.setdefault(PARENT, str(os.getpid()))
        atexit.register(end_others)


def end_others() -> None:
    """End all ranks if this one ends with an error that nobody caught, before its world has begun.

    The other ranks would wait for this one. A launcher ends them if a signal ends a process.
    """
    # Python sets `last_value` to an error that nobody has caught, also if the script has a hook.
    if hasattr(sys, "last_value") and os.environ.get(PARENT) == str(os.getpid()):
        try:
            print("this rank ends all ranks, because of its error", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
