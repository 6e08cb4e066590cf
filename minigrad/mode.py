"""What a thread is doing right now: whether it records a graph, and who watches.

Both are properties of the running thread, not of a tensor and not of the process: a data loader in another
thread must not switch off the gradients of the training loop.

`Observer` is the one place where the library can be watched. A receipt, an anomaly detector, a liveness
report and a drawing all need the same two facts (an op was called; a rule was run), so these are announced
here, and nothing has to be patched. When nobody watches, the cost is one test of an empty tuple.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minigrad.engine import Node
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
    grad_enabled: bool = True
    observers: tuple[Observer, ...] = ()


mode = _Mode()


def is_grad_enabled() -> bool:
    """Whether ops called by this thread record a graph."""
    return mode.grad_enabled


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Record a graph inside the block, or do not; what was in force before is restored in any case."""
    previous = mode.grad_enabled
    mode.grad_enabled = enabled
    try:
        yield
    finally:
        mode.grad_enabled = previous


def no_grad() -> Any:
    """Context manager and decorator: ops inside record nothing, and their results need no gradient."""
    return grad_mode(False)


def enable_grad() -> Any:
    """Context manager and decorator: ops inside record again, also within a `no_grad`."""
    return grad_mode(True)


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what this thread does inside the block."""
    previous = mode.observers
    mode.observers = (*previous, observer)
    try:
        yield observer
    finally:
        mode.observers = previous
