"""Replacing several files that belong together with new ones, all or none of them.

Two files cannot be renamed at once, so a kill between two renames would leave some new and some old
ones. The new files are therefore written to a folder inside of theirs, and the name of that folder
and a manifest in it say whether they count:

    .saving-...     being written: of no meaning to any reader
    .saved          with a manifest: the new files count, instead of those that it names

The manifest is a file that the saver holds a lock on, and that it fills in last. It has the size
and time of each file that will be replaced, and of the new one. The new files count only while
these files, or nothing, lie there: what another program writes later counts more, and no folder
that was downloaded or is a link has the times by chance. From `.saved` the new files move to their
targets, one directly after the other, and the entry last: that is the file without which no reader
looks at the others.

A reader that uses `find` sees either the old files or the new ones, at any time, and writes
nothing. Other readers do so too, except between two renames. If only one file differs, there is no
such moment. If more than two do, the entry is removed before and is missing meanwhile, because
nobody could tell a mixture from a model.

A long save may have a plan, a name for what it makes of which inputs, which its folder is called
by. If it is killed, the next save with the same plan takes the folder over.
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

from minigrad.io.atomic import create_locked, flush, flush_folder, remove, remove_dead, try_lock

PATIENCE = 10.0
"""The seconds that a save waits for another one that is replacing files in the same folder."""

SAVED = ".saved"
"""The name of the folder whose files count instead of those beside it."""

_SAVING = ".saving-"
_MANIFEST = ".manifest.json"
_LARGEST_MANIFEST = 1 << 24  # bytes; a hundred thousand files take less
_SMALL = 1 << 24  # bytes of a file that is compared with the old one
_PAUSE = 0.01  # seconds


@contextmanager
def replacing_together(
    folder: str | os.PathLike[str], entry: str, plan: str | None = None
) -> Iterator[Path]:
    """Make a folder to write files to, which replace those in `folder` all together.

    Args:
        folder: the target, made if it is not there. New files may be in folders; others stay.
            Those whose names begin with a dot are not moved.
        entry: the name of the file without which no reader looks at the others.
        plan: a hash of all that the files follow from. A folder that a save with this plan has left
            when it was killed, or when a process of its own was (a ChildProcessError), is taken
            over with all that is in it, which may be incomplete. This needs locks of files.

    Raises:
        OSError: if they cannot be written, as where a folder has the name of a file, or another
            save does not end; the old files are as they were, and a folder that was made is gone.
            If it fails after one of them has been replaced, the new ones count.
        ValueError: if the entry has not been written.
    """
    target = Path(folder)
    made = [each for each in (target, *target.parents) if not each.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        left = _stage_left(target, plan)
        with left or create_locked(lambda: _new_stage(target, plan) / _MANIFEST) as manifest:
            stage, is_kept = Path(manifest.name).parent, False
            if os.name == "nt":  # which renames no folder with a file that is open
                manifest.close()
            try:
                yield stage
                written = _files(stage)
                _check(target, written, entry)
                for file in written:
                    with open(stage / file, "rb+") as opened:
                        flush(opened)
                _take_turn(target, stage, written)
                _swap(target, written, entry)
            except ChildProcessError:
                is_kept = plan is not None
                raise
            finally:
                if not is_kept:
                    _end(target, stage)
    except BaseException:
        with suppress(OSError):  # another process may have put a file there
            for folder_made in made:
                folder_made.rmdir()
        raise


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a file that `replacing_together` wrote, also if it was killed.

    The file may exist or not, as with any path.
    """
    return unfinished(folder).get(name, Path(folder) / name)


