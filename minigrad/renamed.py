"""Hints for missing names: the error for a missing name says which name to use instead.

The table `renamed.csv` has the names of version 0.1, and names that people know from PyTorch, PEFT,
JAX and numpy. Each name has an owner: a module or a class; "argument" for a keyword argument; or
"call" for a function whose arguments by position differ from those of its namesake in PyTorch.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources import files
from importlib.util import find_spec
from inspect import getattr_static
from types import ModuleType
from typing import Any, NoReturn, ParamSpec, TypeVar

from minigrad.checks import python_numbers
from minigrad.errors import named_errors, without_name

P = ParamSpec("P")
R = TypeVar("R")


@cache
def elsewhere() -> dict[str, dict[str, str]]:
    """Return the table: for each owner, missing names, and what to use instead of each."""
    table: dict[str, dict[str, str]] = {}
    content = (files("minigrad") / "renamed.csv").read_text(encoding="utf-8")  # also from a zip
    for row in csv.DictReader(content.splitlines()):
        table.setdefault(row["owner"], {}).update(dict.fromkeys(row["names"].split(), row["here"]))
    return table


def instead(owner: str, name: str) -> str:
    """Return a hint, after a semicolon, for a name that `owner` does not have; empty if unknown.

    The hint is from the table. If another module of minigrad has a class or function with the same
    name, the hint is its complete name, or what the table says of that module.
    """
    text = elsewhere().get(owner, {}).get(name)
    if text is None and (home := elsewhere()["minigrad 0.1"].get(f"{owner}.{name}")):
        text = f"its contents are in {home} since minigrad 0.2"
    may_be_elsewhere = owner == "Tensor" or owner.startswith("minigrad")  # no other class
    if text is None and not name.startswith("_") and may_be_elsewhere:
        homes = [home for home in _HOMES if home != owner and home in sys.modules]
        found = [home for home in homes if callable(vars(sys.modules[home]).get(name))]
        known = (elsewhere().get(home, {}).get(name) for home in homes)
        text = f"use {found[0]}.{name}" if found else next(filter(None, known), None)
    return "" if text is None else f"; {text}"


# The modules in which a name is searched that a tensor or another module does not have.
_HOMES = ["minigrad", "minigrad.nn", "minigrad.optim", "minigrad.io", "minigrad.data"]
_HOMES += ["minigrad.viz", "minigrad.metrics", "minigrad.sampling"]


def missing(owner: str, name: str, asked: Any) -> AttributeError:
    """Return the error for an attribute that a module or an object does not have."""
    if isinstance(asked, ModuleType):
        subject = f"module {asked.__name__!r}"
    else:
        subject = f"{type(asked).__name__!r} object"
        if name.startswith("__"):  # of a protocol; numpy looks up several each time
            return AttributeError(f"{subject} has no attribute {name!r}")
        if hasattr(type(asked), name):  # a property that raised an AttributeError itself
            object.__getattribute__(asked, name)
    hint = instead(owner, name)
    is_of_package = not name.startswith("_") and hasattr(asked, "__path__")
    if not hint and is_of_package and find_spec(module := f"{owner}.{name}"):
        hint = f"; it is a module, which `import {module}` loads"
    return AttributeError(f"{subject} has no attribute {name!r}{hint}", name=name, obj=asked)


def hint_names(module: str, lists_all: bool = False) -> None:
    """Let errors for missing names of a module say what to use instead.

    Unless it `lists_all`, Tab completes only its public names.
    """
    named = sys.modules[module]

    def __getattr__(name: str) -> NoReturn:  # noqa: N807  # as tracebacks show it
        raise missing(module, name, named)

    def __dir__() -> list[str]:  # noqa: N807  # as tracebacks show it
        return [*named.__all__, *(name for name in vars(named) if name.startswith("__"))]

    vars(named)["__getattr__"] = __getattr__
    if not lists_all:
        vars(named)["__dir__"] = __dir__


class _Elsewhere:
    """A descriptor for a missing attribute: accessing it raises an error with a hint."""

    def __init__(self, owner: str, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, asked: Any, kind: type) -> Any:
        if asked is not None:
            raise missing(self._owner, self._name, asked)
        raise AttributeError(f"type object {kind.__name__!r} has no attribute {self._name!r}")


def add_hints(kind: Any, owner: str) -> None:
    """Add hints to a class: the errors for names that its objects do not have say what to use.

    In Python 3.12 and later, `__getattr__` does this for any name. In 3.11, a class with
    `__getattr__` looks up all attributes more slowly; there, it is done for the names in the table.
    """
    if sys.version_info >= (3, 12):

        def __getattr__(self: Any, name: str) -> NoReturn:  # noqa: N807  # as tracebacks show it
            raise missing(owner, name, self)

        kind.__getattr__ = __getattr__
        return
    for name in elsewhere()[owner]:
        if not hasattr(kind, name):
            setattr(kind, name, _Elsewhere(owner, name))

    def listed(self: Any) -> list[str]:
        names = object.__dir__(self)
        return [n for n in names if not isinstance(getattr_static(self, n, None), _Elsewhere)]

    kind.__dir__ = listed


def instead_of_argument(error: TypeError) -> str:
    """Return a message that says what to use instead of an argument that a function does not take.

    The message is empty for other errors, and for arguments that the table does not have.
    """
    text = str(error)
    if found := re.search(r"unexpected keyword argument '(\w+)'", text):
        text, hint = found[0], instead("argument", found[1])
    elif found := re.search(
        r"(\w+)(?:\.__init__)?\(\) (?:takes .* positional|missing \d+ required|got multiple)", text
    ):
        text, hint = without_name(text), instead("call", found[1])
    else:
        return ""
    return f"{text}{hint}" if hint and hint not in str(error) else ""


def with_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: the error for an argument that it does not take has a hint."""

    @wraps(function)
    def hinted(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # from inside of the function
            if not (text := instead_of_argument(error)):
                raise
            is_constructor = function.__name__ == "__init__"
            name = type(args[0]).__name__ if is_constructor else function.__qualname__
            raise TypeError(f"{name}: {text}") from None

    return hinted


def helpful_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function with `named_errors` and `with_hints`."""
    return named_errors(with_hints(function))


def hint_arguments(kind: type) -> None:
    """Let errors of the constructor have the name of the class, and hints for wrong arguments.

    Also convert numbers of numpy (see `with_python_numbers`). In a user's class, an argument of the
    same name may mean something else, and an error inside may be about another class.
    """
    if kind.__module__.startswith(("minigrad.", "lora.")) and "__init__" in vars(kind):
        function = named_errors(with_python_numbers(with_hints(vars(kind)["__init__"])))
        setattr(kind, "__init__", function)  # noqa: B010  # for mypy


def with_python_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or a constructor: numbers of numpy become those of Python.

    `4 * size` of an integer of 8 bits would overflow, and `1 - beta` of a float16 would be rounded.
    """

    @wraps(function)
    def converted(*args: Any, **options: Any) -> Any:
        named = {key: python_numbers(value) for key, value in options.items()}
        return function(*map(python_numbers, args), **named)

    return converted


class _OldNames(MetaPathFinder):
    """An import finder that Python calls when no module of a name was found, to add a hint."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        owner, _, last = name.rpartition(".")
        if owner.startswith(("minigrad", "lora")):
            is_attribute = last in vars(sys.modules.get(owner, sys))  # such as a function
            home = elsewhere()["minigrad 0.1"].get(name)
            what = f"module `{name}` since minigrad 0.2; its contents are in {home}" if home else ""
            if not home and not is_attribute and (hint := instead(owner, last)):
                what = f"`{name}`{hint}"
            if what:
                # `from minigrad import cat` drops an error that names what it looks for; pydoc,
                # which then looks for a function, drops no other.
                sought = name if is_attribute else None
                raise ModuleNotFoundError(f"there is no {what}", name=sought)
        return None


sys.meta_path.append(_OldNames())
