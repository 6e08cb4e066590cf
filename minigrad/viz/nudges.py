"""How well gradients predict the change of the loss if an element of a leaf is nudged.

The gradient predicts that a nudge adds the gradient times the nudge to the loss. The true change is
found by running the ops that depend on the leaf again, for a grid of nudges that is finer near 0.
Values that are not in the graph, such as detached values, stay unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minigrad.core.grad_mode import unobserved
from minigrad.core.node import Node
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.functional import decompositions
from minigrad.viz.graph_view import GraphView, NodeView, known_arguments
from minigrad.viz.previews import Array, Json, exact, rounded

STEPS = 16  # nudges in each direction; the k-th is (k / STEPS)^2 of the largest
MOST = 24  # the most elements that can be nudged
CALLS = 2_000  # the most calls of ops that run again
NUMBERS = 4_000_000  # the most numbers in the operands and results of these calls

_TAPE = "A tape keeps it: with viz.record() as tape: …"


class _UnknownError(Exception):
    """Raised if a graph cannot be run again; the message is the reason."""


def nudges_of(graph: GraphView, gradients: Mapping[Node, Array]) -> Json:
    """Return what nudges of elements of leaves add to the loss, or in "why" why it is not known.

    Each leaf in turn gives its element with the largest remaining gradient, until there are `MOST`
    elements. A leaf is left out if too many ops would have to run.
    """
    if all(0 in node.shape for node in graph.nodes if node.op is None):
        return {"why": "Its leaves are empty."}
    try:
        with unobserved(grad_enabled=False), np.errstate(all="ignore"):
            elements = list(_curves(graph, _Rerun(graph), gradients))
    except _UnknownError as error:
        return {"why": str(error)}
    if not elements:
        return {"why": "To run this graph again for each nudge would take too long."}
    return {"steps": STEPS, "elements": elements}


def _curves(graph: GraphView, rerun: _Rerun, gradients: Mapping[Node, Array]) -> Iterator[Json]:
    """Yield, for each element, what the nudges from the most negative to the largest add."""
    leaves = {}
    for i, node in enumerate(graph.nodes):
        if node.op is None:
            sizes = -np.abs(np.nan_to_num(gradients[node].ravel().astype(np.float64)))
            leaves[node] = i, np.argsort(sizes, kind="stable")[:MOST]
    calls = numbers = count = 0
    for rank in range(MOST):
        for node, (i, order) in leaves.items():
            ops = rerun.dependents[node]
            more_calls = (2 * STEPS + 1) * len(ops)
            more_numbers = (2 * STEPS + 1) * sum(rerun.sizes[op] for op in ops)
            fits = calls + more_calls <= CALLS and numbers + more_numbers <= NUMBERS
            if rank >= len(order) or count == MOST or not fits:
                continue
            calls, numbers, count = calls + more_calls, numbers + more_numbers, count + 1
            value, element = rerun.values[node], int(order[rank])
            reach = _reach(value)
            parts = [k * abs(k) / STEPS**2 for k in range(-STEPS, STEPS + 1)]
            changes = [rerun.change(node, element, part * reach) for part in parts]
            yield {
                "node": i,
                "at": [int(k) for k in np.unravel_index(element, value.shape)],
                "value": exact(value.ravel()[element]),
                "gradient": exact(gradients[node].ravel()[element]),
                "reach": reach,
                "changes": [rounded(x, 5) for x in changes],
            }


class _Rerun:
    """Runs the part of a graph again that depends on a leaf."""

    def __init__(self, graph: GraphView) -> None:
        self.values: dict[Node, Array] = {}
        self.dependents: dict[Node, list[Node]] = {}  # nodes that depend on a leaf, oldest first
        self.sizes: dict[Node, int] = {}  # how many numbers are in an op's operands and result
        self._root = graph.root
        self._arguments: dict[Node, list[Any]] = {}
        leaves_of: dict[Node, dict[Node, None]] = {}
        for node, view in graph.nodes.items():
            if node.op is None:
                if view.value is None:
                    raise _UnknownError(f"The value of {view.name} is not saved.")
                self.values[node] = view.value
                self.dependents[node], leaves_of[node] = [], {node: None}
                continue
            self._arguments[node] = _arguments(view)
            try:
                value = self.values[node] = self._run(node, self.values)
                known = value if view.value is None else view.value
                is_same = value.shape == node.shape and np.allclose(
                    value, known, rtol=1e-3, atol=1e-6, equal_nan=True
                )
            except Exception:  # with other arguments than in the original call, an op may fail
                is_same = False
            if not is_same:
                raise _UnknownError(f"What {view.name} was called with is not saved. {_TAPE}")
            leaves_of[node] = {x: None for link in view.links for x in leaves_of[link.source]}
            for leaf in leaves_of[node]:
                self.dependents[leaf].append(node)
            given = [np.size(self.values[link.source]) for link in view.links]
            given += [np.size(frozen.value) for _, frozen in view.frozen]
            self.sizes[node] = value.size + sum(given)
        if not np.isfinite(self.values[graph.root]).all():
            raise _UnknownError("The result is not finite.")

    def _run(self, node: Node, values: Mapping[Node, Array]) -> Array:
        def filled(argument: Any) -> Any:
            if isinstance(argument, list):
                return [*map(filled, argument)]
            return Tensor.at(values[argument], None) if isinstance(argument, Node) else argument

        assert isinstance(node.op, Op)
        arguments, options = node.op.passed(filled(self._arguments[node]))
        return np.asarray(node.op(*arguments, **options)._data)

    def change(self, leaf: Node, element: int, nudge: float) -> float:
        """Return the change of the loss if an element of a leaf is nudged."""
        value = self.values[leaf].copy()
        value.reshape(-1)[element] += nudge
        values = {**self.values, leaf: value}
        try:
            for node in self.dependents[leaf]:
                values[node] = self._run(node, values)
        except Exception:  # an op may reject a value
            return math.nan
        before, after = (float(known[self._root].item()) for known in (self.values, values))
        return after - before


def _arguments(view: NodeView) -> list[Any]:
    """Return the arguments of the op of a node: nodes, lists with nodes, and saved values."""
    op = view.node.op
    if not isinstance(op, Op) or not op.vjps:
        raise _UnknownError(f"{view.name} is the result of a function, and of no single op.")
    if op.forward.__module__ == decompositions.__name__:  # these ops get their results as arguments
        raise _UnknownError(f"LAPACK found {view.name} before this op was called.")
    defaults = {p.name: p.default for p in op.signature.parameters.values()}
    known = defaults | known_arguments(view, op) | {link.input: link.source for link in view.links}
    if op.takes_sequence:
        known[op.parameters[0]] = [known.pop(name) for name in [*known] if name not in defaults]
    missing = [name for name, value in known.items() if value is inspect.Parameter.empty]
    if missing:
        raise _UnknownError(f"Input {missing[0]} of {view.name} is not saved. {_TAPE}")
    return list(known.values())


def _reach(value: Array) -> float:
    """Return the largest nudge: 1, 2 or 5 times a power of ten, at least twice every element."""
    known = np.abs(value.astype(np.float64))
    largest = min(1e300, float(np.max(known, where=np.isfinite(known), initial=0.0)))
    if not largest:
        return 1.0
    power = math.floor(math.log10(2 * largest))
    sizes = [float(f"{digit}e{power}") for digit in (1, 2, 5, 10)]
    return next(size for size in sizes if size >= min(2 * largest, sizes[-1]))