def unfinished(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the paths of the files that a broken save has left in `.saved`, by their names.

    The result is empty if the files in the folder are not those that the manifest names: something
    newer was saved. Missing files do not matter. The files of a save of version 0.1, which has no
    manifest, count if one of them is missing beside them, and a UserWarning says so.
    """
    found, has_manifest = _unfinished(Path(folder))
    if found and not has_manifest:
        warnings.warn(
            f"{os.fspath(folder)!r} lacks files, so {', '.join(found)[:200]} are read from {SAVED} "
            f"in it, which a save of version 0.1 that was broken off has left; save again, or move "
            f"the files out of it",
            stacklevel=2,
        )
    return found


def _unfinished(target: Path) -> tuple[dict[str, Path], bool]:
    """Return what `unfinished` does, without a warning, and whether there was a manifest."""
    saved, found, has_manifest = target / SAVED, {}, False
    try:
        if not stat.S_ISDIR(saved.lstat().st_mode):  # a link, for example
            return {}, False
        if has_manifest := os.path.lexists(saved / _MANIFEST):
            for name, (old, new) in _manifest(saved).items():
                left, there = _identity(saved, name), _identity(target, name)
                is_moved = left is None and there == new
                if not is_moved and (left != new or there not in (None, old, new)):
                    return {}, True
                if left is not None:
                    found[name] = saved / name
        else:
            names = _files(saved)
            if any(not os.path.lexists(target / name) for name in names):
                found = {name: saved / name for name in names}
        return (found if all(map(_is_plain, found.values())) else {}), has_manifest
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}, False  # it is being written, or is another user's, or has no manifest of ours


def _manifest(saved: Path) -> Any:
    """Read a manifest, the identity of the old file and of the new one by name."""
    if not _is_plain(saved / _MANIFEST):
        raise ValueError("a manifest is a file")
    with open(saved / _MANIFEST, "rb") as file:
        return json.loads(file.read(_LARGEST_MANIFEST))


def _identity(root: Path, name: str) -> list[int] | None:
    """Return the size and time of a file in a folder; None if it is not there.

    A ValueError is raised if the name leads out of the folder, as through a link.
    """
    path = root / name
    is_inside = path.parent.resolve() == root.resolve() / PurePosixPath(name).parent
    if not is_inside or not path.is_relative_to(root):
        raise ValueError(f"{name!r} leads out of {os.fspath(root)!r}")
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _is_plain(path: Path) -> bool:
    """Tell whether a path is that of a file, and not of a link or pipe."""
    return stat.S_ISREG(path.lstat().st_mode)


def _new_stage(target: Path, plan: str | None) -> Path:
    """Make a folder to write new files to, with the permissions that any new folder has."""
    stage = target / f"{_SAVING}{plan or secrets.token_hex(4)}"
    try:
        stage.mkdir()
    except FileExistsError:  # another save with this plan is at work
        return _new_stage(target, None)
    return stage


def _stage_left(target: Path, plan: str | None) -> BinaryIO | None:
    """Lock the manifest of a folder that a save with this plan has left; remove other leftovers."""
    found = None
    for left in target.glob(f"{_SAVING}*"):
        is_ours = left.name == f"{_SAVING}{plan}" and not left.is_symlink()
        lock = _take_over(left / _MANIFEST) if is_ours else None
        if lock is None:
            remove_dead(left, left / _MANIFEST)
        found = found or lock
    return found


def _take_over(manifest: Path) -> BinaryIO | None:
    """Lock the manifest that a dead save has left, and empty it; return None if there is none."""
    with ExitStack() as stack, suppress(OSError):
        lock = stack.enter_context(open(manifest, "r+b"))
        if try_lock(lock) and os.path.samestat(os.fstat(lock.fileno()), os.stat(manifest)):
            lock.truncate()  # a save that was about to end had filled it in
            stack.pop_all()
            return lock
    return None


def _files(folder: Path) -> list[str]:
    """List the files in a folder and in those inside of it, relative to it, but no hidden ones."""
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    shown = (each for each in found if not each.name.startswith("."))
    return sorted(each.relative_to(folder).as_posix() for each in shown)


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
                    f"{os.fspath(target / parent)!r} is no folder, and would be one; take it away"
                )


def _take_turn(target: Path, stage: Path, written: Sequence[str]) -> None:
    """Rename the stage to `.saved`, which one save can do at a time."""
    saved, end = target / SAVED, time.monotonic() + PATIENCE
    while True:
        if os.path.lexists(saved):
            try:
                _complete(target, written)
            except FileNotFoundError:  # another save does the same
                pass
            except PermissionError as error:
                raise PermissionError(
                    f"{os.fspath(saved)!r} belongs to a save by another user that has not ended; "
                    f"wait, ask them to save again, or name another folder ({error})"
                ) from error
        try:
            os.rename(stage, saved)
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
        if time.monotonic() > end:
            raise TimeoutError(
                f"another process is saving into {os.fspath(target)!r} and has not ended for "
                f"{PATIENCE:g} seconds; wait until it has, or name another folder"
            )
        time.sleep(_PAUSE)


def _complete(target: Path, written: Sequence[str]) -> None:
    """Complete the save that has left `.saved`, or give it up if it does not count.

    If its process is alive, nothing is done.
    """
    saved = target / SAVED
    text = repr(os.fspath(saved))
    before = saved.lstat()
    if not stat.S_ISDIR(before.st_mode):
        raise FileExistsError(
            f"{text} is a link or no folder, and no save has made it; take it away"
        )
    if not os.path.lexists(saved / _MANIFEST):
        if not os.path.samestat(before, saved.lstat()):
            return  # the other save has ended, and a third one has its turn
        if strange := [file for file in _files(saved) if file not in written]:
            raise FileExistsError(
                f"{text} has files in it that no save of these has made, {', '.join(strange)[:200]}"
                f"; take it away"
            )
        _give_up_turn(target)
        return
    with open(saved / _MANIFEST, "r+b") as lock:
        found = os.fstat(lock.fileno())
        try:
            is_free = try_lock(lock)
        except OSError:  # without locks, a swap that takes so long has been broken off
            is_free = found.st_mtime < time.time() - PATIENCE
        if is_free and os.path.samestat(found, os.stat(saved / _MANIFEST)):
            _give_up_turn(target)


def _give_up_turn(target: Path) -> None:
    """Move what counts in `.saved` to its target, and remove the rest."""
    _move(target, list(_unfinished(target)[0]))
    rest = target / f"{_SAVING}{secrets.token_hex(4)}"
    os.rename(target / SAVED, rest)
    with suppress(OSError):  # the next save does it
        remove(rest, rest / _MANIFEST)


def _swap(target: Path, written: Sequence[str], entry: str) -> None:
    """Fill in the manifest, from which on the files in `.saved` count, and move them."""
    saved = target / SAVED
    changed = [
        file for file in written if file != entry and not _is_same(saved / file, target / file)
    ]
    if len(changed) > 1 or not _is_same(saved / entry, target / entry):
        changed.append(entry)
    manifest = {file: (_identity(target, file), _identity(saved, file)) for file in changed}
    with open(saved / _MANIFEST, "r+b") as opened:
        opened.write(json.dumps(manifest).encode())
        flush(opened)
    flush_folder(saved)
    flush_folder(target)
    _move(target, changed)


def _is_same(new: Path, old: Path) -> bool:
    """Tell whether a small file is the same as the old one, so that it need not be replaced."""
    if old.is_symlink() or not old.is_file() or old.stat().st_size != new.stat().st_size:
        return False
    return new.stat().st_size <= _SMALL and new.read_bytes() == old.read_bytes()


def _move(target: Path, files: Sequence[str]) -> None:
    """Move files from `.saved` to their targets, with nothing between two of these renames.

    The old files stay open meanwhile. Otherwise a rename would also free the blocks of the file
    that it replaces, which takes a tenth of a second for some hundred megabytes.
    """
    moves = [(target / SAVED / file, target / file) for file in files]
    for _, path in moves:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for _, path in moves:
            if os.name != "nt" and path.is_file():  # Windows does not replace files that are open
                with suppress(PermissionError):
                    stack.enter_context(open(path, "rb"))
        if len(moves) > 2:
            moves[-1][1].unlink(missing_ok=True)
        for source, path in moves:
            os.replace(source, path)
    for folder in {path.parent for _, path in moves}:
        flush_folder(folder)


def _end(target: Path, stage: Path) -> None:
    """End a save, also one that was broken off.

    Its files count if one of them has replaced an old one already, and else the old ones do.
    """
    if not stage.exists():  # it is `.saved`
        with suppress(ValueError):  # the manifest is not filled in
            manifest = _manifest(target / SAVED)
            left = [file for file in manifest if os.path.lexists(target / SAVED / file)]
            gone = [
                file for file, (old, _) in manifest.items()
                if old is not None and not os.path.lexists(target / file)
            ]  # fmt: skip
            if gone or len(left) < len(manifest):
                _move(target, left)
        os.rename(target / SAVED, stage)
    with suppress(OSError):  # the next save does it
        remove(stage, stage / _MANIFEST)
