"""A dry run: a training step without the update, which changes nothing and can be repeated.

A forward pass may change the model (running means, a count of calls). A loss function may even
switch modes, delete gradients or call `step()`. So each run restores the model.

Two traces watch the step. `ForwardTrace` knows from which parameters each value was computed, and
to which of these parameters a gradient can get back. It also knows the cuts, where a gradient
cannot get back: an op under `no_grad`, an op with an integer result, or a `detach()`. It recognises
a value by its node in the graph, or else by its memory, which a detached tensor shares. If a value
was copied without an op, the trace loses it.

`BackwardTrace` knows where gradients become all zero, for example at a relu of negative numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import propagate
from minigrad.core.grad_mode import grad_mode, is_grad_enabled, mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor, assigned
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.diagnostics.recorder import CallRecord, Recorder, values_of
from minigrad.kernels.start import complete
from minigrad.nn.module import Module, Parameter, attributes_of, generators_in, restore_attributes
from minigrad.readonly import WeakIdMap, owner_of, release
from minigrad.transforms.checkpoint import Draws, DryRun
from minigrad.versions import mark_written

T = TypeVar("T")
Names = frozenset[str]  # names of parameters
EMPTY: frozenset[Any] = frozenset()

MOVE = 0.01  # the standard deviation of the random values that replace a parameter of zeros


@dataclass(eq=False)
class Cut:
    """A call at which the path of the gradient is cut, although the value is used further."""

    lost: Names  # the parameters that no gradient gets back to from there
    reason: str  # in words
    call: CallRecord


@dataclass(frozen=True)
class ZeroValue:
    """The reason why a value is all zeros: some parameters are all zeros, or a call made it so."""

    parameters: Names
    call: CallRecord | None


@dataclass(frozen=True)
class ValueTrace:
    """The origin of a value."""

    used: Names = EMPTY  # the parameters that it was computed from
    linked: Names = EMPTY  # the parameters that a gradient gets back to
    cuts: frozenset[Cut] = EMPTY  # the cuts in the computation of the value
    zero: ZeroValue | None = None  # None unless all elements are zero
    # By index: the all-zero inputs of the op that made the value.
    zero_inputs: dict[int, ZeroValue] = field(default_factory=dict)
    parts: Names = EMPTY  # the all-zero parameters that it was concatenated from, beside others
    part_inputs: dict[int, Names] = field(default_factory=dict)  # the same of the op's inputs


_NOTHING = ValueTrace()


class ForwardTrace(Recorder):
    """Follows what is computed from `parameters`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cuts: list[Cut] = []  # where gradients are lost, in the order of the calls
        self.used: Names = EMPTY  # parameters that ops were called on, or that were read
        # The cuts whose values left the graph as arrays, which this trace cannot follow.
        self._gone: frozenset[Cut] = EMPTY
        # The cuts whose values left the graph as numbers, which may only be for a log.
        self._read: frozenset[Cut] = EMPTY
        self._last: dict[Names, CallRecord] = {}  # the last call, by the parameters it depends on
        self._nodes: WeakKeyDictionary[Node, ValueTrace] = WeakKeyDictionary()
        # The traces, by Tensor, or by the array that owns the memory.
        self._values: WeakIdMap[ValueTrace] = WeakIdMap()
        self._leaves = {parameter.node for parameter in parameters.values()}
        self._zeros = frozenset(name for name, p in parameters.items() if not p._data.any())
        for name, parameter in parameters.items():
            own = frozenset([name])
            zero = ZeroValue(own, None) if name in self._zeros else None
            trace = ValueTrace(own, own if parameter.requires_grad else EMPTY, EMPTY, zero)
            if parameter.node is not None:
                self._nodes[parameter.node] = trace
            self._values[owner_of(parameter._data)] = trace

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Note what the result was computed from, and for which parameters this call is a cut."""
        traces = [(i, self.trace(value)) for i, value in _operands(inputs)]
        used, linked = union(*(t.used for _, t in traces)), union(*(t.linked for _, t in traces))
        cuts = union(*(t.cuts for _, t in traces))
        if not isinstance(result, Tensor):  # a derivative, or arithmetic on arrays without a graph
            if used and isinstance(result, np.ndarray):
                self._values[owner_of(result)] = ValueTrace(used, linked, cuts)
            return
        call = self.record(op.name)
        zeros = {i: t.zero for i, t in traces if t.zero is not None}
        zero = None
        if result.dtype.kind == "f" and result.size and not result._data.any():
            zero = ZeroValue(EMPTY, call)
            if zeros:
                first = next((z.call for z in zeros.values() if z.call), None)
                zero = ZeroValue(union(*(z.parameters for z in zeros.values())), first)
        part_inputs = {i: t.parts for i, t in traces if t.parts}
        parts = EMPTY
        if op.takes_sequence and zero is None:
            parts = union(*part_inputs.values(), *(z.parameters for z in zeros.values()))
        elif sum(bool(t.used) for _, t in traces) == 1:  # rows, columns or multiples of it
            parts = union(*part_inputs.values())
        still = EMPTY
        if result.node is not None:
            nodes = [v.node for _, v in _operands(inputs) if isinstance(v, Tensor)]
            still = union(*(self._nodes.get(n, _NOTHING).linked for n in nodes if n is not None))
        elif any(isinstance(o, DryRun) and o.recorded for o in mode.observers):
            still = linked  # a checkpoint that runs now gets its node, and its graph, later
        if linked - still:
            reason = "was handed the bare value, without its node in the graph"
            if result.dtype.kind != "f":
                reason = "gives integers or booleans, which have no gradient"
            elif not is_grad_enabled():
                reason = "ran under no_grad()"
            cuts |= {self._cut(linked - still, f"`{op.name}` {reason}", call)}
        if used:
            self.used |= used
            self._last.pop(used, None)  # moves it to the end
            self._last[used] = call
        linked = used if still == used else still  # to save memory, the same set
        trace = ValueTrace(used, linked, cuts, zero, zeros, parts, part_inputs)
        self._values[owner_of(result._data)] = trace
        if result.node is not None:
            self._nodes[result.node] = trace
            self.calls[result.node] = call

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Raise an error before any gradient changes, if the loss function runs `backward()`."""
        if node in self._leaves and not self.running:  # a hook may run `backward()`
            raise RuntimeError(
                "liveness: loss_fn calls backward(), which liveness does itself; let it return "
                "the loss, and leave backward() and the optimiser's step() out"
            )

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Note where the value of a tensor is used without its node in the graph."""
        trace = self.trace(tensor)
        if not trace.used:
            return
        self.used |= trace.used
        if trace.linked:
            reason = f"{how} takes the value out of the graph"
            cut = self._cut(trace.linked, reason, self.record(how))
            trace = replace(trace, linked=EMPTY, cuts=trace.cuts | {cut})
            if isinstance(value, Tensor):
                self._values[value] = trace
            self._values[owner_of(tensor._data)] = trace
        if value is None:
            self._read |= trace.cuts
        elif not isinstance(value, Tensor):
            self._gone |= trace.cuts

    def trace(self, value: Any) -> ValueTrace:
        """Return the origin of a Tensor or an array."""
        known = None
        if isinstance(value, Tensor):
            if value.node is not None:
                return self._nodes.get(value.node, _NOTHING)  # nothing, if made before the run
            known, value = self._values.get(value), value._data
        known = known or self._values.get(owner_of(value))
        if known is not None:
            return known
        is_zero = value.dtype.kind == "f" and value.size and not value.any()
        return ValueTrace(zero=ZeroValue(EMPTY, None)) if is_zero else _NOTHING

    def zero_factors(self, stop: Stop) -> list[ZeroValue]:
        """List the all-zero values that a gradient was multiplied by where it became zero."""
        zeros = self._nodes.get(stop.node, _NOTHING).zero_inputs
        return [zero for i, zero in zeros.items() if i in stop.factors]

    def zeros_behind(self, stop: Stop) -> Names:
        """Return the all-zero parameters from which the result of an op was computed."""
        return self._nodes.get(stop.node, _NOTHING).used & self._zeros

    def part_factors(self, stop: Stop) -> Names:
        """Return the all-zero parameters in a part of the values that multiply a gradient."""
        parts = self._nodes.get(stop.node, _NOTHING).part_inputs
        return union(*(names for i, names in parts.items() if i in stop.factors))

    def cut_of(self, name: str, loss: Tensor) -> Cut | None:
        """Return where the path of a parameter to the loss is cut; None if it is not known."""
        wanted = self.trace(loss).cuts, self._gone, self._read
        lost = [cut for cut in self.cuts if name in cut.lost]
        return next((cut for known in wanted for cut in lost if cut in known), None)

    def last_use(self, name: str) -> CallRecord | None:
        """Return the last call of an op on something computed from a parameter."""
        return next((call for used, call in reversed(self._last.items()) if name in used), None)

    def _cut(self, lost: Names, reason: str, call: CallRecord) -> Cut:
        self.cuts.append(Cut(lost, reason, call))
        return self.cuts[-1]


@dataclass(frozen=True)
class Stop:
    """The op at which a gradient became all zero."""

    node: Node  # the result of the op that received the gradient
    factors: frozenset[int]  # the indices of the op's inputs that the derivative computes with
    inside: bool  # False for a checkpoint, whose derivative is a pass through its second run

    @classmethod
    def at(cls, node: Node, parent: Node) -> Stop:
        """Return the stop where the gradient of `node` gave only zeros for `parent`."""
        assert node.op is not None
        vjps = [edge[2] for edge in node.edges or () if edge[0] is parent]
        slots = {slot for vjp in vjps if vjp is not None for slot, shape in vjp.slots if not shape}
        if node.op.takes_sequence and 0 in slots:
            slots |= set(range(1 + max(edge[1] for edge in node.edges or ())))
        return cls(node, frozenset(slots), None not in vjps)


class BackwardTrace(Observer):
    """Follows gradients backward."""

    def __init__(self) -> None:
        # By parent: the results whose derivatives passed on zeros, and where the zeros began.
        self._passed: defaultdict[Node, list[Node]] = defaultdict(list)
        self._stops: defaultdict[Node, list[Stop]] = defaultdict(list)
        # By parent: the ops whose derivatives passed on more than zeros.
        self._fed: defaultdict[Node, list[Stop]] = defaultdict(list)

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Note whether a nonzero gradient arrived, and whether a nonzero one was passed on."""
        if not values_of(gradient).any():
            self._passed[parent].append(node)
        else:
            found = self._fed if values_of(result).any() else self._stops
            found[parent].append(Stop.at(node, parent))

    def stops(self, node: Node | None) -> list[Stop]:
        """List where the gradients on paths to `node` became zero, from near to far."""
        found = [stop for path in self._back_from(node) for stop in self._stops[path]]
        return [stop for stop in found if stop.inside] or found

    def before(self, stop: Stop) -> list[Stop]:
        """List the ops that the gradient came through before a stop, from near to far."""
        return _reached([stop], lambda each: self._fed.get(each.node, ()))[1:]

    def lost_at(self, node: Node | None) -> Node | None:
        """Return the node where nonzero gradients add up to zero, or a hook makes them zero."""
        return next((other for other in self._back_from(node) if other in self._fed), None)

    def _back_from(self, node: Node | None) -> list[Node]:
        """List `node` and the nodes that had only zeros to pass on to it, from near to far."""
        return _reached([] if node is None else [node], lambda each: self._passed.get(each, ()))


