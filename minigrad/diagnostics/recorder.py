"""Recorder: an observer of op calls, the base class of the diagnostics and of the tape.

All of them ask the same questions about a call. Which line of the user's code made it, and in which
module? Does it belong to the forward pass, to a derivative in a backward pass, to a hook, or to a
checkpoint that runs its function again? A `Recorder` knows the answers. Its subclasses decide which
calls they record, because looking up a line of source takes ten times as long as a small op.

A graph keeps only the residuals that its derivatives need. A `Tape` keeps everything.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.codegen import FILENAME_PREFIX
from minigrad.core.grad_mode import mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.nn import Module
from minigrad.tables import counted

_PACKAGE = Path(__file__).parents[1]
# Files of the library itself: their frames on the stack are not the user's code.
_LIBRARY = f"{_PACKAGE}{os.sep}", f"{_PACKAGE.with_name('lora')}{os.sep}", FILENAME_PREFIX


@dataclass(frozen=True)
class SourceLine:
    """A line of source."""

    file: str  # the path of the file, or Python's name for the code of a notebook or console
    line: int  # the number of the line, from 1 on
    function: str  # the name of the function that the line is in
    text: str  # the line itself, without surrounding space; empty if the source cannot be read

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.line}"
        where += f" in {self.function}" if self.function != "<module>" else ""
        return f"{where}: {self.text}" if self.text else where


def values_of(value: Any) -> np.ndarray[Any, Any]:
    """Return the array of a Tensor, of an array or of a number."""
    return np.asarray(value._data if isinstance(value, Tensor) else value)


def user_line() -> SourceLine | None:
    """Return the innermost line on the stack that is the user's, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_LIBRARY):
            text = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals)
            return SourceLine(code.co_filename, frame.f_lineno, code.co_name, text.strip())
        frame = frame.f_back  # type: ignore[assignment]
    return None


@dataclass(eq=False)
class ModuleCall:
    """One call of a module."""

    module: Module
    parent: ModuleCall | None  # the module call inside which it was made, or None

    def name_in(self, outer: ModuleCall | None) -> str:
        """Return the module's name in the module of another call, or "" if it has none there."""
        named = () if outer is None else outer.module.named_modules()
        return next((name for name, module in named if module is self.module), "")

    def chain(self) -> list[ModuleCall]:
        """List the module calls around this one, from the outermost to this one."""
        outer: list[ModuleCall] = [] if self.parent is None else self.parent.chain()
        return [*outer, self]


@dataclass(eq=False)
class CallRecord:
    """One call of an op, or of a method such as `detach()` that takes a value out of the graph."""

    name: str  # the name of the op or of the method
    source_line: SourceLine | None  # the user's line that made the call, or None
    recorded: bool = True  # whether a graph was being recorded
    # The innermost module call that was running, or None. Only a tape sets this and the next two,
    # because the records of other recorders keep no values alive.
    module: ModuleCall | None = None
    inputs: Sequence[Any] = ()  # in the order of the op's parameters, or the op's only sequence
    result: Any = None  # a Tensor, or a plain array if no input was a Tensor


class Recorder(Observer):
    """Knows what is running when an op is called. Subclasses override `on_call`.

    It keeps no nodes and no values alive, so it can watch a complete training run.
    """

    def __init__(self) -> None:
        # The records of calls, by the node that each call added to the graph.
        self.calls: MutableMapping[Node, CallRecord] = WeakKeyDictionary()
        self.module: ModuleCall | None = None  # the innermost call whose forward is running
        # The running backward passes, hooks and second runs of checkpoints, the innermost last.
        self.running: list[Literal["pass", "hook", "rerun"]] = []

    def record(self, name: str) -> CallRecord:
        """Make a record of the running call, given the name of the op or method."""
        return CallRecord(name, user_line(), mode.grad_enabled)

    def call(self, node: Node) -> CallRecord:
        """Return the call that made a node; a record without a line if it was not seen."""
        return self.calls.get(node) or CallRecord(node.name, None)

    @property
    def is_in_derivative(self) -> bool:
        """Whether the derivatives of a backward pass call ops now, and not the user."""
        return self.running[-1:] == ["pass"]

    def on_module(self, module: Module, begins: bool) -> None:
        """Note which modules are running."""
        if begins:
            self.module = ModuleCall(module, self.module)
        elif self.module is not None:  # otherwise the call began before this observer
            self.module = self.module.parent

    def on_pass(self, begins: bool) -> None:
        """Note that a backward pass begins or has ended."""
        self._follow("pass", begins)

    def on_hook(self, node: Node, begins: bool) -> None:
        """Note that a hook begins or has ended."""
        self._follow("hook", begins)

    def on_rerun(self, begins: bool) -> None:
        """Note that a checkpoint begins its second run, or has ended it."""
        self._follow("rerun", begins)

    def _follow(self, kind: Literal["pass", "hook", "rerun"], begins: bool) -> None:
        if begins:
            self.running.append(kind)
        elif self.running:  # otherwise it began before this observer
            self.running.pop()


class Tape(Recorder):
    """All calls in a block of `record`, with their values, which stay in memory.

    Attributes:
        calls: the records of calls, by the node that each call added to the graph.
        roots: the modules that no other module has called, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = {}
        self.roots: list[Module] = []
        # By the id of a result. The tape keeps the result alive, so no other object has this id.
        self._constants: dict[int, CallRecord] = {}
        self._taken_out: dict[int, CallRecord] = {}

    def __repr__(self) -> str:
        names = ", ".join(type(root).__name__ for root in self.roots)
        return f"Tape({counted(len(self.calls), 'call')}{names and f', modules {names}'})"

    def made(self, value: Any) -> CallRecord | None:
        """Return the call that made a value outside the graph, or None if it was not seen."""
        return self._constants.get(id(value))

    def left(self, value: Any) -> CallRecord | None:
        """Return the call, such as of `detach()`, that took a value out of the graph, or None."""
        return self._taken_out.get(id(value))

    def keep(self, name: str, inputs: Sequence[Any], result: Any) -> CallRecord:
        """Make and keep the record of a call, with its module and values."""
        call = self.record(name)
        call.module, call.inputs, call.result = self.module, tuple(inputs), result
        return call

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Keep a call, unless a derivative makes it in a backward pass that records no graph."""
        if "pass" in self.running and not mode.grad_enabled:
            return
        if isinstance(result, Tensor) and result.node is not None:
            self.calls[result.node] = self.keep(op.name, inputs, result)
        elif isinstance(result, (Tensor, np.ndarray)):
            self._constants[id(result)] = self.keep(op.name, inputs, result)

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Keep a value that was taken out of the graph, and the tensor that it was taken from."""
        if value is not None and "pass" not in self.running:
            self._taken_out[id(value)] = self.keep(how, (tensor,), value)

    def on_module(self, module: Module, begins: bool) -> None:
        """Keep the modules that no other module has called."""
        if begins and self.module is None and all(module is not root for root in self.roots):
            self.roots.append(module)
        super().on_module(module, begins)


@contextmanager
def record() -> Iterator[Tape]:
    """Record all calls of ops in the block, with their inputs and results, on the returned tape.

        with mg.viz.record() as tape:
            loss = mg.mse(model(x), y)
        mg.viz.explore(loss, "loss.html", tape=tape)

    A tape costs memory: no value that was computed in the block is freed while the tape lives.
    """
    with observe(tape := Tape()):
        yield tape
