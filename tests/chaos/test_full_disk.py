"""Saving, merging, extracting and training on a disk that is full."""

import errno
import random
import subprocess

import pytest

from minigrad.io import load_state
from tests.chaos import saving, seeds
from tests.lora.text.stand_in import written
from tests.lora.text.test_training import Interrupted, run, same_runs

SIZE = 1 << 20  # bytes of the disk
TIMES = 20


@pytest.fixture
def disk(tmp_path):
    """A small file system in memory, where the machine allows this process to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(filler, free):
    """Write a file until the disk has so many free bytes, in whole blocks."""
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017  # any other is a fault
        file.truncate(max(0, file.tell() - free))


@pytest.mark.full
@pytest.mark.parametrize("command", ["save", "merge", "extract"])
def test_a_full_disk_loses_nothing(command, tmp_path, disk):
    saving.prepare(tmp_path)
    out, filler = disk / "out", disk / "filler"
    run = saving.action(command, tmp_path)
    known = [saving.saved(command, run, text, out) for text in ("old", "new")]
    needed = sum(file.stat().st_size for file in out.iterdir())
    full = 0
    for seed in seeds(TIMES):
        run("old", out)
        free = random.Random(seed).randrange(2 * needed)
        fill(filler, free)
        try:
            run("new", out)
        except OSError as error:
            assert error.errno == errno.ENOSPC, seed  # noqa: PT017
            full += 1
            assert saving.ours(command, out) == saving.others(command, out) == known[0], seed
        filler.unlink()
        run("new", out)
        assert saving.ours(command, out) == known[1], seed
        assert not any(each.name.startswith(".") for each in out.iterdir()), seed
    print(f"{command}: the disk was full {full} times of {len(seeds(TIMES))}")
    assert full


@pytest.mark.full
def test_training_goes_on_to_the_bit_when_there_is_space_again(tmp_path, disk):
    data, out, filler = tmp_path / "data", disk / "out", disk / "filler"
    written(data / "train.jsonl", 30)
    written(data / "valid.jsonl", 8, seed=1)
    options = {"save_every": 3, "validate_every": 5}
    whole = run(data, tmp_path / "whole", **options)
    needed = sum(file.stat().st_size for file in whole.out.iterdir())
    full = 0
    for seed in seeds(TIMES):
        draw = random.Random(seed)
        step, free = draw.randrange(1, 13), draw.randrange(needed)
        model = Interrupted(step, lambda free=free: fill(filler, free))
        try:
            run(data, out, model, **options)
        except OSError as error:
            assert error.errno == errno.ENOSPC, seed  # noqa: PT017
            assert "resume continues" in str(error), seed  # noqa: PT017
            assert not any(each.name.startswith(".") for each in out.iterdir()), seed
            for file in out.glob("*.safetensors"):
                load_state(file)  # which compares its checksum
            full += 1
        filler.unlink()
        same_runs(run(data, out, resume=True, **options), whole)
        for file in out.iterdir():
            file.unlink()
    print(f"train: the disk was full {full} times of {len(seeds(TIMES))}")
    assert full
