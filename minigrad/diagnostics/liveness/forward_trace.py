"""The ways of values from parameters to a loss, and where they end for a gradient.

`Paths` follows values through the forward pass. With each it keeps which parameters it was computed
from, which of these a gradient can get back to, and the places where one way of the two went on
without the other: an op under `no_grad`, one that gives integers, a `detach()`. Values are known by
their node in the graph, else by their memory: a detached tensor shares that of the original. What
is copied by other means than an op is lost sight of.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigrad.core.checkpoint import DryRun
from minigrad.core.grad_mode import is_grad_enabled, mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.source_line import Origin, origin


@dataclass(frozen=True)
class Place:
    """What happened to a value, by name of an op or of a method, and the user's line."""

    what: str
    origin: Origin | None


@dataclass(frozen=True)
class End:
    """Where a value went on and its gradient did not.

    Attributes:
        lost: the parameters that no gradient gets back to from there, as bits.
        kind: "no_grad", "integers", "read" (an op was handed the bare value), or the name of the
            method that gave the value away, such as "detach()".
        place: the op or method, and the line.
    """

    lost: int
    kind: str
    place: Place


@dataclass(frozen=True)
class Zero:
    """Why a value is all zeros: it came from these parameters (bits), or became so at a place."""

    parameters: int
    place: Place | None


@dataclass(frozen=True)
class Trace:
    """Where a value comes from; parameters and ends are bits of a number, by their position.

    Attributes:
        used: the parameters it was computed from.
        linked: those that a gradient gets back to.
        ends: the ends of ways that lie behind it.
        zero: None unless all its elements are zero.
    """

    used: int = 0
    linked: int = 0
    ends: int = 0
    zero: Zero | None = None


@dataclass(frozen=True)
class Call:
    """The call that made a node: where, and which of its inputs, by position, were all zeros."""

    place: Place
    zeros: dict[int, Zero]


_NOTHING = Trace()


