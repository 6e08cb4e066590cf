"""A backward pass through a graph, step by step, in the order in which `backward` takes it.

The VJPs run through the engine, so every value is the engine's own. No hook is called, and no
`.grad` is written. Orders that go wrong are made of the same steps, in `wrong_orders`.
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
from minigrad.viz.graph_view import GraphView, Link, NodeView

Array = NDArray[Any]


@dataclass(eq=False)
class Sent:
    """A gradient that a VJP sends to one input.

    Attributes:
        link: the link that it goes along.
        result: what the VJP returned.
        gradient: the same in the shape and dtype of the input.
        before: the sum of what had arrived there, or None if this is the first.
        after: the sum with this one.
        due: what should go there instead; given only where a value goes wrong for the first time.
    """

    link: Link
    result: Any
    gradient: Any = None
    before: Array | None = None
    after: Any = None
    due: Array | None = None


@dataclass(eq=False)
class Step:
    """One VJP that runs, and what it sends on; the seed, or a leaf's `.grad`, sends nothing.

    Attributes:
        kind: "seed", "vjp" or "leaf".
        node: the node whose VJP runs, or that gets the gradient.
        gradient: what has arrived at the node.
        sent: what goes on to its inputs.
        arrivals: how many gradients have arrived at the node so far.
        before: for a leaf, its `.grad`, or None.
        after: for a leaf, its `.grad` afterwards.
        fault: why a value goes wrong here; empty if none does.
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
class Replay:
    """A complete backward pass.

    Attributes:
        steps: those that are shown.
        arrived: the gradient of each node in the end; empty if the pass was cut short.
        first_fault: the index of the first step in which a value goes wrong, or None.
        vjps: how many VJPs the complete pass runs.
    """

    steps: list[Step]
    arrived: dict[Node, Array]
    first_fault: int | None
    vjps: int


def right_order(graph: GraphView) -> Replay:
    """Run the pass of the engine itself.

    Raises:
        RuntimeError: if the graph was freed, or an array that a VJP saved was written since.
    """
    seed = seed_of(graph)
    watcher = _Watcher(graph.nodes.values())
    with without_hooks(graph.nodes), observe(watcher):
        propagate({graph.root: seed}, retain_graph=True)
    arrived, count = {graph.root: seed}, {graph.root: 1}
    steps = [Step("seed", graph.root, seed)]
    for run in by_vjp(watcher.seen):
        node = run[0].link.target
        step = Step("vjp", node, arrived[node], arrivals=count[node])
        steps.append(send(step, run, arrived, count))
    steps += leaf_steps(graph, arrived)
    return Replay(steps, arrived, None, len(watcher.seen))


def second_pass(graph: GraphView, first: Replay) -> Replay:
    """Repeat the right order without `zero_grad` in between: `.grad` adds up."""
    leaves = leaf_steps(graph, first.arrived, grads_after(first))
    steps = [step for step in first.steps if step.kind != "leaf"]
    return Replay(steps + leaves, first.arrived, None, first.vjps)


# --------------------------------------------------------------------------------------------------
# Single steps
# --------------------------------------------------------------------------------------------------


class _Watcher(Observer):
    """Notes what the VJPs of one pass return, but not in passes that a VJP runs itself."""

    def __init__(self, views: Iterable[NodeView]) -> None:
        self._links = {view.node: iter(view.links) for view in views}
        self._depth = 0
        self.seen: list[Sent] = []

    def on_pass(self, begins: bool) -> None:
        self._depth += 1 if begins else -1

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        if self._depth == 1:
            self.seen.append(Sent(next(self._links[node]), np.asarray(result)))

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        if self._depth == 1:
            self.seen[-1].gradient = gradient


def sent_from(graph: GraphView, node: Node, gradient: Array) -> list[Sent]:
    """Run the VJPs of one node on a gradient; the engine goes no further."""
    view = graph.nodes[node]
    inputs = {link.source for link in view.links}
    watcher = _Watcher([view])
    with observe(watcher):
        propagate({node: gradient}, wanted=inputs, stop=inputs, retain_graph=True)
    return watcher.seen


def by_vjp(seen: Sequence[Sent]) -> Iterator[list[Sent]]:
    """Yield what each VJP returned: one gradient, or several if it is a joint VJP."""

    def vjp_of(numbered: tuple[int, Sent]) -> Any:
        i, sent = numbered
        op = sent.link.target.op
        return sent.link.target.order, -1 if op is not None and not op.plain else i

    for _, run in groupby(enumerate(seen), vjp_of):
        yield [sent for _, sent in run]


def send(
    step: Step,
    run: Sequence[Sent],
    arrived: dict[Node, Array],
    count: dict[Node, int],
    due: Mapping[Link, Array] = MappingProxyType({}),
) -> Step:
    """Add what a VJP returned to what has arrived at its inputs."""
    for sent in run:
        source = sent.link.source
        sent.before, sent.due = arrived.get(source), due.get(sent.link)
        sent.after = sent.gradient
        if sent.before is not None:
            sent.after = np.asarray(sent.before + sent.gradient)
        arrived[source] = sent.after
        count[source] = count.get(source, 0) + 1
    step.sent += run
    return step


def leaf_steps(
    graph: GraphView, arrived: dict[Node, Array], grads: dict[Node, Array] | None = None
) -> list[Step]:
    """Return the end of a pass: what has arrived at the leaves is added to their `.grad`.

    `grads` has the `.grad` of each leaf before the pass; None stands for the present ones.
    """
    steps = []
    for node in reversed(graph.nodes):
        if node.op is None and node in arrived:
            g = arrived[node]
            before = None if node.grad is None else node.grad._data
            before = before if grads is None else grads[node]
            after = g if before is None else np.asarray(before + g)
            steps.append(Step("leaf", node, g, before=before, after=after))
    return steps


def grads_after(first: Replay) -> dict[Node, Array]:
    """Return the `.grad` of each leaf after a first pass."""
    return {step.node: step.after for step in first.steps if step.after is not None}


def seed_of(graph: GraphView) -> Array:
    """Return the gradient of the loss with respect to itself."""
    return np.ones(graph.root.shape, graph.root.dtype)


@contextmanager
def without_hooks(nodes: Iterable[Node]) -> Iterator[None]:
    """Call no hook in the block, and let no result of an op retain its gradient."""
    watched = [node for node in nodes if node.watched]
    for node in watched:
        node.watched = False
    try:
        yield
    finally:
        for node in watched:
            node.watched = True
