"""The mode of a thread: whether it records a graph, and which observers watch it.

Both belong to a thread, not to a tensor or to the process. So a data loader in another thread
cannot switch off the gradients of the training loop.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")


class _Mode(threading.local):
    """The state of one thread, `(grad_enabled, observers)`: one tuple, because each op reads both.

    The class `Observer` is in `minigrad.core.observers`, which imports modules that need this one.
    """

    state: tuple[bool, tuple[Any, ...]] = (True, ())
    no_grad_blocks: int = 0  # how many the thread is inside of, even if `enable_grad` is active
    captured_steps: int = 0  # how many the thread runs itself, and not as programs
    in_forward: bool = False  # whether the forward function of an op runs, while observers watch

    @property
    def grad_enabled(self) -> bool:
        return self.state[0]

    @property
    def observers(self) -> tuple[Any, ...]:
        return self.state[1]


mode = _Mode()


def observed(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function that is not an op, and report the call to the observers of this thread.

    The library uses it wherever it computes with arrays outside of ops, draws random numbers, or
    changes something in a training step.
    """
    observers = mode.state[1]
    if not observers:
        return function(*arguments)
    result: Any = None
    for observer in observers:
        observer.on_function(function, arguments, True, None)
    try:
        result = function(*arguments)
        for observer in observers:
            result = observer.on_result(result)
    finally:
        for observer in observers:
            observer.on_function(function, arguments, False, result)
    return result  # type: ignore[no-any-return]  # what the function returned


@contextmanager
def unobserved(grad_enabled: bool) -> Iterator[None]:
    """In a `with` block, hide this thread from observers; set whether it records a graph."""
    before, mode.state = mode.state, (grad_enabled, ())
    try:
        yield
    finally:
        mode.state = before


def is_grad_enabled() -> bool:
    """Return whether ops that this thread calls record a graph."""
    return mode.grad_enabled


class grad_mode(ContextDecorator):  # noqa: N801  # reads as a function: `with grad_mode(False):`
    """Set whether a `with` block or a decorated function records a graph.

    At the end the earlier mode is restored, also after an error. One object may be entered several
    times. Blocks of one thread must be nested. If two overlap, because generators or tasks of
    asyncio wait inside them, the block that ends last restores the mode in which it began.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._thread = threading.local()  # several threads may use one object at once

    def __enter__(self) -> None:
        before, observers = mode.state
        vars(self._thread).setdefault("blocks", []).append(before)
        mode.state = (self._enabled, observers)
        mode.no_grad_blocks += not self._enabled

    def __exit__(self, *_: object) -> None:
        before = open_blocks(self._thread, "no_grad or enable_grad")
        mode.state = (before[-1], mode.state[1])
        before.pop()
        mode.no_grad_blocks -= not self._enabled

    def __call__(self, function: F) -> F:
        """Decorate `function`, so that it runs in this mode.

        Raises:
            TypeError: if it is a generator or a coroutine, whose body would run after the mode is
            restored.
        """
        check_runs_at_once(function)
        return super().__call__(function)


def open_blocks(thread: threading.local, name: str) -> list[Any]:
    """Return what the open `with` blocks of this thread have saved, the innermost last.

    Each block appends to the attribute `blocks` when it begins.

    Raises:
        RuntimeError: if no block is open, because the one that ends began in another thread.
    """
    blocks: list[Any] = vars(thread).get("blocks", [])
    if not blocks:
        raise RuntimeError(
            f"a block of {name} ends in another thread than it began in; advance and close a "
            f"generator with such a block in one thread only"
        )
    return blocks


def check_runs_at_once(
    function: Callable[..., Any],
    instead: str = "it cannot be decorated, so write `with` around the parts that need it",
    role: str = "",
) -> None:
    """Raise a TypeError for a generator or a coroutine, whose body waits when it is called.

    `instead` and `role` are the end and the beginning of the message.
    """
    kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    if any(is_one(function) for is_one in kinds):
        name = getattr(function, "__name__", repr(function))  # a partial has no name
        raise TypeError(
            f"{role}{name:.80} is a generator or a coroutine, which does not run from start to end "
            f"in one go; {instead}"
        )


@overload
def no_grad() -> grad_mode: ...
@overload
def no_grad(function: F) -> F: ...
def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """Record no graph: results of ops inside require no gradient.

    Use it as `with no_grad():`, or as a decorator, `@no_grad` or `@no_grad()`. It holds for the
    thread that enters the block, also while a generator or a task of asyncio waits inside; so end
    the block before a `yield` or an `await`.

    Raises:
        TypeError: if it decorates a generator or a coroutine, whose body would run later, or what
            is not a function.
    """
    return grad_mode(False) if function is None else _decorated("no_grad", False, function)


@overload
def enable_grad() -> grad_mode: ...
@overload
def enable_grad(function: F) -> F: ...
def enable_grad(function: Callable[..., Any] | None = None) -> Any:
    """Record a graph of the ops inside, even within `no_grad`.

    Use it as `with enable_grad():`, or as a decorator, `@enable_grad` or `@enable_grad()`.

    Raises:
        TypeError: as in `no_grad`.
    """
    return grad_mode(True) if function is None else _decorated("enable_grad", True, function)


def _decorated(name: str, enabled: bool, function: F) -> F:
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            f"{name} decorates a function, not {function!r:.60}; write `with {name}():`"
        )
    return grad_mode(enabled)(function)
