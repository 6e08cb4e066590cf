"""GraphView: the content of a picture of a graph, for the drawing and for the page.

Gradients reach the nodes of a view, and go along its links. If an input of an op has no link, no
gradient goes to this input: it is a frozen input, and the view has the reason.

A graph stores no names, and no values except residuals. Names are found in the caller's variables
and in models. Values are found on a tape, in living Tensors, and in residuals.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad.core.node import NOT_INPUTS, Edge, Node, OpLike, reachable
from minigrad.core.tensor import Tensor, node_of
from minigrad.diagnostics.recorder import CallRecord, ModuleCall, Tape
from minigrad.nn import Module, Parameter
from minigrad.ops import bfloat16_linear, nf4_linear
from minigrad.viz.previews import Array
from minigrad.viz.source import in_short

UNKNOWN = (
    "It needs no gradient: a number, a plain array, or a tensor without requires_grad=True. Only a "
    "tape of viz.record() knows which."
)


@dataclass(eq=False)
class FrozenInput:
    """An input that no gradient goes to."""

    name: str  # its name in the picture
    why: str  # a sentence that says why it gets no gradient
    value: Any = None  # an array or a number, or None if it is not saved anywhere
    group: ModuleCall | None = None  # the module call whose box it is in


@dataclass(eq=False)
class Link:
    """An edge along which a gradient goes: from the result of an op to one of its inputs."""

    source: Node  # the node of the input
    target: Node  # the node of the result
    edge: Edge
    input: str  # the op's name for its input


@dataclass(eq=False)
class NodeView:
    """A node of the graph, and everything that is known about it."""

    node: Node
    name: str  # the name of its variable or parameter, or else of its op, with a number if needed
    named: bool  # whether `name` is the name of a variable or parameter
    value: Array | None  # None if it is not saved anywhere
    call: CallRecord | None  # the call that made it, if it is on the tape
    # The innermost module call that made it; for a leaf, the innermost that contains all its uses.
    group: ModuleCall | None
    links: list[Link] = field(default_factory=list)  # the links to its inputs
    # Its inputs that get no gradient, with the op's names for them.
    frozen: list[tuple[str, FrozenInput]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)  # known options of its op's call


@dataclass(eq=False)
class GraphView:
    """A graph, ready to be drawn."""

    root: Node  # the node of the loss
    nodes: dict[Node, NodeView]  # the view of each node, the oldest first
    frozen: list[FrozenInput] = field(default_factory=list)  # all frozen inputs, each once
    # The names of the module calls that made something, outer calls first; empty if unknown.
    groups: dict[ModuleCall, str] = field(default_factory=dict)


def view_graph(
    role: str, loss: Tensor, tape: Tape | None, model: Module | None, variables: Mapping[str, Any]
) -> GraphView:
    """Collect the content of a picture of the graph of `loss`; `role` is the caller, for messages.

    Names are those of the caller's `variables` and of the parameters of `model`.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{role}: loss must be a Tensor, not {type(loss).__name__}")
    root = node_of(loss, role)
    if not isinstance(tape, Tape | None):
        raise TypeError(f"{role}: tape must be what viz.record() gives, not {tape!r:.60}")
    if not isinstance(model, Module | None):
        raise TypeError(f"{role}: model must be a Module, not {model!r:.60}")
    nodes = reachable([root])[::-1]
    seen = Tape() if tape is None else tape
    calls = seen.calls
    if tape is not None and root.op is not None and not any(node in calls for node in nodes):
        raise ValueError(
            f"{role}: the tape has seen nothing of this graph; compute the result in the block of "
            f"`with viz.record() as tape:`"
        )
    names = Names(variables, model, seen.roots)
    values = _values_of(nodes, calls)
    values.setdefault(root, loss._data)
    graph = GraphView(root, {})
    total = Counter(node.name for node in nodes if node not in names.of_node)
    so_far = Counter[str]()
    for node in nodes:
        name, call = names.of_node.get(node), calls.get(node)
        named, group = name is not None, None if call is None else call.module
        if name is None:
            so_far[node.name] += 1
            name = f"{node.name} #{so_far[node.name]}" if total[node.name] > 1 else node.name
        graph.nodes[node] = NodeView(node, name, named, values.get(node), call, group)
    plain = UNKNOWN if tape is None else "A plain array: it has no node in a graph."
    inputs = _Inputs(graph, seen, names, plain)
    for view in graph.nodes.values():
        if view.node.op is not None:
            inputs.add(view, view.node.op)
    _group(graph, names)
    return graph


