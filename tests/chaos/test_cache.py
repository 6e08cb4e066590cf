"""Processes that compile kernels are killed at random instants; what they leave harms nobody."""

import random
import subprocess
import sys
import time

import pytest

from minigrad.kernels.jit import JIT_ENABLED
from tests.chaos import seeds

KILLS = 3

PROGRAM = """
import numpy as np
from minigrad.kernels import activation, cache

print("begun", flush=True)
x = np.linspace(-1, 1, 32, dtype=np.float32)
assert (activation.relu(x) == np.maximum(x, 0)).all()
print(len(cache.COMPILED))
"""


@pytest.mark.full
@pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")
def test_a_kill_leaves_no_kernel_that_is_wrong(tmp_path, monkeypatch):
    def start(folder):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
        command = [sys.executable, "-c", PROGRAM]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        return process

    with start(tmp_path / "none") as process:
        began = time.monotonic()
        assert int(process.stdout.read()) > 0
    usual = time.monotonic() - began
    killed = 0
    for seed in seeds(KILLS):
        folder = tmp_path / str(seed)
        with start(folder) as process:
            time.sleep(random.Random(seed).uniform(0, usual))
            process.kill()
            killed += process.stdout.read() == ""
        with start(folder) as process:
            assert process.stdout.read(), seed  # it has compiled what was missing
    with start(folder) as process:
        assert process.stdout.read() == "0\n"
    print(f"{killed} of {len(seeds(KILLS))} were killed before they had compiled all")
    assert killed
