"""Errors that know which function raised them.

The text of such an error begins with the name of the function that the user called. A function that
calls others may have to replace their names by its own, or to distinguish their errors from those
of numpy. So the name is an attribute too, and no code has to parse a text.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def op_error(kind: type[E], op: str, message: str) -> E:
    """Make an error with the text `op: message`, which has both as attributes."""
    error = kind(f"{op}: {message}")
    vars(error).update(op=op, message=message)
    return error


def op_of(error: Exception) -> str | None:
    """Return the name of the function that raised the error, or None for another error."""
    return vars(error).get("op")