def _group(graph: GraphView, names: Names) -> None:
    """Put leaves and frozen inputs into the innermost module with all their uses; list groups."""
    common: dict[Any, ModuleCall | None] = {}
    for view in graph.nodes.values():
        around = [] if view.group is None else view.group.chain()
        for used in (*(link.source for link in view.links), *(f for _, f in view.frozen)):
            group = common.get(used, view.group)
            while group is not None and group not in around:
                group = group.parent
            common[used] = group
    for view in graph.nodes.values():
        if view.node.op is None:
            view.group = common.get(view.node)
    for frozen in graph.frozen:
        frozen.group = common[frozen]
    items: list[NodeView | FrozenInput] = [*graph.nodes.values(), *graph.frozen]
    innermost = dict.fromkeys(item.group for item in items if item.group is not None)
    for group in dict.fromkeys(group for each in innermost for group in each.chain()):
        name = group.name_in(group.parent) or names.of_module.get(id(group.module), "")
        graph.groups[group] = name


class Names:
    """Names of tensors and modules. If there are several names, the first is used.

    They come from the caller's `variables` that do not begin with an underscore, from the
    parameters in `model`, without a prefix, and from the `roots` on a tape.
    """

    def __init__(
        self, variables: Mapping[str, Any], model: Module | None, roots: Sequence[Module] = ()
    ) -> None:
        known = [(name, v) for name, v in variables.items() if not name.startswith("_")]
        tensors = [(name, v) for name, v in known if isinstance(v, Tensor)]
        modules = [(name, v) for name, v in known if isinstance(v, Module)]
        # A root without a variable has the name of its class, and a number if others have it too.
        unnamed = [root for root in roots if all(root is not module for _, module in modules)]
        total, so_far = Counter(type(root).__name__ for root in unnamed), Counter[str]()
        for root in unnamed:
            name = type(root).__name__
            so_far[name] += 1
            modules.append((f"{name} #{so_far[name]}" if total[name] > 1 else name, root))
        self.of_module = {id(module): name for name, module in reversed(modules)}
        named = [] if model is None else [("", model)]
        if len(roots) == 1:
            named.append(("", roots[0]))
        for prefix, module in [*named, *modules]:
            tensors += module.named_parameters(prefix)
        self.of_node: dict[Node, str] = {}
        self._of_memory: dict[Any, tuple[str, Tensor]] = {}
        for name, tensor in tensors:
            if tensor.node is not None:
                self.of_node.setdefault(tensor.node, name)
            self._of_memory.setdefault(_memory(tensor._data), (name, tensor))

    def of_memory(self, value: Any) -> tuple[str, Tensor] | None:
        """Return the name of a tensor with the same memory and shape, and this tensor, or None."""
        array = value._data if isinstance(value, Tensor) else value
        return self._of_memory.get(_memory(array)) if isinstance(array, np.ndarray) else None


def _memory(array: Array) -> tuple[Any, ...]:
    return array.__array_interface__["data"][0], array.shape, array.strides


def _values_of(nodes: Sequence[Node], calls: Mapping[Node, CallRecord]) -> dict[Node, Array]:
    """Find the values at these nodes: on a tape, in living Tensors, or in residuals."""
    made = [calls[node] for node in nodes if node in calls]
    values = [value for call in made for value in (call.result, *call.inputs)]
    values += gc.get_objects()
    # Not `isinstance`, because it calls an object's `__class__`, which may be user code.
    tensors = [value for value in values if issubclass(type(value), Tensor)]
    found = [(getattr(x, "node", None), getattr(x, "_data", None)) for x in tensors]
    for node in nodes:
        if node.op is not None:
            edges = node.edges or ()
            saved = dict(node.op.saved_values(node, edges))
            found.append((node, saved.get("out")))
            found += [(edge[0], saved.get(node.op.input_name(edge[1]))) for edge in edges]
    wanted = {node: (node.shape, node.dtype) for node in nodes}
    return {
        node: value
        for node, value in reversed(found)  # if a node has several values, the first is used
        if isinstance(value, np.ndarray) and (value.shape, value.dtype) == wanted.get(node)
    }


def known_arguments(view: NodeView, op: OpLike) -> dict[str, Any]:
    """Return the arguments of an op's call by name, as far as they are on the tape or residuals."""
    saved = dict(op.saved_values(view.node, view.node.edges or ()))
    known = {name: value for name, value in saved.items() if name not in NOT_INPUTS}
    if view.call is not None:
        known |= {op.input_name(i): value for i, value in enumerate(view.call.inputs)}
    return known


