"""Recorder: the observer of calls of ops on which the diagnostics and the tape are built.

They ask the same questions about a call: from which line of the user's was it made, in which
module, and does it belong to the forward pass, to a derivative in a backward pass, to a hook, or to
a checkpoint that runs its function again? A `Recorder` knows the answers. Its subclasses decide for
which calls they make a record: looking up a line of source takes ten times as long as a small op.

A graph saves what its derivatives need and drops the rest. The `Tape` keeps everything.
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
# Files of the library itself, whose frames are not what the user wrote.
_LIBRARY = f"{_PACKAGE}{os.sep}", f"{_PACKAGE.with_name('lora')}{os.sep}", FILENAME_PREFIX


@dataclass(frozen=True)
class SourceLine:
    """A line of source."""

    file: str  # the path of the file, or what stands for one in a notebook or a console
    line: int  # its number, from 1 on
    function: str  # that it is in
    text: str  # the line itself, without surrounding space; empty if the source cannot be read

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.line}"
        where += f" in {self.function}" if self.function != "<module>" else ""
        return f"{where}: {self.text}" if self.text else where


def values_of(value: Any) -> np.ndarray[Any, Any]:
    """Return the array of a Tensor, of an array or of a number."""
    return np.asarray(value._data if isinstance(value, Tensor) else value)


def user_line() -> SourceLine | None:
    """Return the innermost line on the stack that is not the library's; None if there is none."""
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
        """Find the module's name in the module of another call; empty if it has none there."""
        named = () if outer is None else outer.module.named_modules()
        return next((name for name, module in named if module is self.module), "")

    def chain(self) -> list[ModuleCall]:
        """List the calls that were running at this one, the outermost first and this one last."""
        outer: list[ModuleCall] = [] if self.parent is None else self.parent.chain()
        return [*outer, self]


@dataclass(eq=False)
class CallRecord:
    """One call: of an op, or of a method such as `detach()` that takes a value out of the graph."""

    name: str  # the name of the op or of the method
    source_line: SourceLine | None  # the user's line that it was made from; None if there is none
    recorded: bool = True  # whether a graph was being recorded
    # The innermost module call that was running, or None. Only a tape has this and what follows,
    # because records of other recorders keep no values alive.
    module: ModuleCall | None = None
    inputs: Sequence[Any] = ()  # in the order of the op's parameters, or those of an op of many
    result: Any = None  # a Tensor, or a plain array where no input was a Tensor


class Recorder(Observer):
    """Knows what is running when an op is called. Subclasses override `on_call`.

    It keeps neither nodes nor values alive, so it can watch an entire training run.
    """

    def __init__(self) -> None:
        # By the node that each call left in the graph.
        self.calls: MutableMapping[Node, CallRecord] = WeakKeyDictionary()
        self.module: ModuleCall | None = None  # the innermost whose forward is running
        # Backward passes, hooks and second runs of checkpoints that go on, the innermost last.
        self.running: list[Literal["pass", "hook", "rerun"]] = []

    def record(self, name: str) -> CallRecord:
        """Make the record of a call that is running now, of an op or of a method by its name."""
        return CallRecord(name, user_line(), mode.grad_enabled)

    def call(self, node: Node) -> CallRecord:
        """Return the call that left a node; one without a line if it was not seen."""
        return self.calls.get(node) or CallRecord(node.name, None)

    @property
    def is_in_derivative(self) -> bool:
        """Whether ops are called by the derivatives of a backward pass now, not by the user."""
        return self.running[-1:] == ["pass"]

    def on_module(self, module: Module, begins: bool) -> None:
        """Note which modules are running."""
        if begins:
            self.module = ModuleCall(module, self.module)
        elif self.module is not None:  # otherwise its call began before anyone watched
            self.module = self.module.parent

    def on_pass(self, begins: bool) -> None:
        """Note that a backward pass begins or has ended."""
        self._follow("pass", begins)

    def on_hook(self, node: Node, begins: bool) -> None:
        """Note that a hook begins or has ended."""
        self._follow("hook", begins)

    def on_rerun(self, begins: bool) -> None:
        """Note that a checkpoint begins to run its function again, or has ended."""
        self._follow("rerun", begins)

    def _follow(self, kind: Literal["pass", "hook", "rerun"], begins: bool) -> None:
        if begins:
            self.running.append(kind)
        elif self.running:  # otherwise it began before anyone watched
            self.running.pop()


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

    def __repr__(self) -> str:
        names = ", ".join(type(root).__name__ for root in self.roots)
        return f"Tape({counted(len(self.calls), 'call')}{names and f', modules {names}'})"

    def made(self, value: Any) -> CallRecord | None:
        """Return the call that made a value outside the graph; None if it was not seen."""
        return self._constants.get(id(value))

    def left(self, value: Any) -> CallRecord | None:
        """Return the call, such as of `detach()`, that took a value out of the graph, or None."""
        return self._taken_out.get(id(value))

    def keep(self, name: str, inputs: Sequence[Any], result: Any) -> CallRecord:
        """Make the record of a call, with its module and values."""
        call = self.record(name)
        call.module, call.inputs, call.result = self.module, tuple(inputs), result
        return call

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Keep a call, unless a derivative makes it in a backward pass that leaves no graph."""
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
