"""The project's own tests with a mutant planted: does one of them fail?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.zoo.mutant import Mutant

ROOT = Path(__file__).parents[2]
FAILED, NOTHING_TO_RUN = 1, 5  # exit codes of pytest


def kills(mutant: Mutant) -> bool | None:
    """Whether a test fails; None for a mutant in an op that the library does not have.

    The rows of the table that are about it run first.

    Raises:
        RuntimeError: if the tests did not run to an end, which is another thing than to fail.
    """
    if not mutant.suite:
        return None
    return bool(mutant.rows and _fails(mutant, "-k", mutant.rows)) or _fails(mutant)


def _fails(mutant: Mutant, *selected: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not peers"]  # all rows of the tables, not the quick tier's alone
    planted = ["-p", "tests.zoo.plugin", "--mutant", mutant.name]
    done = subprocess.run(
        [*command, *planted, *mutant.suite, *selected], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, FAILED, NOTHING_TO_RUN):
        raise RuntimeError(f"{mutant}: the tests ended with {done.returncode}:\n{done.stdout}")
    return done.returncode == FAILED
