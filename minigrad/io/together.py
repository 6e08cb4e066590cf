"""Replace several files that belong together: all of them or none.

Two files cannot be renamed at once. If a process is killed between two renames, some files would be
new and some old. So the new files are written to a subfolder. Its name, and a manifest in it, say
whether the new files are valid:

    .saving-...     being written: readers ignore it
    .saved          with a manifest: the new files are valid, and replace those in the manifest

The manifest is a file that the saving process holds a lock on, and writes last. It has the size and
time of each old file that will be replaced, and of each new file. The new files are valid only if
each target is still one of these files, or is missing. So files that another program writes later
have priority, and a folder that was downloaded does not match by chance. The new files move from
`.saved` to their targets, one directly after the other. The last one is the entry: a reader that
does not find the entry does not read the other files.

A reader that uses `find` sees only old files or only new files at any time, and writes nothing.
Other readers do too, except between two renames. If there are more than two files, the entry is
removed before the renames: a missing entry is an error for readers, but a mixture of old and new
files would look like a model.

A long save may have a plan: a hash of its inputs and of what it does, which becomes a part of the
name of its folder. If the process is killed, the next save with the same plan continues with the
folder.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from minigrad.io import atomic

PATIENCE = 10.0
"""How many seconds a save waits for another save that is replacing files in the same folder."""

SAVED = ".saved"
"""The name of the folder whose files have priority over the files next to it."""

_SAVING = ".saving-"
_MANIFEST = ".manifest.json"
_PAUSE = 0.01  # seconds


@contextmanager
def replacing_together(
    folder: str | os.PathLike[str], entry: str, plan: str | None = None
) -> Iterator[Path]:
    """Make a temporary folder; at the end of the block, its files replace those in `folder`.

    Args:
        folder: the target; it is made if it does not exist. New files may be in subfolders, and
            have the permissions of those that they replace. Other files are not changed. New files
            whose names begin with a dot are not moved.
        entry: the name of the file that readers open first.
        plan: a hash of everything that the files depend on. If a save with the same plan was
            killed, or a child process of it (a ChildProcessError), its folder is used again with
            the files in it, which may be incomplete. This needs file locks.

    Raises:
        OSError: if the files cannot be written, for example because a folder has the name of a
            file, or another save does not end. The old files are not changed then, and a new
            `folder` is removed. If it fails after one file was replaced, the new files are valid.
        ValueError: if the entry has not been written.
    """
    target = Path(folder).absolute()  # the block may change the working folder
    made = [each for each in (target, *target.parents) if not each.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        left = _stage_left(target, plan)
        create = atomic.create_locked(lambda: _new_stage(target, plan) / _MANIFEST)
        with left or create as manifest, atomic.naming_full_disk(folder):
            stage, is_kept = Path(manifest.name).parent, False
            if os.name == "nt":  # it cannot rename a folder with an open file
                manifest.close()
            try:
                yield stage
                written = _files(stage)
                _check(target, written, entry)
                for file in written:
                    with open(stage / file, "rb+") as opened:
                        atomic.flush(opened)
                    atomic.keep_mode(target / file, stage / file)
                _take_turn(target, stage, written)
                _swap(target, written, entry)
            except ChildProcessError:
                is_kept = plan is not None
                raise
            finally:
                if not is_kept:
                    _end(target, stage)
    except BaseException:
        with suppress(OSError):  # another process may have written a file there
            for folder_made in made:
                folder_made.rmdir()
        raise


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file that `replacing_together` wrote, even if that process was killed.

    The file need not exist.
    """
    return unfinished(folder).get(name, Path(folder) / name)


