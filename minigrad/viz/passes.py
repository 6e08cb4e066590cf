"""Backward passes through a graph, step by step: the right one, and three others to learn from.

VJPs run as in the engine, so every value is the engine's, or the value that an engine with this
fault would compute. No hook is called, and no `.grad` is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad.core.backward import fit_to_input
from minigrad.core.grad_mode import unobserved
from minigrad.core.node import Node, check_unwritten
from minigrad.viz.graph_view import GraphView, Link
from minigrad.viz.previews import Array

SHOWN = 400  # the most steps that are shown of a pass that goes wrong
AFTER = 20  # the most of these steps after the first wrong one
RUN = 4000  # the most VJPs that run to find where a pass ends


@dataclass(eq=False)
class Sent:
    """A gradient that a VJP sends to one input."""

    link: Link  # the link that the gradient goes along
    result: Any  # the result of the VJP
    gradient: Any  # the result in the shape and dtype of the input
    before: Array | None = None  # the sum of earlier gradients there; None if this is the first
    after: Any = None  # the sum including this gradient
    due: Array | None = None  # the right value; given only where a value first goes wrong


@dataclass(eq=False)
class Step:
    """A step of a pass: a VJP and the gradients that it sends, the seed, or a leaf's `.grad`."""

    kind: str  # "seed", "vjp" or "leaf"
    node: Node  # the node whose VJP runs, or that gets the gradient
    gradient: Array  # the sum of the gradients that have arrived at the node
    sent: Sequence[Sent] = ()  # the gradients that are sent to its inputs
    arrivals: int = 0  # how many gradients have arrived at the node so far
    before: Array | None = None  # for a leaf, its `.grad` before this step, or None
    after: Array | None = None  # for a leaf, its `.grad` after this step
    is_wrong: bool = False  # whether the gradient that has arrived is wrong
    is_early: bool = False  # whether other gradients are still to arrive


@dataclass(eq=False)
class Pass:
    """A backward pass: its state while it runs, and its steps for the reader."""

    graph: GraphView
    key: str  # a short name of the pass
    title: str  # the text of its button
    wrong: str = ""  # what happens in its wrong steps
    about: str = ""  # what happens in it, in a few sentences
    initial: Mapping[Node, Array] = field(default_factory=dict)  # gradients before it begins
    fault: int | None = None  # the first step in which a value goes wrong
    right: Mapping[Node, Array] | None = None  # the right `.grad` of each leaf, if it differs

    def __post_init__(self) -> None:
        root = self.graph.root
        seed = np.ones(root.shape, root.dtype)
        self.steps = [Step("seed", root, seed)]  # the steps that are shown
        # The gradient of each node so far; empty at the end if the pass was cut short.
        self.arrived: dict[Node, Array] = {**self.initial, root: seed}
        self._arrivals = dict.fromkeys(self.arrived, 1)

    @property
    def grads(self) -> dict[Node, Array]:
        """The `.grad` of each leaf after the pass."""
        return {step.node: step.after for step in self.steps if step.after is not None}

    def run(self, node: Node, due: Array | None, is_early: bool = False) -> Iterator[Step]:
        """Run the VJPs of a node on the gradient that has arrived there, and yield their steps.

        `due` is the right gradient; None if this is the right one, or a part of it.
        """
        right: dict[Link, Array] = {}
        if due is not None and self.fault is None:
            self.fault = len(self.steps)
            sent_rightly = (sent for run in _run_vjps(self.graph, node, due) for sent in run)
            right = {sent.link: sent.gradient for sent in sent_rightly}
        for run in _run_vjps(self.graph, node, self.arrived[node]):
            for sent in run:
                source = sent.link.source
                sent.before, sent.due = self.arrived.get(source), right.get(sent.link)
                sent.after = _sum(sent.before, sent.gradient)
                self.arrived[source] = sent.after
                self._arrivals[source] = self._arrivals.get(source, 0) + 1
            g, arrivals = self.arrived[node], self._arrivals[node]
            yield Step("vjp", node, g, run, arrivals, is_wrong=due is not None, is_early=is_early)

    def run_in_order(self, first: Pass | None = None) -> None:
        """Run the VJPs of all nodes, the newest first.

        If another gradient has arrived at a node than in the `first` pass, this is a fault.
        """
        for node in reversed(self.graph.nodes):
            if node.op is None:
                continue
            due = None if first is None else first.arrived[node]
            is_right = due is None or np.array_equal(self.arrived[node], due, equal_nan=True)
            self.steps += self.run(node, None if is_right else due)

    def end(self, grads: Mapping[Node, Array] | None = None) -> None:
        """Add the gradients that have arrived at the leaves to their `.grad`.

        `grads` has the `.grad` of each leaf before the pass; None means the current `.grad`.
        """
        for node in reversed(self.graph.nodes):
            if node.op is None and node in self.arrived:
                g = self.arrived[node]
                before = None if node.grad is None else node.grad._data
                before = before if grads is None else grads[node]
                self.steps.append(Step("leaf", node, g, before=before, after=_sum(before, g)))


def _sum(before: Array | None, g: Array) -> Array:
    return g if before is None else np.asarray(before + g)


def passes_through(graph: GraphView) -> list[Pass]:
    """Run the passes that a page shows."""
    first = right_order(graph)
    second = second_pass(graph, first)
    return [first, second, uncleared_pass(graph, first, second), depth_first(graph, first)]


