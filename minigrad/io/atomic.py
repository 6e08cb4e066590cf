"""Replacing a file with a new one that is complete.

The new file is written beside its target, and renamed when its bytes are on disk. It has a name
that begins with a dot, and its writer holds a lock on it. A leftover whose lock is free belongs to
a process that was killed, and the next save to that path removes it. Numbers of processes could not
show this, because those of containers are not each other's.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_PARTIAL = ".partial"
_TRIES = 10
_ABANDONED = 24 * 60 * 60  # seconds without a write, after which a leftover without locks is dead


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
    """Open a new file, to write and read, which replaces `path` if the block ends without an error.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
    """
    target = check_target(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{_PARTIAL}"):
        remove_dead(left, left)

    def partial() -> Path:
        return target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")

    with create_locked(partial) as file:
        try:
            yield file
            flush(file)
            if sys.platform == "win32":  # which renames no file that is open
                file.close()
            os.replace(file.name, target)
        finally:
            Path(file.name).unlink(missing_ok=True)  # it has been renamed if all went well
    flush_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside the target, and rename it when all bytes are on disk."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def create_locked(path: Callable[[], Path]) -> Iterator[BinaryIO]:
    """Create a file at a new path, to write and read, with a lock on it until the block ends.

    If another save takes it for what a dead process has left, before the lock, one more is created.
    """
    for left in reversed(range(_TRIES)):
        try:
            file = open(path(), "x+b")  # noqa: SIM115  # closed below
        except FileNotFoundError:
            if not left:
                raise
            continue
        with file:
            is_ours = True
            with suppress(OSError):  # of a file system without locks
                is_ours = try_lock(file)
            if (is_ours and os.path.exists(file.name)) or not left:
                yield file
                return


def try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False if somebody else has locked it.

    Raises:
        OSError: if the system or the file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "files that are locked cannot be renamed")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_dead(left: Path, lock: Path) -> None:
    """Remove a leftover, see `remove`, if the process that wrote it is dead: its lock is free.

    Where there is no lock, as in folders of version 0.1, it is dead if nothing has written to it
    for a day, or nothing is in it.
    """
    try:
        with open(lock, "r+b") as file:
            if try_lock(file):
                remove(left, lock)
    except OSError:
        with suppress(OSError):  # another process may do the same, or it is another user's
            inside = list(left.rglob("*"))
            last = max(each.lstat().st_mtime for each in (left, *inside))
            if last < time.time() - _ABANDONED or (left != lock and not inside):
                remove(left, lock)


def remove(left: Path, lock: Path) -> None:
    """Remove a file, which is its own lock, or a folder, and the lock in it after all the rest."""
    if left.is_symlink() or not left.is_dir():
        left.unlink()
        return
    for each in left.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each != lock:
            each.unlink()
    lock.unlink(missing_ok=True)
    left.rmdir()


def flush(file: BinaryIO) -> None:
    """Have the bytes of a file on disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk, so that a renamed file has its new name after a crash.

    Some systems cannot do this. It is no error, because the files are complete under either name.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