def _reached(start: list[T], beyond: Callable[[T], Iterable[T]]) -> list[T]:
    """List what is reached from some objects step by step, once each, from near to far."""
    queue, found = list(start), set(start)
    for each in queue:  # the queue grows during the loop
        new = [other for other in dict.fromkeys(beyond(each)) if other not in found]
        found.update(new)
        queue += new
    return queue


def _operands(inputs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the Tensors and arrays among the inputs of an op, also in lists, with their index."""
    for index, value in enumerate(inputs):
        if isinstance(value, (Tensor, np.ndarray)):
            yield index, value
        elif isinstance(value, (tuple, list)):
            yield from ((index, part) for _, part in _operands(value))


def union(*sets: frozenset[Any]) -> frozenset[Any]:
    """Return the union of sets; to save memory, it is one of them if that has all elements."""
    largest = max(sets, key=len, default=EMPTY)
    return largest if all(map(largest.issuperset, sets)) else largest.union(*sets)


@contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Restore a model after the block: attributes of its modules, values, and random generators.

    Parameters in lists, dicts and other objects in a module are found as the module finds them;
    other content of these objects is not saved. Arrays that have not changed are not written to. In
    the block, every `.grad` is None, so that an optimiser changes nothing that has no new gradient.
    """
    attributes = [(module, attributes_of(module)) for module in model.modules()]
    values = [value for _, own in attributes for value in own.values()]
    tensors = [*model.parameters(), *(v for v in values if isinstance(v, Tensor))]
    present = [(t, {"_data": t._data, "node": t.node, "grad": None}) for t in tensors]
    arrays = [v for v in values if isinstance(v, np.ndarray) and v.dtype.kind in "biufc"]
    arrays += (tensor._data for tensor in tensors)
    copies = [(array, array.copy()) for array in {id(array): array for array in arrays}.values()]
    draws = Draws()
    for generator in generators_in(model):  # the user's code may draw from it directly
        draws.on_random(generator)

    def restore() -> None:
        for module, own in attributes:
            restore_attributes(module, own)
        for array, copy in copies:
            if np.array_equal(array, copy, equal_nan=True):
                continue
            if not array.flags.writeable:
                release(array)
            array[...] = copy
            mark_written(array)

    try:
        with draws.put_back(), assigned(present):
            yield
    finally:
        complete(restore)


@dataclass(frozen=True)
class StepRun:
    """The findings of one forward and one backward pass."""

    parameters: Mapping[str, Parameter]  # those of the model, by name
    loss: Tensor
    forward: ForwardTrace
    backward: BackwardTrace
    forward_cuts: int  # how many of `forward.cuts` are from the forward pass, not a second run
    norms: dict[str, float]  # the norms of the gradients that arrived; 0 only if all elements are 0
    frozen: Names  # the parameters that required no gradient at the end


def run_step(
    model: Module, loss_fn: Loss, batch: Any, moved: Mapping[str, NDArray[Any]] | None = None
) -> StepRun:
    """Run the forward and the backward pass of a model on a batch, and restore the model.

    Every run draws the same random numbers. Parameters in `moved` have other values in this run.
    """
    parameters = dict(model.named_parameters())
    forward, backward = ForwardTrace(parameters), BackwardTrace()
    named = parameters.items()
    arrived: dict[Node, Any] = {}
    with unchanged(model):
        for name, value in (moved or {}).items():
            parameters[name]._data = value
        with grad_mode(True), observe(forward):
            loss = loss_of(model, loss_fn, batch)
            forward_cuts = len(forward.cuts)
            frozen = frozenset(name for name, p in named if p.node is None)
            if loss.node is not None:
                seeds = {loss.node: np.ones(loss.shape, loss.dtype)}
                wanted = {p.node for _, p in named if p.node is not None}
                with observe(backward):  # the graph is retained: part of it may be the user's
                    arrived = propagate(seeds, wanted=wanted, retain_graph=True)
    # `hypot`, because the squares might be too large or too small for a float.
    found = ((name, arrived[p.node].ravel()) for name, p in named if p.node in arrived)
    norms = {name: float(np.hypot.reduce(g, dtype=np.float64)) for name, g in found}
    return StepRun(parameters, loss, forward, backward, forward_cuts, norms, frozen)


def zero_by_construction(first: StepRun, run_with: Callable[..., StepRun]) -> dict[str, Names]:
    """Find the parameters whose gradient is zero by construction in the run `first`, and why.

    `run_with` runs the step again, with other values for some parameters. For each name, the result
    has the all-zero parameters that are factors of the gradient.
    """
    parameters = first.parameters
    asleep = [name for name, norm in first.norms.items() if norm == 0]
    suspects: dict[str, Names] = dict.fromkeys(asleep, EMPTY)
    moved: dict[str, NDArray[Any]] = {}
    found: dict[str, Names] = {}
    rng = np.random.default_rng(0)
    run = first
    while asleep:
        for name in asleep:
            stops = run.backward.stops(parameters[name].node)
            factors = [zero.parameters for stop in stops for zero in run.forward.zero_factors(stop)]
            if not factors:  # a part of the gradient may have become zero before the stops
                ops = (op for stop in stops for op in run.backward.before(stop))
                factors = [next(filter(None, map(run.forward.part_factors, ops)), EMPTY)]
                others = (op for stop in stops for op in run.backward.stops(stop.node))
                factors += [z.parameters for op in others for z in run.forward.zero_factors(op)]
            if not any(factors):  # they may be inside a checkpoint, or not be factors themselves
                factors = [run.forward.zeros_behind(stop) for stop in stops]
            suspects[name] |= {other for other in union(*factors) if run.norms.get(other)} - {name}
        before, wanted = len(moved), union(*(suspects[name] for name in asleep))
        for name, p in parameters.items():
            if name in wanted and name not in moved:
                moved[name] = (MOVE * rng.standard_normal(p.shape)).astype(p.dtype)
        if len(moved) == before:
            break
        run = run_with(moved)
        # After one parameter of zeros was moved, another one may matter, so look once more.
        new = (name for name in asleep if suspects[name] and run.norms.get(name))
        found |= {name: suspects[name] for name in new}
        asleep = [name for name in asleep if name not in found]
    return found
