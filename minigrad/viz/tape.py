"""The tape: what a forward pass leaves besides its graph, for those who want to see all of it.

A graph keeps what its rules need and lets go of the rest. A tape keeps everything: each result,
each input that needed no gradient, the line of source that an op was called from, and the module
whose forward was running.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.core.grad_mode import mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.source_line import Origin, origin

if TYPE_CHECKING:
    from minigrad.core.op import Op
    from minigrad.nn import Module


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        module: the module.
        parent: the call inside of which it was made, or None.
        name: its name in the module of `parent`, empty if it has none there.
    """

    module: Module
    parent: ModuleCall | None
    name: str


@dataclass(eq=False)
class Call:
    """One call of an op, with all that it was given.

    Attributes:
        op: the op.
        inputs: Tensors, arrays and options, in the order of the op's parameters; for an op of many
            inputs, these.
        result: a Tensor, or a plain array where no input was a Tensor.
        origin: the user's line that it came from, if there is one.
        within: the innermost module whose forward was running.
        recorded: whether a graph was recorded.
    """

    op: Op[Any]
    inputs: Sequence[Any]
    result: Any
    origin: Origin | None
    within: ModuleCall | None
    recorded: bool


@dataclass(eq=False)
class Tape(Observer):
    """What was called while `record` was watching. It keeps all of it in memory.

    Attributes:
        calls: by the node that they left in a graph.
        roots: the modules that were called by no other, each once.
    """

    calls: dict[Node, Call] = field(default_factory=dict)
    roots: list[Module] = field(default_factory=list)
    # By the id of the result, which the tape keeps alive: so no other object has the same.
    _constants: dict[int, Call] = field(default_factory=dict)
    _left: dict[int, tuple[Any, Tensor, str]] = field(default_factory=dict)
    _running: ModuleCall | None = None
    _passes: int = 0

    def made(self, value: Any) -> Call | None:
        """The call that made a value which has no place in the graph, if it was seen."""
        return self._constants.get(id(value))

    def left(self, value: Any) -> tuple[Tensor, str] | None:
        """The tensor that a value was taken out of, and how, such as "detach()"."""
        known = self._left.get(id(value))
        return None if known is None else known[1:]

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Keep a call, but not those of rules in a backward pass that leaves no graph."""
        if self._passes and not mode.grad_enabled:
            return
        call = Call(op, tuple(inputs), result, origin(), self._running, mode.grad_enabled)
        if isinstance(result, Tensor) and result.node is not None:
            self.calls[result.node] = call
        elif isinstance(result, (Tensor, np.ndarray)):
            self._constants[id(result)] = call

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Keep what was taken out of the graph."""
        if value is not None and not self._passes:
            self._left[id(value)] = value, tensor, how

    def on_module(self, module: Module, begins: bool) -> None:
        """Keep which modules are running."""
        if not begins:
            if self._running is not None:
                self._running = self._running.parent
            return
        parent = self._running
        name = ""
        if parent is not None:
            name = next((n for n, m in parent.module.named_modules() if m is module), "")
        elif all(module is not root for root in self.roots):
            self.roots.append(module)
        self._running = ModuleCall(module, parent, name)

    def on_pass(self, begins: bool) -> None:
        """Note whether a backward pass is going on."""
        self._passes += 1 if begins else -1


@contextmanager
def record() -> Iterator[Tape]:
    """Keep everything that ops are called with in the block, on the tape that it gives.

        with mg.viz.record() as tape:
            loss = mg.mse(model(x), y)
        mg.viz.explore(loss, "loss.html", tape=tape)

    A tape costs memory: nothing that was computed is let go while it lives.
    """
    tape = Tape()
    with observe(tape):
        yield tape
