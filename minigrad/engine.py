"""The engine: the graph that ops leave behind, and the walk back through it.

Every op that touches a tensor in need of a gradient leaves a `Node`: which op it was, where its
inputs came from, and what its derivative rules asked to keep. A backward pass visits the nodes from
the newest to the oldest and hands each one the sum of all gradients that reach it. Newest first is
a topological order, for an op can only be called on what exists already; so when a node is visited,
all that was computed from it has been visited before, and its sum is complete. A walk that goes on
to the inputs at once instead runs a node's rules with half of its gradient and then again with the
whole, the classic bug:

    h = 2 * x
    y = h + h      # dy/dx is 4; such a walk sends 1 and then 1 + 1 through `2 * x`, and says 6

All that is not calculus is done here, once, and no rule needs to think of it: summing over
broadcast axes, keeping dtypes, adding up, freeing, and refusing what would give a wrong number.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.memory import clock, last_write, last_written
from minigrad.mode import grad_mode, mode
from minigrad.tensor import Tensor

if TYPE_CHECKING:
    from minigrad.op import Op

    Edge = tuple[Any, ...]  # (place, position, rule, *saved)

_by_age = operator.attrgetter("order")


class Node:
    """A place in the graph: a leaf (`op` is None), or the result of one op.

    Nodes point to older nodes and never to a Tensor, so there are no reference cycles, and memory
    goes with the last Tensor that needs it.

    Attributes:
        op: the op that was called, None for a leaf.
        edges: for every input in need of a gradient `(place, position, rule, *saved)`: its node,
        which of the
            op's inputs it was, the rule that differentiates by it, and what that rule asked to
            keep. None once a backward pass has freed them.
        order: when the node was made, on the clock of `minigrad.memory`.
        shape: the shape of the value, which is also that of its gradient.
        dtype: the dtype of the value, which is also that of its gradient.
        watched: whether there are hooks, or the gradient is to be retained.
        grad: the gradient, for leaves and where `retains_grad` asks for it.
        hooks: the functions that see each gradient on its way.
        arguments: what the op was called with, kept only for an op that is replayed.
    """

    # `__dict__` is there for the last four, which are rarely set: as defaults of the class they
    # cost a node neither time nor memory until one is assigned.
    __slots__ = ("__dict__", "dtype", "edges", "op", "order", "shape", "watched")

    op: Op[Any] | None
    edges: Sequence[Edge] | None
    order: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    watched: bool

    grad: Tensor | None = None
    retains_grad: bool = False
    hooks: tuple[Hook, ...] = ()
    arguments: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        op: Op[Any],
        edges: Sequence[Edge],
        result: np.ndarray[Any, Any],
    ) -> Node:
        """The place of `result`, just made by `op`."""
        node = cls()
        node.op = op
        node.edges = edges
        node.order = next(clock)
        node.shape = result.shape
        node.dtype = result.dtype
        node.watched = False
        return node

    @property
    def name(self) -> str:
        """The op's name, or "leaf"."""
        return "leaf" if self.op is None else self.op.name

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.shape} {self.dtype}>"


