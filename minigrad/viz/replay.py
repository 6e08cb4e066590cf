"""The way back through a graph, step by step, as `backward` takes it.

The rules run through the engine, so every number is the engine's own. No hook is called, and no
`.grad` is written. Ways that go wrong are made of the same steps, in `wrong_ways`.
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

from minigrad.core.backward import propagate
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.viz.graph_view import Link, Place, Scene

Array = NDArray[Any]


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
    seed = seed_of(scene)
    watcher = _Watcher(scene.places.values())
    with without_hooks(scene.places), observe(watcher):
        propagate({scene.root: seed}, retain_graph=True)
    arrived, count = {scene.root: seed}, {scene.root: 1}
    steps = [Step("seed", scene.root, seed)]
    for run in by_rule(watcher.seen):
        node = run[0].link.target
        step = Step("rule", node, arrived[node], arrivals=count[node])
        steps.append(send(step, run, arrived, count))
    steps += leaves_of(scene, arrived)
    return Way(steps, arrived, None, len(watcher.seen))


def again(scene: Scene, first: Way) -> Way:
    """The right way a second time, without `zero_grad` in between: `.grad` adds up."""
    leaves = leaves_of(scene, first.arrived, grads_after(first))
    steps = [step for step in first.steps if step.kind != "leaf"]
    return Way(steps + leaves, first.arrived, None, first.rules)


# --------------------------------------------------------------------------------------------------
# Single steps
# --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Seen:
    """What one rule has been seen to return."""

    link: Link
    result: Any
    gradient: Any


class _Watcher(Observer):
    """Notes what the rules return in one pass, but not in those that a rule runs itself."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._links = {place.node: iter(place.links) for place in places}
        self._depth = 0
        self.seen: list[Seen] = []

    def on_pass(self, begins: bool) -> None:
        self._depth += 1 if begins else -1

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        if self._depth == 1:
            self.seen.append(Seen(next(self._links[node]), result, None))

    def on_gradient(self, node: Node, place: Node, gradient: Any) -> None:
        if self._depth == 1:
            self.seen[-1].gradient = gradient


def rules_of(scene: Scene, node: Node, gradient: Array) -> list[Seen]:
    """What the rules of one node make of a gradient; the engine goes no further."""
    place = scene.places[node]
    inputs = {link.source for link in place.links}
    watcher = _Watcher([place])
    with observe(watcher):
        propagate({node: gradient}, wanted=inputs, stop=inputs, retain_graph=True)
    return watcher.seen


def by_rule(seen: Sequence[Seen]) -> Iterator[list[Seen]]:
    """What each rule returned: one gradient, or, if it is a rule for several inputs, these."""

    def rule_of(numbered: tuple[int, Seen]) -> Any:
        i, one = numbered
        op = one.link.target.op
        return one.link.target.order, -1 if op is not None and not op.plain else i

    for _, run in groupby(enumerate(seen), rule_of):
        yield [one for _, one in run]


def send(
    step: Step,
    run: Sequence[Seen],
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


def leaves_of(
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


def grads_after(first: Way) -> dict[Node, Array]:
    """The `.grad` of each leaf after a first pass."""
    return {step.node: step.after for step in first.steps if step.after is not None}


def _grad(node: Node) -> Array | None:
    return None if node.grad is None else node.grad._data


def seed_of(scene: Scene) -> Array:
    """The gradient of the loss by itself."""
    return np.ones(scene.root.shape, scene.root.dtype)


def equal(x: Array, y: Array) -> bool:
    """Whether all numbers are the same, nan being the same as nan."""
    return np.array_equal(x, y, equal_nan=True)


@contextmanager
def without_hooks(nodes: Iterable[Node]) -> Iterator[None]:
    """Let no hook be called, and no result of an op retain its gradient."""
    watched = [node for node in nodes if node.watched]
    for node in watched:
        node.watched = False
    try:
        yield
    finally:
        for node in watched:
            node.watched = True
