"""The graph as a drawing in DOT."""

import re
import shutil
import subprocess

import numpy as np
import pytest

import lora
import minigrad as mg

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")


def nodes_of(drawing):
    return re.findall(r'^ *(\w+) \[label="([^"]*)"', drawing.dot, re.M)


def edges_of(drawing):
    return re.findall(r"^ *(\w+) -> (\w+)(.*);$", drawing.dot, re.M)


def test_the_diamond():
    x = mg.tensor(3.0, requires_grad=True)
    h = 2 * x
    y = h + h
    drawing = mg.viz.draw(y)
    assert nodes_of(drawing) == [
        ("n0", r"x\n3"),
        ("n1", r"h\nmultiply\n6"),
        ("n2", r"y\nadd\n12"),
        ("f0", "2"),
    ]
    ways = [(a, b) for a, b, look in edges_of(drawing) if "dashed" not in look]
    assert ways == [("n0", "n1"), ("n1", "n2"), ("n1", "n2")]
    assert [(a, b) for a, b, look in edges_of(drawing) if "dashed" in look] == [("f0", "n1")]
    assert str(drawing) == drawing.dot


def test_a_frozen_base_is_dashed():
    layer = lora.LoRALayer(np.ones((3, 4), np.float32), 3, 4, rank=2, alpha=4)
    with mg.viz.record() as tape:
        loss = layer(mg.randn(2, 4)).sum()
    drawing = mg.viz.draw(loss, tape=tape)
    names = {label: node for node, label in nodes_of(drawing)}
    looks = {a: look for a, _, look in edges_of(drawing)}
    assert "dashed" in looks[names[r"base_weight\n3 x 4"]]
    assert "dashed" not in looks[names[r"lora_a\n2 x 4"]]
    assert 'subgraph cluster_0 {\n    label="layer: LoRALayer"' in drawing.dot


def test_any_shape_and_a_leaf_can_be_drawn():
    x = mg.tensor([[1.0, 2.0]], requires_grad=True)
    assert nodes_of(mg.viz.draw(x)) == [("n0", r"x\n1 x 2")]
    assert len(nodes_of(mg.viz.draw(x * 2))) == 3


class Odd(mg.nn.Module):
    def __init__(self):
        self.parts = {'a "quoted" \\ key': mg.nn.Parameter([1.0, 2.0])}

    def forward(self):
        return next(iter(self.parts.values())) * 2


@needs_dot
def test_names_are_quoted():
    odd = Odd()
    svg = mg.viz.draw(odd(), model=odd).svg()
    assert "a &quot;quoted&quot; \\ key" in svg


@needs_dot
def test_a_notebook_shows_it(tmp_path):
    x = mg.tensor(3.0, requires_grad=True)
    drawing = mg.viz.draw(mg.tanh(x))
    assert "<svg" in drawing._repr_svg_()
    for name in ("graph.svg", "graph.SVG"):
        drawing.save(tmp_path / name)
        assert "tanh" in (tmp_path / name).read_text()


def test_without_graphviz_there_is_the_text(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    drawing = mg.viz.draw(mg.tanh(mg.tensor(3.0, requires_grad=True)))
    assert drawing._repr_svg_() is None
    assert repr(drawing) == str(drawing) == drawing.dot
    with pytest.raises(RuntimeError, match="needs graphviz"):
        drawing.save(tmp_path / "graph.svg")
    assert list(tmp_path.iterdir()) == []
    drawing.save(tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text() == drawing.dot
    with pytest.raises(ValueError, match=r"saved as \.dot, \.gv or \.svg"):
        drawing.save(tmp_path / "graph.png")


def test_a_failure_of_graphviz_is_reported(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    failed = subprocess.CompletedProcess([], 1, b"", b"out of ink\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="graphviz failed: out of ink"):
        mg.viz.draw(mg.tensor(1.0, requires_grad=True)).svg()


def test_what_has_no_graph_is_refused():
    with pytest.raises(RuntimeError, match=r"draw: a Tensor .* has no graph"):
        mg.viz.draw(mg.tensor(1.0))
    y = mg.tensor(1.0, requires_grad=True) * 2
    y.backward()
    with pytest.raises(RuntimeError, match="was freed by an earlier backward"):
        mg.viz.draw(y)
