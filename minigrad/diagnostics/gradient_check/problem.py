"""The problem of a gradient check: a vector function, its gradients, and their rounding errors.

No formula gives the rounding error of a right VJP for all functions. But it can be measured: move
operands and intermediate results by a unit in the last place, up or down at random, as if they were
rounded differently, and see how the gradient changes (Vignes, 1993). So the gradients are computed
again with other roundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from minigrad.diagnostics.gradient_check.functions import TensorFunction
from minigrad.diagnostics.gradient_check.tolerances import FLOAT32, FLOAT64, SPREADS, Tolerance
from minigrad.errors import op_of
from minigrad.ops.hints import Undefined, cause_of_gradient

NUDGED = "with numbers moved by a unit in the last place, to see what rounding does"


@dataclass(frozen=True)
class RoundedArrays:
    """Gradients or values, and how much they change when numbers are rounded differently."""

    arrays: Gradients
    dtype: np.dtype[Any]  # the dtype of the computation; if there are several, the least exact one
    spread: Gradients  # how much each element changes in total
    inner: Gradients  # the change from rounding intermediate results only, not the operands
    largest: float  # the largest number that a VJP gave
    largest_of_all: float  # the largest number that a VJP or an op gave


class GradientProblem:
    """f as a vector function of its operands, and its gradients as the VJPs compute them.

    Attributes:
        operands: the point, in float64 if f can be computed in float64.
        weights: the factors of the values in the sum that is differentiated.
        paths: the gradients of that sum by each path other than `grad`.
        dtype: the least exact dtype in which f computes.
    """

    order = 1
    _of_gradients: list[Array] | None = None  # for order 2, the cotangents of the gradients

    def __init__(
        self, function: CheckedFunction, rng: np.random.Generator, tolerance: float, recorded: bool
    ) -> None:
        """Compute the gradients; `recorded` says whether a problem of second order follows."""
        self.function, self.names, self.tolerance = function, function.names, tolerance
        self.operands = [copied(x, FLOAT64) for x in function.operands]
        with function.explained("with inputs that require a gradient"):
            try:
                self.dtype = function.outline(self.operands)
            except Exception:  # f accepts only the dtype of the inputs, or fails with any dtype
                self.operands = function.operands
                self.dtype = function.outline(self.operands)
        self.cotangents = function.cotangents(self.operands, rng)
        self.weights = flat(self.cotangents)
        gradients, self.paths = function.gradients_by_path(
            self.operands, self.cotangents, self.dtype, recorded
        )
        if function.unsteady:  # if calls differ, the last digits mean nothing
            self.dtype = tolerances.least_exact([self.dtype, FLOAT32])
        inside = partial(function.gradients, cotangents=self.cotangents, recorded=True)
        self._measure(gradients, rng, inside if recorded else None)

    def values(self, operands: Sequence[Array]) -> Vector:
        """Compute the function."""
        return self.function.values(operands)

    def gradients_at(self, operands: Sequence[Array]) -> Gradients:
        """Compute the gradients again, at any operands of f."""
        return self.function.gradients(operands, self.cotangents)

    def slope(self, directions: Mapping[int, Array]) -> float | None:
        """Compute the slope in directions of operands of f in forward mode, or return None."""
        if not isinstance(self.function, TensorFunction):
            return None
        point = self.operands[: len(self.function.operands)]
        return self.function.slope(point, directions, self.cotangents, self._of_gradients)

    def _measure(
        self, gradients: Gradients, rng: np.random.Generator, inside: ArraysAt | None = None
    ) -> None:
        """Measure the rounding errors of the gradients, in both dtypes, and of the values.

        `rng` decides how roundings are changed. `inside` computes the gradients with the
        compositions of ops, which show the numbers inside an op.
        """
        given, at = self.function.operands, self.gradients_at
        point = self.operands[: len(given)]
        self.narrow: RoundedArrays | None = None  # gradients in the dtype of the inputs
        with self.function.explained(NUDGED):
            self.plain = _rounded(gradients, self.dtype, at, point, rng, inside)
            if self.function.widened(point):
                dtype = tolerances.least_exact(x.dtype for x in given)
                self.narrow = _rounded(at(given), dtype, at, given, rng)
        with observe(undefined := _UndefinedGradients()):
            self.repeated = self.gradients_at(point)  # the gradient once more
        self.undefined = undefined.hint  # why a gradient of nan is not a fault; empty if it is one
        # Faults of gradients as arrays: the operand and the reason.
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
        # The rounding error of each value, as measured, and as it might be inside an op.
        self.noise = np.minimum(SPREADS * values.inner[0], share * values.largest_of_all)
        self.unseen = SPREADS * values.spread[0]
        # The gradients that are larger than their error bars; if none is, all are rounding errors.
        pairs = zip(gradients, self.plain.spread, strict=True)
        sharp = largest_of([g[abs(g) > SPREADS * spread] for g, spread in pairs])
        self.base = Tolerance(  # the tolerance before the error bar of a derivative is known
            tolerances.relative_tolerance(self.dtype, self.tolerance),
            scale=min(1.0, sharp or largest) or 1.0,
            unseen=tolerances.UNSEEN_EPS * eps * max(largest, largest_of(self.cotangents)),
        )
        self._most = share * largest + tolerances.LEAST_EPS * eps

    def allowed(self, spread: float, ties: bool = False) -> Tolerance:
        """Return the tolerance for a derivative that other roundings change by `spread`.

        `ties` says that ties cause this change, which is not an effect of rounding.
        """
        error = SPREADS * spread
        unseen = self.base.unseen if ties else max(self.base.unseen, error)
        return replace(self.base, rounding=min(error, self._most), unseen=unseen)


class SecondOrder(GradientProblem):
    """The gradient as a vector function of the operands and the cotangents."""

    order = 2
    _of_gradients: list[Array]

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
    which numbers are rounded up and which down. `inside` computes them from compositions, not ops.
    """
    inner, outer = ([np.zeros(x.shape) for x in arrays] for _ in range(2))
    largest = largest_of_all = largest_of(arrays)
    trials = [
        (compute, seed, sign)
        for compute in ((arrays_at, inside) if inside else (arrays_at,))
        for seed in (None, int(rng.integers(2**63)))
        for sign in (1, -1)  # numbers that one run rounds up, the other rounds down
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
            except Exception as error:  # from f at these operands, or from a checkpoint
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

    Without a generator, all elements move in one direction. This shows where the comparison of two
    nearly equal numbers decides; with random moves, two of them may cancel.
    """
    out = copied(x)
    up = sign if rng is None else sign * (rng.random(x.shape) - 0.5)
    out[...] = np.nextafter(x, np.where(np.greater(up, 0), np.inf, -np.inf).astype(x.dtype))
    return out


class _UndefinedGradients(Observer):
    """An observer that finds gradients of nan that are documented for an op."""

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
        self.of_ops = self.of_vjps = 0.0  # the largest number that an op gave, and that a VJP gave

    def run(self, arrays_at: ArraysAt, operands: Sequence[Array]) -> Gradients:
        """Compute the arrays, and restore all changed arrays, because the user may own some."""
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
        """Change a result in place, so that the graph that has saved it has the change too.

        Views are not changed. Numbers that were only selected, as by `max`, are not changed either:
        they were not rounded, and a VJP may look for the exact number. Return the largest number in
        the result.
        """
        x, *others = (y._data if isinstance(y, Tensor) else y for y in (result, *sources))
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.flags.writeable:
            return 0.0
        others = [y for y in others if isinstance(y, np.ndarray) and y.size]
        if x.size and not any(np.may_share_memory(x, y) for y in others):
            some = x.ravel()[:: -(-x.size // tolerances.SAMPLED)]
            picked = np.zeros(some.shape, bool)  # some of its elements are enough to decide
            for source in others:
                picked |= (source.ravel() == some[:, None]).any(axis=1)
            if not picked.all():
                self._before.append((x, x.copy()))
                x[...] = np.where(x == 0, x, self._nudge(x))
        return largest_of([x])
