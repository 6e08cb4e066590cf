"""What the stack of calls tells about the op that is running."""

from __future__ import annotations

import sys

from minigrad.core import backward as engine
from minigrad.core.checkpoint import Run
from minigrad.diagnostics.origin import is_of_the_library
from minigrad.nn.module import Module


def inside_a_rule() -> bool:
    """Whether a derivative rule, or the engine itself, has called the present op.

    Hooks, and the second forward pass of a checkpoint, run inside a backward pass as well.
    """
    by_user = False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _AGAIN or (frame.f_code is _HOOKS and by_user):
            return False
        if frame.f_code is _BACKWARD:
            return True
        by_user = by_user or not is_of_the_library(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return False


def layer() -> str | None:
    """The innermost module that is being called, by its name in the outermost; None outside any.

    The user's line may be `model(x)`, and the model have a hundred layers.
    """
    called: list[Module] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            called.append(frame.f_locals["self"])
        frame = frame.f_back  # type: ignore[assignment]
    if not called:
        return None
    inner, outer = called[0], called[-1]
    name = next((name for name, module in outer.named_modules() if module is inner), "")
    kind = type(inner).__name__
    return f"{name} ({kind}) of the {type(outer).__name__}" if name else f"the {kind}"


_BACKWARD = engine.propagate.__code__
_HOOKS = engine.show.__code__
_AGAIN = Run.again.__code__
_CALL = Module.__call__.__code__
