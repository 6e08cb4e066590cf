"""What functions and classes contain: code objects, strings, closure variables, special methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any


def codes(function: Any) -> Iterator[CodeType]:
    """List the code objects of a function and of the functions inside it."""
    found = [function.__code__]
    for code in found:  # the loop appends to it
        found += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return iter(found)


def texts(constants: Iterable[Any]) -> Iterator[str]:
    """List the strings among the constants of a code object, also in tuples."""
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, (tuple, frozenset)):
            yield from texts(each)


def value_in(cell: Any) -> Any:
    """Return the value of a closure variable, or None if it has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def special_methods(cls: type) -> list[str]:
    """List the special methods that a class itself defines."""
    methods = FunctionType, property, staticmethod, classmethod, partial
    return [
        name
        for name, value in vars(cls).items()
        if name.startswith("__") and name.endswith("__") and isinstance(value, methods)
    ]
