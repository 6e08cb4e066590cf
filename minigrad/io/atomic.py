"""Replacing a file, or several that belong together, with new ones that are complete.

One file is written beside its target and renamed. Of several, a kill between two renames would
leave some new and some old ones. So all are written to a folder inside of theirs, and the name of
that folder says whether they are all there:

    .saving-...     being written: of no meaning to any reader
    .saved          complete: the files in it are newer than those beside it

From `.saved` they move to their targets, the entry last: that is the file without which no reader
looks at the others, and the old one is removed first. A reader that uses `find` sees either the old
files or the new ones, at any time; other readers see one of these, or no entry.

The half-written files that a kill leaves have names that begin with a dot. The next save to that
path removes them if nothing has written to them for a day: until then they may belong to another
process.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SAVING = ".saving-"
_SAVED = ".saved"
_PARTIAL = ".partial"
_ABANDONED = 24 * 60 * 60  # seconds without a write


def check_target(path: str | os.PathLike[str], role: str = "") -> Path:
    """Return the file that a path leads to; an OSError if it is a folder, or its folder is missing.

    `role` is the beginning of the message.
    """
    target = Path(path).resolve()  # a link stays a link, to the new content
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{role}there is no folder {str(target.parent)!r}; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{role}{os.fspath(path)!r} is a folder; name a file in it")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file, which replaces `path` when the block ends without an error.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
    """
    target = check_target(path)
    _remove_abandoned(target.parent, f".{glob.escape(target.name)}.*{_PARTIAL}")
    handle, name = tempfile.mkstemp(_PARTIAL, f".{target.name}.", target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            _flush(file)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's own permissions are for secrets
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside the target, and rename it when all bytes are on disk."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing_together(folder: str | os.PathLike[str], entry: str) -> Iterator[Path]:
    """Make a folder to write files to, which replace those in `folder` all together.

    Args:
        folder: the target, made if it is not there. Files of other names in it stay. Those to be
            written may be in folders inside of it.
        entry: the name of the file without which no reader looks at the others.

    Raises:
        OSError: if they cannot be written, as where a folder has the name of a file; the old files
            are as they were, and a folder that was made is gone.
        ValueError: if the entry has not been written.
    """
    target = Path(folder)
    made = [each for each in (target, *target.parents) if not each.exists()]
    target.mkdir(parents=True, exist_ok=True)
    stage: Path | None = None
    try:
        _remove_abandoned(target, f"{_SAVING}*")
        stage = Path(tempfile.mkdtemp(dir=target, prefix=_SAVING))
        yield stage
        written = _files(stage)
        if Path(entry) not in written:
            raise ValueError(
                f"{entry} has not been written; no reader looks at the rest without it"
            )
        for file in written:
            if (target / file).is_dir():
                raise IsADirectoryError(
                    f"{os.fspath(target / file)!r} is a folder, and would be a file"
                )
            for parent in file.parents:
                if os.path.lexists(target / parent) and not (target / parent).is_dir():
                    raise FileExistsError(
                        f"{os.fspath(target / parent)!r} is no folder, and would be one; take it "
                        f"away"
                    )
            with open(stage / file, "rb+") as opened:
                _flush(opened)
        _move(target)  # the files that an earlier save has left when it was killed
        os.rename(stage, target / _SAVED)
    except BaseException:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # another process may have put a file there
            for folder_made in made:
                folder_made.rmdir()
        raise
    (target / entry).unlink(missing_ok=True)
    _move(target, last=entry)


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file that `replacing_together` wrote, also if it was killed.

    The file may exist or not, as with any path.
    """
    saved = Path(folder) / _SAVED / name
    return saved if saved.is_file() else Path(folder) / name


def _move(target: Path, last: str | None = None) -> None:
    """Move complete files to their targets."""
    saved = target / _SAVED
    if not saved.is_dir():
        return
    for file in sorted(_files(saved), key=lambda file: (str(file) == last, file)):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(saved / file, target / file)
    for emptied in sorted(saved.rglob("*"), reverse=True):
        emptied.rmdir()
    saved.rmdir()


def _files(folder: Path) -> list[Path]:
    """List the files in a folder and in those inside of it, relative to it."""
    return sorted(each.relative_to(folder) for each in folder.rglob("*") if each.is_file())


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove half-written files and folders that nothing has written to for a day."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # another process may do the same
            last = max(each.stat().st_mtime for each in (left, *left.rglob("*")))
            if last < time.time() - _ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _flush(file: BinaryIO) -> None:
    """Have the bytes on disk."""
    file.flush()
    os.fsync(file.fileno())
