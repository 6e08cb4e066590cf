"""Errors with the name of the function that raised them.

The message of such an error begins with the name of the function that the user called. A function
that calls other functions may have to replace their names by its own name, or to distinguish their
errors from numpy's. So the name is also an attribute, and no code has to parse a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

E = TypeVar("E", bound=Exception)
P = ParamSpec("P")
R = TypeVar("R")


def op_error(kind: type[E], op: str, message: str, call: str = "") -> E:
    """Make an error with the text `op: message`; both parts are attributes too.

    `call` is the end of the message, from `called_with`. A function that calls `op` replaces it.
    """
    error = kind(f"{op}: {message}{call}")
    vars(error).update(op=op, message=message + call, call=call)
    return error


def named_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: the message of an error begins with its name, as the message of an op's.

    The name takes the place of that of a function inside. It is the name of the class for a
    constructor and for `forward`.
    """

    @wraps(function)
    def named(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        except (TypeError, ValueError) as error:
            of_class = function.__name__ in ("__init__", "__post_init__", "forward")
            name = type(args[0]).__name__ if of_class else function.__name__
            # Without the name of a function inside:
            message = without_name(vars(error).get("message", str(error)))
            if type(error) in (TypeError, ValueError) and not re.match(rf"{name}\b", message):
                error.args = (f"{name}: {message}",)
                vars(error).update(op=name, message=message)
            raise

    return named


def without_name(message: str) -> str:
    """Return the message of Python about the arguments of a call, without the name before it."""
    return re.sub(r"^[\w.<>]+\(\) (?=missing|takes|got)", "", message)


def none_given(name: str) -> str:
    """Return the message for an argument that is None instead of a tensor."""
    return (
        f"takes tensors, arrays and numbers, not None for {name}; a function that ends without "
        f"`return` gives None"
    )


def op_of(error: Exception) -> str | None:
    """Return the name of the function that raised the error, or None for another error."""
    return vars(error).get("op")


def called_with(args: Sequence[Any], options: Mapping[str, Any] | None = None) -> str:
    """Return the end of a message that describes the arguments of a call, arrays by their shape."""
    named = [f"{name}={_described(value)}" for name, value in (options or {}).items()]
    given = ", ".join([*map(_described, args), *named])
    return given and f"; it was called with {given:.1000}"


def _described(value: Any) -> str:
    if isinstance(value, type):  # a dtype of numpy has the attributes of its arrays
        return f"{value!r:.50}"
    if isinstance(value, (list, tuple)) and any(hasattr(each, "dtype") for each in value):
        return f"[{', '.join(map(_described, value))}]"
    return f"{value.shape} {value.dtype}" if hasattr(value, "dtype") else f"{value!r:.50}"
