"""What a thread is doing right now: whether it records a graph, and who watches.

Both belong to the running thread, not to a tensor and not to the process: a data loader in another
thread must not switch off the gradients of the training loop.

`Observer` is the one place where the library can be watched. A receipt, an anomaly detector, a
liveness report and a drawing all need the same few facts (an op was called, a rule was run), so
these are announced here, and nothing has to be patched. When nobody watches, it costs the test of
an empty tuple.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from minigrad.graph import Node
    from minigrad.nn import Module
    from minigrad.op import Op
    from minigrad.optim import Optimizer
    from minigrad.tensor import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Observer:
    """Base class of those who watch; override what you want to see, the rest costs nothing."""

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """`op` was called on `inputs` (Tensors, arrays and options as given) and gave `result`."""

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        """In a backward pass, a rule of `node.op` turned the arriving `gradient` into `place`'s."""

    def on_gradient(self, node: Node, place: Node, gradient: Any) -> None:
        """What that rule gave, in the shape and dtype of `place` now, is about to go on there."""

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """The whole gradient of `node`, which was asked for, is there, after its hooks.

        It is about to be added to `before`, its `.grad`, if it has one. Nothing is written before
        all that arrives in a pass has been announced.
        """

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """A backward pass is about to start from `output`, with `gradient`."""

    def on_accumulate(self, place: Node, gradient: Tensor) -> None:
        """`gradient` is about to be added to the `.grad` of the tensor at `place`."""

    def on_free(self, node: Node) -> None:
        """`node` is about to let go of the arrays it saved for backward."""

    def on_pass(self, begins: bool) -> None:
        """A backward pass begins, or has ended; it may run inside another one.

        `is_grad_enabled()` tells whether it is recorded. Its end is announced also after an error.
        """

    def on_rerun(self, begins: bool) -> None:
        """In a backward pass, a checkpoint begins to run its function again, or has ended."""

    def on_step(self, optimizer: Optimizer) -> None:
        """`optimizer` has changed its parameters; their gradients are still there."""

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """`how`, such as "detach()", gave `value` out of `tensor`: no gradient follows it there.

        `value` is a Tensor or an array in the same memory, or None where it is given as numbers.
        """

    def on_module(self, module: Module, begins: bool) -> None:
        """The `forward` of `module` is about to run, or has ended, perhaps with an error."""

    def on_random(self, generator: np.random.Generator) -> None:
        """`generator` is about to be drawn from."""


class _Mode(threading.local):
    """The state of one thread: `(grad_enabled, observers)`, one tuple, for each op reads both."""

    state: tuple[bool, tuple[Observer, ...]] = (True, ())

    @property
    def grad_enabled(self) -> bool:
        return self.state[0]

    @property
    def observers(self) -> tuple[Observer, ...]:
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


class backward_pass(grad_mode):  # noqa: N801  # as above
    """The mode of a backward pass, recorded or not, which observers are told of."""

    def __enter__(self) -> None:
        super().__enter__()
        for observer in mode.observers:
            observer.on_pass(True)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for observer in mode.observers:
            observer.on_pass(False)


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


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what this thread does inside the block.

    A block may end before one that began later, as in a generator: only its own observer goes.
    """
    mode.state = (mode.grad_enabled, (*mode.observers, observer))
    try:
        yield observer
    finally:
        others = mode.observers
        for i in reversed(range(len(others))):
            if others[i] is observer:
                mode.state = (mode.grad_enabled, others[:i] + others[i + 1 :])
                break
