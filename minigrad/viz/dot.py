"""The graph as a drawing: text in graphviz's language DOT, and SVG where graphviz is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import ModuleCall
from minigrad.io.atomic import write_atomically
from minigrad.nn import Module
from minigrad.viz.graph_view import Frozen, Place, Scene, scene_of
from minigrad.viz.tape import Tape

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
_NO_WAY = 'style=dashed, color="#777777", dir=back, arrowtail=tee'


@dataclass(frozen=True, repr=False)
class Drawing:
    """A graph in DOT. A notebook shows it as SVG if graphviz is installed, and else as text.

    Attributes:
        dot: the text.
    """

    dot: str

    def __repr__(self) -> str:
        return self.dot

    def svg(self) -> str:
        """The graph as SVG.

        Raises:
            RuntimeError: if graphviz's `dot` is not installed, or fails.
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
        """Write the text to a file that ends in .dot or .gv, or the picture to one in .svg.

        Raises:
            ValueError: for another ending.
            RuntimeError: as `svg`.
        """
        ending = Path(path).suffix
        if ending not in (".dot", ".gv", ".svg"):
            raise ValueError(f"a drawing is saved as .dot, .gv or .svg, not as {os.fspath(path)!r}")
        content = self.svg() if ending == ".svg" else self.dot
        write_atomically(path, content.encode())

    def _repr_svg_(self) -> str | None:
        return self.svg() if shutil.which("dot") else None


def draw(loss: Tensor, *, tape: Tape | None = None, model: Module | None = None) -> Drawing:
    """The graph behind `loss`, from the leaves at the left to the loss at the right.

    A full line is a way that a gradient takes, against the arrow; at a dashed line no gradient goes
    to the input. Tensors have the names of the caller's variables that hold them.

    Args:
        loss: a Tensor with a graph, of any shape.
        tape: of `record`, for the modules and all that needs no gradient.
        model: whose parameters to call by their names.

    Raises:
        TypeError: if `loss` is no Tensor, `tape` no tape, or `model` no module.
        ValueError: if the tape has seen nothing of the graph.
        RuntimeError: if there is no graph, or a backward pass has freed that.
    """
    scene = scene_of("draw", loss, tape, model, sys._getframe(1).f_locals)
    return Drawing("\n".join([_HEAD, *_lines(scene), "}\n"]))


def _lines(scene: Scene) -> Iterator[str]:
    ids: dict[Any, str] = {node: f"n{i}" for i, node in enumerate(scene.places)}
    ids |= {frozen: f"f{i}" for i, frozen in enumerate(scene.frozen)}
    yield from _inside(scene, None, ids, "  ")
    for place in scene.places.values():
        several = len(place.links) + len(place.frozen) > 1
        for link in place.links:
            label = f" [label={_quoted(link.input)}]" if several else ""
            yield f"  {ids[link.source]} -> {ids[place.node]}{label};"
        for name, frozen in place.frozen:
            label = f", label={_quoted(name)}" if several else ""
            yield f"  {ids[frozen]} -> {ids[place.node]} [{_NO_WAY}{label}];"


def _inside(
    scene: Scene, group: ModuleCall | None, ids: dict[Any, str], margin: str
) -> Iterator[str]:
    """The nodes of a group, and the groups inside it as clusters."""
    for place in scene.places.values():
        if place.group is group:
            yield f"{margin}{ids[place.node]} [label={_label(place)}{_looks(scene, place)}];"
    for frozen in scene.frozen:
        if frozen.group is group:
            yield f"{margin}{ids[frozen]} [label={_frozen_label(frozen)}{_FROZEN}];"
    for i, inner in enumerate(scene.groups):
        if inner.parent is group:
            kind = type(inner.module).__name__
            name = inner.name or scene.names.of_module(inner.module)
            yield f"{margin}subgraph cluster_{i} {{"
            label = _quoted(f"{name}: {kind}" if name else kind)
            yield f'{margin}  label={label}; style=rounded; color="#999999"; fontsize=10;'
            yield from _inside(scene, inner, ids, f"{margin}  ")
            yield f"{margin}}}"


def _label(place: Place) -> str:
    node = place.node
    lines = [place.name]
    if place.named and node.op is not None:
        lines.append(node.name)
    if place.value is not None and place.value.size == 1:
        lines.append(f"{place.value.item():.4g}")
    elif node.shape:
        lines.append(" x ".join(map(str, node.shape)))
    return _quoted("\n".join(lines))


def _frozen_label(frozen: Frozen) -> str:
    shape = getattr(frozen.value, "shape", ())
    return _quoted(
        "\n".join([frozen.name, " x ".join(map(str, shape))] if shape else [frozen.name])
    )


def _looks(scene: Scene, place: Place) -> str:
    return _LEAF if place.node.op is None else _LOSS if place.node is scene.root else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
