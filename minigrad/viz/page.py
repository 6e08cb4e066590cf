"""explore: the page on which a reader steps through a backward pass, forwards and back.

It is one HTML file, with all that it needs inside: no network, no build step, nothing to install.
Its texts and numbers come from here, as one value for JSON; the files in `template` lay them out
and draw them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.core.node import OpLike
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.io.atomic import write_atomically
from minigrad.nn import Module
from minigrad.viz.graph_view import (
    GraphView,
    Link,
    NodeView,
    in_words,
    names_of_saved,
    saved_by,
    view_graph,
)
from minigrad.viz.passes import (
    Pass,
    Sent,
    Step,
    depth_first,
    right_order,
    second_pass,
    uncleared_pass,
)
from minigrad.viz.previews import FEW, LARGEST, Previews
from minigrad.viz.source import filled_in, in_short, signature_of, source_of
from minigrad.viz.tape import Tape

Json = dict[str, Any]

LIMIT = 1_000_000  # bytes of a page

_MOST = 4000  # nodes, of which no more fit into a page whatever they contain
_COARSEST = 4  # cells of a heat map, up and across

TEMPLATE = Path(__file__).with_name("template")
_SCRIPTS = ("layout.js", "heatmap.js", "camera.js", "drawing.js", "panel.js", "page.js")


def explore(
    loss: Tensor,
    path: str | os.PathLike[str],
    *,
    tape: Tape | None = None,
    model: Module | None = None,
    title: str | None = None,
) -> None:
    """Write a page that steps through the backward pass of `loss`.

    It shows the graph, each VJP that runs with its source, the gradient that arrives and those
    that leave, and what adds up where. Then it shows the pass as a second one, as that of an engine
    that does not clear what it stores, and depth first, and where these go wrong.

    Arrays of up to 16 numbers are written out, to the last digit; larger ones are heat maps, of the
    means of blocks. In a graph of more than about 500 nodes, all but single numbers are.

    The graph and every `.grad` stay as they are. No hook is called, since it might do anything; a
    node that has one says so. All gradients of the pass are in memory at once.

    The page shows the values that are still there: those saved for VJPs, and those of living
    tensors. With a tape it shows all values, and lines of source and modules too:

        with mg.viz.record() as tape:
            loss = mg.mse(model(x), y)
        mg.viz.explore(loss, "loss.html", tape=tape)

    Tensors have the names of the caller's variables; parameters have their names in their model.

    Args:
        loss: a Tensor of one element, with a graph.
        path: the file to write, which is replaced if it is there.
        tape: a tape of `record`.
        model: a model whose parameters to call by their names; those of a model on the tape, or in
            a variable of the caller, are known without it.
        title: the title of the page.

    Raises:
        TypeError: if `loss` is no Tensor, `tape` no tape, `model` no module, or `title` no string.
        ValueError: if `loss` has more than one element, its graph is too large for a page, or the
            tape has seen nothing of it.
        RuntimeError: if it has no graph, or a backward pass has freed that, or an array that it
            needs was written since. Nothing is written then.
    """
    graph = view_graph("explore", loss, tape, model, sys._getframe(1).f_locals)
    if loss.size != 1:
        raise ValueError(
            f"explore: {loss.describe()} has {loss.size} elements, and a backward pass starts from "
            f"one; reduce it with .sum() or .mean()"
        )
    if len(graph.nodes) > _MOST:
        raise _too_large(graph)
    if not isinstance(title, str | None):
        raise TypeError(f"explore: title must be a string, not {title!r:.60}")
    heading = f"Backward pass of {graph.nodes[graph.root].name}" if title is None else title
    first = right_order(graph)
    others = second_pass(graph, first), uncleared_pass(graph, first), depth_first(graph, first)
    write_atomically(path, _page(heading, graph, [first, *others]))


# --------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------


def _page(title: str, graph: GraphView, passes: Sequence[Pass]) -> bytes:
    """Return the page, with heat maps as fine as there is room for, also of few numbers if need be.

    Raises:
        ValueError: if it is too large with the coarsest heat maps.
    """
    for few in (FEW, 1):
        side = LARGEST
        while side >= _COARSEST:
            previews = Previews(side, few)
            page = _filled(title, _Writer(graph, previews).write(title, passes))
            if len(page) <= LIMIT:
                return page
            maps = [picture[1] for picture in previews.pictures if isinstance(picture[1], str)]
            room = LIMIT - (len(page) - sum(map(len, maps)))
            side = min(side - 1, math.isqrt(max(0, room) // max(1, len(maps))))
    raise _too_large(graph)


def _too_large(graph: GraphView) -> ValueError:
    return ValueError(
        f"explore: a graph of {len(graph.nodes):,} nodes is too large for a page of "
        f"{LIMIT:,} bytes, which has room for about 1,000; explore a part of the model, such as "
        f"one layer, or fewer steps in time, or draw the graph with viz.draw"
    )


def _filled(title: str, data: Json) -> bytes:
    style, code = (TEMPLATE / "page.css").read_text("utf-8"), script()
    # Inside a script element, `<` might end it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": style,
        "style-hash": _hash(style),
        "data": text,
        "script": code,
        "script-hash": _hash(code),
    }
    page = (TEMPLATE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], page).encode()


def script() -> str:
    """Return the page's script: the files of the template, one after the other, in one function."""
    text = "\n".join((TEMPLATE / name).read_text("utf-8") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{text}\n}})();\n'


