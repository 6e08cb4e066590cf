"""All paths that lead to a gradient, which must give the same; and what else can be wrong with it.

The paths: `grad`, a second pass through the same graph, `backward` (twice, which adds up), a pass
that is recorded for a derivative of higher order, one for each operand alone, one behind another
call of f, and cotangents that lie in memory in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import Node, reachable
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradcheck.checked_function import (
    RECORDING,
    Array,
    CheckedFunction,
    Gradients,
    copied,
    largest_of,
)
from minigrad.diagnostics.gradcheck.tolerances import (
    ANOTHER_POINT,
    FLOAT64,
    SAME_BROADCAST_EPS,
)


def gradients_by_path(
    function: CheckedFunction,
    operands: Sequence[Array],
    cotangents: Sequence[Array],
    recorded: bool,
) -> dict[str, Gradients]:
    """Compute the first-order gradient by every path; `recorded` adds the pass for order 2."""
    paths: dict[str, Gradients] = {}
    with grad_mode(True):
        leaves = function.leaves(operands)
        results = function(leaves)

        def pulled_back(copy: Callable[[Array], Array] = np.copy, **options: bool) -> Gradients:
            seeds = [copy(v) for v in cotangents]  # because a VJP might write to them
            gradients = grad(results, leaves, seeds, allow_unused=True, **options)
            return [np.array(g._data, FLOAT64) for g in gradients]

        paths["grad"] = pulled_back(retain_graph=True)
        paths["a second pass"] = pulled_back(retain_graph=True)
        if recorded:
            with function.explained(RECORDING):
                paths["a recorded pass"] = pulled_back(create_graph=True)
        paths["cotangents in reversed memory"] = pulled_back(_reversed, retain_graph=True)
        with suppress(Exception):  # f may not be defined there
            function(function.leaves(elsewhere(operands)))
            paths["a pass behind another call of f"] = pulled_back(retain_graph=True)
        for _ in range(2):
            _backward(results, [v.copy() for v in cotangents], leaves)
        paths["backward, twice"] = [
            np.zeros(x.shape) if x.grad is None else x.grad._data.astype(FLOAT64) / 2
            for x in leaves
        ]
        if len(operands) > 1:
            alone = paths["a pass for it alone"] = []
            for i in range(len(operands)):  # where the others are constants
                leaves = [Tensor(x, requires_grad=at == i) for at, x in enumerate(operands)]
                results = function(leaves)
                seeds = [v.copy() for v in cotangents]
                (gradient,) = grad(results, [leaves[i]], seeds, allow_unused=True)
                alone.append(np.array(gradient._data, FLOAT64))
    return paths


def elsewhere(operands: Sequence[Array]) -> list[Array]:
    """Return another point, near this one and on the same side of 0."""
    moved = [copied(x) for x in operands]
    for x in moved:
        x *= x.dtype.type(1 + ANOTHER_POINT)
    return moved


def _reversed(x: Array) -> Array:
    """Return a copy that lies in memory backwards."""
    out = np.empty_like(x)[(slice(None, None, -1),) * x.ndim + (...,)]
    out[...] = x
    return out


def _backward(results: Sequence[Tensor], seeds: Sequence[Array], leaves: Sequence[Tensor]) -> None:
    """Add to `.grad` of the leaves, and restore that of all other tensors."""
    before = [(node, node.grad) for node in other_leaves(results, leaves)]
    try:
        for result, seed in zip(results, seeds, strict=True):
            if result.requires_grad:
                result.backward(seed, retain_graph=True)
    finally:
        for node, gradient in before:
            node.grad = gradient


def other_leaves(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
    """Find what results depend on and what would be given a gradient, besides these leaves."""
    own = {x.node for x in leaves}
    nodes = reachable([x.node for x in results if x.node is not None])
    return [n for n in nodes if (n.op is None or n.retains_grad) and n not in own]


def flaws_of_gradients(
    function: CheckedFunction, cotangents: Sequence[Array]
) -> list[tuple[str, str]]:
    """Find what is wrong with gradients as arrays: shared memory, dtypes, and the layout they need.

    A write to one must not change another, or a cotangent, or an operand. And a cotangent of ones
    must give the same where it is one number that is broadcast, as the gradient behind a sum is.
    Return the name of the operand or cotangent and the reason, for each flaw.
    """
    with grad_mode(True):
        leaves = function.leaves(function.operands)
        results = function(leaves)
        seeds = [np.array(v, x.dtype) for v, x in zip(cotangents, results, strict=True)]
        _backward(results, seeds, leaves)
    flaws = [
        (f"cotangent {k}", "a VJP writes to the gradient that it is given, which others have too")
        for k, (seed, v) in enumerate(zip(seeds, cotangents, strict=True))
        if not np.array_equal(seed, v.astype(seed.dtype))
    ]
    named = list(zip(function.names, leaves, strict=True))
    gradients = {name: leaf.grad._data for name, leaf in named if leaf.grad is not None}
    arrays = {f"the gradient of {name}": gradient for name, gradient in gradients.items()}
    arrays |= {name: leaf._data for name, leaf in named}
    arrays |= {f"cotangent {k}": seed for k, seed in enumerate(seeds)}
    flaws += [
        (name, f"its gradient shares memory with {other}")
        for name, gradient in gradients.items()
        for other, array in arrays.items()
        if other != f"the gradient of {name}" and np.shares_memory(gradient, array)
    ]
    flaws += [
        (name, f"its gradient is {gradient.dtype}, the operand {arrays[name].dtype}")
        for name, gradient in gradients.items()
        if gradient.dtype != arrays[name].dtype
    ]
    flaws += [(name, _broadcast_flaw(results, leaf)) for name, leaf in named]
    return [(name, reason) for name, reason in flaws if reason]


def _broadcast_flaw(results: Sequence[Tensor], leaf: Tensor) -> str:
    """Say what is wrong with the gradient for a cotangent that is broadcast, or nothing."""
    ones = [np.ones(x.shape, x.dtype) for x in results]
    broadcast = [np.broadcast_to(np.ones((), x.dtype), x.shape) for x in results]
    try:
        plain, other = (
            grad(results, [leaf], seeds, retain_graph=True, allow_unused=True)[0]._data
            for seeds in (ones, broadcast)
        )
    except Exception as error:
        return f"a VJP fails for a cotangent that is broadcast, as behind a sum: {error!r}"
    near = SAME_BROADCAST_EPS * float(np.finfo(plain.dtype).eps) * largest_of([plain])
    if np.allclose(plain, other, rtol=0.0, atol=near, equal_nan=True):
        return ""
    return "its gradient is another one for a cotangent that is broadcast, as behind a sum"
