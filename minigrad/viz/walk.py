"""Ways back through a graph, step by step: the right one, and two well-known wrong ones.

All of them run the true rules, through the engine, so every number is what such an engine gives.

- `right_way` is what `backward` does.
- `kept_way` is the second pass of an engine that keeps gradients at inner nodes and does not clear
  them: what had arrived in the first pass is sent on once more.
- `depth_first` goes on to the inputs as soon as a gradient arrives, without waiting for the others:
  what has been sent on already is sent on again with each further arrival.

No hook is called, and no `.grad` is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.engine import propagate
from minigrad.graph import Node
from minigrad.mode import Observer, observe
from minigrad.viz.scene import Link, Scene

Array = NDArray[Any]

SHOWN = 400  # steps of a wrong way that are shown
RUN = 4000  # rules that are run to find where a wrong way ends


@dataclass(eq=False)
class Sent:
    """A gradient on its way to one input.

    Attributes:
        link: the way.
        result: what the rule returned.
        gradient: the same in the shape and dtype of the input.
        before: the sum of what had arrived there, or None if this is the first.
        after: the sum with this one.
        due: what should go there instead; told only where a way goes wrong for the first time.
    """

    link: Link
    result: Array
    gradient: Array
    before: Array | None
    after: Array
    due: Array | None = None


@dataclass(eq=False)
class Step:
    """One rule that runs, and what it sends on; the seed, or a leaf's `.grad`, sends nothing.

    Attributes:
        kind: "seed", "rule" or "leaf".
        node: whose rule runs, or that gets the gradient.
        gradient: what has arrived at the node.
        sent: what goes on to its inputs.
        arrivals: how many gradients have arrived at the node so far.
        before: for a leaf, its `.grad`, or None.
        after: for a leaf, its `.grad` afterwards.
        fault: why a number goes wrong here; empty if none does.
        note: what else there is to say of the step.
    """

    kind: str
    node: Node
    gradient: Array
    sent: list[Sent] = field(default_factory=list)
    arrivals: int = 0
    before: Array | None = None
    after: Array | None = None
    fault: str = ""
    note: str = ""


@dataclass(eq=False)
class Way:
    """A whole pass.

    Attributes:
        steps: those that are shown.
        arrived: the gradient of each node in the end; of a wrong way that was cut short, empty.
        first_fault: the index of the first step in which a number goes wrong, or None.
        rules: how many rules the whole way runs.
    """

    steps: list[Step]
    arrived: dict[Node, Array]
    first_fault: int | None
    rules: int


def right_way(scene: Scene) -> Way:
    """The pass of the engine itself.

    Raises:
        RuntimeError: if the graph was freed, or an array that a rule saved was written since.
    """
    seed = _seed(scene)
    watcher = _Watcher(scene)
    with _without_hooks(scene.places), observe(watcher):
        propagate({scene.root: seed}, retain_graph=True)
    arrived, count = {scene.root: seed}, {scene.root: 1}
    steps = [Step("seed", scene.root, seed)]
    for run in _runs(watcher.seen):
        node = run[0].link.target
        step = Step("rule", node, arrived[node], arrivals=count[node])
        steps.append(_send(step, run, arrived, count))
    steps += _leaves(scene, arrived)
    return Way(steps, arrived, None, len(watcher.seen))


def again(scene: Scene, first: Way) -> Way:
    """The right way a second time, without `zero_grad` in between: `.grad` adds up."""
    leaves = _leaves(scene, first.arrived, _grads(first))
    steps = [step for step in first.steps if step.kind != "leaf"]
    return Way(steps + leaves, first.arrived, None, first.rules)


def kept_way(scene: Scene, first: Way) -> Way:
    """A second pass of an engine that keeps what arrives at inner nodes, and does not clear it."""
    held = {node: g for node, g in first.arrived.items() if node.op is not None}
    arrived, count = {**held, scene.root: _seed(scene)}, dict.fromkeys(held, 1)
    steps = [Step("seed", scene.root, arrived[scene.root])]
    fault: int | None = None
    total = 0
    with _without_hooks(scene.places):
        for node in reversed(scene.places):
            if node.op is None or node not in arrived:
                continue
            g = arrived[node]
            off = not _equal(g, first.arrived[node])
            due = _due(scene, node, first.arrived[node]) if off and fault is None else {}
            fault = len(steps) if off and fault is None else fault
            for run in _runs(rules_of(scene, node, g)):
                step = Step("rule", node, g, arrivals=count[node])
                step.fault = "What the first pass left here is sent on again" if off else ""
                steps.append(_send(step, run, arrived, count, due))
                total += len(run)
    leaves = _leaves(scene, arrived, _grads(first))
    return Way(steps + leaves, arrived, fault, total)


def depth_first(scene: Scene, first: Way) -> Way:
    """The walk that goes on to the inputs at once, with what has arrived so far.

    It runs the rules of a node once for each path that leads there, which may be exponentially
    many in the depth. So these are counted first, and a walk of too many is cut short.
    """
    total = _rules_of_all_paths(scene)
    walk = _DepthFirst(scene, first)
    with _without_hooks(scene.places):
        whole = walk.run(RUN if total <= RUN else SHOWN)
    leaves = _leaves(scene, walk.arrived) if whole else []
    return Way(walk.steps + leaves, walk.arrived if whole else {}, walk.fault, total)


class _DepthFirst:
    """The state of such a walk: `run` goes on from rule to rule, without recursion."""

    def __init__(self, scene: Scene, first: Way) -> None:
        self._scene = scene
        self._complete = first.arrived
        self._sent_on: dict[Node, Array] = {}  # what the rules of a node ran with the last time
        self._count = {scene.root: 1}
        self._done = 0
        self.arrived = {scene.root: _seed(scene)}
        self.steps = [Step("seed", scene.root, self.arrived[scene.root])]
        self.fault: int | None = None

    def run(self, bound: int) -> bool:
        """Walk, up to `bound` rules; whether that was the whole way."""
        stack = [self._visit(self._scene.root)]
        while stack:
            place = next(stack[-1], None)
            if place is None:
                stack.pop()
            elif self._done >= bound:
                return False
            elif place.op is not None:
                stack.append(self._visit(place))
        return True

    def _visit(self, node: Node) -> Iterator[Node]:
        """Run the rules of a node one by one, and give the inputs to go on to."""
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
            due = _due(self._scene, node, g - sent_on)
        for run in _runs(rules_of(self._scene, node, g)):
            step = Step("rule", node, g, arrivals=self._count[node], fault=fault, note=note)
            _send(step, run, self.arrived, self._count, due)
            if fault and self.fault is None:
                self.fault = len(self.steps)
            if len(self.steps) <= SHOWN:
                self.steps.append(step)
            self._done += len(run)
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


# --------------------------------------------------------------------------------------------------
# Single steps
# --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Seen:
    """What one rule has been seen to return."""

    link: Link
    result: Any
    gradient: Any


class _Watcher(Observer):
    """Notes what the rules return in one pass, but not in those that a rule runs itself."""

    def __init__(self, scene: Scene) -> None:
        self._links = {node: iter(place.links) for node, place in scene.places.items()}
        self._depth = 0
        self.seen: list[_Seen] = []

    def on_pass(self, begins: bool) -> None:
        self._depth += 1 if begins else -1

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        if self._depth == 1:
            self.seen.append(_Seen(next(self._links[node]), result, None))

    def on_gradient(self, node: Node, place: Node, gradient: Any) -> None:
        if self._depth == 1:
            self.seen[-1].gradient = gradient


def rules_of(scene: Scene, node: Node, gradient: Array) -> list[_Seen]:
    """What the rules of one node make of a gradient; the engine goes no further."""
    inputs = {link.source for link in scene.places[node].links}
    watcher = _Watcher(scene)
    with observe(watcher):
        propagate({node: gradient}, wanted=inputs, stop=inputs, retain_graph=True)
    return watcher.seen


def _runs(seen: Sequence[_Seen]) -> Iterator[list[_Seen]]:
    """What each rule returned: one gradient, or, if it is a rule for several inputs, these."""

    def by_rule(numbered: tuple[int, _Seen]) -> Any:
        i, one = numbered
        op = one.link.target.op
        return one.link.target.order, -1 if op is not None and not op.plain else i

    for _, run in groupby(enumerate(seen), by_rule):
        yield [one for _, one in run]


def _due(scene: Scene, node: Node, gradient: Array) -> dict[Link, Array]:
    """What the rules of a node make of the gradient that they should run with."""
    return {one.link: one.gradient for one in rules_of(scene, node, np.asarray(gradient))}


def _send(
    step: Step,
    run: Sequence[_Seen],
    arrived: dict[Node, Array],
    count: dict[Node, int],
    due: Mapping[Link, Array] = MappingProxyType({}),
) -> Step:
    """Add what a rule returned to what has arrived at its inputs."""
    for one in run:
        source = one.link.source
        before = arrived.get(source)
        after = one.gradient if before is None else np.asarray(before + one.gradient)
        arrived[source] = after
        count[source] = count.get(source, 0) + 1
        result = np.asarray(one.result)
        step.sent.append(Sent(one.link, result, one.gradient, before, after, due.get(one.link)))
    return step


def _leaves(
    scene: Scene, arrived: dict[Node, Array], grads: dict[Node, Array] | None = None
) -> list[Step]:
    """The end of a pass: what has arrived at the leaves is added to their `.grad`."""
    steps = []
    for node in reversed(scene.places):
        if node.op is None and node in arrived:
            g = arrived[node]
            before = _grad(node) if grads is None else grads[node]
            after = g if before is None else np.asarray(before + g)
            steps.append(Step("leaf", node, g, before=before, after=after))
    return steps


def _grads(first: Way) -> dict[Node, Array]:
    """The `.grad` of each leaf after a first pass."""
    return {step.node: step.after for step in first.steps if step.after is not None}


def _grad(node: Node) -> Array | None:
    return None if node.grad is None else node.grad._data


def _seed(scene: Scene) -> Array:
    return np.ones(scene.root.shape, scene.root.dtype)


def _equal(x: Array, y: Array) -> bool:
    return np.array_equal(x, y, equal_nan=True)


@contextmanager
def _without_hooks(nodes: Iterable[Node]) -> Iterator[None]:
    """Let no hook be called, and no result of an op retain its gradient."""
    watched = [node for node in nodes if node.watched]
    for node in watched:
        node.watched = False
    try:
        yield
    finally:
        for node in watched:
            node.watched = True
