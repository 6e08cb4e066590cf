"""GraphView: what there is to be drawn of a graph, for the drawing and the page alike.

Its nodes are what gradients reach, its links the edges that they go along. Where an input of an op
has no link, no gradient goes to it: it is a frozen input, and the view says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import Edge, Node, OpLike, reachable
from minigrad.core.tensor import Tensor, node_of
from minigrad.diagnostics.recorder import CallRecord, ModuleCall
from minigrad.nn import Module, Parameter
from minigrad.ops import nf4_linear
from minigrad.viz.names import Names, numbered
from minigrad.viz.tape import Tape
from minigrad.viz.values import saved_inputs, takes_sequence, values_of

Array = NDArray[Any]

UNKNOWN = (
    "It needs no gradient: a number, a plain array, or a tensor without requires_grad=True. Only a "
    "tape of viz.record() knows which."
)


@dataclass(eq=False)
class FrozenInput:
    """An input that no gradient goes to.

    Attributes:
        name: what it is called.
        why: why no gradient goes there, in a sentence.
        value: an array or a number, or None if it is not saved anywhere.
        group: the module call that it is drawn in.
    """

    name: str
    why: str
    value: Any = None
    group: ModuleCall | None = None


@dataclass(eq=False)
class Link:
    """An edge along which a gradient goes: from the result of an op to one of its inputs.

    Attributes:
        source: the node of the input.
        target: the node of the result.
        edge: the edge of the graph.
        input: what the op calls its input.
    """

    source: Node
    target: Node
    edge: Edge
    input: str


@dataclass(eq=False)
class NodeView:
    """A node of the graph, and all that is known of it.

    Attributes:
        node: the node.
        name: the name of the variable or parameter at it, or of its op, with a number if there are
            several.
        named: whether it is the name of a variable or parameter.
        value: its value, or None if it is not saved anywhere.
        call: the call that made it, if it is on the tape.
        group: the innermost module call that made it; for a leaf, the innermost one that all its
            uses have in common.
        links: the links to its inputs.
        frozen: its inputs that no gradient goes to, by what the op calls them.
        options: what else its op was called with, as far as it is known.
    """

    node: Node
    name: str = ""
    named: bool = False
    value: Array | None = None
    call: CallRecord | None = None
    group: ModuleCall | None = None
    links: list[Link] = field(default_factory=list)
    frozen: list[tuple[str, FrozenInput]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


@dataclass(eq=False)
class GraphView:
    """A graph, ready to be drawn.

    Attributes:
        root: the node of the loss.
        nodes: the view of each node, the oldest first.
        frozen: the inputs that no gradient goes to, each once.
        groups: the module calls that something was made in, outer ones first.
        names: what modules and tensors are called.
    """

    root: Node
    nodes: dict[Node, NodeView]
    frozen: list[FrozenInput]
    groups: list[ModuleCall]
    names: Names

    @property
    def links(self) -> list[Link]:
        """All links, in the order of the nodes."""
        return [link for view in self.nodes.values() for link in view.links]


def view_graph(
    role: str, loss: Tensor, tape: Tape | None, model: Module | None, variables: Mapping[str, Any]
) -> GraphView:
    """Collect what there is to be drawn of the graph behind `loss`.

    Args:
        role: the function that the user called, for error messages.
        loss: the end of the graph.
        tape: a tape that has seen the graph being made, or None.
        model: a model whose parameters have their names without a prefix, or None.
        variables: the caller's variables, which give names.

    Raises:
        TypeError: if `loss` is no Tensor, the tape no tape, or the model no module.
        ValueError: if the tape has seen nothing of the graph.
        RuntimeError: if there is no graph, or it was freed.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"{role}: loss must be a Tensor, not {type(loss).__name__}")
    root = node_of(loss, role)
    if not isinstance(tape, Tape | None):
        raise TypeError(f"{role}: tape must be what viz.record() gives, not {tape!r:.60}")
    if not isinstance(model, Module | None):
        raise TypeError(f"{role}: model must be a Module, not {model!r:.60}")
    nodes = reachable([root])[::-1]
    calls = {} if tape is None else tape.calls
    if tape is not None and root.op is not None and not any(node in calls for node in nodes):
        raise ValueError(
            f"{role}: the tape has seen nothing of this graph; compute the result in the block of "
            f"`with viz.record() as tape:`"
        )
    names = Names(variables, model, () if tape is None else tape.roots)
    values = values_of(nodes, calls)
    values.setdefault(root, loss._data)
    graph = GraphView(root, {}, [], [], names)
    for node in nodes:
        name, call = names.of_node(node), calls.get(node)
        group = None if call is None else call.module
        graph.nodes[node] = NodeView(node, name, bool(name), values.get(node), call, group)
    unnamed = [view for view in graph.nodes.values() if not view.name]
    for view, name in zip(unnamed, numbered(view.node.name for view in unnamed), strict=True):
        view.name = name
    inputs = _Inputs(graph, tape)
    for view in graph.nodes.values():
        if view.node.op is not None:
            inputs.add(view, view.node.op)
    _group(graph)
    return graph


