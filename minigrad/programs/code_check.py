"""What the code of a step may not do, found before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigrad.programs.code import codes, variables_in
from minigrad.programs.names import CaptureError
from minigrad.programs.surroundings import Surroundings

_UNNOTICED = {"environ", "getenv", "globals"}  # ways to variables that nothing compares


def check_code(step: Callable[..., Any], surroundings: Surroundings) -> None:
    """Raise a CaptureError if a step prints, reads values, or draws from iterators.

    The methods of other classes may only have the names of methods that the step calls. So if these
    read values, the recorder raises the error when they do.
    """
    for path in surroundings.iterators():
        raise CaptureError(
            f"capture: the step reads {path}, an iterator, and a program cannot follow how far it "
            f"is; take the next value outside of the step, and pass it as an argument"
        )
    whole = getattr(step, "func", step)  # of a partial
    kinds = type(getattr(whole, "__self__", whole)).__mro__
    own = {"", _owner(getattr(whole, "__qualname__", "")), *(kind.__qualname__ for kind in kinds)}
    for function in surroundings.functions:
        name, owner = function.__qualname__, _owner(function.__qualname__)
        is_own = owner in own or owner.endswith("<locals>")
        names = {each for code in codes(function) for each in code.co_names}
        variables = variables_in(function)
        calls = names & {"print", "pprint"} | variables & surroundings.printing
        if is_own:
            calls |= names & {"item", "tolist"}
        for each in sorted(calls):
            raise CaptureError(
                f"capture: {name} calls {each}(), which a program cannot do again; return the "
                f"tensor, and call {each}() outside of the step"
            )
        for each in sorted(_UNNOTICED & (names if "os" in variables else variables)):
            raise CaptureError(
                f"capture: {name} reads {each}, and nothing notices when a variable in it changes; "
                f"read it outside of the step, into a variable that the step uses"
            )


def _owner(name: str) -> str:
    """Return the name of the class, or of the function, in which a function is defined."""
    return name.rpartition(".")[0]
