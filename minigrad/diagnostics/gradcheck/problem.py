"""The problem: a vector function of operands, and its gradients by every path.

For order 1 the function is f itself, for order 2 its gradient, by the operands and the cotangents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import reachable
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradcheck import tolerances
from minigrad.diagnostics.gradcheck.checked_function import (
    Array,
    CheckedFunction,
    Gradients,
    Vector,
    copied,
    flat,
    largest_of,
)
from minigrad.diagnostics.gradcheck.gradient_paths import (
    flaws_of_gradients,
    gradients_by_path,
    other_leaves,
)
from minigrad.diagnostics.gradcheck.rounding_probe import RoundingSpread, rounding_spread
from minigrad.diagnostics.gradcheck.tolerances import FLOAT64, SPREADS, Tolerance

NUDGED = "with numbers moved by a unit in the last place, to see what rounding does"


@dataclass(frozen=True)
class NarrowGradients:
    """Gradients that were computed in the dtype of the inputs, where that is not float64.

    Attributes:
        dtype: the least exact of them.
        gradients: by each operand.
        spread: what rounding does to them.
        largest: the largest element.
        on_the_way: the largest number with which backpropagation started, or that a VJP gave.
    """

    dtype: np.dtype[Any]
    gradients: Gradients
    spread: RoundingSpread
    largest: float
    on_the_way: float


@dataclass
class GradientProblem:
    """A vector function of operands, and its gradients as the VJPs give them.

    Attributes:
        function: what it comes from.
        order: 1 for f itself, 2 for its gradient.
        operands: the point, in float64 where f can be computed in it.
        names: of the operands.
        values: the function.
        weights: of its elements in the sum that is differentiated.
        paths: the gradient of that sum by each operand, for each path that leads to it.
        gradients_at: computes the gradient anew, at any operands of f.
        dtype: in which f computes, at the worst.
        tolerance: relative, in float64.
        cotangents: of the results of f.
        rng: decides how roundings are changed.
        inside: as `gradients_at`, from compositions, which show what is inside an op.
        others: how many tensors require a gradient that are no operands, but f depends on.

        spread: what rounding does to the gradient.
        narrow: the gradient in the dtype that the inputs came in, if that is not float64.
        repeated: the gradient once more.
        flaws: what is wrong with gradients as arrays, for order 1: the operand and the reason.
        here: the values of the function at the point.
        noise: what rounding leaves in each value.
        unseen: what it might leave there where it could not be measured, inside an op.
        base: the tolerance of a derivative, before its own error bar is known.
    """

    function: CheckedFunction
    order: int
    operands: list[Array]
    names: list[str]
    values: Callable[[Sequence[Array]], Vector]
    weights: Vector
    paths: dict[str, Gradients]
    gradients_at: Callable[[Sequence[Array]], Gradients]
    dtype: np.dtype[Any]
    tolerance: float
    cotangents: list[Array]
    rng: InitVar[np.random.Generator]
    inside: InitVar[Callable[[Sequence[Array]], Gradients] | None] = None
    others: int = 0

    def __post_init__(
        self,
        rng: np.random.Generator,
        inside: Callable[[Sequence[Array]], Gradients] | None,
    ) -> None:
        """Measure what rounding does to the gradients, in both dtypes, and to the values."""
        given, gradients = self.function.operands, self.paths["grad"]
        point = self.operands[: len(given)]
        self.narrow = None
        with self.function.explained(NUDGED):
            self.spread = rounding_spread(gradients, self.gradients_at, point, rng, inside)
            if any(x.dtype != FLOAT64 for x in given):
                narrow = self.gradients_at(given)
                spread = rounding_spread(narrow, self.gradients_at, given, rng)
                arriving = largest_of([self.weights, *self.cotangents])
                self.narrow = NarrowGradients(
                    _least_exact([x.dtype for x in given]),
                    narrow,
                    spread,
                    largest=largest_of(narrow),
                    on_the_way=max(spread.largest, arriving),
                )
        self.repeated = self.gradients_at(point)
        first = self.order == 1
        self.flaws = flaws_of_gradients(self.function, self.cotangents) if first else []
        self.here = self.values(self.operands)
        with self.function.explained(NUDGED):
            values = rounding_spread([self.here], lambda x: [self.values(x)], self.operands, rng)

        eps, largest = float(np.finfo(self.dtype).eps), self.spread.largest
        share = tolerances.SHARE
        if self.dtype != FLOAT64:
            share = tolerances.SHARE_ROOTS * math.sqrt(eps)
        self.noise = np.minimum(SPREADS * values.inner[0], share * values.largest_of_all)
        self.unseen = SPREADS * values.each[0]
        # The gradients that are larger than their error bars; if none is, all are rounding.
        pairs = zip(gradients, self.spread.each, strict=True)
        sharp = largest_of([g[abs(g) > SPREADS * spread] for g, spread in pairs])
        self.base = Tolerance(
            tolerances.relative_tolerance(self.dtype, self.tolerance),
            scale=min(1.0, sharp or largest) or 1.0,
            unseen=tolerances.UNSEEN_EPS * eps * max(largest, largest_of(self.cotangents)),
        )
        self._most = share * largest + tolerances.LEAST_EPS * eps

    def allowed(self, spread: float, ties: bool = False) -> Tolerance:
        """Return the tolerance of a derivative that other roundings change by `spread`.

        `ties` says that it changes because ties are decided differently, which is no rounding.
        """
        error = SPREADS * spread
        unseen = self.base.unseen if ties else max(self.base.unseen, error)
        return replace(self.base, rounding=min(error, self._most), unseen=unseen)


def first_order(
    function: CheckedFunction, rng: np.random.Generator, tolerance: float, recorded: bool
) -> GradientProblem:
    """Make the problem of first order; `recorded` says whether one of second order follows."""
    operands, leaves, results = _evaluated(function)
    function.shapes = [x.shape for x in results]
    cotangents = _cotangents(function, operands, results, rng)
    gradients_at = partial(function.gradients, cotangents=cotangents)
    nodes = reachable([x.node for x in results if x.node is not None])
    computed = [node.dtype for node in nodes if node.op is not None]
    return GradientProblem(
        function=function,
        order=1,
        operands=operands,
        names=function.names,
        values=function.values,
        weights=flat(cotangents),
        paths=gradients_by_path(function, operands, cotangents, recorded),
        gradients_at=gradients_at,
        dtype=_least_exact([*(x.dtype for x in results), *computed]),
        tolerance=tolerance,
        cotangents=cotangents,
        rng=rng,
        inside=partial(gradients_at, recorded=True) if recorded else None,
        others=len(other_leaves(results, leaves)),
    )


def second_order(first: GradientProblem, rng: np.random.Generator) -> GradientProblem:
    """Make the problem of second order: the gradient, by the operands and the cotangents."""
    function, cotangents, count = first.function, first.cotangents, len(first.operands)
    weights = [rng.standard_normal(x.shape, np.float32).astype(FLOAT64) for x in first.operands]
    names = [f"cotangent {k}" for k in range(len(cotangents))]
    gradients_at = partial(function.second_gradients, cotangents=cotangents, weights=weights)
    return GradientProblem(
        function=function,
        order=2,
        operands=[*first.operands, *cotangents],
        names=[*first.names, *(names if len(names) > 1 else ["cotangent"])],
        values=lambda x: flat(function.gradients(x[:count], x[count:])),
        weights=flat(weights),
        paths={"grad": gradients_at(first.operands)},
        gradients_at=gradients_at,
        dtype=first.dtype,
        tolerance=first.tolerance,
        cotangents=cotangents,
        rng=rng,
    )


def _evaluated(function: CheckedFunction) -> tuple[list[Array], list[Tensor], list[Tensor]]:
    """Evaluate f in float64 if it can be, and else in the dtypes of the inputs.

    Return the operands, the same as leaves of a graph, and the results.
    """
    exact = [copied(x, FLOAT64) for x in function.operands]
    with grad_mode(True), function.explained("with inputs that require a gradient"):
        try:
            leaves = function.leaves(exact)
            return exact, leaves, function(leaves)
        except Exception:  # f insists on the dtype, or fails with any
            leaves = function.leaves(function.operands)
            return function.operands, leaves, function(leaves)


def _cotangents(
    function: CheckedFunction,
    operands: Sequence[Array],
    results: Sequence[Tensor],
    rng: np.random.Generator,
) -> list[Array]:
    """Draw a cotangent for each result, so large that the gradients of all are of like size.

    They have as many digits as float32, so that they are the same numbers in both dtypes.
    """
    seeds = [rng.standard_normal(x.shape, np.float32).astype(FLOAT64) for x in results]
    if len(seeds) == 1:
        return seeds
    sizes = []
    for k in range(len(seeds)):
        one = [v if at == k else np.zeros(v.shape) for at, v in enumerate(seeds)]
        sizes.append(largest_of(function.gradients(operands, one)))
    largest = max(sizes)
    return [
        v * 2.0 ** round(math.log2(largest / size)) if 0 < size < largest else v
        for v, size in zip(seeds, sizes, strict=True)
    ]


def _least_exact(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the float dtype with the largest eps."""
    return max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))
