"""ForwardTrace: the paths of values from parameters to a loss, and where they end for a gradient.

For each value of the forward pass it knows from which parameters the value was computed, to which
of these a gradient can get back, and the cuts: the calls after which the value went on and its
gradient did not, such as an op under `no_grad`, one that gives integers, or a `detach()`. A value
is recognised by its node in the graph, otherwise by its memory: a detached tensor shares that of
the original. A value that is copied by other means than an op is lost sight of.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.checkpoint import DryRun
from minigrad.core.grad_mode import is_grad_enabled, mode
from minigrad.core.node import Node
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import CallRecord, Recorder, WeakIdMap
from minigrad.readonly import owner_of


@dataclass(frozen=True)
class Cut:
    """A call after which a value went on and its gradient did not.

    Attributes:
        lost: the parameters that no gradient gets back to from there, as bits.
        kind: "no_grad", "integers", "read" (an op was given the bare value), or the name of the
            method that gave the value away, such as "detach()".
        call: the call.
    """

    lost: int
    kind: str
    call: CallRecord


@dataclass(frozen=True)
class ZeroValue:
    """The reason why a value is all zeros: parameters (as bits) of zeros, or a call made it so."""

    parameters: int
    call: CallRecord | None


@dataclass(frozen=True)
class ValueTrace:
    """The origin of a value. Parameters and cuts are bits of an int, by their index.

    Attributes:
        used: the parameters that it was computed from.
        linked: those that a gradient gets back to.
        cuts: the cuts that lie behind it.
        zero: None unless all its elements are zero.
        zero_inputs: the inputs of the op that made it that were all zeros, by their index.
    """

    used: int = 0
    linked: int = 0
    cuts: int = 0
    zero: ZeroValue | None = None
    zero_inputs: dict[int, ZeroValue] = field(default_factory=dict)


_NOTHING = ValueTrace()


class ForwardTrace(Recorder):
    """Follows what is computed from `parameters`.

    Attributes:
        cuts: where gradients are lost, in the order of time.
        used: the parameters that an op was called on, or whose value was read, as bits.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.cuts: list[Cut] = []
        self.used = 0
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

    # ----------------------------------------------------------------------------------------------
    # What is announced
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note what the result comes from, and for which parameters the gradient is lost here."""
        traces = [(i, self.trace(value)) for i, value in _operands(inputs)]
        used, linked, cuts = (
            _union(getattr(t, name) for _, t in traces) for name in ("used", "linked", "cuts")
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
                zero = ZeroValue(_union(z.parameters for z in known), first)
        if result.node is not None:
            nodes = [v.node for _, v in _operands(inputs) if isinstance(v, Tensor)]
            still = _union(self._nodes.get(n, _NOTHING).linked for n in nodes if n is not None)
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

    # ----------------------------------------------------------------------------------------------
    # What is known
    # ----------------------------------------------------------------------------------------------

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


def _operands(inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the Tensors and arrays among the inputs of an op with their index, lists included."""
    for index, value in enumerate(inputs):
        if isinstance(value, (Tensor, np.ndarray)):
            yield index, value
        elif isinstance(value, (tuple, list)):
            for _, part in _operands(value):
                yield index, part


def _union(bits: Iterable[int]) -> int:
    return functools.reduce(operator.or_, bits, 0)
