"""`Observer`: the interface for watching what the library does.

Receipts, anomaly detection, liveness reports and drawings need the same few events: an op was
called, a VJP was run. The library reports these events to observers, so no tool has to patch it.
Without an observer, the only cost is a test whether a tuple is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from minigrad.checks import shown
from minigrad.core.grad_mode import mode
from minigrad.core.node import Node
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor


class Observer:
    """Base class of observers: override the methods for what you want to see.

    Attributes:
        is_internal: whether a computation itself uses the observer, as forward mode does; others
            only watch.
    """

    is_internal: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "on_rule" in vars(cls):
            raise TypeError(f"{cls.__qualname__}.on_rule: it is 'on_vjp' since minigrad 0.2")

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """`op` was called on `inputs` (Tensors, arrays, options as given) and returned `result`."""

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """A VJP of `node.op` computed `result`, the gradient for `parent`, from `gradient`."""

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """The result of a VJP, converted to shape and dtype of `parent`, is passed to `parent`."""

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """The complete gradient of `node`, a wanted node, has arrived and passed the hooks.

        It will be added to `before`, the `.grad` of the node, if there is one. No leaf's
        `.grad` is changed before all gradients of the pass have been reported.
        """

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """A backward pass is about to start from `output`, with `gradient`."""

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """`gradient` is about to be added to the `.grad` of `node`: a leaf, or it retains it."""

    def on_free(self, node: Node) -> None:
        """`node` is about to free the arrays that it saved for the backward pass."""

    def on_pass(self, begins: bool) -> None:
        """A backward pass begins, or has ended; it may run inside another one.

        `is_grad_enabled()` is True if the pass is recorded. Its end is reported also after an
        error.
        """

    def on_hook(self, node: Node, begins: bool) -> None:
        """A hook is about to be called with the gradient of `node`, or has returned."""

    def on_rerun(self, begins: bool) -> None:
        """In a backward pass, a checkpoint begins to run its function again, or has ended."""

    def on_step(self, optimizer: Any) -> None:
        """`optimizer` has changed its parameters; their gradients are still there."""

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """The value of `tensor` has left the graph by `how`, such as "detach()".

        If `how` is ".data =", the tensor is about to get other memory. `value` is a Tensor or an
        array in the same memory, or None for Python numbers.
        """

    def on_text(self, tensor: Tensor) -> None:
        """The values of `tensor` are about to be formatted as text, for example by `print`."""

    def on_function(
        self, function: Callable[..., Any], arguments: Sequence[Any], begins: bool, result: Any
    ) -> None:
        """A function that is not an op is about to be called, or has returned `result`.

        The library reports computations on values outside of ops, such as the weights of labels in
        a loss. It also reports changes: dropout draws, gradients are clipped, a scheduler or an
        average is updated. After an error, `result` is None.
        """

    def on_result(self, result: Any) -> Any:
        """Return what such a function shall return: `result`, or a replacement."""
        return result

    def on_module(self, module: Any, begins: bool) -> None:
        """The `forward` of `module` is about to run, or has ended, possibly with an error."""

    def on_random(self, generator: np.random.Generator) -> None:
        """Random numbers are about to be drawn from `generator`."""

    def has_tangent(self, tensor: Tensor) -> bool:
        """Return whether results of `tensor` get tangents now, as in forward mode."""
        return False


@contextmanager
def observe(observer: Observer) -> Iterator[Observer]:
    """Let `observer` watch what this thread does inside a `with` block.

    Blocks may overlap, for example in generators: the end of a block removes only its own observer.

    Raises:
        TypeError: if `observer` is not an Observer, for example if it is a class.
    """
    if isinstance(observer, type) or not hasattr(observer, "on_call"):
        raise TypeError(f"observe: takes an Observer, not {shown(observer)}")
    mode.state = (mode.grad_enabled, (*mode.observers, observer))
    try:
        yield observer
    finally:
        enabled, others = mode.state  # no property, in whose call an interrupt could come
        for i in reversed(range(len(others))):
            if others[i] is observer:
                mode.state = (enabled, others[:i] + others[i + 1 :])
                break


def has_tangent(*tensors: Tensor) -> bool:
    """Return whether results of one of `tensors` get tangents now."""
    return any(observer.has_tangent(x) for observer in mode.observers for x in tensors)


def is_differentiated(value: Any) -> bool:
    """Return whether anything may need the derivative of results computed from `value` now."""
    if not isinstance(value, Tensor) or value.node is None:
        return False
    return mode.grad_enabled or has_tangent(value)
