"""Processes that save, merge or extract are killed at random instants."""

import random
import signal
import time

import pytest

from tests.chaos import saving, seeds
from tests.chaos.forks import forks

KILLS = 12


@pytest.mark.full
@pytest.mark.parametrize("command", ["save", "merge", "extract"])
def test_a_kill_loses_nothing(command, tmp_path):
    saving.prepare(tmp_path)
    out = tmp_path / "out"
    run = saving.action(command, tmp_path)
    known = [saving.saved(command, run, text, out) for text in ("old", "new")]
    counts = dict.fromkeys(("unfinished", "mixed for others", "missing for others"), 0)
    with forks("tests.chaos.saving") as start:
        for seed in seeds(KILLS):
            child = start(command, tmp_path, out)
            time.sleep(random.Random(seed).uniform(0, 0.1))
            child.kill()
            assert child.end() == (-signal.SIGKILL, ""), seed
            assert saving.ours(command, out) in known, seed
            found = saving.others(command, out)
            counts["unfinished"] += (out / ".saved").exists()
            counts["mixed for others"] += found is not None and found not in known
            counts["missing for others"] += found is None
            run("new", out)
            assert saving.ours(command, out) == saving.others(command, out) == known[1], seed
            assert not any(each.name.startswith(".") for each in out.iterdir()), seed
    print(f"{command}: {counts}")
    assert counts["missing for others"] == 0
