"""What a composition is: a function whose errors bear its own name, whichever op raised them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def composition(function: Callable[P, R]) -> Callable[P, R]:
    """Put the name of `function` before what the ops inside it say of bad input."""
    name = function.__name__

    @wraps(function)
    def named(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        except (IndexError, TypeError, ValueError) as error:
            if str(error).startswith(f"{name}: "):
                raise
            for kind in (ValueError, IndexError, TypeError):  # the first one, for numpy's AxisError
                if isinstance(error, kind):
                    raise kind(f"{name}: {error}") from error
            raise

    return named
