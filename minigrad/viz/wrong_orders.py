"""Two well-known backward passes that go wrong.

They run the true VJPs, through the engine, so every value is what such an engine gives.

- `uncleared_pass` is the second pass of an engine that stores gradients at inner nodes and does not
  clear them: what had arrived in the first pass is sent on once more.
- `depth_first` goes on to the inputs as soon as a gradient arrives, without waiting for the others:
  what has been sent on already is sent on again with each further arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import Node
from minigrad.viz.graph_view import GraphView, Link
from minigrad.viz.replay import (
    Replay,
    Step,
    by_vjp,
    grads_after,
    leaf_steps,
    seed_of,
    send,
    sent_from,
    without_hooks,
)

Array = NDArray[Any]

SHOWN = 400  # steps of a pass that goes wrong
AFTER = 20  # of these, after the first in which it does
RUN = 4000  # VJPs that are run to find where a pass ends


def uncleared_pass(graph: GraphView, first: Replay) -> Replay:
    """Run a second pass that starts from the gradients the first has left at inner nodes."""
    left = {node: g for node, g in first.arrived.items() if node.op is not None}
    arrived, count = {**left, graph.root: seed_of(graph)}, dict.fromkeys(left, 1)
    steps = [Step("seed", graph.root, arrived[graph.root])]
    fault: int | None = None
    total = 0
    with without_hooks(graph.nodes):
        for node in reversed(graph.nodes):
            if node.op is None or node not in arrived:
                continue
            g = arrived[node]
            off = not _equal(g, first.arrived[node])
            due = _due(graph, node, first.arrived[node]) if off and fault is None else {}
            fault = len(steps) if off and fault is None else fault
            for run in by_vjp(sent_from(graph, node, g)):
                step = Step("vjp", node, g, arrivals=count[node])
                step.fault = "What the first pass left here is sent on again" if off else ""
                steps.append(send(step, run, arrived, count, due))
                total += len(run)
    leaves = leaf_steps(graph, arrived, grads_after(first))
    return Replay(steps + leaves, arrived, fault, total)


def depth_first(graph: GraphView, first: Replay) -> Replay:
    """Run the pass that goes on to the inputs at once, with what has arrived so far.

    It runs the VJPs of a node once for each path that leads there, which may be exponentially many
    in the depth. So these are counted first, and a pass of too many is cut short.
    """
    total = _vjps_of_all_paths(graph)
    walk = _DepthFirst(graph, first)
    with without_hooks(graph.nodes):
        complete = walk.run(to_the_end=total <= RUN)
    leaves = leaf_steps(graph, walk.arrived) if complete else []
    return Replay(walk.steps + leaves, walk.arrived if complete else {}, walk.fault, total)


class _DepthFirst:
    """The state of such a pass: `run` goes on from VJP to VJP, without recursion."""

    def __init__(self, graph: GraphView, first: Replay) -> None:
        self._graph = graph
        self._complete = first.arrived
        self._sent_on: dict[Node, Array] = {}  # what the VJPs of a node ran with the last time
        self._count = {graph.root: 1}
        self.arrived = {graph.root: seed_of(graph)}
        self.steps = [Step("seed", graph.root, self.arrived[graph.root])]
        self.fault: int | None = None

    def run(self, to_the_end: bool) -> bool:
        """Run to the end, or only as far as is shown; return whether the end was reached."""
        stack = [self._visit(self._graph.root)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
            elif not (to_the_end or self._is_shown()):
                return False
            elif node.op is not None:
                stack.append(self._visit(node))
        return True

    def _is_shown(self) -> bool:
        """Whether the next step still is: until shortly after the first fault, at least."""
        return len(self.steps) <= (RUN if self.fault is None else max(SHOWN, self.fault + AFTER))

    def _visit(self, node: Node) -> Iterator[Node]:
        """Run the VJPs of a node one by one, and yield the inputs to go on to."""
        g = self.arrived[node]
        sent_on = self._sent_on.get(node)
        self._sent_on[node] = g
        fault = note = ""
        if sent_on is not None and sent_on.any():
            fault = "What has been sent on before is sent on again"
        elif not _equal(g, self._complete[node]):
            note = "It does not wait for the gradients that are still to come"
        due = {}
        if sent_on is not None and fault and self.fault is None:
            due = _due(self._graph, node, g - sent_on)
        for run in by_vjp(sent_from(self._graph, node, g)):
            step = Step("vjp", node, g, arrivals=self._count[node], fault=fault, note=note)
            send(step, run, self.arrived, self._count, due)
            if fault and self.fault is None:
                self.fault = len(self.steps)
            if self._is_shown():
                self.steps.append(step)
            yield from (sent.link.source for sent in step.sent)


def _vjps_of_all_paths(graph: GraphView) -> int:
    """Count the VJPs that run if those of a node run once for each path that leads to it."""
    paths = {graph.root: 1}
    total = 0
    for node in reversed(graph.nodes):
        links = graph.nodes[node].links
        total += paths[node] * len(links)
        for link in links:
            paths[link.source] = paths.get(link.source, 0) + paths[node]
    return total


def _due(graph: GraphView, node: Node, gradient: Array) -> dict[Link, Array]:
    """Return what the VJPs of a node send on for the gradient that they should run with."""
    return {sent.link: sent.gradient for sent in sent_from(graph, node, np.asarray(gradient))}


def _equal(x: Array, y: Array) -> bool:
    return np.array_equal(x, y, equal_nan=True)
