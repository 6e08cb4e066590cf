"""The data of the page: the graph and the passes through it, as one value for JSON."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minigrad.core.node import Node, OpLike
from minigrad.core.op import Op
from minigrad.diagnostics.recorder import ModuleCall
from minigrad.viz.graph_view import FrozenInput, GraphView, Link, NodeView, in_words
from minigrad.viz.previews import Previews
from minigrad.viz.replay import Replay, Sent, Step
from minigrad.viz.source import filled_in, in_short, signature_of, source_of
from minigrad.viz.values import saved_by

Json = dict[str, Any]


@dataclass(frozen=True)
class ShownPass:
    """A pass, as it is offered to the reader.

    Attributes:
        key: a short name of it.
        title: the text of its button.
        about: what happens in it, in a few sentences.
        replay: the pass.
        right: what each leaf's `.grad` should be in the end.
        initial: the gradients that are there before it begins.
    """

    key: str
    title: str
    about: str
    replay: Replay
    right: dict[Node, Any]
    initial: dict[Node, Any]


def page_data(
    title: str, graph: GraphView, passes: Sequence[ShownPass], previews: Previews
) -> Json:
    """Collect all that the page needs, with the pictures that `previews` makes."""
    return _Writer(graph, previews).write(title, passes)


class _Entries:
    """A list for JSON, in which each object is written once and then known by its index."""

    def __init__(self) -> None:
        self.written: list[Json] = []
        self._index: dict[int, int] = {}  # by id, of objects that live as long as the writer

    def index(self, thing: Any, write: Callable[[], Json]) -> int:
        """Return the index of an object, which is written the first time."""
        if id(thing) not in self._index:
            written = write()
            self._index[id(thing)] = len(self.written)
            self.written.append(written)
        return self._index[id(thing)]


class _Writer:
    def __init__(self, graph: GraphView, previews: Previews) -> None:
        self._graph = graph
        self._previews = previews
        self._links = {id(link): i for i, link in enumerate(graph.links)}
        self._nodes = {node: i for i, node in enumerate(graph.nodes)}
        self._groups = {group: i for i, group in enumerate(graph.groups)}
        self._frozen = {frozen: i for i, frozen in enumerate(graph.frozen)}
        self._ops, self._vjps, self._steps = _Entries(), _Entries(), _Entries()

    def write(self, title: str, passes: Sequence[ShownPass]) -> Json:
        return {
            "title": title,
            "root": self._nodes[self._graph.root],
            "nodes": [self._node(view) for view in self._graph.nodes.values()],
            "frozen": [self._frozen_input(frozen) for frozen in self._graph.frozen],
            "links": [self._link(link) for link in self._graph.links],
            "groups": [self._group(group) for group in self._graph.groups],
            "passes": [self._pass(shown) for shown in passes],
            "steps": self._steps.written,
            "ops": self._ops.written,
            "vjps": self._vjps.written,
            "kinds": self._previews.kinds,
            "pictures": self._previews.pictures,
        }

    def _node(self, view: NodeView) -> Json:
        node = view.node
        written: Json = {
            "name": view.name,
            "named": view.named,
            "shape": list(node.shape),
            "dtype": node.dtype.name,
            "group": self._group_index(view.group),
        }
        if view.frozen:
            written["frozen"] = [[name, self._frozen[frozen]] for name, frozen in view.frozen]
        if view.options:
            written["options"] = view.options
        if node.op is not None:
            written["op"] = self._ops.index(node.op, partial(_op_in_words, node.op))
        if view.value is not None:
            written["value"] = self._previews.add(view.value)
        if view.call is not None and view.call.source_line is not None:
            written["line"] = str(view.call.source_line)
        if node.hooks:
            written["hooks"] = len(node.hooks)
        return written

    def _frozen_input(self, frozen: FrozenInput) -> Json:
        written: Json = {
            "name": frozen.name,
            "why": frozen.why,
            "group": self._group_index(frozen.group),
        }
        if frozen.value is not None:
            written["value"] = self._previews.add(frozen.value)
        return written

    def _group(self, group: ModuleCall) -> Json:
        kind = type(group.module).__name__
        return {
            "name": group.name or self._graph.names.of_module(group.module) or kind,
            "type": kind,
            "parent": self._group_index(group.parent),
        }

    def _group_index(self, group: ModuleCall | None) -> int:
        return -1 if group is None else self._groups[group]

    def _link(self, link: Link) -> Json:
        given: list[list[Any]] = []
        op, vjp = link.target.op, link.edge[2]
        if op is not None and op.vjps and not op.plain:
            needed = {edge[1] for edge in link.target.edges or ()}
            known = [(op.parameters[index], index in needed) for index, _ in op.vjps]
            words = ", ".join(f"{name} {'yes' if need else 'no'}" for name, need in known)
            given.append([list(inspect.signature(vjp.derivative).parameters)[1], -1, words])
        for name, value in saved_by(link.target, link.edge):
            if isinstance(value, (np.ndarray, np.generic, int, float)):
                given.append([name, self._previews.add(value)])
            else:
                given.append([name, -1, in_words(value)])
        return {
            "source": self._nodes[link.source],
            "target": self._nodes[link.target],
            "input": link.input,
            "vjp": self._vjp(link),
            "given": given,
        }

    def _vjp(self, link: Link) -> int:
        op, vjp = link.target.op, link.edge[2]
        assert op is not None
        key = op if vjp is None else vjp.derivative
        return self._vjps.index(key, partial(_vjp_in_words, op, vjp))

    # ----------------------------------------------------------------------------------------------
    # Passes
    # ----------------------------------------------------------------------------------------------

    def _pass(self, shown: ShownPass) -> Json:
        replay = shown.replay
        ends = [
            [
                self._nodes[step.node],
                self._previews.add(step.after),
                self._previews.add(shown.right[step.node]),
            ]
            for step in replay.steps
            if step.kind == "leaf"
        ]
        initial = [[self._nodes[node], self._previews.add(g)] for node, g in shown.initial.items()]
        return {
            "key": shown.key,
            "title": shown.title,
            "about": shown.about,
            "steps": [self._steps.index(step, partial(self._step, step)) for step in replay.steps],
            "fault": -1 if replay.first_fault is None else replay.first_fault,
            # What is said of steps with a fault or note, which is the same for all of them.
            "words": {
                name: next((text for step in replay.steps if (text := getattr(step, name))), "")
                for name in ("fault", "note")
            },
            "ends": ends,
            "initial": initial,
        }

    def _step(self, step: Step) -> Json:
        written: Json = {
            "kind": step.kind,
            "node": self._nodes[step.node],
            "g": self._previews.add(step.gradient),
            "arrivals": step.arrivals,
        }
        if step.sent:
            written["sent"] = [self._sent(step, sent) for sent in step.sent]
        for name in ("before", "after"):
            value = getattr(step, name)
            if value is not None:
                written[name] = self._previews.add(value)
        return written | {name: 1 for name in ("fault", "note") if getattr(step, name)}

    def _sent(self, step: Step, sent: Sent) -> list[Any]:
        """Return `[link, gradient, after, before or -1]`, and an object if there is more to say."""
        add = self._previews.add
        before = -1 if sent.before is None else add(sent.before)
        written = [self._links[id(sent.link)], add(sent.gradient), add(sent.after), before]
        more: Json = {}
        if sent.due is not None:
            more["due"] = add(sent.due)
        if (sent.result.shape, sent.result.dtype) != (sent.gradient.shape, sent.gradient.dtype):
            more["result"] = add(sent.result)
        formula = self._vjps.written[self._vjp(sent.link)].get("formula", "")
        values = {"g": step.gradient, **dict(saved_by(sent.link.target, sent.link.edge))}
        filled = filled_in(formula, values)
        result = in_short(sent.result) if sent.result.size == 1 else filled
        if filled is not None and filled != result:
            more["filled"] = f"{filled} = {result}"
        return [*written, more] if more else written


# --------------------------------------------------------------------------------------------------
# Source
# --------------------------------------------------------------------------------------------------


def _op_in_words(op: OpLike) -> Json:
    """Describe an op: its signature, the text of its docstring, and its source."""
    # Without the docstring's sections on arguments and errors.
    doc = re.split(r"\n\n(?:Args|Returns|Raises|Attributes):\n", inspect.getdoc(op) or "")[0]
    forward = source_of(op.forward)
    written: Json = {
        "name": op.name,
        "parameters": list(op.parameters),
        "signature": f"{op.name}({signature_of(op.forward)})",
        "doc": [" ".join(paragraph.split()) for paragraph in doc.split("\n\n")],
        "forward": forward.text if forward else "The source of its forward is not there.",
    }
    composition = source_of(op.composition)
    if composition is not None:
        written["composition"] = composition.text
    return written


def _vjp_in_words(op: OpLike, vjp: Any) -> Json:
    """Describe a VJP: its source, or what runs instead of one."""
    if vjp is None:
        return {
            "title": f"{op.name} has no VJP",
            "text": "",
            "note": "Its function runs again, recording this time, and the gradient goes back "
            "through what it has recorded.",
        }
    inputs = [op.parameters[index] for index, known in op.vjps if known is vjp]
    names = f'"{inputs[0]}"' if op.plain else "(" + ", ".join(f'"{name}"' for name in inputs) + ")"
    method = Op.vjp if op.plain else Op.joint_vjp
    parameters = list(inspect.signature(vjp.derivative).parameters)
    # What each parameter after `g` stands for; the slots behind the op's inputs as in `Op`.
    meanings = [
        *(f"the op's input {name}" for name in op.parameters),
        "the op's own result",
        "which of the inputs",
        "what the forward saved",
    ]
    slots = zip(parameters[len(parameters) - len(vjp.slots) :], vjp.slots, strict=True)
    written: Json = {
        "title": f"{op.name}.{method.__name__}({names})",
        "parameters": signature_of(vjp.derivative),
        "meanings": {name: meanings[slot] for name, (slot, shape_only) in slots if not shape_only},
    }
    source = source_of(vjp.derivative)
    if source is None:
        return {**written, "text": "", "note": "The source of this VJP cannot be found."}
    written |= {"text": source.text, "formula": source.formula}
    if source.kernel:
        written["note"] = "Arrays take a kernel that computes the same in one pass."
    elif op.replayed:
        written["note"] = (
            "A fused op: this kernel is what runs. It computes the derivative of the composition."
        )
    return written
