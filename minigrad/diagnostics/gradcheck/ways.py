"""Every way to a gradient, for all must give the same; and what else can be wrong with it.

`grad`, a second pass through the same graph, `backward` (twice, which adds up), a pass that is
recorded for a derivative of higher order, one for each operand alone, one behind another call of
f, and cotangents that lie in memory in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import Node, reachable
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradcheck.report import Entry
from minigrad.diagnostics.gradcheck.roundings import Gradients
from minigrad.diagnostics.gradcheck.subject import FLOAT64, Array, Subject, copied, largest_of

ELSEWHERE = 2.0**-6  # how far away, relative to each number, another point is taken

RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"


def ways_to_gradient(
    subject: Subject, operands: Sequence[Array], cotangents: Sequence[Array], recorded: bool
) -> dict[str, Gradients]:
    """The gradient of first order by every way there is.

    `recorded` says whether to go the way that is recorded for a derivative of higher order.
    """
    ways: dict[str, Gradients] = {}
    with grad_mode(True):
        leaves = subject.leaves(operands)
        results = subject(leaves)
        floats = subject.of_floats(leaves)

        def pulled(copy: Callable[[Array], Array] = np.copy, **options: bool) -> Gradients:
            seeds = [copy(v) for v in cotangents]  # for a rule might write to them
            gradients = grad(results, floats, seeds, allow_unused=True, **options)
            return [np.array(g._data, FLOAT64) for g in gradients]

        ways["grad"] = pulled(retain_graph=True)
        ways["a second pass"] = pulled(retain_graph=True)
        if recorded:
            with subject.explained(RECORDING):
                ways["a recorded pass"] = pulled(create_graph=True)
        ways["cotangents in reversed memory"] = pulled(_reversed, retain_graph=True)
        with suppress(Exception):  # f may not be defined there
            subject(subject.leaves(elsewhere(operands)))
            ways["a pass behind another call of f"] = pulled(retain_graph=True)
        for _ in range(2):
            _backward(results, [v.copy() for v in cotangents], leaves)
        ways["backward, twice"] = [
            np.zeros(x.shape) if x.grad is None else x.grad._data.astype(FLOAT64) / 2
            for x in floats
        ]
        if len(subject.floats) > 1:
            ways["a pass for it alone"] = [
                _alone(subject, operands, cotangents, i) for i in subject.floats
            ]
    return ways


def _alone(
    subject: Subject, operands: Sequence[Array], cotangents: Sequence[Array], i: int
) -> NDArray[np.float64]:
    """The gradient by one operand, where the others are constants."""
    leaves = [Tensor(x, requires_grad=at == i) for at, x in enumerate(operands)]
    seeds = [v.copy() for v in cotangents]
    (gradient,) = grad(subject(leaves), [leaves[i]], seeds, allow_unused=True)
    return np.array(gradient._data, FLOAT64)


def elsewhere(operands: Sequence[Array]) -> list[Array]:
    """Another point, near this one and on the same side of 0."""
    moved = [copied(x) for x in operands]
    for x in moved:
        if x.dtype.kind == "f":
            x *= x.dtype.type(1 + ELSEWHERE)
    return moved


def _reversed(x: Array) -> Array:
    """A copy that lies in memory backwards."""
    out = np.empty_like(x)[(slice(None, None, -1),) * x.ndim + (...,)]
    out[...] = x
    return out


def _backward(results: Sequence[Tensor], seeds: Sequence[Array], leaves: Sequence[Tensor]) -> None:
    """Add to `.grad` of the leaves, and of no other tensor."""
    with _kept(strangers(results, leaves)):
        for result, seed in zip(results, seeds, strict=True):
            if result.requires_grad:
                result.backward(seed, retain_graph=True)


def strangers(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
    """What results depend on and what would be given a gradient, but for these leaves."""
    own = {x.node for x in leaves}
    nodes = reachable([x.node for x in results if x.node is not None])
    return [n for n in nodes if (n.op is None or n.retains_grad) and n not in own]


@contextmanager
def _kept(nodes: Sequence[Node]) -> Iterator[None]:
    """After the block these nodes have the `.grad` that they had before."""
    before = [node.grad for node in nodes]
    try:
        yield
    finally:
        for node, gradient in zip(nodes, before, strict=True):
            node.grad = gradient


def flaws_of_gradients(subject: Subject, cotangents: Sequence[Array]) -> list[Entry]:
    """What is wrong with gradients as arrays: shared memory, dtypes, and the layout they ask for.

    A write to one must not change another, or a cotangent, or an operand. And a cotangent of ones
    must give the same where all its elements lie in one place, as those behind a sum do.
    """
    with grad_mode(True):
        leaves = subject.leaves(subject.operands)
        results = subject(leaves)
        seeds = [np.array(v, x.dtype) for v, x in zip(cotangents, results, strict=True)]
        _backward(results, seeds, leaves)
    known = {
        name: leaf.grad._data
        for name, leaf in zip(subject.names, leaves, strict=True)
        if leaf.grad is not None
    }
    written = [
        (f"cotangent {k}", "a rule writes to the gradient that it is handed, which others have too")
        for k, (seed, v) in enumerate(zip(seeds, cotangents, strict=True))
        if not np.array_equal(seed, v.astype(seed.dtype))
    ]
    others = {f"the gradient of {name}": gradient for name, gradient in known.items()}
    others |= {name: leaf._data for name, leaf in zip(subject.names, leaves, strict=True)}
    others |= {f"cotangent {k}": seed for k, seed in enumerate(seeds)}
    flaws = [
        (name, f"its gradient shares memory with {other}")
        for name, gradient in known.items()
        for other, array in others.items()
        if other != f"the gradient of {name}" and np.shares_memory(gradient, array)
    ]
    flaws += [
        (name, f"its gradient is {gradient.dtype}, the operand {others[name].dtype}")
        for name, gradient in known.items()
        if gradient.dtype != others[name].dtype
    ]
    flaws += [(subject.names[i], _broadcast_flaw(results, leaves[i])) for i in subject.floats]
    flaws = [*written, *((name, reason) for name, reason in flaws if reason)]
    return [Entry(1, name, None, math.nan, math.nan, reason=reason) for name, reason in flaws]


def _broadcast_flaw(results: Sequence[Tensor], leaf: Tensor) -> str:
    """What is wrong with the gradient by a leaf for a cotangent that is broadcast; or nothing."""
    ones = [np.ones(x.shape, x.dtype) for x in results]
    in_one_place = [np.broadcast_to(np.ones((), x.dtype), x.shape) for x in results]
    try:
        whole, one = (
            grad(results, [leaf], seeds, retain_graph=True, allow_unused=True)[0]._data
            for seeds in (ones, in_one_place)
        )
    except Exception as error:
        return f"a rule fails for a cotangent that is broadcast, as behind a sum: {error!r}"
    near = 1e3 * float(np.finfo(whole.dtype).eps) * largest_of([whole])
    if np.allclose(whole, one, rtol=0.0, atol=near, equal_nan=True):
        return ""
    return "its gradient is another one for a cotangent that is broadcast, as behind a sum"
