"""Saving, merging and extracting are interrupted at random lines of the library."""

import random
from pathlib import Path

import pytest

import lora
import minigrad
from tests.chaos import saving, seeds
from tests.chaos.lines import Lines

INTERRUPTS = {"save": 200, "merge": 40, "extract": 20}

LIBRARIES = tuple(str(Path(each.__file__).parent) for each in (lora, minigrad))


def lines_of(run, stop=None):
    """Run, with a KeyboardInterrupt at a line of the library; return the number of lines."""
    with Lines(LIBRARIES, stop) as lines:
        run()
    return lines.count


# An interrupt may come before the line that closes a file.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.full
@pytest.mark.parametrize("command", INTERRUPTS)
def test_an_interrupt_is_one_and_loses_nothing(command, tmp_path):
    saving.prepare(tmp_path)
    out = tmp_path / "out"
    run = saving.action(command, tmp_path)
    known = [saving.saved(command, run, text, out) for text in ("old", "new")]
    run("old", out)
    length = lines_of(lambda: run("new", out))
    for seed in seeds(INTERRUPTS[command]):
        rng = random.Random(seed)
        # Half of them near the end, where files are renamed.
        first = length - 200 if rng.random() < 0.5 else 1
        run("old", out)
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda: run("new", out), rng.randint(first, length - 20))
        assert saving.ours(command, out) == saving.others(command, out), seed
        assert saving.ours(command, out) in known, seed
        run("old", out)
        assert not any(each.name.startswith(".") for each in out.iterdir()), seed
