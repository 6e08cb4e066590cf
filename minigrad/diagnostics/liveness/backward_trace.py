"""BackwardTrace: the paths of gradients back through a graph, and where they become all zero.

Where the derivative of an op receives a gradient and returns only zeros, a path back ends, although
the graph goes on: a relu of negative numbers, a product with zeros.
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
    """The op at which a gradient became all zero.

    Attributes:
        node: the result of the op that received the gradient.
        factors: the indices of the op's inputs that the derivative computes with.
        inside: False for a checkpoint, whose derivative is the backward pass of what it runs again.
    """

    node: Node
    factors: frozenset[int]
    inside: bool


class BackwardTrace(Observer):
    """Follows gradients backward."""

    def __init__(self) -> None:
        # By parent node: the results whose derivatives passed zeros on, and where zeros began.
        self._zeros: dict[Node, list[Node | Stop]] = {}
        self._fed: set[Node] = set()  # parents that received more than zeros

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Note whether a gradient arrived, and whether one went on."""
        if not _any(gradient):
            self._zeros.setdefault(parent, []).append(node)
        elif not _any(result):
            self._zeros.setdefault(parent, []).append(_stop(node, parent))
        else:
            self._fed.add(parent)

    def stops(self, node: Node) -> list[Stop]:
        """List where the gradients on paths to `node` became zero, the nearest to it first."""
        steps = [step for path in self._back_from(node) for step in self._zeros.get(path, ())]
        found = [step for step in steps if isinstance(step, Stop)]
        return [stop for stop in found if stop.inside] or found

    def lost_at(self, node: Node) -> Node | None:
        """Find where nonzero gradients became zero together: by cancelling, or by a hook."""
        return next((other for other in self._back_from(node) if other in self._fed), None)

    def _back_from(self, node: Node) -> list[Node]:
        """List `node` and the nodes that had only zeros to pass on to it, the nearest first."""
        found = dict.fromkeys([node])
        queue = deque(found)
        while queue:
            for step in self._zeros.get(queue.popleft(), ()):
                if not isinstance(step, Stop) and step not in found:
                    found[step] = None
                    queue.append(step)
        return list(found)


def _any(gradient: Any) -> bool:
    return bool(np.any(gradient._data if isinstance(gradient, Tensor) else gradient))


def _stop(node: Node, parent: Node) -> Stop:
    assert node.op is not None
    vjps = [edge[2] for edge in node.edges or () if edge[0] is parent]
    slots = {slot for vjp in vjps if vjp is not None for slot, shape in vjp.slots if not shape}
    if {0, len(node.op.parameters) + 1} <= slots:  # `position`: the inputs are one sequence
        slots |= set(range(1 + max(edge[1] for edge in node.edges or ())))
    return Stop(node, frozenset(slots), None not in vjps)
