"""explore: the page on which a reader steps through a backward pass, forwards and back.

It is one HTML file, with all that it needs inside: no network, no build step, nothing to install.
Its texts and numbers come from here; the files in `template` lay them out and draw them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigrad.core.tensor import Tensor
from minigrad.io.atomic import write_atomically
from minigrad.nn import Module
from minigrad.viz.graph_view import GraphView, view_graph
from minigrad.viz.page_data import ShownPass, page_data
from minigrad.viz.previews import FEW, LARGEST, Previews
from minigrad.viz.replay import Replay, grads_after, right_order, second_pass
from minigrad.viz.tape import Tape
from minigrad.viz.wrong_orders import depth_first, uncleared_pass

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
    name = graph.nodes[graph.root].name
    heading = f"Backward pass of {name}" if title is None else title
    write_atomically(path, _page(heading, graph, _passes(graph)))


def _passes(graph: GraphView) -> list[ShownPass]:
    first = right_order(graph)
    second, deep = second_pass(graph, first), depth_first(graph, first)
    uncleared = uncleared_pass(graph, first)
    once, twice = grads_after(first), grads_after(second)
    left = {node: g for node, g in first.arrived.items() if node.op is not None}
    hooked = [view.name for view in graph.nodes.values() if view.node.hooks]
    hooks = ", ".join(hooked[:3]) + (", ..." if len(hooked) > 3 else "")
    about = (
        "Nodes are visited from the newest to the oldest. So when a VJP runs, every gradient that "
        "reaches its node has arrived, and each VJP runs once."
    )
    if hooked:
        about += (
            f" No hook is called here, so numbers may differ from backward()'s. Hooks: {hooks}."
        )
    about_second = (
        "backward() once more, without zero_grad(). The pass itself is the same, since it stores "
        "nothing at inner nodes. What arrives is added to .grad, which has the first pass in it: "
        "that is meant to be, and how small batches add up to a large one."
    )
    about_uncleared = (
        "A second pass in an engine that stores gradients at inner nodes as well, and does not "
        "clear them. What the first pass has left there is added to, and sent on once more. "
    )
    if uncleared.first_fault is None:
        about_uncleared += "Here that changes no number: every gradient goes straight to a leaf."
    else:
        about_uncleared += "The numbers that it gives are wrong."
    return [
        ShownPass("backward", "Backward pass", about, first, once, {}),
        ShownPass("again", "Second pass", about_second, second, twice, {}),
        ShownPass("uncleared", "Second pass, not cleared", about_uncleared, uncleared, twice, left),
        ShownPass("depth", "Depth first", _about_depth(first, deep), deep, once, {}),
    ]


def _about_depth(first: Replay, deep: Replay) -> str:
    about = (
        "The pass that does not sort the nodes: as soon as a gradient arrives it goes on, with "
        "what has arrived so far, and again with each further arrival. "
    )
    if deep.vjps == first.vjps:
        return about + "Here only one gradient arrives at each inner node, so that changes nothing."
    about += f"It runs {deep.vjps:,} VJPs where {first.vjps:,} do. "
    shown = sum(len(step.sent) for step in deep.steps)
    if not deep.arrived:
        about += "That is too many to run to the end, so only its beginning is shown. "
    elif shown < deep.vjps:
        about += f"The first {shown:,} are shown, and the end. "
    if deep.arrived and deep.first_fault is None:
        about += "What is sent on again is 0 here, so no number goes wrong. "
    return about


# --------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------


def _page(title: str, graph: GraphView, passes: Sequence[ShownPass]) -> bytes:
    """Return the page, with heat maps as fine as there is room for, also of few numbers if need be.

    Raises:
        ValueError: if it is too large with the coarsest heat maps.
    """
    for few in (FEW, 1):
        side = LARGEST
        while side >= _COARSEST:
            previews = Previews(side, few)
            page = _filled(title, page_data(title, graph, passes, previews))
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


def _filled(title: str, data: dict[str, Any]) -> bytes:
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
