"""The graph that ops record: what a node is, and the order in which nodes are visited.

Every op with an input that requires a gradient records a `Node`. The node stores the op, the nodes
of its inputs (its parents), and the values that the VJPs of the op need (its residuals).

A backward pass visits the nodes from the newest to the oldest. An op can only be called on values
that already exist, so this is a topological order. When a node is visited, everything that was
computed from it has been visited before, and the sum of the gradients that reach it is complete.

A classic bug is to visit the parents at once, each time a gradient arrives. Then the VJPs of a node
run with a part of its gradient, and later again with the complete gradient:

    h = 2 * x
    y = h + h      # dy/dx = 4; the bug sends 1, and then 1 + 1, through `2 * x`, and returns 6
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, Protocol

import numpy as np

from minigrad.versions import clock, last_write, last_written

Edge = tuple[Any, ...]  # (parent, argnum, vjp, *saved)

Cost = int | Callable[..., int]
"""FLOPs per element of the result; or a function whose parameters name operands, options, `out`."""

Hint = str | Mapping[str, Callable[..., Any]] | Callable[..., str | None]
"""A text; texts, each with a condition on named values; or a function of named values that returns
a text.
"""

NOT_INPUTS = {"out": "its result", "argnum": "a number", "residuals": "its residuals"}
"""What a VJP may name beside the parameters of its op, in the order of `VJP.slots`, in words."""


def in_words(name: str) -> str:
    """Describe a saved value, which has the name of an input or one in NOT_INPUTS."""
    return NOT_INPUTS.get(name, f"its input {name}")


class OpLike(Protocol):
    """The part of an op that graphs and backward passes use (see `minigrad.core.op.Op`)."""

    name: str
    forward: Callable[..., Any]
    signature: Signature
    parameters: tuple[str, ...]
    vjps: list[tuple[int, Any]]
    plain: bool
    takes_sequence: bool

    composition: Callable[..., Any] | None = None
    replayed: bool = False
    elementwise: bool = False
    linear: Sequence[str] = ()
    floats: bool = False
    returns_residuals: bool = False
    cost: Cost | None = None
    shape: Callable[..., tuple[int, ...]] | None = None
    product: bool = False
    fresh: Sequence[str] = ()
    nonfinite_hint: Hint | None = None
    gradient_hint: Hint | None = None

    def compose(self, *values: Any) -> Any:
        """Call the composition with a value for each parameter."""

    def differentiate(self, node: Node, edges: Sequence[Edge], g: Any) -> list[Any]:
        """Compute the gradients for some edges of a node."""

    def saved_values(self, node: Node, edges: Sequence[Edge]) -> Iterator[tuple[str, Any]]:
        """List the values that a backward pass uses, by the name of an input or in NOT_INPUTS."""

    def input_name(self, argnum: int) -> str:
        """Return the name of the input at `argnum`, for messages."""
        return f"{self.parameters[0]}[{argnum}]" if self.takes_sequence else self.parameters[argnum]

    def is_required(self, argnum: int) -> bool:
        """Return whether the input at `argnum` is required, because it has no default."""
        if self.takes_sequence:
            return True
        return self.signature.parameters[self.parameters[argnum]].default is Parameter.empty


class Node:
    """One value in the graph: a leaf (`op` is None), or the result of one op.

    Nodes refer to older nodes, and never to a Tensor. So there are no reference cycles, and memory
    is freed when the last Tensor that needs it is deleted.
    """

    # `__dict__` is for attributes with a default below. They are rarely set; as defaults of the
    # class, they cost a node no time and no memory until one is assigned.
    __slots__ = ("__dict__", "__weakref__", "dtype", "edges", "op", "order", "shape")

    op: OpLike | None  # the op that was called; None for a leaf
    # An edge for each input that requires a gradient: the node of the input (the parent), its
    # argnum, its VJP, and the residuals of the VJP. None after a backward pass has freed the edges.
    edges: Sequence[Edge] | None
    order: int  # when the node was made, on the clock of `minigrad.versions`
    shape: tuple[int, ...]  # the shape of the value, and of its gradient
    dtype: np.dtype[Any]  # the dtype of the value, and of its gradient

    grad: Any = None  # a Tensor, for leaves and where `retains_grad` is set
    retains_grad: bool = False
    hooks: tuple[Hook, ...] = ()
    watched: bool = False  # whether the node has hooks, or retains its gradient
    arguments: tuple[Any, ...] = ()  # the arguments of the op, saved only if it is replayed
    outdated: bool = False  # whether the leaf was converted to another dtype, and has a new node
    forward_only: bool = False  # whether the node only has tangents, and no graph behind it
    in_program: bool = False  # whether its gradient exists only inside of a captured step

    @classmethod
    def of(cls, op: OpLike | None, edges: Sequence[Edge], result: np.ndarray[Any, Any]) -> Node:
        """Make the node of `result`, which `op` has just computed; for a leaf, `op` is None."""
        node = cls()
        node.op = op
        node.edges = edges
        node.order = next(clock)
        node.shape = result.shape
        node.dtype = result.dtype
        return node

    def converted(self, array: np.ndarray[Any, Any]) -> Node:
        """Make the node of this leaf with another dtype. The hooks move to it."""
        node = Node.of(None, (), array)
        node.hooks, self.hooks = self.hooks, ()
        node.watched, self.outdated = self.watched, True
        for hook in node.hooks:
            hook.node = weakref.ref(node)
        return node

    @property
    def name(self) -> str:
        """The name of the op, or "leaf"."""
        return "leaf" if self.op is None else self.op.name

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.shape} {self.dtype}>"


class Hook:
    """A function that sees, and may replace, the complete gradient of one tensor."""

    __slots__ = ("function", "node")

    def __init__(self, node: Node, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.node = weakref.ref(node)  # weak, because the node points to the hook
        node.hooks = (*node.hooks, self)
        node.watched = True

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        node = self.node()
        if node is not None:
            node.hooks = tuple(hook for hook in node.hooks if hook is not self)


def reachable(roots: Iterable[Node], stop: Container[Node] = (), oldest: int = -1) -> list[Node]:
    """Return `roots` and all nodes that they depend on, newest first; an error if one is freed.

    The walk ends at nodes in `stop`, and at nodes that were made at the time `oldest` or earlier.
    """
    seen = set(roots)
    found = list(seen)
    for node in found:  # the loop appends to this list
        if node in stop or node.order <= oldest:
            continue
        if node.edges is None:
            raise freed(node)
        for edge in node.edges:
            if edge[0] not in seen:
                seen.add(edge[0])
                found.append(edge[0])
    found.sort(key=operator.attrgetter("order"), reverse=True)
    return found


def freed(node: Node) -> RuntimeError:
    """Return the error for a backward pass that needs a node whose edges have been freed."""
    return RuntimeError(
        f"the graph behind this result of `{node.name}` was freed by an earlier backward pass; "
        f"pass retain_graph=True to that pass, or compute the result again"
    )


def check_unwritten(order: Sequence[Node], needed: Container[Node] | None) -> None:
    """Raise a RuntimeError if an array that a VJP towards a needed node saved was overwritten."""
    for node in reversed(order):
        if node.order > last_write[0]:
            break  # this node, and so every newer node, was made after the last write
        if node.op is None:
            continue
        edges = [edge for edge in node.edges or () if needed is None or edge[0] in needed]
        for name, value in node.op.saved_values(node, edges):
            if any(last_written(array) > node.order for array in arrays_in(value)):
                raise RuntimeError(
                    f"`{node.name}` (result of shape {node.shape}) saved {in_words(name)} for the "
                    f"backward pass, and that memory was overwritten since then, by an "
                    f"optimiser step, load_state_dict or an assignment; run the backward pass "
                    f"before the write, or compute the result again after it"
                )


def arrays_in(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """List the arrays in a residual: the residual itself, or the arrays in an index tuple."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)
    elif hasattr(value, "_data"):  # a Tensor in an index
        yield value._data


def leading_to(wanted: Container[Node], order: Sequence[Node]) -> set[Node]:
    """Return the nodes that depend on a wanted node: only their VJPs need to run."""
    needed: set[Node] = set()
    for node in reversed(order):
        if node in wanted:
            needed.add(node)
            continue
        for edge in node.edges or ():  # a loop is faster than any()
            if edge[0] in needed:
                needed.add(node)
                break
    return needed
