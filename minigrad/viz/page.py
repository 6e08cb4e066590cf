"""explore: make a page on which a reader steps through a backward pass, forwards and back.

The page is one HTML file that contains everything it needs: no network, no build step, nothing to
install. This module writes its texts and numbers as JSON; the files in `template` draw them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.core.node import Edge, OpLike
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import ModuleCall, Tape
from minigrad.io.atomic import check_target, write_atomically
from minigrad.nn import Module
from minigrad.programs import Captured
from minigrad.viz.graph_view import FrozenInput, GraphView, Link, NodeView, in_words, view_graph
from minigrad.viz.nudges import nudges_of
from minigrad.viz.passes import Pass, Sent, Step, passes_through
from minigrad.viz.previews import FEW, LARGEST, Json, Previews
from minigrad.viz.program_view import ProgramView
from minigrad.viz.source import filled_in, in_short, signature_of, source_of

LIMIT = 1_000_000  # the most bytes of a page

_MOST = 4000  # the most nodes: more do not fit in a page, whatever they contain
# The rows and columns of a heat map, and how many numbers are written out: the finest that fit.
_FINENESS = (LARGEST, FEW), (16, FEW), (8, FEW), (4, FEW), (LARGEST, 1), (8, 1), (4, 1)

TEMPLATE = files("minigrad.viz") / "template"  # also in a zip archive
_SCRIPTS = ("layout", "heatmap", "camera", "drawing", "panel", "program", "nudge", "page")


@dataclass(frozen=True, repr=False)
class Page:
    """A page that steps through a backward pass. A notebook shows it if it is a cell's last line.

    The notebook stores the page itself, as the source of a frame, so it works without another file.
    Above the frame is a picture of the graph, for places that show no frames, such as GitHub. The
    picture needs matplotlib, and a graph of at most about 40 nodes.

    Attributes:
        title: the title of the page.
        html: the complete page.
        data: the content of the page, which the page has as JSON.
    """

    title: str
    html: str
    data: Json = field(compare=False)

    def __repr__(self) -> str:
        return f"<page {self.title!r:.60}, {len(self.html.encode()) / 1000:.0f} KB>"

    def frame(self, height: int = 720) -> str:
        """Return an HTML frame with the page inside; `height` is in pixels."""
        source = self.html.replace("&", "&amp;").replace("'", "&#39;")
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" width="100%" '
            f"height=\"{height}\" srcdoc='{source}'></iframe>"
        )

    def _ipython_display_(self) -> None:
        from IPython import display

        show: Callable[..., None] = display.display
        with suppress(ImportError):  # without matplotlib there is no picture
            from minigrad.viz.graph_picture import picture_of

            if (picture := picture_of(self.data)) is not None:
                show(picture)
        show({"text/html": self.frame(), "text/plain": repr(self)}, raw=True)


def explore(
    loss: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    tape: Tape | None = None,
    model: Module | None = None,
    title: str | None = None,
    program: Captured[..., Any] | None = None,
) -> Page:
    """Return a page that steps through the backward pass of `loss`, and write it to `path`.

    A notebook shows the page automatically. The page shows the graph, each VJP that runs with its
    source, the gradient that arrives, the gradients that leave, and where gradients add up. It can
    also show three other passes, and where they go wrong: a second pass, a pass of an engine that
    does not clear its stored gradients, and a depth-first pass.

    A slider nudges a leaf, and compares the change that the gradient predicts with the true change.
    It needs a graph that can run again; with a tape, nearly every graph can.

    Arrays of up to 16 numbers are shown as numbers, with all digits under the mouse. Larger arrays
    are heat maps of the means of blocks. In a graph of more than about 500 nodes, every array
    except a single number is a heat map.

    The graph and every `.grad` stay unchanged. No hook is called, because it might do anything; the
    page marks a node with a hook. All gradients of the pass are in memory at the same time.

    The page shows the values that still exist: residuals, and values of living tensors. Tensors
    have the names of the caller's variables, and parameters have their names in the model.

    Args:
        loss: a Tensor of one element, with a graph.
        path: the file to write or replace, whose ending is .html, .htm or none; None writes no
            file.
        tape: a tape of `record`, which adds all values, lines of source and modules.
        model: a model that gives the names of its parameters. It is not needed for a model on the
            tape or in a variable of the caller.
        title: the title of the page.
        program: a captured step that computes this loss. Its program is shown below the graph, and
            the line that runs the VJP of a step is marked, if it is clear which line it is.

    Raises:
        TypeError: if `loss` is not a Tensor, `tape` not a tape, `model` not a Module, `title` not a
            string, or `program` not a captured step.
        ValueError: if `loss` has several elements, its graph is too large or not on the tape, or
            the name of the file has another ending.
        OSError: if the file cannot be written.
        RuntimeError: if `loss` has no graph, a backward pass has freed the graph, an array that the
            page needs was written to, or a captured step has no program yet. No file is written.
    """
    graph = view_graph("explore", loss, tape, model, sys._getframe(1).f_locals)
    if path is not None:
        if Path(path).suffix.lower() not in ("", ".html", ".htm"):
            raise ValueError(f"explore: a page is saved as .html, not as {os.fspath(path)!r}")
        check_target(path, "explore: ")
    if loss.size != 1:
        raise ValueError(
            f"explore: {loss.describe()} has {loss.size} elements, and a backward pass starts from "
            f"one; reduce it with .sum() or .mean()"
        )
    if not isinstance(title, str | None):
        raise TypeError(f"explore: title must be a string, not {title!r:.60}")
    heading = f"Backward pass of {graph.nodes[graph.root].name}" if title is None else title
    page = _page(heading, graph, None if program is None else ProgramView(program))
    if path is not None:
        write_atomically(path, page.html.encode())
    return page


def _page(title: str, graph: GraphView, program: ProgramView | None) -> Page:
    """Make the page, with heat maps as fine as fit; if needed, also for arrays of few numbers.

    Raise a ValueError if the page is too large even with the coarsest heat maps.
    """
    style = (TEMPLATE / "page.css").read_text("utf-8")
    parts = {"title": html.escape(title), "style": style, "script": script()}
    for name in ("style", "script"):
        # The page's security policy allows only these scripts and styles, by their hashes.
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}-hash"] = base64.b64encode(digest).decode()
    template = (TEMPLATE / "page.html").read_text("utf-8")
    with np.errstate(all="ignore"):  # what is not finite is on the page
        passes = passes_through(graph) if len(graph.nodes) <= _MOST else []
    nudges = nudges_of(graph, passes[0].arrived) if passes else {}
    for side, few in _FINENESS if passes else ():
        writer = _Writer(graph, Previews(side, few))
        data = writer.write(title, passes, program) | {"nudges": nudges}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        parts["data"] = text.replace("<", "\\u003c")  # "</script>" would end the element
        page = re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], template)
        if len(page.encode()) <= LIMIT:
            return Page(title, page, data)
    raise ValueError(
        f"explore: a graph of {len(graph.nodes):,} nodes is too large for a page of "
        f"{LIMIT:,} bytes, which has room for about 1,000; explore a part of the model, such as "
        f"one layer, or fewer steps in time, or draw the graph with viz.draw"
    )


def script() -> str:
    """Return the page's script: all script files of the template, in one function."""
    text = "\n".join((TEMPLATE / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{text}\n}})();\n'


