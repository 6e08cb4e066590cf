"""Saving, merging and extracting on a disk that is full."""

import errno
import random
import subprocess

import pytest

from tests.chaos import saving, seeds

SIZE = 1 << 20  # bytes of the disk
TIMES = 40


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
        with open(filler, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017  # any other is a fault
            file.truncate(max(0, file.tell() - free))
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
    print(f"{command}: the disk was full {full} times of {TIMES}")
    assert full
