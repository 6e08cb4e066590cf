"""The values in a graph, as far as they are still in memory.

A graph has nodes, but no values, except those that some VJP asked for. What is not on a tape may
still be the value of a living Tensor, or saved for a VJP.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import CallRecord

if TYPE_CHECKING:
    from minigrad.core.node import Edge, Node, OpLike

Array = NDArray[Any]


def values_of(nodes: Sequence[Node], calls: Mapping[Node, CallRecord]) -> dict[Node, Array]:
    """Find the values at these nodes: of calls on a tape, of living Tensors, or saved for VJPs."""
    among = set(nodes)
    found: dict[Node, Array] = {}

    def note(node: Node | None, value: Any) -> None:
        if (
            node in among
            and node not in found
            and isinstance(value, np.ndarray)
            and (value.shape, value.dtype) == (node.shape, node.dtype)
        ):
            found[node] = value

    for node in nodes:
        call = calls.get(node)
        if call is not None:
            for value in (call.result, *call.inputs):
                if isinstance(value, Tensor):
                    note(value.node, value._data)
    for thing in gc.get_objects():
        # Not `isinstance`, which asks an object for its class, and an object may answer anything.
        if issubclass(type(thing), Tensor):
            note(getattr(thing, "node", None), getattr(thing, "_data", None))
    for node in nodes:
        for edge in node.edges or ():
            for slot, value in saved_by(node, edge):
                if slot == "out":
                    note(node, value)
        known = saved_inputs(node)
        for edge in node.edges or ():
            note(edge[0], known.get(edge[1]))
    return found


def saved_by(node: Node, edge: Edge) -> Iterator[tuple[str, Any]]:
    """Yield what the VJP of an edge is given after `g`, with the names of its parameters."""
    vjp = edge[2]
    if vjp is not None:
        names = _parameters(vjp.derivative)
        yield from zip(names[len(names) - len(vjp.slots) :], edge[3:], strict=True)


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def saved_inputs(node: Node) -> dict[int, Any]:
    """Return the inputs of a node that were saved for its VJPs, by their index."""
    op = node.op
    if op is None:
        return {}
    found: dict[int, Any] = dict(enumerate(node.arguments)) if op.replayed else {}
    for edge in node.edges or ():
        if edge[2] is None:  # a checkpoint, which saves its inputs
            found[edge[1]] = edge[3]
            continue
        for (slot, shape_only), value in zip(edge[2].slots, edge[3:], strict=True):
            if shape_only:
                continue
            if slot == 0 and takes_sequence(op):
                found.update(enumerate(value))
            elif slot < len(op.parameters):
                found.setdefault(slot, value)
    return found


def takes_sequence(op: OpLike) -> bool:
    """Whether the op's inputs are one sequence: its VJP is given the index of one of them."""
    return any(
        slot == len(op.parameters) + 1 and not shape_only
        for _, vjp in op.vjps
        for slot, shape_only in vjp.slots
    )
