"""Replacing a file, or several that belong together, with new ones that are complete.

One file is written beside its target and renamed. Of several, a kill between two renames would
leave some new and some old ones. So all are written to a folder inside of theirs, and the name of
that folder says whether they are all there:

    .saving-...     being written: of no meaning to anybody
    .saved          complete: what is in it is newer than what is beside it

From `.saved` they move to their places, the entry last: that is the file without which no reader
looks at the others, and the old one is removed first. Whoever asks `find` sees the old files or the
new ones, at any time; others see these or no entry.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SAVING = ".saving-"
_SAVED = ".saved"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when the block ends without an error.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
    """
    target = Path(path).resolve()  # a link stays a link, to the new content
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            _settle(file)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's own is for secrets
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the target, and take its place when all bytes are on disk."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing_together(folder: str | os.PathLike[str], entry: str) -> Iterator[Path]:
    """A folder to write files to, which take the places of those in `folder` all together.

    Args:
        folder: made if it is not there. Files of other names in it stay.
        entry: the name of the file without which no reader looks at the others.

    Raises:
        OSError: if they cannot be written; the old files are as they were, and a folder that was
            made is gone.
        ValueError: if the entry has not been written.
    """
    target = Path(folder)
    made = _make(target)
    stage: Path | None = None
    try:
        stage = Path(tempfile.mkdtemp(dir=target, prefix=_SAVING))
        yield stage
        written = sorted(stage.iterdir())
        if entry not in {file.name for file in written}:
            raise ValueError(f"{entry} has not been written, without which nobody reads the rest")
        for file in written:
            with open(file, "rb+") as opened:
                _settle(opened)
        _move(target)  # what an earlier save has left when it was killed
        os.rename(stage, target / _SAVED)
    except BaseException:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # someone else may have put a file there
            for folder_made in reversed(made):
                folder_made.rmdir()
        raise
    (target / entry).unlink(missing_ok=True)
    _move(target, last=entry)


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Where a file is that was written by `replacing_together`, if need be by one that was killed.

    It may be there or not, as with any path.
    """
    saved = Path(folder) / _SAVED / name
    return saved if saved.is_file() else Path(folder) / name


def _move(target: Path, last: str | None = None) -> None:
    """Move complete files to their places."""
    saved = target / _SAVED
    if not saved.is_dir():
        return
    for file in sorted(saved.iterdir(), key=lambda file: (file.name == last, file.name)):
        os.replace(file, target / file.name)
    saved.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; give back what was not there."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _settle(file: BinaryIO) -> None:
    """Have the bytes on disk."""
    file.flush()
    os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
