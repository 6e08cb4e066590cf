"""What is compared: a function of operands, and its gradients, with what rounding does to them.

For order 2 the function is the gradient itself, by the operands and the cotangents.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradcheck.narrow import Narrow
from minigrad.diagnostics.gradcheck.report import Entry
from minigrad.diagnostics.gradcheck.roundings import Gradients, Spread, spread_of
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
from minigrad.diagnostics.gradcheck.ways import (
    RECORDING,
    flaws_of_gradients,
    strangers,
    ways_to_gradient,
)

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
        spread: what rounding does to the gradient.
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
    spread: Spread
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

    def noise(self, rng: np.random.Generator) -> Spread:
        """What rounding does to it."""
        here = [self.here]
        with self.subject.explained(NUDGED):
            return spread_of(here, lambda x: [self.values(x)], self.operands, rng)

    @classmethod
    def of(
        cls, subject: Subject, order: int, rng: np.random.Generator, tolerance: float
    ) -> Problem:
        """The problem of first order; `order` says whether one of second order comes after it."""
        operands, leaves, results = _evaluated(subject)
        subject.shapes = [x.shape for x in results]
        narrow = any(subject.operands[i].dtype != FLOAT64 for i in subject.floats)
        cotangents = _cotangents(subject, operands, results, rng)

        def gradients_at(operands: Sequence[Array], recorded: bool = False) -> Gradients:
            gradient = subject.gradient(operands, cotangents, recorded)
            return _split(gradient, subject.of_floats(operands))

        ways = ways_to_gradient(subject, operands, cotangents, recorded=order == 2)
        with subject.explained(NUDGED):
            spread = spread_of(ways["grad"], gradients_at, operands, rng)
            if order == 2:  # of compositions, which show what is inside an op
                inside = partial(gradients_at, recorded=True)
                spread |= spread_of(ways["grad"], inside, operands, rng, nudged=False)
            in_dtype = Narrow.of(subject, gradients_at, cotangents, rng) if narrow else None
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
            len(strangers(results, leaves)),
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
            narrow = self.narrow
            if narrow is not None:
                narrow = Narrow.of(subject, gradients_at, [*self.cotangents, *weights], rng)
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


def _cotangents(
    subject: Subject,
    operands: Sequence[Array],
    results: Sequence[Tensor],
    rng: np.random.Generator,
) -> list[Array]:
    """A random one for each result, so large that the gradients of all are of like size.

    They have as many digits as float32, so that they are the same numbers in both dtypes.
    """
    seeds = [rng.standard_normal(x.shape, np.float32).astype(np.float64) for x in results]
    if len(seeds) == 1:
        return seeds
    sizes = []
    for k in range(len(seeds)):
        one = [v if at == k else np.zeros(v.shape) for at, v in enumerate(seeds)]
        sizes.append(largest_of([subject.gradient(operands, one)]))
    largest = max(sizes)
    return [
        v * 2.0 ** round(math.log2(largest / size)) if 0 < size < largest else v
        for v, size in zip(seeds, sizes, strict=True)
    ]


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
