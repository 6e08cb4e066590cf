"""Errors that know which function refused its arguments.

The text of such an error begins with the name of the function that the user called. A function that
calls others may have to put its own name in the place of theirs, or to tell their errors from those
of numpy: so the name is an attribute too, and nobody takes a text apart.
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=Exception)


def op_error(kind: type[E], op: str, message: str) -> E:
    """Make an error with the text `op: message`, which keeps both as attributes."""
    error = kind(f"{op}: {message}")
    vars(error).update(op=op, message=message)
    return error


def op_of(error: Exception) -> str | None:
    """Return the name of the function that refused its arguments, or None for another error."""
    op: str | None = vars(error).get("op")
    return op


def message_of(error: Exception) -> str:
    """Return what an error says, without the name of the function."""
    message: str = vars(error).get("message", str(error))
    return message