def _hash(text: str) -> str:
    """Return the hash by which the page's security policy allows this text and no other."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --------------------------------------------------------------------------------------------------
# Its data
# --------------------------------------------------------------------------------------------------


class _Writer:
    """Collects all that the page needs, with the pictures that `previews` makes."""

    def __init__(self, graph: GraphView, previews: Previews) -> None:
        self._graph = graph
        self._previews = previews
        self._links = [link for view in graph.nodes.values() for link in view.links]
        # Each thing is written once, in the list of its kind, and then known by its index there.
        self._index: dict[Any, int] = {None: -1}
        for things in (graph.nodes, self._links, graph.groups, graph.frozen):
            self._index |= {thing: i for i, thing in enumerate(things)}
        self._ops: list[Json] = []
        self._vjps: list[Json] = []
        self._steps: list[Json] = []

    def write(self, title: str, passes: Sequence[Pass]) -> Json:
        graph, index = self._graph, self._index
        return {
            "title": title,
            "root": index[graph.root],
            "nodes": [self._node(view) for view in graph.nodes.values()],
            "frozen": [
                {"name": frozen.name, "why": frozen.why, "group": index[frozen.group]}
                | self._pictures(value=frozen.value)
                for frozen in graph.frozen
            ],
            "links": [self._link(link) for link in self._links],
            "groups": [
                {
                    "name": name or type(group.module).__name__,
                    "type": type(group.module).__name__,
                    "parent": index[group.parent],
                }
                for group, name in graph.groups.items()
            ],
            "passes": [self._pass(shown) for shown in passes],
            "steps": self._steps,
            "ops": self._ops,
            "vjps": self._vjps,
            "kinds": self._previews.kinds,
            "pictures": self._previews.pictures,
        }

    def _once(self, entries: list[Json], thing: Any, write: Callable[[], Json]) -> int:
        """Return the index of a thing among the entries; it is written the first time."""
        key = id(entries), id(thing)
        if key not in self._index:
            written = write()
            self._index[key] = len(entries)
            entries.append(written)
        return self._index[key]

    def _pictures(self, **values: Any) -> Json:
        """Return the indices of pictures of the values that are there."""
        return {name: self._previews.add(v) for name, v in values.items() if v is not None}

    def _node(self, view: NodeView) -> Json:
        node = view.node
        written: Json = {
            "name": view.name,
            "named": view.named,
            "shape": list(node.shape),
            "dtype": node.dtype.name,
            "group": self._index[view.group],
        }
        if view.frozen:
            written["frozen"] = [[name, self._index[frozen]] for name, frozen in view.frozen]
        if view.options:
            written["options"] = view.options
        if node.op is not None:
            written["op"] = self._once(self._ops, node.op, partial(_op_in_words, node.op))
        written |= self._pictures(value=view.value)
        if view.call is not None and view.call.source_line is not None:
            written["line"] = str(view.call.source_line)
        if node.hooks:
            written["hooks"] = len(node.hooks)
        return written

    def _link(self, link: Link) -> Json:
        given: list[list[Any]] = []
        op = link.target.op
        if op is not None and op.vjps and not op.plain:
            needed = {edge[1] for edge in link.target.edges or ()}
            known = [(op.parameters[index], index in needed) for index, _ in op.vjps]
            words = ", ".join(f"{name} {'yes' if need else 'no'}" for name, need in known)
            given.append(["needs_input_grad", -1, words])
        for name, value in saved_by(link.edge):
            if isinstance(value, (np.ndarray, np.generic, int, float)):
                given.append([name, self._previews.add(value)])
            else:
                given.append([name, -1, in_words(value)])
        return {
            "source": self._index[link.source],
            "target": self._index[link.target],
            "input": link.input,
            "vjp": self._vjp(link),
            "given": given,
        }

    def _vjp(self, link: Link) -> int:
        op, vjp = link.target.op, link.edge[2]
        assert op is not None
        key = op if vjp is None else vjp.derivative
        return self._once(self._vjps, key, partial(_vjp_in_words, op, vjp))

    def _pass(self, shown: Pass) -> Json:
        add, leaves = self._previews.add, [step for step in shown.steps if step.kind == "leaf"]
        ends = [
            [self._index[leaf.node], add(leaf.after), add(shown.right[leaf.node])]
            for leaf in leaves
        ]
        initial = [[self._index[node], add(g)] for node, g in shown.initial.items()]
        return {
            "key": shown.key,
            "title": shown.title,
            "about": shown.about,
            "steps": [
                self._once(self._steps, step, partial(self._step, step)) for step in shown.steps
            ],
            "fault": -1 if shown.fault is None else shown.fault,
            # What is said of steps with a fault or note, which is the same for all of them.
            "words": {
                name: next((text for step in shown.steps if (text := getattr(step, name))), "")
                for name in ("fault", "note")
            },
            "ends": ends,
            "initial": initial,
        }

    def _step(self, step: Step) -> Json:
        written: Json = {
            "kind": step.kind,
            "node": self._index[step.node],
            "g": self._previews.add(step.gradient),
            "arrivals": step.arrivals,
        }
        if step.sent:
            written["sent"] = [self._sent(step, sent) for sent in step.sent]
        written |= self._pictures(before=step.before, after=step.after)
        return written | {name: 1 for name in ("fault", "note") if getattr(step, name)}

    def _sent(self, step: Step, sent: Sent) -> list[Any]:
        """Return `[link, gradient, after, before or -1]`, and an object if there is more to say."""
        add = self._previews.add
        before = -1 if sent.before is None else add(sent.before)
        written = [self._index[sent.link], add(sent.gradient), add(sent.after), before]
        more = self._pictures(due=sent.due)
        if (sent.result.shape, sent.result.dtype) != (sent.gradient.shape, sent.gradient.dtype):
            more["result"] = add(sent.result)
        formula = self._vjps[self._vjp(sent.link)].get("formula", "")
        filled = filled_in(formula, {"g": step.gradient, **dict(saved_by(sent.link.edge))})
        result = in_short(sent.result) if sent.result.size == 1 else filled
        if filled is not None and filled != result:
            more["filled"] = f"{filled} = {result}"
        return [*written, more] if more else written


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
    # What each parameter after `g` stands for; the slots behind the op's inputs as in `Op`.
    meanings = [
        *(f"the op's input {name}" for name in op.parameters),
        "the op's own result",
        "which of the inputs",
        "what the forward saved",
    ]
    slots = zip(names_of_saved(vjp), vjp.slots, strict=True)
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
