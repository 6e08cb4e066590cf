"""Backpropagation: the walk through the graph from a loss to the gradients of its leaves.

Each node receives the sum of all gradients that reach it, runs the VJPs of its op for the inputs
that need a gradient, and passes the results to its parents. Everything except calculus is done
here, once, so that a VJP contains only a formula: summing over broadcast axes, converting dtypes,
adding gradients, freeing residuals, and raising an error instead of returning a wrong number.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy import ndarray

from minigrad.checks import shown
from minigrad.containers import Leaf, Structure, flatten, flatten_as, is_container, rebuild
from minigrad.core.blocked_sum import sum_over
from minigrad.core.grad_mode import grad_mode, mode, observed
from minigrad.core.node import Node, OpLike, check_unwritten, freed, leading_to, reachable
from minigrad.core.tensor import Tensor, node_of
from minigrad.locks import renewed_in_child
from minigrad.renamed import with_hints
from minigrad.versions import last_write


def backward(
    tensor: Tensor,
    gradient: Tensor | Any | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add dL/dx to `x.grad` for every leaf x that this tensor, L, was computed from.

    It is the method `Tensor.backward`.

    Args:
        tensor: L.
        gradient: the vector v of v^T dL/dx; optional if L has one element.
        retain_graph: keep the graph for another backward pass; by default as `create_graph`.
        create_graph: record the backward pass, so that the gradients can be differentiated.

    Raises:
        ValueError: if `gradient` is missing, but L has several elements, or it has a wrong shape;
            or if a hook returns something else than None or a Tensor of the right shape.
        TypeError: if `gradient` does not contain real numbers, or is a masked array.
        RuntimeError: if L does not require a gradient, an earlier pass has freed the graph, or an
            array that the graph saved was overwritten.
    """
    seed = initial_gradient(tensor, gradient, "backward", create_graph)
    root = node_of(tensor, "backward")
    for observer in mode.observers:
        observer.on_backward(tensor, seed)
    arrived = propagate(
        {root: seed},
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    del seed  # it holds a reference, and these are counted to find out what must be copied
    for node in arrived:
        if node.outdated:
            raise RuntimeError(
                f"backward: a leaf of shape {node.shape} was {node.dtype} in the forward pass and "
                f"has been converted since; this gradient is not its own, compute the result again"
            )
    announce(arrived, adding=True)
    for node in list(arrived):
        accumulate(node, take(arrived, node))


@overload
def grad(
    outputs: Any, inputs: Tensor, grad_outputs: Any = None, create_graph: bool = False,
    retain_graph: bool | None = None, allow_unused: bool = False,
) -> Tensor: ...  # fmt: skip


@overload
def grad(
    outputs: Any, inputs: Sequence[Tensor], grad_outputs: Any = None, create_graph: bool = False,
    retain_graph: bool | None = None, allow_unused: bool = False,
) -> tuple[Tensor, ...]: ...  # fmt: skip


@overload
def grad(
    outputs: Any, inputs: Any = None, grad_outputs: Any = None, create_graph: bool = False,
    retain_graph: bool | None = None, allow_unused: bool = False,
) -> Any: ...  # fmt: skip


@with_hints
def grad(
    outputs: Any,
    inputs: Any = None,
    grad_outputs: Any = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> Any:
    """Return the gradients of `outputs` with respect to `inputs`; change no leaf's `.grad`.

    For outputs y_k with cotangents v_k, the result for an input x is the sum over k of (dy_k /
    dx)^T v_k.

    Args:
        outputs: one tensor or several, or a container of tensors (see `minigrad.containers`).
        inputs: one tensor, a list of them, or a container such as a Module or a dict; leaves or
            results of ops.
        grad_outputs: the cotangents, with the structure and shapes of `outputs`; optional for
            outputs of one element.
        create_graph: record the backward pass too, so that the result can be differentiated again.
        retain_graph: keep the graph for another pass; by default the same as `create_graph`.
            `torch.autograd.grad` has these two in the other order, so give them by name.
        allow_unused: return zeros for an input that `outputs` do not depend on, instead of raising
            an error.

    Returns:
        A tensor for one input, a tuple for a list, a dict by parameter names for a Module. For
        another container, a container with the same structure.

    Raises:
        RuntimeError: if an input requires no gradient, `outputs` do not depend on it, the graph was
            freed, or an array that the graph saved was overwritten.
        ValueError: if a cotangent is missing for an output of several elements, its shape is not
            that of its output, or the numbers of cotangents and outputs differ.
        TypeError: if `outputs` is a function, `inputs` are missing, an input or an output is not a
            Tensor, a cotangent does not contain real numbers, is a masked array, or is another
            container than its output.
    """
    if not isinstance(outputs, Tensor) and callable(outputs):
        raise TypeError(
            "grad: it differentiates a tensor that was computed, not a function; "
            "minigrad.gradient(f) makes a function of x that returns df/dx, and "
            "minigrad.value_and_grad(f) one that returns f(x) too"
        )
    if inputs is None:
        raise TypeError("grad: inputs are missing, the tensors to differentiate by")
    sources, of_inputs, several = _taken_apart("grad: input", inputs)
    results, of_outputs, as_list = _taken_apart("grad: output", outputs)
    cotangents: list[Any] = [None] * len(results)
    if grad_outputs is not None:
        as_list |= isinstance(outputs, Tensor) and isinstance(grad_outputs, (list, tuple))
        given = grad_outputs if as_list else [grad_outputs]
        if len(given) != len(of_outputs):
            raise ValueError(
                f"grad: {len(of_outputs)} outputs, but {len(given)} grad_outputs; give one for each"
            )
        leaves = (
            flatten_as(structure, v, f"grad: the cotangent of output {k}")
            for k, (structure, v) in enumerate(zip(of_outputs, given, strict=True))
        )
        cotangents = [leaf.value for of_one in leaves for leaf in of_one]
    wanted = [node_of(source, path) for source, path, _ in sources]
    pending: dict[Node, Any] = {}
    for (result, path, _), cotangent in zip(results, cotangents, strict=True):
        if not isinstance(result, Tensor):
            raise TypeError(f"{path} is a {type(result).__name__}, not a Tensor")
        if result.node is None and allow_unused:
            continue
        root = node_of(result, path)
        seed = initial_gradient(result, cotangent, path, create_graph)
        for observer in mode.observers:
            observer.on_backward(result, seed)
        pending[root] = pending[root] + seed if root in pending else seed
    arrived = propagate(
        pending,
        wanted=set(wanted),
        oldest=min((node.order for node in wanted), default=-1),
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
    )
    announce(arrived, adding=False)
    gradients = []
    last_use = {node: i for i, node in enumerate(wanted)}
    for i, ((source, path, _), node) in enumerate(zip(sources, wanted, strict=True)):
        if node in arrived:
            is_last = last_use[node] == i
            gradients.append(take(arrived, node) if is_last else _copied(arrived[node]))
        elif allow_unused:
            gradients.append(Tensor(observed(np.zeros, node.shape, node.dtype)))
        else:
            where = path.removeprefix("grad: ")
            raise RuntimeError(
                f"grad: the outputs do not depend on {where}, {source.describe()}; "
                f"allow_unused=True gives zeros for it"
            )
    found = tuple(rebuild(structure, gradients) for structure in of_inputs)
    return found if several else found[0]


def _taken_apart(role: str, given: Any) -> tuple[list[Leaf], list[Structure], bool]:
    """Return the leaves in a tensor, in a container, or in a list or iterator of these."""
    is_one = isinstance(given, Tensor) or (type(given) not in (list, tuple) and is_container(given))
    leaves: list[Leaf] = []
    if not is_one and not isinstance(given, Iterable):
        raise TypeError(f"{role}s are tensors, or containers or lists of them, not {shown(given)}")
    items = enumerate([given] if is_one else given)
    structures = [flatten(item, f"{role} {i}", leaves) for i, item in items]
    return leaves, structures, not is_one


def propagate(
    pending: dict[Node, Any],
    *,
    wanted: Container[Node] | None = None,
    stop: Container[Node] = (),
    oldest: int = -1,
    retain_graph: bool = False,
    create_graph: bool = False,
    recorded: bool = True,
) -> dict[Node, Any]:
    """Carry the gradients in `pending` back through the graph and return those that arrive.

    Args:
        pending: the gradient of each node to start from; it is emptied.
        wanted: the nodes whose gradients are wanted; None for all leaves.
        stop: nodes at which the pass ends, although they may have parents.
        oldest: the time of the oldest wanted node; older nodes are not visited.
        retain_graph: keep the residuals for another pass.
        create_graph: compute gradients as Tensors, and record a graph of the VJPs. If False,
            gradients are arrays, and nothing is recorded.
        recorded: False with `create_graph` computes Tensors without a graph, for forward mode.
    """
    order = reachable(pending, stop, oldest)
    needed = None if wanted is None else leading_to(wanted, order)
    check_unwritten(order, needed)
    before, observers = mode.state
    # `try` is around a call: around a loop, an interrupt at a jump back would not run `finally`, as
    # Python 3.13 compiles it, and the thread would record no graph any more.
    try:
        mode.state = (create_graph and recorded, observers)
        return _visit(order, pending, needed, wanted, stop, oldest, retain_graph, create_graph)
    finally:
        mode.state = (before, mode.state[1])  # no call, in which an interrupt could come before it
        for observer in mode.observers:
            observer.on_pass(False)


def _visit(
    order: Sequence[Node], pending: dict[Node, Any], needed: Container[Node] | None,
    wanted: Container[Node] | None, stop: Container[Node], oldest: int, retain_graph: bool,
    create_graph: bool,
) -> dict[Node, Any]:  # fmt: skip
    """Visit these nodes for `propagate`; return the gradients that arrive."""
    checked = last_write[0]
    arrived: dict[Node, Any] = {}
    take_out, known = pending.pop, pending.get
    observers = mode.state[1]
    expected = Tensor if create_graph else ndarray
    for observer in observers:
        observer.on_pass(True)
    for node in order:
        g = take_out(node, None)
        if g is None or (needed is not None and node not in needed):  # it may be a start only
            continue
        if node.watched and node not in stop:  # at `stop`, the outer pass runs the hooks
            g = _through_hooks(node, g)
        if last_write[0] != checked:  # a hook wrote to memory during the pass
            check_unwritten([node], needed)
        op = node.op
        is_wanted = op is None if wanted is None else node in wanted
        if is_wanted:
            arrived[node] = g
        if op is None or node in stop:
            continue
        edges: Any = node.edges
        if edges is None:
            if node.order > oldest:  # a hook ran a pass that has freed the node
                raise freed(node)
            continue
        if needed is not None:
            edges = [edge for edge in edges if edge[0] in needed]
        results = op.differentiate(node, edges, g) if create_graph or not op.plain else None
        for edge in edges:
            parent = edge[0]
            if results is not None:
                result = results.pop(0)
            elif len(edge) == 4:  # the usual case; a call without * is faster
                result = edge[2].derivative(g, edge[3])
            elif len(edge) == 3:
                result = edge[2].derivative(g)
            else:
                result = edge[2].derivative(g, *edge[3:])
            for observer in observers:
                observer.on_vjp(node, parent, g, result)
            if (
                result.__class__ is not expected
                or result.shape != parent.shape
                or result.dtype is not parent.dtype
            ):
                result = fit_to_input(result, parent, op, edge[1], create_graph)
            for observer in observers:
                observer.on_gradient(node, parent, result)
            earlier = known(parent)
            pending[parent] = result if earlier is None else earlier + result
        if edges and not retain_graph:
            for observer in observers:
                observer.on_free(node)
            node.edges = None
            if op.replayed or not op.plain:
                node.arguments = ()
    return arrived


def announce(arrived: Mapping[Node, Any], adding: bool) -> None:
    """Show the observers the gradients that are about to be added to `.grad`, or returned."""
    for observer in mode.observers:
        for node, g in arrived.items():
            observer.on_arrival(node, g, node.grad if adding else None)


def _through_hooks(node: Node, g: Any) -> Any:
    """Call each hook with the gradient; a tensor that a hook returns replaces the gradient."""
    tensor = _copied(g) if not isinstance(g, Tensor) else g
    for hook in node.hooks:
        for observer in mode.observers:
            observer.on_hook(node, True)
        try:
            replaced = hook.function(tensor)
        finally:
            for observer in mode.observers:
                observer.on_hook(node, False)
        if replaced is None:
            continue
        if not isinstance(replaced, Tensor) or replaced.shape != node.shape:
            raise ValueError(
                f"a hook must return None or a Tensor of shape {node.shape}, "
                f"not {replaced.describe() if isinstance(replaced, Tensor) else repr(replaced)}"
            )
        tensor = replaced.astype(node.dtype)
    if node.retains_grad:
        accumulate(node, _copied(tensor))
    return tensor if isinstance(g, Tensor) else tensor.data


def fit_to_input(result: Any, parent: Node, op: OpLike, argnum: int, create_graph: bool) -> Any:
    """Sum and convert the result of a VJP to the shape and dtype of its input.

    The VJP of broadcasting is the sum over the axes that were broadcast. Without `create_graph`,
    a Tensor becomes an array: a VJP may have made it by `g * ones_like(x)`. With it, an array
    becomes a Tensor: a VJP may be constant. A subclass of ndarray becomes a plain array: the
    product of two `numpy.matrix` is not elementwise.
    """
    if isinstance(result, Tensor) and not create_graph:
        result = result._data
    if isinstance(result, np.ndarray):
        result = np.asarray(result)
    if not isinstance(result, (np.ndarray, np.generic, Tensor)):
        raise TypeError(
            f"the VJP of `{op.name}` for its input {op.input_name(argnum)} returned {result!r}; "
            f"a VJP returns an array (a Tensor when its arguments are Tensors)"
        )
    if result.shape != parent.shape:
        extra = max(result.ndim - len(parent.shape), 0)
        sizes = zip(result.shape[extra:], parent.shape, strict=False)
        stretched = [extra + i for i, (size, target) in enumerate(sizes) if target == 1 != size]
        axes, total = (*range(extra), *stretched), result
        keepdims = bool(stretched)  # without it, the sum has memory of its own, and no reshape
        if axes and isinstance(result, Tensor):
            total = result.sum(axes, keepdims=keepdims)
        elif axes:
            total = sum_over(result, axes, keepdims=keepdims)
        if total.shape[extra * keepdims :] != parent.shape:
            raise ValueError(
                f"the VJP of `{op.name}` for its input {op.input_name(argnum)} returned a gradient "
                f"of shape {result.shape}, which cannot be summed to the input's {parent.shape}"
            )
        result = total.reshape(parent.shape) if extra and keepdims else total
    if result.dtype != parent.dtype:
        if result.dtype.kind not in "biuf":
            advice = "; return its real part" if result.dtype.kind == "c" else ""
            raise TypeError(
                f"the VJP of `{op.name}` for its input {op.input_name(argnum)} returned "
                f"{result.dtype}; a gradient is of real numbers{advice}"
            )
        result = result.astype(parent.dtype)
    if create_graph:
        return result if isinstance(result, Tensor) else Tensor(result)
    return np.asarray(result)


def take(arrived: dict[Node, Any], node: Node) -> Tensor:
    """Remove a gradient from `arrived`, and return it as a tensor with its own memory.

    If nothing else refers to the array, it is used without a copy. It is copied if it is a view, or
    is also the gradient of another tensor (x and y in `x + y`), the `gradient` that the caller
    passed, or a constant of some VJP.
    """
    g = arrived.pop(node)
    if (
        isinstance(g, Tensor)
        or sys.getrefcount(g) > _SOLE_REFERENCE
        or not ((flags := g.flags).owndata and flags.c_contiguous and flags.writeable)
    ):
        return _copied(g)
    return Tensor.at(g, None)


def _measure_sole_reference() -> int:
    """Count the references to an array in `take`; the count depends on the version of Python."""
    probe = {None: np.empty(0)}
    g = probe.pop(None)
    return sys.getrefcount(g)


_SOLE_REFERENCE = _measure_sole_reference()


def _copied(g: Any) -> Tensor:
    """Return a tensor with a copy of the value of `g`, at the same node."""
    if isinstance(g, Tensor):
        return Tensor.at(g._data.copy(), g.node)
    return Tensor(observed(contiguous_copy, g))


def contiguous_copy(array: Any) -> ndarray[Any, Any]:
    """Return a copy in row-major order."""
    return np.array(array, order="C")


def add(left: Any, right: Any) -> ndarray[Any, Any]:
    """Return the sum as an array; for two arrays without axes, numpy would return a number."""
    return np.asarray(left + right)


# Without it, two threads that add to the gradient of one leaf could lose one of the two.
_accumulating = renewed_in_child(sys.modules[__name__], "_accumulating", threading.Lock)


def accumulate(node: Node, g: Tensor) -> None:
    """Add to `.grad`, in new memory, because the user may still hold the earlier gradient."""
    for observer in mode.observers:
        observer.on_accumulate(node, g)
    with _accumulating:
        if node.grad is None:
            node.grad = g
        elif g.node is None and node.grad.node is None:
            node.grad = Tensor(observed(add, node.grad._data, g._data))
        else:
            with grad_mode(True):  # a pass that is not recorded keeps the graph of an earlier one
                node.grad = node.grad + g


def initial_gradient(tensor: Tensor, gradient: Any, role: str, create_graph: bool) -> Any:
    """Return the gradient to start from: the caller's, after checks; or 1 for a single element."""
    value = tensor._data
    if gradient is None:
        if value.size != 1:
            raise ValueError(
                f"{role}: {tensor.describe()} has {value.size} elements, and a pass starts from "
                f"one; reduce it with .sum() or .mean(), or give a gradient of that shape"
            )
        seed = np.ones(value.shape, value.dtype) if value.ndim else np.array(1, value.dtype)
        return Tensor(seed) if create_graph else seed
    if isinstance(gradient, np.ma.MaskedArray):
        raise TypeError(
            f"{role}: a gradient has no mask; fill the array in first, with .filled(value)"
        )
    array = np.asarray(gradient._data if isinstance(gradient, Tensor) else gradient)
    if array.shape != value.shape:
        raise ValueError(f"{role}: the gradient has shape {array.shape}, the tensor {value.shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{role}: a gradient is of real numbers, not of {array.dtype}")
    if create_graph:
        return (gradient if isinstance(gradient, Tensor) else Tensor(array)).astype(value.dtype)
    return array.astype(value.dtype, copy=False)  # nothing writes to it, and `take` copies it
