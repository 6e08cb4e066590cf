"""Errors with the name of the function that raised them.

The message of such an error begins with the name of the function that the user called. A function
that calls other functions may have to replace their names by its own name, or to distinguish their
errors from numpy's. So the name is also an attribute, and no code has to parse a message.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def op_error(kind: type[E], op: str, message: str) -> E:
    """Make an error with the text `op: message`; both parts are attributes too."""
    error = kind(f"{op}: {message}")
    vars(error).update(op=op, message=message)
    return error


def none_given(name: str) -> str:
    """Return the message for an argument that is None instead of a tensor."""
    return (
        f"takes tensors, arrays and numbers, not None for {name}; a function that ends without "
        f"`return` gives None"
    )


def op_of(error: Exception) -> str | None:
    """Return the name of the function that raised the error, or None for another error."""
    return vars(error).get("op")