@dataclass
class _Inputs:
    """Finds the inputs of each node: links to those that get a gradient, and frozen inputs."""

    graph: GraphView
    tape: Tape
    names: Names
    plain: str  # why a plain array gets no gradient, in words
    known: dict[Any, FrozenInput] = field(default_factory=dict)

    def add(self, view: NodeView, op: OpLike) -> None:
        """Add links, frozen inputs and options to the view of a node."""
        edges = view.node.edges or ()
        view.links = [Link(e[0], view.node, e, op.input_name(e[1])) for e in edges]
        given = known_arguments(view, op)
        many = op.takes_sequence or not op.vjps
        names = [name for name in given if name not in op.parameters] if many else op.parameters
        differentiable = names if many else {op.parameters[index] for index, _ in op.vjps}
        linked = {link.input for link in view.links}
        for index, name in enumerate(names):
            value = given.get(name)
            if name in linked:
                continue
            if name in differentiable and name not in given:
                if op.is_required(index):
                    self._freeze(view, name, None, UNKNOWN)
                else:
                    view.options.append((name, "left out, or in need of no gradient"))
            elif name in differentiable and _is_of_numbers(value):
                self._freeze(view, name, value, self._why(value))
            elif op in (nf4_linear, bfloat16_linear) and name == "weight" and value is not None:
                bits = "four bits a number (NF4)" if op is nf4_linear else "bfloat16"
                why = f"A frozen matrix in {bits}: `{op.name}` has no VJP for it."
                stored = value.codes if op is nf4_linear else value.bits
                self._freeze(view, name, stored, why, value.dense())
            elif isinstance(value, (Tensor, np.ndarray)) and _is_of_numbers(value):
                why = f"`{op.name}` has no VJP for its {name}, which no gradient goes to."
                self._freeze(view, name, value, why)
            elif name in given:
                view.options.append((name, in_words(value)))

    def _freeze(
        self, view: NodeView, name: str, value: Any, why: str, decoded: Array | None = None
    ) -> None:
        """Add a frozen input: an array only once, even if it is used often, but each number.

        If the array is stored in another form, `value` is that form, and `decoded` is shown.
        """
        array = value._data if isinstance(value, Tensor) else value
        if isinstance(value, (list, tuple)):  # a list of numbers
            array = np.asarray(value)
        known, made = self.names.of_memory(value), self.tape.made(value)
        # With "input" in front, because the op's name for it could also be a variable's name.
        called = f"input {name}" if made is None else made.name
        shown = array if isinstance(array, (np.ndarray, np.generic, int, float)) else None
        if known is not None:
            called = known[0]
        elif shown is not None and np.ndim(shown) == 0:
            called = in_short(shown)
        frozen = FrozenInput(called, why, shown if decoded is None else decoded)
        if isinstance(array, np.ndarray) and array.size > 1:
            frozen = self.known.setdefault((*_memory(array), why), frozen)
        if frozen not in self.graph.frozen:
            self.graph.frozen.append(frozen)
        view.frozen.append((name, frozen))

    def _why(self, value: Any) -> str:
        """Return a sentence that says why a value gets no gradient."""
        if isinstance(value, (bool, int, float, np.generic)):
            return "A number: there is nothing to differentiate by."
        if not isinstance(value, (Tensor, np.ndarray)):
            return "A list of numbers: there is nothing to differentiate by."
        left = self.tape.left(value)
        if left is not None:
            node = left.inputs[0].node
            whom = self.graph.nodes[node].name if node in self.graph.nodes else "a tensor"
            return f"The value of {whom} as {left.name} gives it: no gradient follows."
        known = self.names.of_memory(value)
        holder = value if known is None else known[1]  # the tensor with this memory
        if isinstance(holder, Parameter):
            if holder.node is None:
                return "A frozen parameter: requires_grad=False."
            return "The value of a parameter, taken as a constant: no gradient follows."
        if made := self.tape.made(value):
            if not made.recorded:
                return f"`{made.name}` made it under no_grad(): nothing was recorded."
            return f"`{made.name}` made it of inputs of which none needs a gradient."
        if isinstance(holder, Tensor) and holder.node is None:
            return "A tensor that needs no gradient: requires_grad=False."
        return self.plain


def _is_of_numbers(value: Any) -> bool:
    """Return whether a value is a number, or an array or list of numbers."""
    try:
        return isinstance(value, Tensor) or np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # of lists of different lengths
        return False


def in_words(value: Any) -> str:
    """Write an option as a user would write it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
