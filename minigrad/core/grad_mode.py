"""What a thread is doing right now: whether it records a graph, and who observes it.

Both belong to the running thread, not to a tensor and not to the process: a data loader in another
thread must not switch off the gradients of the training loop.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")


class _Mode(threading.local):
    """The state of one thread: `(grad_enabled, observers)`, one tuple, since each op reads both.

    The class of the observers stands above in `minigrad.core.observers`, since it names the
    classes that are built on this module.
    """

    state: tuple[bool, tuple[Any, ...]] = (True, ())

    @property
    def grad_enabled(self) -> bool:
        return self.state[0]

    @property
    def observers(self) -> tuple[Any, ...]:
        return self.state[1]


mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether ops called by this thread record a graph."""
    return mode.grad_enabled


class grad_mode:  # noqa: N801  # reads as a function: `with grad_mode(False):`
    """Record a graph inside the block or the decorated function, or do not.

    Afterwards it is as before in any case. One object may be entered many times.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._thread = threading.local()  # for several threads may be inside at once

    def __enter__(self) -> None:
        before, observers = mode.state
        vars(self._thread).setdefault("before", []).append(before)
        mode.state = (self._enabled, observers)

    def __exit__(self, *_: object) -> None:
        mode.state = (self._thread.before.pop(), mode.observers)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, in this mode.

        Raises:
            TypeError: for a generator, whose body runs in between, when others have the word.
        """
        check_decorable(function)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with grad_mode(self._enabled):
                return function(*args, **kwargs)

        return wrapped


def check_decorable(function: Callable[..., Any]) -> None:
    """Refuse to put a function under a mode that does not run from start to end in one go.

    Raises:
        TypeError: for a generator or a coroutine.
    """
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{function.__name__} does not run from start to end in one go, so it cannot be "
            f"decorated; write `with` around the parts of its body that need it"
        )


@overload
def no_grad() -> grad_mode: ...
@overload
def no_grad(function: Callable[P, R]) -> Callable[P, R]: ...
def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """Ops inside record nothing, and their results need no gradient.

    `with no_grad():`, or as a decorator, `@no_grad` or `@no_grad()`.
    """
    return grad_mode(False) if function is None else grad_mode(False)(function)


@overload
def enable_grad() -> grad_mode: ...
@overload
def enable_grad(function: Callable[P, R]) -> Callable[P, R]: ...
def enable_grad(function: Callable[..., Any] | None = None) -> Any:
    """Ops inside record again, also within a `no_grad`.

    `with enable_grad():`, or as a decorator, `@enable_grad` or `@enable_grad()`.
    """
    return grad_mode(True) if function is None else grad_mode(True)(function)
