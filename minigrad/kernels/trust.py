"""Decide from which folders and files machine code may be loaded.

A person who can write the machine code that a process loads can do anything in that process. So
folders and files are used only if they belong to this user or to root, and nobody else may write to
them, nor to a folder above. New folders and files are made so; if others may write to those of this
user, this is undone.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.resolve()


def others_may_write(path: Path | int, ours: bool = True) -> bool:
    """Return whether others than this user and root may change a file or folder.

    If minigrad made it for this user, they lose this permission. If not, it may be sticky, as the
    temporary folder is: there they cannot rename or delete what is not theirs. A group without
    other members may also write to it.
    """
    if not hasattr(os, "geteuid"):  # on Windows, which has other permissions
        return False
    facts, owners = os.stat(path), {os.geteuid(), 0}
    loose = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not ours:
        owners.add(os.stat("/").st_uid)  # in a user namespace, root may have another number
        is_sticky = facts.st_mode & stat.S_ISVTX
        if is_sticky or (loose == stat.S_IWGRP and _is_private(facts.st_gid)):
            loose = 0
    elif loose and facts.st_uid == os.geteuid():
        with suppress(OSError):  # as on a disk that is mounted to be read only
            os.chmod(path, stat.S_IMODE(facts.st_mode) & ~loose)
            loose = 0
    return bool(loose) or facts.st_uid not in owners


def _is_private(group: int) -> bool:
    """Return whether nobody else is in a group: many systems make one for each user."""
    import grp  # not on Windows, and seldom needed
    import pwd

    with suppress(KeyError):
        user, facts = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
        return facts.gr_name == user and {*facts.gr_mem} <= {user}
    return False


def suspect(folder: Path) -> Path | None:
    """Return the folder of kernels, or one above it, where others may exchange files, or None.

    Those that are missing or hidden are left out. So are those above the sources, for who may write
    there can change these as well.
    """
    folders = [folder] if PACKAGE in folder.parents else [folder, *folder.parents]
    for each in folders:
        with suppress(OSError):
            if others_may_write(each, ours=each in folders[:2]):
                return each
    return None


known_suspect = cache(suspect)
"""`suspect`, asked once of each folder."""
