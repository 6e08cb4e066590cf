"""Processes that train are killed at random instants, and the run is resumed by another process."""

import random
import subprocess
import sys
import time

import pytest

from tests.chaos import seeds

KILLS = 12


@pytest.mark.full
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def start(checkpoint):
        command = [sys.executable, "-m", "tests.chaos.training", checkpoint]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        return process

    def weights_at_the_end(checkpoint):
        with start(checkpoint) as process:
            return process.stdout.read()

    expected = weights_at_the_end(tmp_path / "whole")
    assert len(expected) == 65
    killed = 0
    for seed in seeds(KILLS):
        checkpoint = tmp_path / f"run {seed}"
        with start(checkpoint) as process:
            time.sleep(random.Random(seed).uniform(0, 0.1))
            process.kill()
            killed += process.stdout.read() == ""  # before it had ended
        assert weights_at_the_end(checkpoint) == expected, seed
    print(f"{killed} of {KILLS} were killed before they had ended")
    assert killed
