"""The tape: what a forward pass leaves besides its graph, for those who want to see all of it.

A graph saves what its derivatives need and drops the rest. A tape keeps everything: each result,
each input that needed no gradient, the line of source that an op was called from, and the module
whose forward was running.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.core.grad_mode import mode
from minigrad.core.observers import observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import CallRecord, Recorder

if TYPE_CHECKING:
    from minigrad.core.op import Op
    from minigrad.nn import Module


class Tape(Recorder):
    """The calls made while `record` was watching. It keeps all of them in memory.

    Attributes:
        calls: the records of calls by the node that each left in the graph.
        roots: the modules that were called by no other, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = {}
        self.roots: list[Module] = []
        # By the id of a result, which the tape keeps alive, so that no other object has this id.
        self._constants: dict[int, CallRecord] = {}
        self._taken_out: dict[int, CallRecord] = {}

    def made(self, value: Any) -> CallRecord | None:
        """Return the call that made a value outside the graph; None if it was not seen."""
        return self._constants.get(id(value))

    def left(self, value: Any) -> CallRecord | None:
        """Return the call, such as of `detach()`, that took a value out of the graph, or None."""
        return self._taken_out.get(id(value))

    def keep(self, called: Op[Any] | str, inputs: Sequence[Any], result: Any) -> CallRecord:
        """Make the record of a call, with its module and values."""
        call = self.record(called)
        call.module, call.inputs, call.result = self.module, tuple(inputs), result
        return call

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Keep a call, unless a derivative makes it in a backward pass that leaves no graph."""
        if "pass" in self.running and not mode.grad_enabled:
            return
        if isinstance(result, Tensor) and result.node is not None:
            self.calls[result.node] = self.keep(op, inputs, result)
        elif isinstance(result, (Tensor, np.ndarray)):
            self._constants[id(result)] = self.keep(op, inputs, result)

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Keep a value that was taken out of the graph, and the tensor that it was taken from."""
        if value is not None and "pass" not in self.running:
            self._taken_out[id(value)] = self.keep(how, (tensor,), value)

    def on_module(self, module: Module, begins: bool) -> None:
        """Keep the modules that no other has called."""
        if begins and self.module is None and all(module is not root for root in self.roots):
            self.roots.append(module)
        super().on_module(module, begins)


@contextmanager
def record() -> Iterator[Tape]:
    """Keep everything that ops are called with in the block, on the tape that it gives.

        with mg.viz.record() as tape:
            loss = mg.mse(model(x), y)
        mg.viz.explore(loss, "loss.html", tape=tape)

    A tape costs memory: no value that was computed is freed while the tape lives.
    """
    tape = Tape()
    with observe(tape):
        yield tape
