"""What the code of a step may not do, found before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from minigrad.programs.code import codes
from minigrad.programs.names import CaptureError


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
