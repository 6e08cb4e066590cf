"""The traces of a step: where values go from parameters to a loss, and where gradients go back.

`ForwardTrace` knows for each value of the forward pass from which parameters the value was
computed, to which of these a gradient can get back, and the cuts: the calls after which the value
went on and its gradient did not, such as an op under `no_grad`, one that gives integers, or a
`detach()`. A value is recognised by its node in the graph, otherwise by its memory: a detached
tensor shares that of the original. A value that is copied by other means than an op is lost sight
of.

`BackwardTrace` knows where gradients become all zero. Where the derivative of an op receives a
gradient and returns only zeros, a path back ends, although the graph goes on: a relu of negative
numbers, a product with zeros.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.checkpoint import DryRun
from minigrad.core.grad_mode import is_grad_enabled, mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import CallRecord, Recorder, WeakIdMap
from minigrad.readonly import owner_of


@dataclass(frozen=True)
class Cut:
    """A call after which a value went on and its gradient did not."""

    lost: int  # the parameters that no gradient gets back to from there, as bits
    # "no_grad", "integers", "read" (an op was given the bare value), or the name of the method that
    # gave the value away, such as "detach()".
    kind: str
    call: CallRecord


@dataclass(frozen=True)
class ZeroValue:
    """The reason why a value is all zeros: parameters (as bits) of zeros, or a call made it so."""

    parameters: int
    call: CallRecord | None


@dataclass(frozen=True)
class ValueTrace:
    """The origin of a value. Parameters and cuts are bits of an int, by their index."""

    used: int = 0  # the parameters that it was computed from
    linked: int = 0  # those that a gradient gets back to
    cuts: int = 0  # the cuts that lie behind it
    zero: ZeroValue | None = None  # None unless all its elements are zero
    # The inputs of the op that made it that were all zeros, by their index.
    zero_inputs: dict[int, ZeroValue] = field(default_factory=dict)


_NOTHING = ValueTrace()


class ForwardTrace(Recorder):
    """Follows what is computed from `parameters`."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.cuts: list[Cut] = []  # where gradients are lost, in the order of time
        self.used = 0  # the parameters, as bits, that ops were called on, or whose values were read
        self._gone = 0  # the cuts whose values were given away as arrays, out of sight
        self._read = 0  # those whose values were given away as numbers, which may be for a log only
        self._last: dict[int, CallRecord] = {}  # by the parameters that the op was given
        self._nodes: WeakKeyDictionary[Node, ValueTrace] = WeakKeyDictionary()
        # By Tensor, or by the array that owns the memory.
        self._values: WeakIdMap[ValueTrace] = WeakIdMap()
        for index, parameter in enumerate(parameters):
            bit = 1 << index
            zero = None if parameter._data.any() else ZeroValue(bit, None)
            trace = ValueTrace(bit, bit if parameter.requires_grad else 0, 0, zero)
            if parameter.node is not None:
                self._nodes[parameter.node] = trace
            self._values[owner_of(parameter._data)] = trace

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note what the result comes from, and for which parameters the gradient is lost here."""
        traces = [(i, self.trace(value)) for i, value in _operands(inputs)]
        used, linked, cuts = (
            union(getattr(t, name) for _, t in traces) for name in ("used", "linked", "cuts")
        )
        if not isinstance(result, Tensor):  # a derivative, or arithmetic on arrays beside the graph
            if used and isinstance(result, np.ndarray):
                self._values[owner_of(result)] = ValueTrace(used, linked, cuts)
            return
        call = self.record(op)
        zeros = {i: t.zero for i, t in traces if t.zero is not None}
        zero = None
        if result.dtype.kind == "f" and result.size and not result._data.any():
            zero = ZeroValue(0, call)
            if zeros:
                known = zeros.values()
                first = next((z.call for z in known if z.call), None)
                zero = ZeroValue(union(z.parameters for z in known), first)
        if result.node is not None:
            nodes = [v.node for _, v in _operands(inputs) if isinstance(v, Tensor)]
            still = union(self._nodes.get(n, _NOTHING).linked for n in nodes if n is not None)
        else:
            # A checkpoint that runs now gets its node in the graph, and its graph, later.
            is_dry = any(isinstance(o, DryRun) and o.recorded for o in mode.observers)
            still = linked if is_dry else 0
        if linked & ~still:
            is_integer = result.dtype.kind != "f"
            kind = "integers" if is_integer else "read" if is_grad_enabled() else "no_grad"
            cuts |= self._cut(linked & ~still, kind, call)
        if used:
            self.used |= used
            self._last.pop(used, None)  # moves it to the end
            self._last[used] = call
        trace = ValueTrace(used, still, cuts, zero, zeros)
        self._values[owner_of(result._data)] = trace
        if result.node is not None:
            self._nodes[result.node] = trace
            self.calls[result.node] = call

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Note where the value of a tensor goes on without its node in the graph."""
        trace = self.trace(tensor)
        if not trace.used:
            return
        self.used |= trace.used
        if trace.linked:
            cut = self._cut(trace.linked, how, self.record(how))
            trace = replace(trace, linked=0, cuts=trace.cuts | cut)
            if isinstance(value, Tensor):
                self._values[value] = trace
            self._values[owner_of(tensor._data)] = trace
        if value is None:
            self._read |= trace.cuts
        elif not isinstance(value, Tensor):
            self._gone |= trace.cuts

    def trace(self, value: Any) -> ValueTrace:
        """Return where a Tensor or an array comes from."""
        known = None
        if isinstance(value, Tensor):
            if value.node is not None:
                return self._nodes.get(value.node, _NOTHING)  # nothing, if it was made before
            known, value = self._values.get(value), value._data
        known = known or self._values.get(owner_of(value))
        if known is not None:
            return known
        is_zero = value.dtype.kind == "f" and value.size and not value.any()
        return ValueTrace(zero=ZeroValue(0, None)) if is_zero else _NOTHING

    def call(self, node: Node) -> CallRecord:
        """Return the call that left `node`; one without a line if it was made before."""
        return self.calls.get(node) or CallRecord(node.name, None)

    def zero_inputs(self, node: Node) -> dict[int, ZeroValue]:
        """Return the inputs of the call that left `node` that were all zeros, by their index."""
        return self._nodes.get(node, _NOTHING).zero_inputs

    def cut_of(self, bit: int, loss: Tensor) -> Cut | None:
        """Return where the path of a parameter to the loss is cut; None if nobody has seen it."""
        behind = self.trace(loss).cuts
        for wanted in (behind, self._gone, self._read):
            for index, cut in enumerate(self.cuts):
                if wanted >> index & 1 and cut.lost & bit:
                    return cut
        return None

    def last_use(self, bit: int) -> CallRecord | None:
        """Return the last call of an op on something computed from a parameter."""
        return next((call for used, call in reversed(self._last.items()) if used & bit), None)

    def _cut(self, lost: int, kind: str, call: CallRecord) -> int:
        self.cuts.append(Cut(lost, kind, call))
        return 1 << (len(self.cuts) - 1)