class _Writer:
    """Collects the content of the page, with the pictures that `previews` makes."""

    def __init__(self, graph: GraphView, previews: Previews) -> None:
        self._graph = graph
        self._previews, self._add = previews, previews.add
        self._links = [link for view in graph.nodes.values() for link in view.links]
        # Each thing is written once, to the list of its kind; its index in the list refers to it.
        self._index: dict[Any, int] = {None: -1}
        for things in (graph.nodes, self._links, graph.groups, graph.frozen):
            self._index |= {thing: i for i, thing in enumerate(things)}
        self._described: dict[str, list[Json]] = {"steps": [], "ops": [], "vjps": []}

    def write(self, title: str, passes: Sequence[Pass], program: ProgramView | None) -> Json:
        graph, index = self._graph, self._index
        return {
            "title": title,
            "root": index[graph.root],
            "nodes": [self._node(view) for view in graph.nodes.values()],
            "frozen": [self._frozen(frozen) for frozen in graph.frozen],
            "links": [self._link(link) for link in self._links],
            "groups": [self._group(group, name) for group, name in graph.groups.items()],
            "passes": [self._pass(shown) for shown in passes],
            **self._described,
            "kinds": self._previews.kinds,
            "pictures": self._previews.pictures,
            "program": program and self._program(program, passes[0]),
        }

    def _once(self, kind: str, thing: Any, describe: Callable[..., Json], *given: Any) -> int:
        """Return the index of a thing in the list of its kind; describe it at its first use."""
        if (kind, id(thing)) not in self._index:
            described = describe(*given)
            self._index[kind, id(thing)] = len(self._described[kind])
            self._described[kind].append(described)
        return self._index[kind, id(thing)]

    def _frozen(self, frozen: FrozenInput) -> Json:
        group, value = self._index[frozen.group], self._add(frozen.value)
        return _present(name=frozen.name, why=frozen.why, group=group, value=value)

    def _group(self, group: ModuleCall, name: str) -> Json:
        kind = type(group.module).__name__
        return {"name": name or kind, "type": kind, "parent": self._index[group.parent]}

    def _program(self, program: ProgramView, right: Pass) -> Json:
        """Describe a program, and which of its lines runs the VJP of which link."""
        steps = [[sent.link for sent in step.sent] for step in right.steps if step.sent]
        of = program.lines_of(steps)
        line_of = [of.get(link, -1) for link in self._links]
        return {"lines": program.lines, "arrays": program.arrays, "lineOf": line_of}

    def _node(self, view: NodeView) -> Json:
        node, line = view.node, None if view.call is None else view.call.source_line
        return _present(
            name=view.name,
            named=view.named,
            shape=list(node.shape),
            dtype=node.dtype.name,
            group=self._index[view.group],
            frozen=[[name, self._index[frozen]] for name, frozen in view.frozen] or None,
            options=view.options or None,
            op=node.op and self._once("ops", node.op, _op_in_words, node.op),
            value=self._add(view.value),
            line=line and str(line),
            hooks=len(node.hooks) or None,
        )

    def _link(self, link: Link) -> Json:
        given: list[list[Any]] = []
        op = link.target.op
        if op is not None and op.vjps and not op.plain:
            needed = {edge[1] for edge in link.target.edges or ()}
            known = ((op.parameters[i], "yes" if i in needed else "no") for i, _ in op.vjps)
            words = ", ".join(f"{name} {need}" for name, need in known)
            given.append(["needs_input_grad", -1, words])
        for name, value in saved_by(link.edge):
            is_array = isinstance(value, (np.ndarray, np.generic, int, float))
            shown = [self._add(value)] if is_array else [-1, in_words(value)]
            given.append([name, *shown])
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
        return self._once("vjps", key, _vjp_in_words, op, vjp)

    def _pass(self, shown: Pass) -> Json:
        index, add = self._index, self._add
        right = shown.right or shown.grads
        ends = [[index[leaf], add(g), add(right[leaf])] for leaf, g in shown.grads.items()]
        initial = [[index[node], add(g)] for node, g in shown.initial.items()]
        return {
            "key": shown.key,
            "title": shown.title,
            "about": shown.about,
            "steps": [self._once("steps", step, self._step, step) for step in shown.steps],
            "fault": -1 if shown.fault is None else shown.fault,
            "wrong": shown.wrong,
            "ends": ends,
            "initial": initial,
        }

    def _step(self, step: Step) -> Json:
        return _present(
            kind=step.kind,
            node=self._index[step.node],
            g=self._add(step.gradient),
            arrivals=step.arrivals,
            sent=[self._sent(step, sent) for sent in step.sent] or None,
            before=self._add(step.before),
            after=self._add(step.after),
            fault=1 if step.is_wrong else None,
            early=1 if step.is_early else None,
        )

    def _sent(self, step: Step, sent: Sent) -> list[Any]:
        """Return `[link, gradient, after, before or -1]`, and an object with more if needed."""
        before = -1 if sent.before is None else self._add(sent.before)
        written = [self._index[sent.link], self._add(sent.gradient), self._add(sent.after), before]
        due, g, result = self._add(sent.due), sent.gradient, sent.result
        is_fitted = (result.shape, result.dtype) == (g.shape, g.dtype)
        formula = self._described["vjps"][self._vjp(sent.link)].get("formula", "")
        filled = filled_in(formula, {"g": step.gradient, **dict(saved_by(sent.link.edge))})
        number = in_short(result) if result.size == 1 else filled
        equation = f"{filled} = {number}" if filled not in (None, number) else None
        more = _present(due=due, result=None if is_fitted else self._add(result), filled=equation)
        return [*written, more] if more else written


