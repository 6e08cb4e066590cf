"""Processes that train are killed at random instants, and the run is resumed by another process."""

import random
import time

import pytest

from tests.chaos import seeds
from tests.chaos.forks import forks

KILLS = 12


@pytest.mark.full
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def weights_at_the_end(start, checkpoint):
        status, printed = start(checkpoint).end()
        assert status == 0
        return printed

    # The order of sets differs between the two.
    with forks("tests.chaos.training") as start, forks("tests.chaos.training") as resume:
        expected = weights_at_the_end(start, tmp_path / "whole")
        assert len(expected) == 65
        killed = 0
        for seed in seeds(KILLS):
            checkpoint = tmp_path / f"run {seed}"
            child = start(checkpoint)
            time.sleep(random.Random(seed).uniform(0, 0.1))
            child.kill()
            killed += child.end()[1] == ""  # before it had ended
            assert weights_at_the_end(resume, checkpoint) == expected, seed
    print(f"{killed} of {len(seeds(KILLS))} were killed before they had ended")
    assert killed
