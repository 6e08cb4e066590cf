"""Locks that are renewed in a forked child process.

A child has only the thread that forked. A lock that another thread held at that moment would never
be released there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_known = WeakKeyDictionary[Any, dict[str, Callable[[], Any]]]()


def renewed_in_child(owner: Any, name: str, make: Callable[[], T]) -> T:
    """Return a new lock for the attribute `name` of `owner`, a module, a class or an object.

    After each fork, this attribute of the child is another new lock. The old one is not released,
    because the thread that forked may hold it, and would release it once more.
    """
    _known.setdefault(owner, {})[name] = make
    return make()


def _renew() -> None:
    for owner, locks in list(_known.items()):
        for name, make in locks.items():
            setattr(owner, name, make())


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew)