@dataclass(frozen=True)
class Stop:
    """The op at which a gradient became all zero."""

    node: Node  # the result of the op that received the gradient
    factors: frozenset[int]  # the indices of the op's inputs that the derivative computes with
    inside: bool  # False for a checkpoint, whose derivative is the pass of what it runs again

    @classmethod
    def at(cls, node: Node, parent: Node) -> Stop:
        """Return the stop where the gradient of `node` gave only zeros for `parent`."""
        assert node.op is not None
        vjps = [edge[2] for edge in node.edges or () if edge[0] is parent]
        slots = {slot for vjp in vjps if vjp is not None for slot, shape in vjp.slots if not shape}
        if {0, len(node.op.parameters) + 1} <= slots:  # `position`: the inputs are one sequence
            slots |= set(range(1 + max(edge[1] for edge in node.edges or ())))
        return cls(node, frozenset(slots), None not in vjps)


class BackwardTrace(Observer):
    """Follows gradients backward."""

    def __init__(self) -> None:
        # By parent node: the results whose derivatives passed zeros on, and where zeros began.
        self._zeros: dict[Node, list[Node | Stop]] = {}
        self._fed: set[Node] = set()  # parents that received more than zeros

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Note whether a gradient arrived, and whether one went on."""
        if not _any(gradient):
            self._zeros.setdefault(parent, []).append(node)
        elif not _any(result):
            self._zeros.setdefault(parent, []).append(Stop.at(node, parent))
        else:
            self._fed.add(parent)

    def stops(self, node: Node) -> list[Stop]:
        """List where the gradients on paths to `node` became zero, the nearest to it first."""
        steps = [step for path in self._back_from(node) for step in self._zeros.get(path, ())]
        found = [step for step in steps if isinstance(step, Stop)]
        return [stop for stop in found if stop.inside] or found

    def lost_at(self, node: Node) -> Node | None:
        """Find where nonzero gradients became zero together: by cancelling, or by a hook."""
        return next((other for other in self._back_from(node) if other in self._fed), None)

    def _back_from(self, node: Node) -> list[Node]:
        """List `node` and the nodes that had only zeros to pass on to it, the nearest first."""
        found = dict.fromkeys([node])
        queue = deque(found)
        while queue:
            for step in self._zeros.get(queue.popleft(), ()):
                if not isinstance(step, Stop) and step not in found:
                    found[step] = None
                    queue.append(step)
        return list(found)


def _any(gradient: Any) -> bool:
    return bool(np.any(gradient._data if isinstance(gradient, Tensor) else gradient))


def _operands(inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the Tensors and arrays among the inputs of an op with their index, lists included."""
    for index, value in enumerate(inputs):
        if isinstance(value, (Tensor, np.ndarray)):
            yield index, value
        elif isinstance(value, (tuple, list)):
            for _, part in _operands(value):
                yield index, part


def union(bits: Iterable[int]) -> int:
    """Return the bits that are in any of these ints."""
    return functools.reduce(operator.or_, bits, 0)
