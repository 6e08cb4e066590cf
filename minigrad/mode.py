"""What a thread is doing right now: whether it records a graph, and who watches.

Both belong to the running thread, not to a tensor and not to the process: a data loader in another
thread must not switch off the gradients of the training loop.

`Observer` is the one place where the library can be watched. A receipt, an anomaly detector, a
liveness report and a drawing all need the same few facts (an op was called, a rule was run), so
these are announced here, and nothing has to be patched. When nobody watches, it costs the test of
an empty tuple.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minigrad.graph import Node
    from minigrad.op import Op


class Observer:
    """Base class of those who watch; override what you want to see, the rest costs nothing."""

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """`op` was called on `inputs` (Tensors, arrays and options as given) and gave `result`."""

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        """In a backward pass, a rule of `node.op` turned the arriving `gradient` into `place`'s."""

    def on_free(self, node: Node) -> None:
        """`node` is about to let go of the arrays it saved for backward."""

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


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Record a graph inside the block, or do not; afterwards it is as before in any case."""
    previous, observers = mode.state
    mode.state = (enabled, observers)
    try:
        yield
    finally:
        mode.state = (previous, observers)


def no_grad() -> Any:
    """Context manager and decorator: ops inside record nothing; their results need no gradient."""
    return grad_mode(False)


def enable_grad() -> Any:
    """Context manager and decorator: ops inside record again, also within a `no_grad`."""
    return grad_mode(True)


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what this thread does inside the block."""
    enabled, previous = mode.state
    mode.state = (enabled, (*previous, observer))
    try:
        yield observer
    finally:
        mode.state = (enabled, previous)
