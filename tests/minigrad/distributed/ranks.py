"""Python on several ranks of `mpiexec`, each with one thread, in a limited time.

    ended = run(3, "-c", "print(minigrad.distributed.world().rank)")
    assert ended.status == 0 and ended.out[2] == "2\n"

With `started` a test may also send signals to the ranks:

    with started(3, "-m", "tests.chaos.training", checkpoint) as ranks:
        os.kill(ranks.pid(1), signal.SIGSTOP)
        ended = ranks.end(within=10)
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
LIMIT = 120  # seconds; nothing here takes a third of it on an idle machine

_BESIDE = str(Path(sys.executable).parent)  # where a wheel of MPI puts its mpiexec
MPIEXEC = shutil.which("mpiexec", path=_BESIDE) or shutil.which("mpiexec")

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None,
    reason="there is no mpiexec" if MPIEXEC is None else "there is no mpi4py",
)

ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_OPEN_MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
_OPEN_MPI |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}  # more ranks than cores

# Gives each rank files of its own, as launchers mix what ranks print.
_SHELL = (
    'to="$RANKS/${PMI_RANK:-$OMPI_COMM_WORLD_RANK}"; echo $$ >"$to.pid"; '
    'exec "$0" "$@" >"$to.out" 2>"$to.err"'
)


@cache
def is_mpich():
    """Whether `mpiexec` is MPICH's, and not Open MPI's."""
    command = [MPIEXEC, "--version"]
    return "HYDRA" in subprocess.run(command, capture_output=True, text=True).stdout


class Ended(NamedTuple):
    """What is left of a run.

    Attributes:
        status: that of `mpiexec`.
        out: what each rank has printed.
        err: what each rank has written to its standard error.
        launcher: what `mpiexec` has written.
        seconds: the time from the start, or from the call of `end`.
    """

    status: int
    out: list[str]
    err: list[str]
    launcher: str
    seconds: float

    def __repr__(self):
        texts = [f"mpiexec: status {self.status} after {self.seconds:.1f} s\n{self.launcher}"]
        for rank, (out, err) in enumerate(zip(self.out, self.err, strict=True)):
            texts.append(f"rank {rank}:\n{out}{err}")
        return "\n".join(texts)


class Ranks:
    """The ranks of a run."""

    def __init__(self, size, process, folder):
        self.size, self.process, self._folder = size, process, folder

    def read(self, rank, kind):
        """Return what a file of a rank has by now."""
        path = self._folder / f"{rank}.{kind}"
        return path.read_text(errors="replace") if path.exists() else ""

    def pid(self, rank):
        """Return the process of a rank, as soon as it has started."""
        return int(self.wait(lambda: self.read(rank, "pid").strip(), f"rank {rank} to start"))

    def wait_for(self, rank, text):
        """Wait until a rank has printed a text."""
        self.wait(lambda: text in self.read(rank, "out"), f"rank {rank} to print {text!r}")

    def wait(self, look, what):
        """Wait until a look at something finds it, and return that."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            has_ended = self.process.poll() is not None
            if found := look():
                return found
            if has_ended:
                break
            time.sleep(0.005)
        raise AssertionError(f"waited for {what}; {self._described()}")

    def end_but(self, rank, within):
        """Wait until all other ranks have ended; fail if it takes longer. Return the seconds."""
        began = time.monotonic()
        while set(self.running()) - {rank}:
            if time.monotonic() > began + within:
                raise AssertionError(f"others have not ended in {within} s; {self._described()}")
            time.sleep(0.005)
        return time.monotonic() - began

    def end(self, within=LIMIT):
        """Wait until all processes have ended; fail if it takes longer."""
        began = time.monotonic()
        try:
            self.process.wait(within)
            while left := self.running():
                assert time.monotonic() < began + within, f"ranks {list(left)} are left"
                time.sleep(0.005)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise AssertionError(
                f"not all has ended within {within} s, ranks {list(self.running())} and "
                f"{error}; {self._described()}"
            ) from None
        seconds = time.monotonic() - began
        out, err = ([self.read(rank, kind) for rank in range(self.size)] for kind in ("out", "err"))
        launcher = (self._folder / "launcher").read_text(errors="replace")
        return Ended(self.process.returncode, out, err, launcher, seconds)

    def running(self):
        """Return the ranks that have started and not ended, with their processes."""
        texts = {rank: self.read(rank, "pid").strip() for rank in range(self.size)}
        return {rank: int(t) for rank, t in texts.items() if t and self._is_rank(int(t))}

    def _is_rank(self, pid):
        """Return whether a process is a rank of this run; the system may use a number again."""
        try:
            return str(self._folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _described(self):
        texts = [
            f"rank {rank}, {kind}: {text[-2000:]}"
            for rank in range(self.size)
            for kind in ("out", "err")
            if (text := self.read(rank, kind))
        ]
        return "\n".join(["the ranks have written:", *texts])

    def kill(self):
        """Kill all that still runs."""
        for pid in self.running().values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@contextmanager
def started(size, *arguments, mpiexec=(MPIEXEC,), **environment):
    """Start Python with some arguments on ranks of `mpiexec`; kill what is left at the end.

    `mpiexec` may have options, and a command before it. The environment is this one, but with one
    thread, and with the given variables.
    """
    variables = {**os.environ, **ONE_THREAD, **_OPEN_MPI, **environment}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        command = [*mpiexec, "-n", str(size), "sh", "-c", _SHELL, sys.executable]
        with open(Path(folder, "launcher"), "w") as file:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=ROOT, env={**variables, "RANKS": folder},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        ranks = Ranks(size, process, Path(folder))
        try:
            yield ranks
        finally:
            ranks.kill()


def run(size, *arguments, within=LIMIT, **options):
    """Run Python on ranks of `mpiexec` to the end, and return what they have written."""
    with started(size, *arguments, **options) as ranks:
        return ranks.end(within)


def run_well(size, *arguments, **options):
    """Run Python as `run`, and return what each rank has printed; fail if the status is not 0."""
    ended = run(size, *arguments, **options)
    assert ended.status == 0, ended
    return ended.out
