"""Atomic writes: replace a file only by a complete new one.

The new file is written in the folder of its target, and renamed when its bytes are on disk. Its
name begins with a dot, and its writer holds a lock on it. If the lock of such a file is free, its
process was killed, and the next save to the same path removes the file. Process ids could not show
this, because containers have separate process ids.
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
_LONGEST_STEM = 255 - len(f"..{0:08x}{_PARTIAL}")  # bytes; the name of a file may have 255
_TRIES = 10
_ABANDONED = 24 * 60 * 60  # seconds without a write: then a leftover is dead, without locks


def check_target(path: str | os.PathLike[str], role: str = "") -> Path:
    """Return the target file of a path; an OSError if no regular file can be there.

    So it is not a folder, pipe or device, and its folder exists and may be written to. `role` is
    the beginning of the message.
    """
    target = Path(os.path.realpath(path))  # a link stays, and leads to the new content
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{role}there is no folder {str(target.parent)!r}; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{role}{os.fspath(path)!r} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise FileExistsError(
            f"{role}{os.fspath(path)!r} is a pipe, a socket or a device, which would be replaced; "
            f"name a file"
        )
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(
            f"{role}no file can be written into the folder {str(target.parent)!r}, which is "
            f"read-only or belongs to another user; name a file in another folder"
        )
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file to write and read; it replaces `path` if the block ends without an error.

    It has the permissions of the file that it replaces.

    Raises:
        OSError: if the file cannot be written; an old file is not changed then. For example, the
            folder does not exist (a FileNotFoundError), or `path` is a folder itself
            (an IsADirectoryError).
    """
    target = check_target(path)
    stem = os.fsencode(target.name)[:_LONGEST_STEM].decode(errors="ignore")
    for left in target.parent.glob(f".{glob.escape(stem)}.*{_PARTIAL}"):
        remove_dead(left, left)
    create = create_locked(lambda: target.with_name(f".{stem}.{secrets.token_hex(4)}{_PARTIAL}"))
    with naming_full_disk(path), create as file:
        try:
            keep_mode(target, file.name)  # before the first byte: the old file may be private
            yield file
            flush(file)
            if sys.platform == "win32":  # it cannot rename an open file
                file.close()
            os.replace(file.name, target)
        finally:
            Path(file.name).unlink(missing_ok=True)  # after success, it has been renamed already
    flush_folder(target.parent)


@contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name a path in errors of a full disk, or of a file that is too large.

    They name no file, or one in a temporary folder for this path.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = os.fspath(path)
        raise


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes to a file, completely or not at all.

    Raises:
        OSError: if the file cannot be written; an old file is not changed then.
        TypeError: if `content` is not bytes.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def create_locked(path: Callable[[], Path]) -> Iterator[BinaryIO]:
    """Create a file at a new path, to write and read; hold a lock on it until the block ends.

    Before the file is locked, another save may mistake it for a leftover and remove it. Then one
    more file is created.
    """
    for left in reversed(range(_TRIES)):
        try:
            file = open(path(), "x+b")  # noqa: SIM115  # closed below
        except FileNotFoundError:
            if not left:
                raise
            continue
        with file:
            try:
                is_ours = try_lock(file)
            except OSError:  # the file system may have no locks
                is_ours = is_at_its_path(file)
            if is_ours or not left:
                yield file
                return


def try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False if another process holds the lock.

    Also return False if the file is not at its path any more (`is_at_its_path`).

    Raises:
        OSError: if the system or the file system has no locks.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "files that are locked cannot be renamed")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return is_at_its_path(file)


def is_at_its_path(file: BinaryIO) -> bool:
    """Return whether an open file is still the one at its path.

    After it was opened, another process may have moved or removed it, and have made a new one.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def remove_dead(left: Path, lock: Path) -> None:
    """Remove a file or a folder if the process that wrote it is dead, so its lock is free.

    If there are no locks, remove what nothing was written to for a day.
    """
    try:
        with open(lock, "r+b") as file:
            if try_lock(file):
                remove(left)
    # Below, errors are ignored: another process may remove it too, or another user may own it.
    except FileNotFoundError:
        with suppress(OSError):
            _remove_without_lock(left, lock)
    except OSError:
        with suppress(OSError):
            last = max(each.lstat().st_mtime for each in (left, *left.rglob("*")))
            if last < time.time() - _ABANDONED:
                remove(left)


def _remove_without_lock(left: Path, lock: Path) -> None:
    """Remove a folder without a lock if it is empty, or its removal was interrupted.

    In an empty folder, a save may be about to create its lock. So it is removed only while it is
    empty, and the save makes another one.
    """
    if left.is_symlink():
        left.unlink()
    elif not (names := os.listdir(left)):
        left.rmdir()
    elif lock.name not in names:
        remove(left)


def remove(left: Path) -> None:
    """Remove a file or a link, or a folder with its files."""
    if left.is_symlink() or not left.is_dir():
        left.unlink()
    else:
        shutil.rmtree(left)


def keep_mode(old: Path, new: str | Path) -> None:
    """Give a new file the permissions of the one that it will replace, if there is one."""
    with suppress(OSError):  # a file system may have no permissions
        shutil.copymode(old, new)


def flush(file: BinaryIO) -> None:
    """Make sure that the bytes of a file are on disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make sure that file names of a folder are on disk, so that a rename survives a crash.

    Some systems cannot do this. This is not an error, because the files are complete under both
    names.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
