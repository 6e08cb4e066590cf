"""What is compared: a function of operands, and its gradient by every way that leads to one.

`grad`, a second pass through the same graph, `backward` (twice, which adds up), and a pass that is
recorded for a derivative of higher order must all give the same.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minigrad.diagnostics.gradcheck.narrow import Gradients, Narrow
from minigrad.diagnostics.gradcheck.report import Entry
from minigrad.diagnostics.gradcheck.subject import (
    FLOAT64,
    Array,
    Subject,
    Vector,
    computes_in,
    copied,
    flat,
)
from minigrad.engine import grad
from minigrad.mode import grad_mode
from minigrad.tensor import Tensor

RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"


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
        dtype: in which f computes, at the worst.
        tolerance: relative, in float64.
        cotangents: of the results of f.
        narrow: the gradient in the dtype that the inputs came in, if that is not float64.
        flaws: gradients that share memory with what they must not, or are of another dtype.
    """

    subject: Subject
    order: int
    operands: list[Array]
    moved: list[int]
    names: list[str]
    values: Callable[[Sequence[Array]], Vector]
    weights: Vector
    ways: dict[str, Gradients]
    dtype: np.dtype[Any]
    tolerance: float
    cotangents: list[Array]
    narrow: Narrow | None = None
    flaws: list[Entry] = field(default_factory=list)

    @classmethod
    def of(
        cls, subject: Subject, order: int, rng: np.random.Generator, tolerance: float
    ) -> Problem:
        """The problem of first order; `order` says whether one of second order comes after it."""
        narrow = any(subject.operands[i].dtype != FLOAT64 for i in subject.floats)
        operands = [copied(x, FLOAT64) for x in subject.operands] if narrow else subject.operands
        try:
            with grad_mode(True):
                results = subject(subject.leaves(operands))
        except Exception:
            if not narrow:
                raise
            operands = subject.operands  # f insists on the dtype
            with grad_mode(True):
                results = subject(subject.leaves(operands))
        # As many digits as float32 has, so that they are the same numbers in both.
        cotangents = [rng.standard_normal(x.shape, np.float32).astype(np.float64) for x in results]
        ways = ways_to_gradient(subject, operands, cotangents, recorded=order == 2)
        problem = cls(
            subject,
            1,
            operands,
            subject.floats,
            subject.names,
            subject.values,
            flat(cotangents),
            ways,
            computes_in(results),
            tolerance,
            cotangents,
            flaws=flaws_of_gradients(subject, cotangents),
        )
        if narrow:
            problem.narrow = Narrow.of(
                subject,
                lambda x: _split(subject.gradient(x, cotangents), subject.of_floats(x)),
                rng,
            )
        return problem

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
        problem = replace(
            self,
            order=2,
            operands=[*self.operands, *self.cotangents],
            moved=moved,
            names=[*self.names, *names],
            values=lambda x: subject.gradient(x[:count], x[count:]),
            weights=flat(weights),
            ways={"grad": second_gradient(subject, self.operands, self.cotangents, weights)},
            flaws=[],
        )
        if self.narrow is not None:
            problem.narrow = Narrow.of(
                subject, lambda x: second_gradient(subject, x, self.cotangents, weights), rng
            )
        return problem


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

        def pulled(**options: bool) -> Gradients:
            gradients = grad(results, floats, cotangents, allow_unused=True, **options)
            return [np.array(g._data, FLOAT64) for g in gradients]

        ways["grad"] = pulled(retain_graph=True)
        ways["a second pass"] = pulled(retain_graph=True)
        if recorded:
            with subject.explained(RECORDING):
                ways["a recorded pass"] = pulled(create_graph=True)
        for _ in range(2):
            _backward(results, cotangents)
    ways["backward, twice"] = [
        np.zeros(x.shape) if x.grad is None else x.grad._data.astype(FLOAT64) / 2 for x in floats
    ]
    return ways


def _backward(results: Sequence[Tensor], seeds: Sequence[Array]) -> None:
    for result, seed in zip(results, seeds, strict=True):
        if result.requires_grad:
            result.backward(seed, retain_graph=True)


def flaws_of_gradients(subject: Subject, cotangents: Sequence[Array]) -> list[Entry]:
    """What is wrong with gradients as arrays: shared memory, and dtypes.

    A write to one must not change another, or a cotangent, or an operand.
    """
    with grad_mode(True):
        leaves = subject.leaves(subject.operands)
        results = subject(leaves)
        seeds = [np.array(v, x.dtype) for v, x in zip(cotangents, results, strict=True)]
        _backward(results, seeds)
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
    return [Entry(1, name, None, math.nan, math.nan, reason=reason) for name, reason in flaws]


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