class Paths(Observer):
    """Follows what is computed from `parameters`.

    Attributes:
        ends: where gradients are lost, in the order of time.
        used: the parameters that an op was called on, or whose value was read, as bits.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.ends: list[End] = []
        self.used = 0
        self._gone = 0  # the ends whose values were given away as arrays, out of sight
        self._told = 0  # those whose values were given away as numbers, which may be for a log only
        self._last: dict[int, Place] = {}  # by the parameters that the op was handed
        self._nodes: weakref.WeakKeyDictionary[Node, Trace] = weakref.WeakKeyDictionary()
        self._calls: weakref.WeakKeyDictionary[Node, Call] = weakref.WeakKeyDictionary()
        self._objects: dict[int, tuple[weakref.ref[Any], Trace]] = {}  # by id, while they live
        for position, parameter in enumerate(parameters):
            bit = 1 << position
            zero = None if parameter._data.any() else Zero(bit, None)
            trace = Trace(bit, bit if parameter.requires_grad else 0, 0, zero)
            if parameter.node is not None:
                self._nodes[parameter.node] = trace
            self._keep(parameter._data, trace)

    # ----------------------------------------------------------------------------------------------
    # What is announced
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note what the result comes from, and what of it is lost here."""
        traces = [(i, self.trace(value)) for i, value in _values(inputs)]
        used, came, ends = (
            functools.reduce(operator.or_, (getattr(t, name) for _, t in traces), 0)
            for name in ("used", "linked", "ends")
        )
        if not isinstance(result, Tensor):  # arrays only: a rule, or arithmetic beside the graph
            if used and isinstance(result, np.ndarray):
                self._keep(result, Trace(used, came, ends))
            return
        place = Place(op.name, origin())
        zeros = {i: t.zero for i, t in traces if t.zero is not None}
        zero = None
        if result.dtype.kind == "f" and result.size and not result._data.any():
            zero = Zero(0, place)
            if zeros:
                known = zeros.values()
                parameters = functools.reduce(operator.or_, (z.parameters for z in known), 0)
                zero = Zero(parameters, next((z.place for z in known if z.place), None))
        linked = came if _is_dry_run() else 0
        if result.node is not None:
            nodes = [v.node for _, v in _values(inputs) if isinstance(v, Tensor)]
            linked = self._linked(node for node in nodes if node is not None)
        if came & ~linked:
            whole = result.dtype.kind != "f"
            kind = "integers" if whole else "read" if is_grad_enabled() else "no_grad"
            ends |= self._end(came & ~linked, kind, place)
        if used:
            self.used |= used
            self._last.pop(used, None)  # to the end
            self._last[used] = place
        trace = Trace(used, linked, ends, zero)
        self._keep(result._data, trace)
        if result.node is not None:
            self._nodes[result.node] = trace
            self._calls[result.node] = Call(place, zeros)

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Note where the value of a tensor goes on without its place in the graph."""
        trace = self.trace(tensor)
        if not trace.used:
            return
        self.used |= trace.used
        if trace.linked:
            end = self._end(trace.linked, how, Place(how, origin()))
            trace = replace(trace, linked=0, ends=trace.ends | end)
            if isinstance(value, Tensor):
                self._hold(value, trace)
            self._keep(tensor._data, trace)
        if value is None:
            self._told |= trace.ends
        elif not isinstance(value, Tensor):
            self._gone |= trace.ends

    # ----------------------------------------------------------------------------------------------
    # What is known
    # ----------------------------------------------------------------------------------------------

    def trace(self, value: Any) -> Trace:
        """Where a Tensor or array comes from."""
        if isinstance(value, Tensor):
            if value.node is not None:
                return self._of_node(value.node)
            known = self._objects.get(id(value))
            if known is not None:
                return known[1]
            value = value._data
        known = self._objects.get(id(_owner(value)))
        if known is not None:
            return known[1]
        data = value.dtype.kind == "f" and value.size and not value.any()
        return Trace(zero=Zero(0, None)) if data else _NOTHING

    def call(self, node: Node) -> Call:
        """The call that has left `node`."""
        return self._calls.get(node) or Call(Place(node.name, None), {})

    def end_of(self, bit: int, loss: Tensor) -> End | None:
        """Where the way of a parameter to the loss ends; None if nobody has seen it."""
        behind = self.trace(loss).ends
        for wanted in (behind, self._gone, self._told):
            for position, end in enumerate(self.ends):
                if wanted >> position & 1 and end.lost & bit:
                    return end
        return None

    def last_use(self, bit: int) -> Place | None:
        """The last op that was handed something computed from a parameter."""
        return next((p for used, p in reversed(self._last.items()) if used & bit), None)

    def _of_node(self, node: Node) -> Trace:
        """Where the value at a node comes from: nothing that is followed, if it was made before."""
        return self._nodes.get(node, _NOTHING)

    def _linked(self, nodes: Iterable[Node]) -> int:
        return functools.reduce(operator.or_, (self._of_node(node).linked for node in nodes), 0)

    def _end(self, lost: int, kind: str, place: Place) -> int:
        self.ends.append(End(lost, kind, place))
        return 1 << (len(self.ends) - 1)

    def _keep(self, array: np.ndarray[Any, Any], trace: Trace) -> None:
        """Know the memory of `array` again."""
        self._hold(_owner(array), trace)

    def _hold(self, value: Any, trace: Trace) -> None:
        key = id(value)
        objects = self._objects
        objects[key] = (weakref.ref(value, lambda _: objects.pop(key, None)), trace)


def _values(inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The Tensors and arrays among the inputs of an op, with their positions, also in an index."""
    for position, value in enumerate(inputs):
        if isinstance(value, (Tensor, np.ndarray)):
            yield position, value
        elif isinstance(value, (tuple, list)):
            for _, part in _values(value):
                yield position, part


def _is_dry_run() -> bool:
    """Whether a checkpoint runs that gets its place in the graph, and its graph, later."""
    return any(isinstance(o, DryRun) and o.recorded for o in mode.observers)


def _owner(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
