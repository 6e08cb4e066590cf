"""The project's own tests with a mutant planted: does one of them fail?

Collecting the tests takes longer than most of them run. So one process of pytest collects them once
(`tests.zoo.plugin`), and each mutant is planted in a fork of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.zoo.mutant import Mutant

ROOT = Path(__file__).parents[2]


def kills(mutant: Mutant) -> bool | None:
    """Whether a test fails; None for a mutant in an op that the library does not have.

    Raises:
        RuntimeError: if the tests did not run to an end, which is another thing than to fail.
    """
    if not mutant.suite:
        return None
    files = frozenset(mutant.suite)  # the plugin runs them in the mutant's order
    tests = _running.get(files) or _running.setdefault(files, _start(sorted(files)))
    assert tests.stdin is not None
    assert tests.stdout is not None
    with suppress(BrokenPipeError):  # where it has ended already, what it printed says why
        tests.stdin.write(f"{mutant.name}\n")
        tests.stdin.flush()
    printed = []
    for line in tests.stdout:
        if line in (FAILED, PASSED):
            return line == FAILED
        printed.append(line)
    del _running[files]
    raise RuntimeError(f"{mutant}: the tests ended with {_end(tests)}:\n{''.join(printed)}")


def end() -> None:
    """End the processes that have collected tests."""
    while _running:
        _end(_running.popitem()[1])


FAILED, PASSED = "the mutant is killed\n", "the mutant survives\n"


# Processes that have collected the tests of some files and are asked for one mutant a line. They
# end when their input does, which is at the latest when this process ends.
_running: dict[frozenset[str], subprocess.Popen[str]] = {}


def _start(files: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider"]
    command += ["-m", "not peers"]  # all rows of the tables, not the quick tier's alone
    return subprocess.Popen(
        [*command, "-p", "tests.zoo.plugin", *files],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a process with threads should not fork
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(tests: subprocess.Popen[str]) -> int:
    assert tests.stdin is not None
    assert tests.stdout is not None
    with suppress(BrokenPipeError):  # where it ended before it read what was written
        tests.stdin.close()
    tests.stdout.close()
    return tests.wait()
