"""Faults of the engine: what the walk back makes of gradients that the VJPs get right."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import minigrad
from minigrad.core import backward as engine
from minigrad.core import blocked_sum
from minigrad.core import node as graph
from minigrad.core.tensor import Tensor
from tests.zoo.mutant import Mutant, edited, fault, replaced

_rng = np.random.default_rng(4)
normal = _rng.standard_normal


def penalty(x: Tensor) -> Tensor:
    """x^3 times its own slope, so that a pass over the slope goes over x^3 a second time."""
    with minigrad.enable_grad():  # also where gradcheck wants the value only
        x = x if x.requires_grad else Tensor(x, requires_grad=True)
        cube = x * x * x
        return cube * minigrad.grad(cube.sum(), x, create_graph=True)  # type: ignore[no-any-return]


def _at_once(pending: Any, *, wanted: Any = None, stop: Any = (), **_: Any) -> Any:
    """The walk of a textbook: each op passes on at once what it has got so far, all of it again."""
    totals: dict[Any, Any] = {}
    arrived: dict[Any, Any] = {}

    def visit(node: Any, g: Any) -> None:
        totals[node] = totals[node] + g if node in totals else g
        if (wanted is None and node.op is None) or (wanted is not None and node in wanted):
            arrived[node] = totals[node]
        if node.op is None or node in stop:
            return
        results = None
        if isinstance(g, Tensor) or not node.op.plain:
            results = node.op.differentiate(node, node.edges, totals[node])
        for i, edge in enumerate(node.edges):
            parent, argnum, vjp, *saved = edge
            result = results[i] if results else vjp.derivative(totals[node], *saved)
            is_recorded = isinstance(totals[node], Tensor)
            visit(parent, engine.fit_to_input(result, parent, node.op, argnum, is_recorded))

    for node, g in pending.items():
        visit(node, g)
    return arrived


BROADCAST = (lambda x, y: x * y, normal((3, 1)), normal((3, 4)))


MUTANTS: list[Mutant] = [
    # The walk
    fault(
        "a value that is used twice passes its gradient on twice",
        "double count on reuse",
        partial(replaced, [engine, import_module("minigrad.core.op")], "propagate", _at_once),
        lambda x: (lambda h: h + h)(2 * x),
        normal(3),
    ),
    fault(
        "of several uses of a value only the last counts",
        "double count on reuse",
        partial(
            edited, engine._visit, ("result if earlier is None else earlier + result", "result")
        ),
        lambda x: x * x,
        normal(3),
    ),
    fault(
        "nodes are visited before their gradient is complete",
        "double count on reuse",
        partial(
            edited,
            graph.reachable,
            ('found.sort(key=operator.attrgetter("order"), reverse=True)', "pass"),
        ),
        lambda x: (lambda h: h + h * h)(2 * x),
        normal(3),
    ),
    fault(
        "gradients are added up in place, where others hold them",
        "aliasing",
        partial(
            edited,
            engine._visit,
            (
                "earlier + result",
                "np.add(earlier, result, out=earlier if type(earlier) is np.ndarray "
                "and earlier.flags.writeable else None) if type(result) is np.ndarray "
                "else earlier + result",
            ),
        ),
        lambda x, y: x * x + (x + y),
        normal(3),
        normal(3),
    ),
    fault(
        "inner nodes keep the gradient of the pass before",
        "stale inner gradient",
        partial(
            edited,
            engine._visit,
            (
                "g = take_out(node, None)",
                "g = take_out(node, None)\n"
                "        if g is not None and node.op is not None:\n"
                "            g = g + vars(node).get('stale', 0)\n"
                "            node.stale = getattr(g, '_data', g)",
            ),
        ),
        penalty,
        normal(3),
    ),
    fault(
        "a node counts as leading to a leaf only if all of its inputs do",
        "cut graph",
        partial(
            edited,
            graph.leading_to,
            ("if edge[0] in needed:", "if all(e[0] in needed for e in node.edges):"),
        ),
        lambda x: 2.0 * (x * Tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)),
        normal(3),
    ),
    fault(
        "every pass starts from ones",
        "wrong formula",
        partial(
            edited,
            engine.initial_gradient,
            (
                "return array.astype(value.dtype, copy=False)",
                "return np.ones(value.shape, value.dtype)",
            ),
        ),
        lambda x: x * x,
        normal(3),
    ),
    # Broadcasting and dtypes
    fault(
        "a broadcast axis gets the gradient of its first place",
        "missing reduction over a broadcast axis",
        partial(
            edited,
            engine.fit_to_input,
            (
                "sum_over(result, axes, keepdims=keepdims)",
                "result[tuple((slice(1) if keepdims else 0) if i in axes else slice(None) "
                "for i in range(result.ndim))]",
            ),
        ),
        *BROADCAST,
    ),
    fault(
        "a broadcast axis gets the mean",
        "mean for sum",
        partial(
            edited,
            engine.fit_to_input,
            ("sum_over(result, axes, keepdims=keepdims)", "result.mean(axes, keepdims=keepdims)"),
        ),
        *BROADCAST,
    ),
    fault(
        "the sum over a broadcast axis is a constant in a recorded pass",
        "cut graph",
        partial(
            edited,
            engine.fit_to_input,
            ("result.sum(axes, keepdims=keepdims)", "result.detach().sum(axes, keepdims=keepdims)"),
        ),
        *BROADCAST,
        order=2,
    ),
    fault(
        "a gradient keeps the dtype of the result",
        "wrong only for one dtype",
        partial(edited, engine.fit_to_input, ("result = result.astype(parent.dtype)", "pass")),
        lambda x: minigrad.square(x.astype(np.float64)),
        normal(3).astype(np.float32),
    ),
    fault(
        "a long float32 sum loses the rows after its last whole block",
        "wrong only for one dtype",
        partial(
            edited,
            blocked_sum.sum_over,
            ("rows = np.concatenate([blocks, rest])", "rows = blocks"),
        ),
        lambda bias: bias + np.ones((1050, 2), np.float32),
        normal(2).astype(np.float32),
    ),
]
