"""What is compared: a function of operands, and its gradient by every way that leads to one.

`grad`, a second pass through the same graph, `backward` (twice, which adds up), a pass that is
recorded for a derivative of higher order, one for each operand alone, and cotangents that lie in
memory in another order must all give the same.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradcheck.narrow import Narrow
from minigrad.diagnostics.gradcheck.report import Entry
from minigrad.diagnostics.gradcheck.roundings import Gradients, spread_of
from minigrad.diagnostics.gradcheck.subject import (
    FLOAT64,
    Array,
    Subject,
    Vector,
    computes_in,
    copied,
    flat,
    largest_of,
)
from minigrad.engine import grad
from minigrad.graph import Node, reachable
from minigrad.mode import grad_mode
from minigrad.tensor import Tensor

RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"
NUDGED = "with numbers moved by a unit in the last place, to see what rounding does"


@dataclass
class Problem:
    """A vector function of operands, and its gradients as the rules give them.

    Attributes:
        subject: what it comes from.
        order: 1 for f itself, 2 for its gradient.
        operands: the point, in float64 where f can be computed in it.
        moved: the positions of those that are moved.
        names: of the operands.
        values: the function.
        weights: of its elements in the sum that is differentiated.
        ways: the gradient of that sum by each operand in `moved`, for each way that leads to it.
        spread: what rounding has left in the gradient.
        repeated: the gradient once more, from f called anew.
        dtype: in which f computes, at the worst.
        tolerance: relative, in float64.
        cotangents: of the results of f.
        narrow: the gradient in the dtype that the inputs came in, if that is not float64.
        flaws: gradients that share memory with what they must not, or are of another dtype.
        others: how many tensors require a gradient that are no operands, but f depends on.
    """

    subject: Subject
    order: int
    operands: list[Array]
    moved: list[int]
    names: list[str]
    values: Callable[[Sequence[Array]], Vector]
    weights: Vector
    ways: dict[str, Gradients]
    spread: Gradients
    repeated: Gradients
    dtype: np.dtype[Any]
    tolerance: float
    cotangents: list[Array]
    narrow: Narrow | None = None
    flaws: list[Entry] = field(default_factory=list)
    others: int = 0

    @functools.cached_property
    def here(self) -> Vector:
        """The function at the point."""
        return self.values(self.operands)

    def noise(self, rng: np.random.Generator) -> Vector:
        """What rounding on the way leaves in each element of it."""
        with self.subject.explained(NUDGED):
            return spread_of(
                [self.here], lambda x: [self.values(x)], self.operands, rng, nudged=False
            )[0]

    @classmethod
    def of(
        cls, subject: Subject, order: int, rng: np.random.Generator, tolerance: float
    ) -> Problem:
        """The problem of first order; `order` says whether one of second order comes after it."""
        operands, leaves, results = _evaluated(subject)
        subject.shapes = [x.shape for x in results]
        narrow = any(subject.operands[i].dtype != FLOAT64 for i in subject.floats)
        # As many digits as float32 has, so that they are the same numbers in both.
        cotangents = [rng.standard_normal(x.shape, np.float32).astype(np.float64) for x in results]

        def gradients_at(operands: Sequence[Array]) -> Gradients:
            gradient = subject.gradient(operands, cotangents)
            return _split(gradient, subject.of_floats(operands))

        ways = ways_to_gradient(subject, operands, cotangents, recorded=order == 2)
        with subject.explained(NUDGED):
            spread = spread_of(ways["grad"], gradients_at, operands, rng)
            in_dtype = Narrow.of(subject, gradients_at, rng) if narrow else None
        return cls(
            subject,
            1,
            operands,
            subject.floats,
            subject.names,
            subject.values,
            flat(cotangents),
            ways,
            spread,
            gradients_at(operands),
            computes_in(results),
            tolerance,
            cotangents,
            in_dtype,
            flaws_of_gradients(subject, cotangents),
            len(_strangers(results, leaves)),
        )

    def derived(self, rng: np.random.Generator) -> Problem:
        """The problem of second order: the gradient, by the operands and the cotangents."""
        subject, count = self.subject, len(self.operands)
        moved = [*self.moved, *range(count, count + len(self.cotangents))]
        weights = [
            rng.standard_normal(self.operands[i].shape, np.float32).astype(np.float64)
            for i in self.moved
        ]
        names = ["cotangent"] if len(self.cotangents) == 1 else []
        names = names or [f"cotangent {k}" for k in range(len(self.cotangents))]

        def gradients_at(operands: Sequence[Array]) -> Gradients:
            return second_gradient(subject, operands, self.cotangents, weights)

        gradients = gradients_at(self.operands)
        with subject.explained(NUDGED):
            spread = spread_of(gradients, gradients_at, self.operands, rng)
            narrow = None if self.narrow is None else Narrow.of(subject, gradients_at, rng)
        return replace(
            self,
            order=2,
            operands=[*self.operands, *self.cotangents],
            moved=moved,
            names=[*self.names, *names],
            values=lambda x: subject.gradient(x[:count], x[count:]),
            weights=flat(weights),
            ways={"grad": gradients},
            spread=spread,
            repeated=gradients_at(self.operands),
            narrow=narrow,
            flaws=[],
            others=0,
        )


def _evaluated(subject: Subject) -> tuple[list[Array], list[Tensor], list[Tensor]]:
    """The operands, in float64 if f can be computed in it, as leaves too, and the results of f."""
    exact = [copied(x, FLOAT64) for x in subject.operands]
    with grad_mode(True), subject.explained("with inputs that require a gradient"):
        try:
            leaves = subject.leaves(exact)
            return exact, leaves, subject(leaves)
        except Exception:  # f insists on the dtype, or fails with any
            leaves = subject.leaves(subject.operands)
            return subject.operands, leaves, subject(leaves)


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

        def pulled(seeds: Sequence[Array] = cotangents, **options: bool) -> Gradients:
            gradients = grad(results, floats, seeds, allow_unused=True, **options)
            return [np.array(g._data, FLOAT64) for g in gradients]

        ways["grad"] = pulled(retain_graph=True)
        ways["a second pass"] = pulled(retain_graph=True)
        if recorded:
            with subject.explained(RECORDING):
                ways["a recorded pass"] = pulled(create_graph=True)
        reversed_seeds = [_reversed(v) for v in cotangents]
        ways["cotangents in reversed memory"] = pulled(reversed_seeds, retain_graph=True)
        for _ in range(2):
            _backward(results, cotangents, leaves)
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
    (gradient,) = grad(subject(leaves), [leaves[i]], cotangents, allow_unused=True)
    return np.array(gradient._data, FLOAT64)


def _reversed(x: Array) -> Array:
    """An equal array, which lies in memory backwards."""
    out = np.empty_like(x)[(slice(None, None, -1),) * x.ndim + (...,)]
    out[...] = x
    return out


def _backward(results: Sequence[Tensor], seeds: Sequence[Array], leaves: Sequence[Tensor]) -> None:
    """Add to `.grad` of the leaves, and of no other tensor."""
    with _kept(_strangers(results, leaves)):
        for result, seed in zip(results, seeds, strict=True):
            if result.requires_grad:
                result.backward(seed, retain_graph=True)


def _strangers(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
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
    flaws = [(name, reason) for name, reason in flaws if reason]
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


def _split(gradient: Vector, operands: Sequence[Array]) -> Gradients:
    """One vector as arrays of the shapes of the operands."""
    ends = np.cumsum([x.size for x in operands])
    parts = np.split(gradient, ends[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, operands, strict=True)]


def second_gradient(
    subject: Subject,
    operands: Sequence[Array],
    cotangents: Sequence[Array],
    weights: Sequence[Array],
) -> Gradients:
    """The gradient of sum(weights * gradient) by the float operands and the cotangents."""
    with (
        grad_mode(True),
        subject.explained(RECORDING),
    ):
        leaves = subject.leaves(operands)
        results = subject(leaves)
        floats = subject.of_floats(leaves)
        seeds = [
            Tensor(v.astype(x.dtype), requires_grad=True)
            for v, x in zip(cotangents, results, strict=True)
        ]
        gradients = grad(results, floats, seeds, create_graph=True, allow_unused=True)
        parts = [(g * w).sum() for g, w in zip(gradients, weights, strict=True)]
        total: Tensor = functools.reduce(operator.add, parts)
        again = grad(total, [*floats, *seeds], allow_unused=True)
        return [np.array(g._data, FLOAT64) for g in again]