def leaf(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Node:
    """The place of a tensor that no op has made."""
    node = Node()
    node.op = None
    node.edges = ()
    node.order = next(clock)
    node.shape = shape
    node.dtype = dtype
    node.watched = False
    return node


class Hook:
    """A function that sees, and may replace, the whole gradient of one tensor."""

    __slots__ = ("_node", "function")

    def __init__(self, node: Node, function: Callable[[Tensor], Tensor | None]) -> None:
        self.function = function
        self._node = node
        node.hooks = (*node.hooks, self)
        node.watched = True

    def remove(self) -> None:
        """Take the hook off; doing it twice is harmless."""
        self._node.hooks = tuple(hook for hook in self._node.hooks if hook is not self)


def backward(
    tensor: Tensor,
    gradient: Tensor | Any | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """What `Tensor.backward` does."""
    seed = _seed(tensor, gradient, "backward", create_graph)
    arrived = propagate(
        {node_of(tensor, "backward"): seed},
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    del seed
    for node in list(arrived):
        _accumulate(node, _take(arrived, node))


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> Any:
    """The gradients of `outputs` by `inputs`, as new tensors; nobody's `.grad` is touched.

    For outputs y_k with cotangents v_k, the result for an input x is the sum over k of (dy_k /
    dx)^T v_k.

    Args:
        outputs: one tensor or several.
        inputs: one tensor, or a list of them; leaves or results of ops.
        grad_outputs: the cotangents, shaped like `outputs`; may be left out for outputs of one
        element.
        create_graph: record the backward pass too, so that the result can be differentiated again.
        retain_graph: keep the graph for another pass; by default the same as `create_graph`.
        allow_unused: give zeros for an input that `outputs` do not depend on, instead of an error.

    Returns:
        One tensor for one input, a tuple of tensors for a list of them.

    Raises:
        RuntimeError: if an input needs no gradient or is not reached, or the graph was freed or
        overwritten.
        ValueError: if a cotangent is missing or has another shape than its output.
    """
    single = isinstance(inputs, Tensor)
    sources = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if grad_outputs is None:
        grad_outputs = [None] * len(results)
    elif isinstance(outputs, Tensor) and not isinstance(grad_outputs, (list, tuple)):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(results):
        raise ValueError(
            f"grad: {len(results)} outputs, but {len(grad_outputs)} grad_outputs; give one for each"
        )
    wanted = [node_of(source, f"grad: input {i}") for i, source in enumerate(sources)]
    pending: dict[Node, Any] = {}
    for k, (result, cotangent) in enumerate(zip(results, grad_outputs, strict=True)):
        if not isinstance(result, Tensor):
            raise TypeError(f"grad: output {k} is a {type(result).__name__}, not a Tensor")
        if result.node is None and allow_unused:
            continue
        place = node_of(result, f"grad: output {k}")
        seed = _seed(result, cotangent, f"grad: output {k}", create_graph)
        pending[place] = pending[place] + seed if place in pending else seed
    arrived = propagate(
        pending,
        wanted=set(wanted),
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    gradients = []
    for i, (source, node) in enumerate(zip(sources, wanted, strict=True)):
        if node in arrived:
            last_use = node not in wanted[i + 1 :]
            gradients.append(_take(arrived, node) if last_use else _copied(arrived[node]))
        elif allow_unused:
            gradients.append(Tensor(np.zeros(node.shape, node.dtype)))
        else:
            raise RuntimeError(
                f"grad: the outputs do not depend on input {i}, {source.describe()}; "
                f"allow_unused=True gives zeros for it"
            )
    return gradients[0] if single else tuple(gradients)


def propagate(
    pending: dict[Node, Any],
    *,
    wanted: Container[Node] | None = None,
    stop: Container[Node] = (),
    retain_graph: bool = False,
    create_graph: bool = False,
) -> dict[Node, Any]:
    """Carry the gradients in `pending` back through the graph and return those that arrive.

    Args:
        pending: the gradient of each node to start from; emptied on the way.
        wanted: the nodes whose gradients are asked for; None for all leaves.
        stop: nodes to end at, even where the graph goes on behind them.
        retain_graph: keep what the graph saved, for another pass.
        create_graph: gradients are Tensors, and the rules leave a graph of their own; else they are
        arrays, and
            nothing is recorded.
    """
    order = reachable(pending, stop)
    needed = None if wanted is None else _leading_to(wanted, order)
    arrived: dict[Node, Any] = {}
    with grad_mode(create_graph):
        observers = mode.observers
        for node in order:
            g = pending.pop(node, None)
            if g is None:
                continue
            if node.watched:
                g = _show(node, g)
            op = node.op
            if wanted is None:
                if op is None:
                    arrived[node] = g
                    continue
            else:
                if node in wanted:
                    arrived[node] = g
                if op is None or node in stop:
                    continue
            edges: Any = node.edges
            if needed is not None:
                edges = [edge for edge in edges if edge[0] in needed]
            results = op.differentiate(node, edges, g) if create_graph or not op.plain else None
            for edge in edges:
                place = edge[0]
                if results is not None:
                    result = results.pop(0)
                elif len(edge) == 4:  # calls without a star are faster, and these are most of them
                    result = edge[2].derivative(g, edge[3])
                elif len(edge) == 3:
                    result = edge[2].derivative(g)
                else:
                    result = edge[2].derivative(g, *edge[3:])
                if observers:
                    for observer in observers:
                        observer.on_rule(node, place, g, result)
                if (
                    type(result) is not np.ndarray
                    or result.shape != place.shape
                    or result.dtype is not place.dtype
                ):
                    result = _fit(result, place, op, edge[1])
                earlier = pending.get(place)
                pending[place] = result if earlier is None else earlier + result
            if not retain_graph:
                for observer in observers:
                    observer.on_free(node)
                node.edges = None
                if op.replayed or not op.plain:
                    node.arguments = ()
    return arrived


def reachable(roots: Iterable[Node], stop: Container[Node] = ()) -> list[Node]:
    """All nodes that `roots` depend on and themselves, newest first, ending at those of `stop`.

    Raises:
        RuntimeError: if a part of the graph has been freed, or an array that it saved was written
        since.
    """
    seen = set(roots)
    stack = [node for node in seen if node not in stop]
    while stack:
        node = stack.pop()
        if node.edges is None:
            raise RuntimeError(
                f"the graph behind this result of `{node.name}` was freed by an earlier backward "
                f"pass; pass retain_graph=True to that pass, or compute the result again"
            )
        if last_write[0] > node.order:
            _check_unwritten(node)
        for edge in node.edges:
            place = edge[0]
            if place not in seen:
                seen.add(place)
                if place not in stop:
                    stack.append(place)
    return sorted(seen, key=_by_age, reverse=True)


def _check_unwritten(node: Node) -> None:
    """Refuse to differentiate with an array that is no longer what it was in the forward pass."""
    if node.op is None:
        return
    for description, array in node.op.saved_arrays(node):
        if last_written(array) > node.order:
            raise RuntimeError(
                f"`{node.name}` (result of shape {node.shape}) saved {description} for the "
                f"backward pass, and that memory was written since, by an optimiser step, "
                f"load_state_dict or an assignment; run the backward pass before the write, or "
                f"compute the result again after it"
            )


def _leading_to(wanted: Container[Node], order: Sequence[Node]) -> set[Node]:
    """Those of `order` that lead to a wanted node: the only ones whose rules need to run."""
    needed: set[Node] = set()
    for node in reversed(order):
        if node in wanted or any(edge[0] in needed for edge in node.edges or ()):
            needed.add(node)
    return needed


def _show(node: Node, g: Any) -> Any:
    """Hand the gradient to each hook in turn, where a tensor that it returns takes its place."""
    tensor = _copied(g) if not isinstance(g, Tensor) else g
    for hook in node.hooks:
        replaced = hook.function(tensor)
        if replaced is None:
            continue
        if not isinstance(replaced, Tensor) or replaced.shape != node.shape:
            raise ValueError(
                f"a hook must return None or a Tensor of shape {node.shape}, "
                f"not {replaced.describe() if isinstance(replaced, Tensor) else repr(replaced)}"
            )
        tensor = replaced.astype(node.dtype)
    if node.retains_grad:
        _accumulate(node, _copied(tensor))
    return tensor if isinstance(g, Tensor) else tensor.data


def _fit(result: Any, place: Node, op: Op[Any], position: int) -> Any:
    """Bring what a rule returned to its input's shape and dtype: the transpose of broadcasting."""
    if not isinstance(result, (np.ndarray, np.generic, Tensor)):
        raise TypeError(
            f"the rule of `{op.name}` for its input {op.input_name(position)} returned {result!r}; "
            f"a rule returns an array (a Tensor when its arguments are Tensors)"
        )
    if result.shape != place.shape:
        extra = result.ndim - len(place.shape)
        stretched = [
            extra + axis
            for axis, (size, target) in enumerate(
                zip(result.shape[max(extra, 0) :], place.shape, strict=False)
            )
            if target == 1 and size != 1
        ]
        if extra > 0 or stretched:
            result = result.sum(axis=(*range(extra), *stretched), keepdims=True)
        if extra > 0:
            result = result.reshape(result.shape[extra:])
        if result.shape != place.shape:
            raise ValueError(
                f"the rule of `{op.name}` for its input {op.input_name(position)} returned a "
                f"gradient of shape {result.shape}, which cannot be summed to the input's "
                f"{place.shape}"
            )
    if result.dtype != place.dtype:
        result = result.astype(place.dtype)
    return np.asarray(result) if isinstance(result, np.generic) else result


# What `sys.getrefcount` says of an array that only `_take` holds; measured below, for it differs
# between versions of Python.
_SOLE_REFERENCE = 0


def _take(arrived: dict[Node, Any], node: Node) -> Tensor:
    """Remove a gradient from `arrived`, as a tensor whose memory is shared with nothing.

    The array itself serves if nothing else holds it. It is copied if it is a view, or is also the
    gradient of another tensor (x and y in `x + y`), the seed of the caller, or a constant of some
    rule.
    """
    g = arrived.pop(node)
    if (
        isinstance(g, Tensor)
        or sys.getrefcount(g) > _SOLE_REFERENCE
        or not (g.flags.owndata and g.flags.c_contiguous and g.flags.writeable)
    ):
        return _copied(g)
    return Tensor(g)


def _measure_sole_reference() -> int:
    probe = {None: np.empty(0)}
    g = probe.pop(None)
    return sys.getrefcount(g)


_SOLE_REFERENCE = _measure_sole_reference()


def _copied(g: Any) -> Tensor:
    """A tensor with the value of `g` in memory of its own, at the place of `g` in the graph."""
    if isinstance(g, Tensor):
        return Tensor.at(g.data.copy(), g.node)
    return Tensor(np.array(g, order="C"))


def _accumulate(node: Node, g: Tensor) -> None:
    """Add to `.grad`, into new memory: the earlier gradient may be held by the user."""
    if node.grad is None:
        node.grad = g
    elif g.node is None:
        node.grad = Tensor(node.grad.data + g.data)
    else:
        node.grad = node.grad + g


def node_of(tensor: Any, role: str) -> Node:
    """The node of a tensor, or an error that says why there is none."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{role} must be a Tensor, not {type(tensor).__name__}")
    if tensor.node is None:
        raise RuntimeError(
            f"{role}: {tensor.describe()} needs no gradient and has no graph; was it made under "
            f"no_grad(), by detach(), or from tensors without requires_grad=True?"
        )
    return tensor.node


def _seed(tensor: Tensor, gradient: Any, role: str, create_graph: bool) -> Any:
    """The gradient to start from: ones for a single element, else what the caller gave, checked."""
    value = tensor.data
    if gradient is None:
        if value.size != 1:
            raise ValueError(
                f"{role}: {tensor.describe()} has {value.size} elements, and only for one element "
                f"is it clear what to start from; reduce it with .sum() or .mean(), or give a "
                f"gradient of that shape"
            )
        seed = np.ones_like(value)
        return Tensor(seed) if create_graph else seed
    shape = np.shape(gradient.data if isinstance(gradient, Tensor) else gradient)
    if shape != value.shape:
        raise ValueError(
            f"{role}: the gradient has shape {shape}, the tensor {value.shape}; they must be "
            f"the same"
        )
    if create_graph:
        return (gradient if isinstance(gradient, Tensor) else Tensor(gradient)).astype(value.dtype)
    return np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient).astype(
        value.dtype
    )
