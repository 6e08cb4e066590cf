"""What the code of functions names, what that of a step may not do, and whose module it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import iscode
from typing import Any

FOREIGN = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}  # whose objects are not compared
LIBRARY = {"minigrad", "lora"}


class CaptureError(RuntimeError):
    """The step does something that cannot be captured; the message says what to do instead."""


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


def check_code(step: Callable[..., Any], functions: Iterable[Any]) -> None:
    """Raise a CaptureError if a step prints or reads values; `functions` are those that it calls.

    The methods of other classes may only have the names of methods that the step calls. So if these
    read values, the recorder raises the error when they do.
    """
    whole = getattr(step, "func", step)  # of a partial
    named = whole if hasattr(whole, "__qualname__") else type(whole).__call__
    own = {"", _owner(named.__qualname__)}
    for function in functions:
        name, owner = function.__qualname__, _owner(function.__qualname__)
        is_own = owner in own or owner.endswith("<locals>")
        refused = {"print", "pprint"} | ({"item", "tolist"} if is_own else set())
        for each in sorted(refused & {each for code in codes(function) for each in code.co_names}):
            raise CaptureError(
                f"capture: {name} calls {each}(), which a program cannot do again; return the "
                f"tensor, and call {each}() outside of the step"
            )


def _owner(name: str) -> str:
    """Return the name of the class, or of the function, in which a function is defined."""
    return name.rpartition(".")[0]
