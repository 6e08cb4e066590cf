"""`Observer`: the one interface through which the library can be watched.

A receipt, an anomaly detector, a liveness report and a drawing all need the same few facts (an op
was called, a VJP was run), so these are announced here, and nothing has to be patched. Without an
observer, this costs the test of an empty tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.grad_mode import mode
from minigrad.core.node import Node
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor


class Observer:
    """Base class of observers: override the methods for what you want to see."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "on_rule" in vars(cls):
            raise TypeError(f"{cls.__qualname__}.on_rule: it is 'on_vjp' since minigrad 0.2")

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """`op` was called on `inputs` (Tensors, arrays, options as given) and returned `result`."""

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """A VJP of `node.op` turned the arriving `gradient` into `result`, the one of `parent`."""

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """The result of that VJP, now in the shape and dtype of `parent`, is about to go on."""

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """The complete gradient of `node`, a wanted one, has arrived and passed the hooks.

        It is about to be added to `before`, the `.grad` of the node, if it has one. Nothing is
        written before all gradients that arrive in a pass have been announced.
        """

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """A backward pass is about to start from `output`, with `gradient`."""

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """`gradient` is about to be added to the `.grad` of the leaf `node`."""

    def on_free(self, node: Node) -> None:
        """`node` is about to free the arrays that it saved for the backward pass."""

    def on_pass(self, begins: bool) -> None:
        """A backward pass begins, or has ended; it may run inside another one.

        `is_grad_enabled()` is True if it is recorded. Its end is announced also after an error.
        """

    def on_hook(self, node: Node, begins: bool) -> None:
        """A hook is about to be called with the gradient of `node`, or has returned."""

    def on_rerun(self, begins: bool) -> None:
        """In a backward pass, a checkpoint begins to run its function again, or has ended."""

    def on_step(self, optimizer: Any) -> None:
        """`optimizer` has changed its parameters; their gradients are still there."""

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """The value of `tensor` has left the graph by `how`, such as "detach()".

        With ".data =" it is about to get other memory. `value` is a Tensor or an array in the same
        memory, or None for Python numbers.
        """

    def on_text(self, tensor: Tensor) -> None:
        """A text with the values of `tensor` is about to be made, as `print` does."""

    def on_function(
        self, function: Callable[..., Any], arguments: Sequence[Any], begins: bool, result: Any
    ) -> None:
        """A function that is no op is about to be called, or has ended with `result`.

        The library announces what it computes from values outside of ops, such as how much each
        label counts in a loss, and what changes something: dropout draws, gradients are clipped, a
        scheduler or an average takes a step. After an error the result is None.
        """

    def on_result(self, result: Any) -> Any:
        """Return what such a function is to return: `result`, or what stands for it."""
        return result

    def on_module(self, module: Any, begins: bool) -> None:
        """The `forward` of `module` is about to run, or has ended, perhaps with an error."""

    def on_random(self, generator: np.random.Generator) -> None:
        """Random numbers are about to be drawn from `generator`."""


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what this thread does inside the block.

    A block may end before one that began later, as in a generator; only its own observer goes then.
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
