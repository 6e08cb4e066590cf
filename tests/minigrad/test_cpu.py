"""MINIGRAD_CPU: the instructions that kernels, numpy and BLAS may use."""

import os
import re
import subprocess
import sys

import pytest

from minigrad import cpu
from tests.hosts import on_x86
from tests.minigrad.distributed.ranks import needs_mpi, run

LEVEL = "x86-64-v3"


def python(code, **variables):
    """Run code in a new process that has none of the variables of a level."""
    known = {name for level in cpu.LEVELS.values() for name in level}
    inherited = {name: value for name, value in os.environ.items() if name not in known}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**inherited, **variables}, capture_output=True, text=True)


@on_x86
def test_a_level_limits_kernels_and_numpy():
    code = """
import minigrad
from minigrad.distributed.agreement import facts_of_process
from minigrad.kernels import jit
print(jit.target()[1])
print(*facts_of_process().values())
"""
    ended = python(code, MINIGRAD_CPU=LEVEL)
    assert ended.returncode == 0, ended.stderr
    processor, facts = ended.stdout.split("\n", 1)
    assert processor == "haswell"
    assert ",avx2," in facts
    assert "AVX512" not in facts.upper()


def test_an_unknown_level_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"MINIGRAD_CPU is 'x86'; here it must be \S+, or not set"):
        cpu.limit_instructions({"MINIGRAD_CPU": "x86"})


def test_without_the_variable_nothing_is_set():
    environment = {}
    cpu.limit_instructions(environment)
    assert environment == {}


@pytest.mark.full
def test_numpy_that_was_imported_before_is_an_error():
    ended = python("import numpy, minigrad", MINIGRAD_CPU=LEVEL)
    assert "RuntimeError: MINIGRAD_CPU=x86-64-v3: numpy was imported before" in ended.stderr
    assert "minigrad first, or start with NUMBA_CPU_NAME='haswell' NUMBA_" in ended.stderr
    chosen = {"MINIGRAD_CPU": LEVEL, **cpu.LEVELS[LEVEL]}
    assert python("import numpy, minigrad", **chosen).stderr == ""  # and has read the variables


@pytest.mark.full
@on_x86
@needs_mpi
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2"},
            r"instructions of kernels \(MINIGRAD_CPU=x86-64-v3, set for.*it lacks .*avx",
        ),
        ({"NUMBA_CPU_NAME": "core2"}, r"instructions of kernels .*it has core2; it lacks"),
        ({"NUMBA_DISABLE_JIT": "1"}, "how numba compiles: it has NUMBA_DISABLE_JIT=1; it lacks"),
    ],
)
def test_a_rank_that_compiles_otherwise_is_named_with_the_difference(variables, message):
    code = f"""
import os
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    os.environ.update({variables})
import minigrad
minigrad.distributed.world()
"""
    ended = run(2, "-c", code)
    assert ended.status != 0
    assert re.search(f"rank 1 differs from rank 0 in {message}", ended.err[0]), ended
