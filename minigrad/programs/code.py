"""What the code of functions names, and whether a module is the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from inspect import iscode
from typing import Any

FOREIGN = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}  # whose objects are not compared
LIBRARY = {"minigrad", "lora"}


def codes(function: Any) -> Sequence[Any]:
    """List the code objects of a function and of the functions inside it."""
    found = [function.__code__]
    for code in found:  # the loop appends to it
        found += filter(iscode, code.co_consts)
    return found


def texts(constants: Iterable[Any]) -> Iterator[str]:
    """List the strings among the constants of a code object, also in tuples."""
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, (tuple, frozenset)):
            yield from texts(each)


def package_of(module: str | None) -> str:
    """Return the name of the package that a module is in."""
    return (module or "").partition(".")[0]


def is_known(module: Any) -> bool:
    """Return whether no class, function or variable of this module is compared."""
    return not isinstance(module, str | None) or package_of(module) in FOREIGN | LIBRARY