def saved_by(edge: Edge) -> Iterator[tuple[str, Any]]:
    """Yield the arguments that the VJP of an edge gets after `g`, with their names."""
    if edge[2] is not None:
        yield from zip(edge[2].names, edge[3:], strict=True)


def _present(**entries: Any) -> Json:
    """Return the entries that are not None; the page does not need the others."""
    return {name: value for name, value in entries.items() if value is not None}


def _op_in_words(op: OpLike) -> Json:
    """Describe an op: its signature, the text of its docstring, and its source."""
    # The docstring without its sections on arguments and errors.
    doc = re.split(r"\n\n(?:Args|Returns|Raises|Attributes):\n", inspect.getdoc(op) or "")[0]
    forward, composition = source_of(op.forward), source_of(op.composition)
    return _present(
        name=op.name,
        parameters=list(op.parameters),
        signature=f"{op.name}({signature_of(op.forward)})",
        doc=[" ".join(paragraph.split()) for paragraph in doc.split("\n\n")],
        forward=forward.text if forward else "The source of its forward is not there.",
        composition=composition and composition.text,
    )


def _vjp_in_words(op: OpLike, vjp: Any) -> Json:
    """Describe a VJP: its source, or what runs if it has none."""
    if vjp is None:
        why = "Its function runs again, recording this time, and the gradient goes back through "
        why += "what it has recorded."
        return {"title": f"{op.name} has no VJP", "text": "", "note": why}
    inputs = [op.parameters[index] for index, known in op.vjps if known is vjp]
    names = f'"{inputs[0]}"' if op.plain else "(" + ", ".join(f'"{name}"' for name in inputs) + ")"
    method = Op.vjp if op.plain else Op.joint_vjp
    # The meaning of each parameter after `g`; the slots after the op's inputs are as in `Op`.
    meanings = [f"the op's input {name}" for name in op.parameters]
    meanings += ["the op's own result", "which of the inputs", "what the forward saved"]
    slots = zip(vjp.names, vjp.slots, strict=True)
    note, source = None, source_of(vjp.derivative)
    if source is None:
        note = "The source of this VJP cannot be found."
    elif source.kernel:
        note = "Arrays take a kernel that computes the same in one pass."
    elif op.replayed:
        note = "A fused op: this kernel is what runs. It computes the derivative of the "
        note += "composition."
    return _present(
        title=f"{op.name}.{method.__name__}({names})",
        parameters=signature_of(vjp.derivative),
        meanings={name: meanings[slot] for name, (slot, shape_only) in slots if not shape_only},
        text=source.text if source else "",
        formula=source and source.formula,
        note=note,
    )
