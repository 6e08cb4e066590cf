"""Names that are not here: asking for one raises an error that says which name is.

The table beside this file has the names of version 0.1, and those that people are used to from
PyTorch, PEFT, JAX and numpy, each with its owner: a module, a class, or "argument".
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources import files
from inspect import getattr_static
from types import ModuleType
from typing import Any


@cache
def elsewhere() -> dict[str, dict[str, str]]:
    """Return the table: for each owner the names that it does not have, with what to use."""
    table: dict[str, dict[str, str]] = {}
    content = (files("minigrad") / "renamed.csv").read_text(encoding="utf-8")  # also from a zip
    for row in csv.DictReader(content.splitlines()):
        table.setdefault(row["owner"], {}).update(dict.fromkeys(row["names"].split(), row["here"]))
    return table


def instead(owner: str, name: str) -> str:
    """Return what to use instead of a name that `owner` does not have, after a semicolon.

    It is in the table; or, for a class or function that has this very name elsewhere in minigrad,
    it is the complete name. The result is empty if there is nothing like it.
    """
    text = elsewhere().get(owner, {}).get(name)
    for home in _HOMES.get(owner, ()) if text is None else ():
        module = sys.modules.get(home)
        if callable(vars(module).get(name)) and not name.startswith("_"):
            text = f"use {home}.{name}"
            break
    return "" if text is None else f"; {text}"


# The modules in which something that is asked of an owner may be.
_HOMES = {
    "Tensor": ("minigrad",),
    "minigrad": ("minigrad.nn", "minigrad.optim", "minigrad.io", "minigrad.data", "minigrad.viz"),
    "minigrad.nn": ("minigrad", "minigrad.optim"),
}


def missing(owner: str, name: str, asked: Any) -> AttributeError:
    """Return the error for an attribute that a module or an object does not have."""
    if isinstance(asked, ModuleType):
        subject = f"module {asked.__name__!r}"
    else:
        subject = f"{type(asked).__name__!r} object"
        if name.startswith("__"):  # one of a protocol; numpy asks for several of them each time
            return AttributeError(f"{subject} has no attribute {name!r}")
        if hasattr(type(asked), name):  # a property, which raised an error of its own
            object.__getattribute__(asked, name)
    text = f"{subject} has no attribute {name!r}{instead(owner, name)}"
    return AttributeError(text, name=name, obj=asked)


class _Elsewhere:
    """An attribute that a class does not have: asking for it says what to use instead."""

    def __init__(self, owner: str, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, asked: Any, kind: type) -> Any:
        if asked is not None:
            raise missing(self._owner, self._name, asked)
        raise AttributeError(f"type object {kind.__name__!r} has no attribute {self._name!r}")


def add_hints(kind: type, owner: str) -> None:
    """Let objects of a class say what to use for the names in the table that they do not have.

    From Python 3.12 on `__getattr__` does this for any name; in 3.11 a class that has it looks up
    all of its attributes more slowly.
    """
    for name in elsewhere()[owner]:
        if not hasattr(kind, name):
            setattr(kind, name, _Elsewhere(owner, name))

    def listed(self: Any) -> list[str]:
        names = object.__dir__(self)
        return [n for n in names if not isinstance(getattr_static(self, n, None), _Elsewhere)]

    kind.__dir__ = listed  # type: ignore[assignment]


def instead_of_keyword(error: TypeError) -> str:
    """Return what to use instead of a keyword that a function does not have, if the error is that.

    It is a complete message; empty for another error, and for another keyword.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    hint = instead("argument", found[1]) if found else ""
    return f"{found[0]}{hint}" if found and hint else ""


class _OldNames(MetaPathFinder):
    """A finder that Python asks when no module of a name was found."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        owner, _, last = name.rpartition(".")
        if owner.startswith(("minigrad", "lora")):
            home = elsewhere()["minigrad 0.1"].get(name)
            since = f" since minigrad 0.2; its contents are in {home}" if home else ""
            if hint := since or instead(owner, last):
                raise ModuleNotFoundError(f"there is no module `{name}`{hint}", name=name)
        return None


sys.meta_path.append(_OldNames())
