"""Processes that train are killed at random instants, and the run is resumed by another process."""

import random
import time

import pytest

from tests.chaos import seeds
from tests.chaos.forks import forks

KILLS = 5


@pytest.mark.full
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    def weights_at_the_end(child):
        status, printed = child.end()
        assert status == 0
        return printed

    # The order of sets differs between the two.
    with forks("tests.chaos.training") as start, forks("tests.chaos.training") as resume:
        child, began = start(tmp_path / "whole"), time.monotonic()
        expected = weights_at_the_end(child)
        usual = time.monotonic() - began
        assert len(expected) == 65
        killed = resumed = 0
        for seed in seeds(KILLS):
            checkpoint = tmp_path / f"run {seed}"
            child, draw, soon = start(checkpoint), random.Random(seed), time.monotonic() + 60
            # On a loaded machine, a run may take longer than the first, so half wait for a file.
            while seed % 2 and not checkpoint.exists() and time.monotonic() < soon:
                time.sleep(usual / 1000)
            time.sleep(draw.uniform(0, usual / 4 if seed % 2 else usual))
            child.kill()
            is_killed = child.end()[1] == ""  # before it had ended
            killed += is_killed
            resumed += is_killed and checkpoint.exists()
            assert weights_at_the_end(resume(checkpoint)) == expected, seed
    count = len(seeds(KILLS))
    print(f"{killed} of {count} were killed before they had ended, {resumed} with a checkpoint")
    assert resumed or count < KILLS
