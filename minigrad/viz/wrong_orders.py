"""Two well-known ways back through a graph that go wrong.

They run the true rules, through the engine, so every number is what such an engine gives.

- `kept_way` is the second pass of an engine that keeps gradients at inner nodes and does not clear
  them: what had arrived in the first pass is sent on once more.
- `depth_first` goes on to the inputs as soon as a gradient arrives, without waiting for the others:
  what has been sent on already is sent on again with each further arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import Node
from minigrad.viz.graph_view import Link, Scene
from minigrad.viz.replay import (
    Step,
    Way,
    by_rule,
    equal,
    grads_after,
    leaves_of,
    rules_of,
    seed_of,
    send,
    without_hooks,
)

Array = NDArray[Any]

SHOWN = 400  # steps of a walk that goes wrong
AFTER = 20  # of these, after the first in which it does
RUN = 4000  # rules that are run to find where a walk ends


def kept_way(scene: Scene, first: Way) -> Way:
    """A second pass of an engine that keeps what arrives at inner nodes, and does not clear it."""
    held = {node: g for node, g in first.arrived.items() if node.op is not None}
    arrived, count = {**held, scene.root: seed_of(scene)}, dict.fromkeys(held, 1)
    steps = [Step("seed", scene.root, arrived[scene.root])]
    fault: int | None = None
    total = 0
    with without_hooks(scene.places):
        for node in reversed(scene.places):
            if node.op is None or node not in arrived:
                continue
            g = arrived[node]
            off = not equal(g, first.arrived[node])
            due = _due(scene, node, first.arrived[node]) if off and fault is None else {}
            fault = len(steps) if off and fault is None else fault
            for run in by_rule(rules_of(scene, node, g)):
                step = Step("rule", node, g, arrivals=count[node])
                step.fault = "What the first pass left here is sent on again" if off else ""
                steps.append(send(step, run, arrived, count, due))
                total += len(run)
    leaves = leaves_of(scene, arrived, grads_after(first))
    return Way(steps + leaves, arrived, fault, total)


def depth_first(scene: Scene, first: Way) -> Way:
    """The walk that goes on to the inputs at once, with what has arrived so far.

    It runs the rules of a node once for each path that leads there, which may be exponentially
    many in the depth. So these are counted first, and a walk of too many is cut short.
    """
    total = _rules_of_all_paths(scene)
    walk = _DepthFirst(scene, first)
    with without_hooks(scene.places):
        whole = walk.run(to_the_end=total <= RUN)
    leaves = leaves_of(scene, walk.arrived) if whole else []
    return Way(walk.steps + leaves, walk.arrived if whole else {}, walk.fault, total)


class _DepthFirst:
    """The state of such a walk: `run` goes on from rule to rule, without recursion."""

    def __init__(self, scene: Scene, first: Way) -> None:
        self._scene = scene
        self._complete = first.arrived
        self._sent_on: dict[Node, Array] = {}  # what the rules of a node ran with the last time
        self._count = {scene.root: 1}
        self.arrived = {scene.root: seed_of(scene)}
        self.steps = [Step("seed", scene.root, self.arrived[scene.root])]
        self.fault: int | None = None

    def run(self, to_the_end: bool) -> bool:
        """Walk, or only as far as is shown; whether that was the whole way."""
        stack = [self._visit(self._scene.root)]
        while stack:
            place = next(stack[-1], None)
            if place is None:
                stack.pop()
            elif not (to_the_end or self._is_shown()):
                return False
            elif place.op is not None:
                stack.append(self._visit(place))
        return True

    def _is_shown(self) -> bool:
        """Whether the next step still is: until shortly after the first fault, at least."""
        return len(self.steps) <= (RUN if self.fault is None else max(SHOWN, self.fault + AFTER))

    def _visit(self, node: Node) -> Iterator[Node]:
        """Run the rules of a node one by one, and give the inputs to go on to."""
        g = self.arrived[node]
        sent_on = self._sent_on.get(node)
        self._sent_on[node] = g
        fault = note = ""
        if sent_on is not None and sent_on.any():
            fault = "What has been sent on before is sent on again"
        elif not equal(g, self._complete[node]):
            note = "It does not wait for the gradients that are still to come"
        due = {}
        if sent_on is not None and fault and self.fault is None:
            due = _due(self._scene, node, g - sent_on)
        for run in by_rule(rules_of(self._scene, node, g)):
            step = Step("rule", node, g, arrivals=self._count[node], fault=fault, note=note)
            send(step, run, self.arrived, self._count, due)
            if fault and self.fault is None:
                self.fault = len(self.steps)
            if self._is_shown():
                self.steps.append(step)
            yield from (sent.link.source for sent in step.sent)


def _rules_of_all_paths(scene: Scene) -> int:
    """How many rules run if those of a node run once for each path that leads to it."""
    paths = {scene.root: 1}
    total = 0
    for node in reversed(scene.places):
        links = scene.places[node].links
        total += paths[node] * len(links)
        for link in links:
            paths[link.source] = paths.get(link.source, 0) + paths[node]
    return total


def _due(scene: Scene, node: Node, gradient: Array) -> dict[Link, Array]:
    """What the rules of a node make of the gradient that they should run with."""
    return {one.link: one.gradient for one in rules_of(scene, node, np.asarray(gradient))}