def unfinished(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the paths of the valid files that an interrupted save has left in `.saved`, by name.

    The result is empty if the files in the folder are not those in the manifest, because something
    newer was saved. Missing files do not matter. A save of version 0.1 has no manifest: its files
    are valid if a target of them is missing, and a UserWarning says so.
    """
    target, saved, found = Path(folder), Path(folder) / SAVED, {}
    if saved.is_symlink():  # no save has made it
        return {}
    try:
        if not os.path.lexists(saved / _MANIFEST):
            found = _left_by_version_0_1(target)
            if found:
                warnings.warn(
                    f"{os.fspath(folder)!r} lacks files, so {', '.join(found)[:200]} are read from "
                    f"its folder {SAVED}, which an interrupted save of version 0.1 has left; save "
                    f"again, or move the files out of it",
                    stacklevel=2,
                )
            return found
        for name, (old, new) in _manifest(saved).items():
            left, there = _identity(saved, name), _identity(target, name)
            is_moved = left is None and there == new
            if not is_moved and (left != new or there not in (None, old, new)):
                return {}
            if left is not None:
                found[name] = saved / name
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # it is being written, belongs to another user, or has no valid manifest
    return found


def _left_by_version_0_1(target: Path) -> dict[str, Path]:
    """Return the paths of the files in a `.saved` without a manifest, if a target is missing."""
    names = _files(target / SAVED)
    is_valid = not all(os.path.lexists(target / name) for name in names)
    return {name: target / SAVED / name for name in names if is_valid}


def _manifest(saved: Path) -> Any:
    """Read a manifest: by file name, the identities of the old file and of the new file."""
    return json.loads((saved / _MANIFEST).read_bytes())


def _identity(root: Path, name: str) -> list[int] | None:
    """Return the size and time of a file in a folder; None if the file does not exist.

    A ValueError is raised if the name leads out of the folder, for example through a link.
    """
    path = root / name
    is_inside = path.parent.resolve() == root.resolve() / PurePosixPath(name).parent
    if not is_inside or not path.is_relative_to(root):
        raise ValueError(
            f"{name!r} leads out of {os.fspath(root)!r} through a link; remove it, or name "
            f"another folder"
        )
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _new_stage(target: Path, plan: str | None) -> Path:
    """Make a folder for the new files, with the usual permissions of a new folder."""
    stage = target / f"{_SAVING}{plan or secrets.token_hex(4)}"
    try:
        stage.mkdir()
    except FileExistsError:  # another save with this plan is running
        return _new_stage(target, None)
    return stage


def _stage_left(target: Path, plan: str | None) -> BinaryIO | None:
    """Lock and empty the manifest of the folder that a killed save with this plan has left.

    Other leftovers are removed.
    """
    ours, found = target / f"{_SAVING}{plan}", None
    with ExitStack() as stack, suppress(OSError):
        is_link = ours.is_symlink()  # no save has made it
        lock = None if is_link else stack.enter_context(open(ours / _MANIFEST, "r+b"))
        if lock and atomic.try_lock(lock):
            lock.truncate()  # the killed save may have written it
            stack.pop_all()
            found = lock
    for left in target.glob(f"{_SAVING}*"):
        if left != ours or not found:
            atomic.remove_dead(left, left / _MANIFEST)
    return found


def _files(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders, without hidden files, as relative paths."""
    files = (each for each in folder.rglob("*") if each.is_file() and each.name[0] != ".")
    return sorted(each.relative_to(folder).as_posix() for each in files)


def _check(target: Path, written: Sequence[str], entry: str) -> None:
    """Raise an error if the entry is missing, or a name of a file or folder is taken."""
    if entry not in written:
        raise ValueError(f"{entry} has not been written; no reader looks at the rest without it")
    for file in written:
        if (target / file).is_dir():
            raise IsADirectoryError(
                f"{os.fspath(target / file)!r} is a folder, and would be a file"
            )
        for parent in PurePosixPath(file).parents:
            if os.path.lexists(target / parent) and not (target / parent).is_dir():
                raise FileExistsError(
                    f"{os.fspath(target / parent)!r} is not a folder, and a folder is needed "
                    f"there; remove it"
                )


def _take_turn(target: Path, stage: Path, written: Sequence[str]) -> None:
    """Rename the stage to `.saved`; only one save at a time can do this."""
    saved, end = target / SAVED, time.monotonic() + PATIENCE
    while True:
        try:
            _complete(target, written)
        except FileNotFoundError:  # there is none, or another save does the same
            pass
        except PermissionError as error:
            raise PermissionError(
                f"{os.fspath(saved)!r} belongs to a save by another user that has not ended; "
                f"wait, ask them to save again, or name another folder ({error})"
            ) from error
        try:
            os.rename(stage, saved)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if time.monotonic() > end:
            raise TimeoutError(
                f"another process is saving into {os.fspath(target)!r} and has not ended for "
                f"{PATIENCE:g} seconds; wait until it has, or name another folder"
            )
        time.sleep(_PAUSE)


def _complete(target: Path, written: Sequence[str]) -> None:
    """Complete the save that has left `.saved`, or discard it if it is not valid.

    If its process is alive, do nothing.
    """
    saved = target / SAVED
    before = saved.lstat()
    if not stat.S_ISDIR(before.st_mode):
        raise FileExistsError(
            f"{os.fspath(saved)!r} is a link or no folder, and no save has made it; remove it"
        )
    if not os.path.lexists(saved / _MANIFEST):
        strange = [file for file in _files(saved) if file not in written]
        if not os.path.samestat(before, saved.lstat()):
            return  # the other save has ended, and a third save is running
        if strange:
            raise FileExistsError(
                f"{os.fspath(saved)!r} has files in it that no save of these has made, "
                f"{', '.join(strange)[:200]}; remove it"
            )
        _give_up_turn(target, [*_left_by_version_0_1(target)])
        return
    with open(saved / _MANIFEST, "r+b") as lock:
        try:
            is_free = atomic.try_lock(lock)
        except OSError:  # without locks, after such a long time, assume that it was killed
            is_old = os.fstat(lock.fileno()).st_mtime < time.time() - PATIENCE
            is_free = is_old and atomic.is_at_its_path(lock)
        if is_free:
            _give_up_turn(target, [*unfinished(target)])


def _give_up_turn(target: Path, valid: Sequence[str]) -> None:
    """Move the valid files in `.saved` to their targets, and remove the rest."""
    _move(target, valid)
    rest = target / f"{_SAVING}{secrets.token_hex(4)}"
    os.rename(target / SAVED, rest)
    with suppress(OSError):  # the next save does it
        atomic.remove(rest)


def _swap(target: Path, written: Sequence[str], entry: str) -> None:
    """Write the manifest, which makes the files in `.saved` valid, and move them."""
    saved = target / SAVED
    files = [*(file for file in written if file != entry), entry]
    manifest = {file: (_identity(target, file), _identity(saved, file)) for file in files}
    with open(saved / _MANIFEST, "r+b") as opened:
        opened.write(json.dumps(manifest).encode())
        atomic.flush(opened)
    atomic.flush_folder(saved)
    atomic.flush_folder(target)
    _move(target, files)


def _move(target: Path, files: Sequence[str]) -> None:
    """Move files from `.saved` to their targets, with little time between the renames."""
    moves = [(target / SAVED / file, target / file) for file in files]
    for _, path in moves:
        path.parent.mkdir(parents=True, exist_ok=True)
    if len(moves) > 2:
        moves[-1][1].unlink(missing_ok=True)
    for source, path in moves:
        os.replace(source, path)
    for folder in {path.parent for _, path in moves}:
        atomic.flush_folder(folder)


def _end(target: Path, stage: Path) -> None:
    """End a save, also after an error.

    If one new file has already replaced an old one, the new files are valid; else the old ones.
    """
    if not stage.exists():  # it is `.saved`
        with suppress(ValueError):  # the manifest is not filled in
            manifest = _manifest(target / SAVED)
            left = [file for file in manifest if os.path.lexists(target / SAVED / file)]
            replaced = [file for file, (old, _) in manifest.items() if old]
            if len(left) < len(manifest) or not all((target / file).exists() for file in replaced):
                _move(target, left)
        os.rename(target / SAVED, stage)
    with suppress(OSError):  # the next save does it
        atomic.remove(stage)
