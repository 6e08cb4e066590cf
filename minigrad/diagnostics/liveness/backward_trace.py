"""The ways of gradients back through a graph, and where on them nothing but zeros is left.

Where a rule is handed a gradient and returns only zeros, a way back ends, although the graph goes
on: a relu of negative numbers, a product with zeros.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.core.node import Node
from minigrad.core.observers import Observer
from minigrad.core.tensor import Tensor


@dataclass(frozen=True)
class Stop:
    """Where a gradient became all zero.

    Attributes:
        node: the result of the op that was handed the gradient.
        factors: the positions of the op's inputs that the rule computes with.
        inside: False for a checkpoint, whose rule is the backward pass of what it runs again.
    """

    node: Node
    factors: frozenset[int]
    inside: bool


class Steps(Observer):
    """Follows gradients backward."""

    def __init__(self) -> None:
        self._steps: dict[Node, list[Node | Stop]] = {}
        self._fed: set[Node] = set()  # places that a rule gave more than zeros

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        """Note whether a gradient arrived, and whether one went on."""
        if not _any(gradient):
            self._steps.setdefault(place, []).append(node)
        elif not _any(result):
            self._steps.setdefault(place, []).append(_stop(node, place))
        else:
            self._fed.add(place)

    def stops(self, place: Node) -> list[Stop]:
        """Where the gradients on their ways to `place` became all zero, the nearest to it first."""
        steps = [step for node in self._back_from(place) for step in self._steps.get(node, ())]
        found = [step for step in steps if isinstance(step, Stop)]
        return [stop for stop in found if stop.inside] or found

    def lost_at(self, place: Node) -> Node | None:
        """Where gradients that rules gave became all zero together: by cancelling, or by a hook."""
        return next((node for node in self._back_from(place) if node in self._fed), None)

    def _back_from(self, place: Node) -> list[Node]:
        """`place`, and the nodes that had nothing but zeros to hand on to it, the nearest first."""
        ways = dict.fromkeys([place])
        queue = deque(ways)
        while queue:
            for step in self._steps.get(queue.popleft(), ()):
                if not isinstance(step, Stop) and step not in ways:
                    ways[step] = None
                    queue.append(step)
        return list(ways)


def _any(gradient: Any) -> bool:
    return bool(np.any(gradient._data if isinstance(gradient, Tensor) else gradient))


def _stop(node: Node, place: Node) -> Stop:
    assert node.op is not None
    rules = [edge[2] for edge in node.edges or () if edge[0] is place]
    slots = {slot for rule in rules if rule is not None for slot, shape in rule.slots if not shape}
    if {0, len(node.op.parameters) + 1} <= slots:  # `position`: the inputs are one sequence
        slots |= set(range(1 + max(edge[1] for edge in node.edges or ())))
    return Stop(node, frozenset(slots), None not in rules)