def right_order(graph: GraphView) -> Pass:
    """Run the engine's own pass, which may raise a RuntimeError (see `explore`)."""
    shown = Pass(graph, "backward", "Backward pass")
    shown.run_in_order()
    shown.end()
    shown.about = (
        "Nodes are visited from the newest to the oldest. So when a VJP runs, every gradient that "
        "reaches its node has arrived, and each VJP runs once."
    )
    if hooked := [view.name for view in graph.nodes.values() if view.node.hooks]:
        hooks = ", ".join(hooked[:3]) + (", ..." if len(hooked) > 3 else "")
        shown.about += " No hook is called here, so numbers may differ from backward()'s. Hooks: "
        shown.about += f"{hooks}."
    return shown


def second_pass(graph: GraphView, first: Pass) -> Pass:
    """Repeat the right order without `zero_grad` in between: `.grad` adds up."""
    shown = Pass(graph, "again", "Second pass")
    shown.about = (
        "backward() once more, without zero_grad(). The pass itself is the same, since it stores "
        "nothing at inner nodes. What arrives is added to .grad, which has the first pass in it: "
        "that is meant to be, and how small batches add up to a large one."
    )
    shown.steps = [step for step in first.steps if step.kind != "leaf"]
    shown.arrived = first.arrived
    shown.end(first.grads)
    return shown


def uncleared_pass(graph: GraphView, first: Pass, second: Pass) -> Pass:
    """Run the second pass of an engine that keeps the first pass's gradients at inner nodes."""
    left = {node: g for node, g in first.arrived.items() if node.op is not None}
    title, wrong = "Second pass, not cleared", "What the first pass left here is sent on again"
    shown = Pass(graph, "uncleared", title, wrong, initial=left, right=second.grads)
    shown.run_in_order(first)
    shown.end(first.grads)
    shown.about = (
        "A second pass in an engine that stores gradients at inner nodes as well, and does not "
        "clear them. What the first pass has left there is added to, and sent on once more. "
    )
    if shown.fault is None:
        shown.about += "Here that changes no number: every gradient goes straight to a leaf."
    else:
        shown.about += "The numbers that it gives are wrong."
    return shown


def depth_first(graph: GraphView, first: Pass) -> Pass:
    """Run a pass that goes to the inputs of a node at once, before all gradients have arrived.

    It runs the VJPs of a node once for each path to the node, and the number of paths may be
    exponential in the depth. So the VJPs are counted first, and a pass with too many is cut short.
    """
    wrong = "What has been sent on before is sent on again"
    shown = Pass(graph, "depth", "Depth first", wrong, right=first.grads)
    paths = Counter({graph.root: 1})
    vjps = usual = 0  # the number of VJPs of this pass and of the first
    for node in reversed(graph.nodes):
        for link in graph.nodes[node].links:
            paths[link.source] += paths[node]
            vjps, usual = vjps + paths[node], usual + 1
    ran_with: dict[Node, Array] = {}  # the gradient that a node's VJPs ran with the last time

    def is_shown() -> bool:
        """Return whether the next step is shown: at least until shortly after the first fault."""
        most = RUN if shown.fault is None else max(SHOWN, shown.fault + AFTER)
        return len(shown.steps) <= most

    def visit(node: Node) -> Iterator[Node]:
        """Run the VJPs of a node one by one, and yield the inputs to go on to."""
        g, sent_on = shown.arrived[node], ran_with.get(node)
        ran_with[node] = g
        due = None if sent_on is None or not sent_on.any() else np.asarray(g - sent_on)
        is_early = due is None and not np.array_equal(g, first.arrived[node], equal_nan=True)
        for step in shown.run(node, due, is_early):
            if is_shown():
                shown.steps.append(step)
            yield from (sent.link.source for sent in step.sent)

    stack = [visit(graph.root)]  # no recursion, which has a limited depth
    while stack and (vjps <= RUN or is_shown()):
        parent = next(stack[-1], None)
        if parent is None:
            stack.pop()
        elif parent.op is not None:
            stack.append(visit(parent))
    sent = sum(len(step.sent) for step in shown.steps)
    shown.about = (
        "The pass that does not sort the nodes: as soon as a gradient arrives it goes on, with "
        "what has arrived so far, and again with each further arrival. "
    )
    if stack:
        shown.arrived = {}
    else:
        shown.end()
    if vjps == usual:
        shown.about += "Here only one gradient arrives at each inner node, so that changes nothing."
        return shown
    shown.about += f"It runs {vjps:,} VJPs; {usual:,} are enough. "
    if stack:
        shown.about += "That is too many to run to the end, so only its beginning is shown. "
    elif sent < vjps:
        shown.about += f"The first {sent:,} are shown, and the end. "
    if not stack and shown.fault is None:
        shown.about += "What is sent on again is 0 here, so no number goes wrong. "
    return shown


def _run_vjps(graph: GraphView, node: Node, gradient: Array) -> list[list[Sent]]:
    """Run the VJPs of a node on a gradient; list what each sends, a joint VJP to several inputs."""
    op, links = node.op, graph.nodes[node].links
    if op is None:
        return []
    check_unwritten([node], None)
    with unobserved(grad_enabled=False):
        if op.plain:
            results = [link.edge[2].derivative(gradient, *link.edge[3:]) for link in links]
        else:
            results = op.differentiate(node, [link.edge for link in links], gradient)
    sent = []
    for link, result in zip(links, results, strict=True):
        fitted = fit_to_input(result, link.source, op, link.edge[1], create_graph=False)
        sent.append(Sent(link, np.asarray(result), fitted))
    return [[each] for each in sent] if op.plain else [sent]