class _Inputs:
    """Finds the inputs of each node: those that its gradient goes on to, and the frozen ones."""

    def __init__(self, graph: GraphView, tape: Tape | None) -> None:
        self._graph = graph
        self._tape = Tape() if tape is None else tape
        self._plain = UNKNOWN if tape is None else "A plain array: it has no node in a graph."
        self._known: dict[Any, FrozenInput] = {}

    def add(self, view: NodeView, op: OpLike) -> None:
        """Give a node its links, frozen inputs and options."""
        edges = view.node.edges or ()
        view.links = [Link(e[0], view.node, e, op.input_name(e[1])) for e in edges]
        linked = {edge[1] for edge in edges}
        many = takes_sequence(op) or not op.vjps
        given: dict[int, Any]
        if view.call is not None:
            given = dict(enumerate(view.call.inputs))
        else:
            given = saved_inputs(view.node)
        indices = given if many else range(len(op.parameters))
        differentiable = set(given) if many else {index for index, _ in op.vjps}
        for index in sorted(set(indices) - linked):
            name = op.input_name(index)
            value = given.get(index)
            if index in differentiable and index not in given:
                if op.is_required(index):
                    self._freeze(view, name, FrozenInput(_unnamed(name), UNKNOWN), None)
                else:
                    view.options.append((name, "left out, or in need of no gradient"))
            elif index in differentiable and value is None:
                view.options.append((name, "None"))
            elif index in differentiable:
                self._freeze(view, name, self._frozen(name, value), value)
            elif op is nf4_linear and name == "weight" and value is not None:
                why = f"A frozen matrix in four bits a number (NF4): `{op.name}` has no VJP for it."
                frozen = FrozenInput(_unnamed(name), why, value.dense())
                self._freeze(view, name, frozen, value.codes)
            elif isinstance(value, (Tensor, np.ndarray)):
                frozen = self._frozen(name, value)
                frozen.why = (
                    f"`{op.name}` cannot be differentiated by its {name}, and has no VJP for it."
                )
                self._freeze(view, name, frozen, value)
            elif index in given:
                view.options.append((name, in_words(value)))

    def _freeze(self, view: NodeView, name: str, frozen: FrozenInput, value: Any) -> None:
        """Draw one and the same array once, however often it is used; numbers each by itself.

        If the value is stored in another form, `value` is the array that stores it.
        """
        array = value._data if isinstance(value, Tensor) else value
        if isinstance(array, np.ndarray) and array.size > 1:
            key = (array.__array_interface__["data"][0], array.shape, array.strides, frozen.why)
            frozen = self._known.setdefault(key, frozen)
        if frozen not in self._graph.frozen:
            self._graph.frozen.append(frozen)
        view.frozen.append((name, frozen))

    def _frozen(self, name: str, value: Any) -> FrozenInput:
        array = value._data if isinstance(value, Tensor) else value
        known = self._graph.names.of_memory(value)
        made = self._tape.made(value)
        called = _unnamed(name) if made is None else made.name
        called = called if known is None else known[0]
        shown = array if isinstance(array, (np.ndarray, np.generic, int, float)) else None
        if np.ndim(array) == 0 and shown is not None:
            called = f"{np.asarray(array).item():.4g}" if known is None else called
        return FrozenInput(called, self._why(value), shown)

    def _why(self, value: Any) -> str:
        """Say why no gradient goes to a value."""
        if isinstance(value, (bool, int, float, np.generic)):
            return "A number: there is nothing to differentiate by."
        if not isinstance(value, (Tensor, np.ndarray)):
            return "A list of numbers: there is nothing to differentiate by."
        left = self._tape.left(value)
        if left is not None:
            node = left.inputs[0].node
            whom = self._graph.nodes[node].name if node in self._graph.nodes else "a tensor"
            return f"The value of {whom} as {left.name} gives it: no gradient follows."
        known = self._graph.names.of_memory(value)
        holder = value if known is None else known[1]  # of this memory
        if isinstance(holder, Parameter):
            if holder.node is None:
                return "A frozen parameter: requires_grad=False."
            return "The value of a parameter, taken as a constant: no gradient follows."
        made = self._tape.made(value)
        if made is not None and not made.recorded:
            return f"`{made.name}` made it under no_grad(): nothing was recorded."
        if made is not None:
            return f"`{made.name}` made it of inputs of which none needs a gradient."
        if isinstance(holder, Tensor) and holder.node is None:
            return "A tensor that needs no gradient: requires_grad=False."
        return self._plain


def _unnamed(name: str) -> str:
    """Return what to call an array without a name; the op's word alone could be a variable's."""
    return f"input {name}"


def in_words(value: Any) -> str:
    """Write an option as a reader would write it."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _group(graph: GraphView) -> None:
    """Put leaves and frozen inputs into the module that uses them, and list the modules."""
    uses: dict[Any, list[ModuleCall | None]] = {}
    for view in graph.nodes.values():
        for link in view.links:
            uses.setdefault(link.source, []).append(view.group)
        for _, frozen in view.frozen:
            uses.setdefault(frozen, []).append(view.group)
    for view in graph.nodes.values():
        if view.node.op is None:
            view.group = _common(uses.get(view.node, ()))
    for frozen in graph.frozen:
        frozen.group = _common(uses.get(frozen, ()))
    items: list[NodeView | FrozenInput] = [*graph.nodes.values(), *graph.frozen]
    chains = (item.group.chain() for item in items if item.group is not None)
    graph.groups = list(dict.fromkeys(group for chain in chains for group in chain))


def _common(groups: Iterable[ModuleCall | None]) -> ModuleCall | None:
    """Return the innermost module call that all of these are in."""
    chains = [[] if group is None else group.chain() for group in groups]
    common = None
    for level in zip(*chains, strict=False):
        if any(group is not level[0] for group in level):
            break
        common = level[0]
    return common
