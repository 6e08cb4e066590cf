"""`Observer`: the one place where the library can be watched.

A receipt, an anomaly detector, a liveness report and a drawing all need the same few facts (an op
was called, a rule was run), so these are announced here, and nothing has to be patched. When nobody
watches, it costs the test of an empty tuple.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.grad_mode import mode
from minigrad.core.node import Node
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor


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

    def on_hook(self, node: Node, begins: bool) -> None:
        """A hook of the user's is about to see the gradient of `node`, or has seen it."""

    def on_rerun(self, begins: bool) -> None:
        """In a backward pass, a checkpoint begins to run its function again, or has ended."""

    def on_step(self, optimizer: Any) -> None:
        """`optimizer` has changed its parameters; their gradients are still there."""

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """`how`, such as "detach()", gave `value` out of `tensor`: no gradient follows it there.

        `value` is a Tensor or an array in the same memory, or None where it is given as numbers.
        """

    def on_module(self, module: Any, begins: bool) -> None:
        """The `forward` of `module` is about to run, or has ended, perhaps with an error."""

    def on_random(self, generator: np.random.Generator) -> None:
        """`generator` is about to be drawn from."""


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
