"""The graph as a drawing: text in graphviz's language DOT, and SVG if graphviz is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import ModuleCall, Tape
from minigrad.io.atomic import write_atomically
from minigrad.nn import Module
from minigrad.viz.graph_view import GraphView, view_graph
from minigrad.viz.source import in_short

_HEAD = """digraph {
  rankdir=LR;
  ranksep=0.4;
  nodesep=0.2;
  fontname="Helvetica";
  node [shape=box, style=rounded, height=0.3, margin="0.12,0.06"];
  node [fontname="Helvetica", fontsize=11];
  edge [fontname="Helvetica", fontsize=9, arrowsize=0.7];"""

_LEAF = ', style="rounded,filled", fillcolor="#cfe3f3"'
_LOSS = ", penwidth=2"
_FROZEN = ', style="rounded,dashed", color="#777777", fontcolor="#555555"'
_NO_GRADIENT = 'style=dashed, color="#777777", dir=back, arrowtail=tee'


@dataclass(frozen=True, repr=False)
class Drawing:
    """A graph in DOT. A notebook shows it as SVG if graphviz is installed, otherwise as text.

    Attributes:
        dot: the text in DOT.
    """

    dot: str

    def __repr__(self) -> str:
        return self.dot

    def svg(self) -> str:
        """Return the graph as the text of an SVG picture, drawn by graphviz.

        Raises:
            RuntimeError: if graphviz's command `dot` is missing or fails.
        """
        command = shutil.which("dot")
        if command is None:
            raise RuntimeError(
                "drawing as SVG needs graphviz, whose command `dot` was not found; install it with "
                "your system's package manager, or show the text `drawing.dot` elsewhere"
            )
        done = subprocess.run([command, "-Tsvg"], input=self.dot.encode(), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"graphviz failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text to a .dot or .gv file, or the picture to an .svg file.

        Raises:
            ValueError: if the name of the file has another ending.
            RuntimeError: for an .svg file, as in `svg`.
            OSError: if the file cannot be written; an old file is not changed then.
        """
        ending = Path(path).suffix.lower()
        if ending not in (".dot", ".gv", ".svg"):
            raise ValueError(f"a drawing is saved as .dot, .gv or .svg, not as {os.fspath(path)!r}")
        content = self.svg() if ending == ".svg" else self.dot
        write_atomically(path, content.encode())

    def _repr_svg_(self) -> str | None:
        return self.svg() if shutil.which("dot") else None


def draw(loss: Tensor, *, tape: Tape | None = None, model: Module | None = None) -> Drawing:
    """Draw the graph of `loss`, from the leaves at the left to the loss at the right.

    A gradient goes along each solid line, against the arrow. A dashed line goes to an input that
    gets no gradient. Tensors have the names of the caller's variables.

    Args:
        loss: a Tensor with a graph, of any shape.
        tape: a tape of `record`, to show modules and values that need no gradient too.
        model: a model that gives the names of its parameters.

    Raises:
        TypeError: if `loss` is not a Tensor, `tape` not a tape, or `model` not a Module.
        ValueError: if the tape has recorded nothing of the graph.
        RuntimeError: if `loss` has no graph, or a backward pass has freed the graph.
    """
    graph = view_graph("draw", loss, tape, model, sys._getframe(1).f_locals)
    ids: dict[Any, str] = {node: f"n{i}" for i, node in enumerate(graph.nodes)}
    ids |= {frozen: f"f{i}" for i, frozen in enumerate(graph.frozen)}
    lines = [_HEAD, *_inside(graph, None, ids, "  ")]
    for view in graph.nodes.values():
        arrows: list[tuple[Any, str, str]] = [(link.source, link.input, "") for link in view.links]
        arrows += [(frozen, name, _NO_GRADIENT) for name, frozen in view.frozen]
        for source, name, look in arrows:
            label = f"label={_quoted(name)}" if len(arrows) > 1 else ""
            looks = ", ".join(filter(None, (look, label)))
            brackets = f" [{looks}]" if looks else ""
            lines.append(f"  {ids[source]} -> {ids[view.node]}{brackets};")
    return Drawing("\n".join([*lines, "}\n"]))


def _inside(
    graph: GraphView, group: ModuleCall | None, ids: dict[Any, str], margin: str
) -> Iterator[str]:
    """Yield the nodes of a group, and the groups inside it as clusters."""
    for view in graph.nodes.values():
        if view.group is group:
            looks = _LEAF if view.node.op is None else _LOSS if view.node is graph.root else ""
            lines = [view.name, view.node.name if view.named and view.node.op is not None else ""]
            if view.value is not None and view.value.size == 1:
                lines.append(in_short(view.value))
            else:
                lines.append(" x ".join(map(str, view.node.shape)))
            yield f"{margin}{ids[view.node]} [label={_quoted(*lines)}{looks}];"
    for frozen in graph.frozen:
        if frozen.group is group:
            shape = " x ".join(map(str, getattr(frozen.value, "shape", ())))
            yield f"{margin}{ids[frozen]} [label={_quoted(frozen.name, shape)}{_FROZEN}];"
    for i, (inner, name) in enumerate(graph.groups.items()):
        if inner.parent is group:
            kind = type(inner.module).__name__
            yield f"{margin}subgraph cluster_{i} {{"
            label = _quoted(kind if name in ("", kind) else f"{name}: {kind}")
            yield f'{margin}  label={label}; style=rounded; color="#999999"; fontsize=10;'
            yield from _inside(graph, inner, ids, f"{margin}  ")
            yield f"{margin}}}"


def _quoted(*lines: str) -> str:
    """Return a label in DOT, which quotes as JSON does, with the lines that are not empty."""
    return json.dumps("\n".join(filter(None, lines)), ensure_ascii=False)
