"""What the code of functions names, and whether a module is the user's own."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from inspect import iscode
from types import FunctionType
from typing import Any

FOREIGN = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}  # whose objects are not compared
LIBRARY = {"minigrad", "lora"}


def codes(function: Any) -> Sequence[Any]:
    """List the code objects of a function and of the functions inside it."""
    found = [function.__code__]
    for code in found:  # the loop appends to it
        found += filter(iscode, code.co_consts)
    return found


def variables_in(function: Any) -> set[str]:
    """Return the names of the global and closure variables of a function, without attributes."""
    loads = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"
    every = (each for code in codes(function) for each in dis.get_instructions(code))
    return {each.argval for each in every if each.opname in loads}


def texts(constants: Iterable[Any]) -> Iterator[str]:
    """List the strings among the constants of a code object, also in tuples."""
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, (tuple, frozenset)):
            yield from texts(each)


def special_methods(cls: type) -> set[str]:
    """Return the names of the special methods that a class itself defines."""
    kinds = FunctionType, property, staticmethod, classmethod, partial
    methods = (name for name, value in vars(cls).items() if isinstance(value, kinds))
    return {name for name in methods if name.startswith("__") and name.endswith("__")}


def package_of(module: str | None) -> str:
    """Return the name of the package that a module is in."""
    return (module or "").partition(".")[0]


def is_known(module: Any) -> bool:
    """Return whether no class, function or variable of this module is compared."""
    return not isinstance(module, str | None) or package_of(module) in FOREIGN | LIBRARY
