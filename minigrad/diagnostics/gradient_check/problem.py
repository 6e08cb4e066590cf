"""The problem of a gradient check: a vector function, its gradients, and their rounding errors.

For order 1 the function is f itself, for order 2 its gradient, by the operands and the cotangents.

Nobody can say for all functions how far off a right VJP is by rounding. But it shows in how a
gradient changes when operands and intermediate results change by a unit in the last place, up or
down at random, as they would if they were rounded differently (Vignes, 1993). So the gradients are
computed again, with other roundings on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    CHECKERS,
    Array,
    ArraysAt,
    CheckedFunction,
    Gradients,
    Vector,
    copied,
    flat,
    largest_of,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT32, FLOAT64, SPREADS, Tolerance
from minigrad.errors import op_of
from minigrad.ops.hints import Undefined, cause_of_gradient

NUDGED = "with numbers moved by a unit in the last place, to see what rounding does"


@dataclass(frozen=True)
class RoundedArrays:
    """Gradients or values, and how they change when numbers are rounded in another way."""

    arrays: Gradients
    dtype: np.dtype[Any]  # that they were computed in; the least exact one if there are several
    spread: Gradients  # how much each of their elements changes in all
    inner: Gradients  # the same by roundings on the way alone, with the operands as they are
    largest: float  # the largest number that a VJP gave on the way
    largest_of_all: float  # the largest number that a VJP or an op gave


class GradientProblem:
    """f as a vector function of its operands, and its gradients as the VJPs give them.

    Attributes:
        operands: the point, in float64 where f can be computed in it.
        names: of the operands.
        cotangents: of the results of f.
        weights: of the elements of the values, in the sum that is differentiated.
        paths: the gradients of that sum by each path other than `grad`.
        dtype: in which f computes, at the worst.
        tolerance: relative, in float64.
    """

    order = 1

    def __init__(
        self, function: CheckedFunction, rng: np.random.Generator, tolerance: float, recorded: bool
    ) -> None:
        """Compute the gradients; `recorded` says whether a problem of second order follows."""
        self.function, self.names, self.tolerance = function, function.names, tolerance
        self.operands = [copied(x, FLOAT64) for x in function.operands]
        with function.explained("with inputs that require a gradient"):
            try:
                self.dtype = function.outline(self.operands)
            except Exception:  # f insists on the dtype of the inputs, or fails with any
                self.operands = function.operands
                self.dtype = function.outline(self.operands)
        self.cotangents = function.cotangents(self.operands, rng)
        self.weights = flat(self.cotangents)
        gradients, self.paths = function.gradients_by_path(self.operands, self.cotangents, recorded)
        if function.unsteady:  # what differs from call to call is not computed with all digits
            self.dtype = tolerances.least_exact([self.dtype, FLOAT32])
        inside = partial(function.gradients, cotangents=self.cotangents, recorded=True)
        self._measure(gradients, rng, inside if recorded else None)

    def values(self, operands: Sequence[Array]) -> Vector:
        """Compute the function."""
        return self.function.values(operands)

    def gradients_at(self, operands: Sequence[Array]) -> Gradients:
        """Compute the gradients anew, at any operands of f."""
        return self.function.gradients(operands, self.cotangents)

    def _measure(
        self, gradients: Gradients, rng: np.random.Generator, inside: ArraysAt | None = None
    ) -> None:
        """Measure what rounding does to the gradients, in both dtypes, and to the values.

        `rng` decides how roundings are changed. `inside` computes the gradients from compositions,
        which show what is inside an op.
        """
        given, at = self.function.operands, self.gradients_at
        point, dtypes = self.operands[: len(given)], [x.dtype for x in given]
        self.narrow: RoundedArrays | None = None  # gradients in the dtype of the inputs
        with self.function.explained(NUDGED):
            self.plain = _rounded(gradients, self.dtype, at, point, rng, inside)
            if any(x.dtype != dtype for x, dtype in zip(point, dtypes, strict=True)):
                self.narrow = _rounded(at(given), tolerances.least_exact(dtypes), at, given, rng)
        undefined = _UndefinedGradients()
        with observe(undefined):
            self.repeated = self.gradients_at(point)  # the gradient once more
        self.undefined = undefined.hint  # why a gradient of nan is no fault, or nothing
        # What is wrong with gradients as arrays: the operand and the reason.
        self.flaws = self.function.flaws(self.cotangents) if self.order == 1 else []
        self.here = self.values(self.operands)  # the values at the point
        with self.function.explained(NUDGED):
            values = _rounded(
                [self.here], self.dtype, lambda x: [self.values(x)], self.operands, rng
            )
        eps, largest = float(tolerances.finfo(self.dtype).eps), self.plain.largest
        narrow_share = tolerances.SHARE_ROOTS * math.sqrt(eps)
        share = tolerances.SHARE if self.dtype == FLOAT64 else narrow_share
        share = max(share, self.function.nondet_tol)
        # What rounding leaves in each value, and might leave there inside an op, out of sight.
        self.noise = np.minimum(SPREADS * values.inner[0], share * values.largest_of_all)
        self.unseen = SPREADS * values.spread[0]
        # The gradients that are larger than their error bars; if none is, all are rounding.
        pairs = zip(gradients, self.plain.spread, strict=True)
        sharp = largest_of([g[abs(g) > SPREADS * spread] for g, spread in pairs])
        self.base = Tolerance(  # of a derivative, before its own error bar is known
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


class SecondOrder(GradientProblem):
    """The gradient as a vector function of the operands and the cotangents."""

    order = 2

    def __init__(self, first: GradientProblem, rng: np.random.Generator) -> None:
        self.function, self.tolerance, self.dtype = first.function, first.tolerance, first.dtype
        self.cotangents, self.paths = first.cotangents, {}
        self.operands = [*first.operands, *first.cotangents]
        names = [f"cotangent {k}" for k in range(len(first.cotangents))]
        self.names = [*first.names, *(names if len(names) > 1 else ["cotangent"])]
        shapes = [x.shape for x in first.operands]
        self._of_gradients = [rng.standard_normal(s, np.float32).astype(FLOAT64) for s in shapes]
        self.weights = flat(self._of_gradients)
        self._measure(self.gradients_at(first.operands), rng)

    def values(self, operands: Sequence[Array]) -> Vector:
        """Compute the gradient."""
        count = len(self._of_gradients)
        return flat(self.function.gradients(operands[:count], operands[count:]))

    def gradients_at(self, operands: Sequence[Array]) -> Gradients:
        """Compute the gradients of the gradient, at any operands of f."""
        return self.function.second_gradients(operands, self.cotangents, self._of_gradients)


def _rounded(
    arrays: Gradients,
    dtype: np.dtype[Any],
    arrays_at: ArraysAt,
    operands: Sequence[Array],
    rng: np.random.Generator,
    inside: ArraysAt | None = None,
) -> RoundedArrays:
    """Measure how much each element of some arrays changes when roundings change.

    `arrays_at` computes the arrays, which are gradients or values, at any operands; `rng` decides
    what is rounded up, and what down. `inside` computes them from compositions instead of ops.
    """
    inner, outer = ([np.zeros(x.shape) for x in arrays] for _ in range(2))
    largest = largest_of_all = largest_of(arrays)
    trials = [
        (compute, seed, sign)
        for compute in ((arrays_at, inside) if inside else (arrays_at,))
        for seed in (None, int(rng.integers(2**63)))
        for sign in (1, -1)  # what one run rounds up, the other rounds down
    ]
    for compute, seed, sign in trials:
        one, other = (None if seed is None else np.random.default_rng(seed) for _ in range(2))
        rounding = _Rounding(partial(_nudged, rng=one, sign=sign))
        runs = [(inner, partial(rounding.run, compute, operands))]
        if compute is arrays_at:
            nudged = [_nudged(x, other, sign) for x in operands]
            runs.append((outer, partial(compute, nudged)))
        for spread, run in runs:
            try:
                found = run()
            except Exception as error:  # of f here, or of a checkpoint that sees changes
                if op_of(error) in CHECKERS:
                    raise
                continue
            for known, x, y in zip(spread, arrays, found, strict=True):
                np.fmax(known, np.abs(x - y), out=known)
        largest = max(largest, rounding.of_vjps)
        largest_of_all = max(largest_of_all, largest, rounding.of_ops)
    spread = [np.maximum(a, b) for a, b in zip(inner, outer, strict=True)]
    return RoundedArrays(arrays, dtype, spread, inner, largest, largest_of_all)


def _nudged(x: Array, rng: np.random.Generator | None, sign: int) -> Array:
    """Copy x with its strides, and move each element by a unit in the last place, up or down.

    Without a generator all of them move in one direction, which shows where a comparison of two
    numbers that are nearly equal decides; at random, two moves on the way may cancel.
    """
    out = copied(x)
    up = sign if rng is None else sign * (rng.random(x.shape) - 0.5)
    out[...] = np.nextafter(x, np.where(np.greater(up, 0), np.inf, -np.inf).astype(x.dtype))
    return out


class _UndefinedGradients(Observer):
    """An observer that finds a nan that the documentation of an op says it gives."""

    hint = ""

    def on_vjp(self, node: Any, parent: Any, gradient: Any, result: Any) -> None:
        x, g = (y._data if isinstance(y, Tensor) else y for y in (result, gradient))
        if not self.hint and np.isnan(x).any() and np.isfinite(g).all():
            hint = cause_of_gradient(node.op, {}, g, x)
            if isinstance(hint, Undefined):
                self.hint = f"{hint} (`{node.op.name}`)"


class _Rounding(Observer):
    """An observer that changes results of ops and VJPs by a unit in the last place, but never 0."""

    def __init__(self, nudge: Callable[[Array], Array]) -> None:
        self._nudge = nudge
        self._before: list[tuple[Array, Array]] = []
        self.of_ops = self.of_vjps = 0.0  # the largest number that an op, and that a VJP gave

    def run(self, arrays_at: ArraysAt, operands: Sequence[Array]) -> Gradients:
        """Compute the arrays, and restore what was changed: the user may own such an array."""
        try:
            with observe(self):
                return arrays_at(operands)
        finally:
            for array, before in reversed(self._before):
                array[...] = before

    def on_call(self, op: Any, inputs: Sequence[Any], result: Any) -> None:
        self.of_ops = max(self.of_ops, self._change(result, inputs))

    def on_vjp(self, node: Any, parent: Any, gradient: Any, result: Any) -> None:
        self.of_vjps = max(self.of_vjps, self._change(result, [gradient]))

    def _change(self, result: Any, sources: Sequence[Any]) -> float:
        """Change a result in place, which the graph that has saved it sees too.

        Views are not changed, nor what was only picked out, as by `max`: nothing has been rounded
        there, and a VJP may look for the exact number. Return the largest number in the result.
        """
        x, *others = (y._data if isinstance(y, Tensor) else y for y in (result, *sources))
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.flags.writeable:
            return 0.0
        others = [y for y in others if isinstance(y, np.ndarray) and y.size]
        if x.size and not any(np.may_share_memory(x, y) for y in others):
            some = x.ravel()[:: -(-x.size // tolerances.SAMPLED)]
            picked = np.zeros(some.shape, bool)  # to judge by some of its elements
            for source in others:
                picked |= (source.ravel() == some[:, None]).any(axis=1)
            if not picked.all():
                self._before.append((x, x.copy()))
                x[...] = np.where(x == 0, x, self._nudge(x))
        return largest_of([x])
