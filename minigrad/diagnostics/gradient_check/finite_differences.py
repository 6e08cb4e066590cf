"""Difference quotients of a function along a line, and what else may be left in them.

With D(h) = (f(x + h) - f(x - h)) / 2h, Richardson's extrapolation of two steps,

    f'(x) ~ (4 D(h) - D(2h)) / 3,

is off by an amount of order h^4 from the curvature, for which the correction it makes to D(h) is an
upper bound, and of order eps / h from rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    Array,
    Gradients,
    Vector,
    copied,
    largest_of,
)
from minigrad.diagnostics.gradient_check.problem import GradientProblem
from minigrad.diagnostics.gradient_check.tolerances import FLOAT32, NEARBY, Tolerance
from minigrad.errors import op_of


@dataclass(frozen=True)
class Move:
    """A direction in which one element, or all elements of some operands, are moved."""

    name: str  # of the operand, or of the direction
    directions: dict[int, Array]  # for the position of each operand, how far its elements move
    index: tuple[int, ...] | None = None  # of the only element that moves; None if all do

    def moved(self, point: Sequence[Array], t: float) -> list[Array]:
        """Return a point, moved by t times the directions."""
        moved, where = list(point), ... if self.index is None else self.index
        for i, direction in self.directions.items():
            moved[i] = copied(point[i])
            moved[i][where] += (t * direction).astype(moved[i].dtype)
        return moved

    def slope(self, gradients: Gradients) -> float:
        """Return the derivative along the move, if these are the gradients by all operands."""
        if self.index is not None:
            (i,) = self.directions
            return float(gradients[i][self.index])
        return float(sum(np.sum(gradients[i] * d) for i, d in self.directions.items()))

    def spread(self, spreads: Gradients) -> float:
        """Return what the slope changes by if elements of the gradients change by `spreads`."""
        absolute = {i: abs(d) for i, d in self.directions.items()}
        return replace(self, directions=absolute).slope(spreads)

    def size(self, point: Sequence[Array]) -> float:
        """Return the size of what moves, to which steps are relative."""
        if self.index is not None:
            return abs(self.slope([*point]))
        return largest_of([point[i] for i in self.directions])


@dataclass(frozen=True)
class Quotient:
    """The difference quotients of one step."""

    step: float  # h
    value: float  # Richardson's
    correction: float  # that it makes to the plain one: a bound on what curvature leaves in it
    noise: float  # a bound on what rounding leaves in it
    # The same bound if y is a difference of terms that are as large as its largest element that
    # moves, or if the other elements moved too, by less than can be seen.
    grain: float
    hidden: float  # the same bound if these terms were as large as any element of y, and at least 1
    unseen: float  # what rounding might have left in it where it could not be measured
    left: float  # the slope on the left, of second order
    right: float  # the slope on the right

    @property
    def bend(self) -> float:
        """The slope on the right less the slope on the left."""
        return self.right - self.left

    @property
    def error(self) -> float:
        """The error bar of the value."""
        return self.noise + self.correction


class Line:
    """The values of a problem's function along a move, as a vector y(t) = f(x + t d).

    The derivative is that of sum(weights y). Differences are taken before the sum: elements of y
    that do not move cancel exactly, however large they are, and add no noise.

    The operands x are those of the problem unless `point` is given, and so is the dtype in which f
    computes there. In another dtype no error bars of its values are known.
    """

    def __init__(
        self,
        problem: GradientProblem,
        move: Move,
        point: Sequence[Array] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.problem = problem
        self.move = move
        self.point = problem.operands if point is None else point
        self.dtype = problem.dtype if dtype is None else dtype
        # The size of what moves; steps are relative to it, or to 1 if it is smaller.
        self.x = move.size(self.point)
        self.failure = ""  # what f raised at some point; there it counts as not finite
        noise, unseen = (problem.noise, problem.unseen) if dtype is None else (0.0, 0.0)
        self._noise = np.abs(problem.weights) * noise
        self._unseen = float(np.linalg.norm(problem.weights * unseen))
        self._known: dict[float, Vector] = {0.0: problem.here} if point is None else {}

    def _at(self, t: float) -> Vector:
        """Compute y(t), once."""
        if t not in self._known:
            name = self.move.name + str(list(self.move.index or []) or "")
            try:
                with self.problem.function.explained(f"with {name} moved by {t:g}"):
                    self._known[t] = self.problem.values(self.move.moved(self.point, t))
            except Exception as error:
                if t == 0.0 or op_of(error) == "gradcheck":
                    raise
                self.failure = f"with a step of {t:.2g} it raises {error!r}"
                self._known[t] = np.full(self.problem.weights.shape, np.nan)
        return self._known[t]

    @property
    def is_finite(self) -> bool:
        """True if all values of f at the point itself are finite."""
        return bool(np.isfinite(self._at(0.0)).all())

    def slope_nearby(self, rng: np.random.Generator) -> float:
        """Return the slope at a random point near this one, to find the slopes around a kink."""
        reach, step = NEARBY.get(self.dtype, NEARBY[FLOAT32])
        near = []
        for x in self.point:
            noise = rng.uniform(-reach, reach, x.shape) * max(1.0, largest_of([x]))
            near.append(copied(x))
            near[-1] += noise.astype(x.dtype)
        return Line(self.problem, self.move, near).quotient(step).value

    def quotients(self, allowed: Tolerance) -> Iterator[Quotient]:
        """Yield quotients of one step after the other, those most likely to be exact first."""
        # A power of two, so that the step that is taken is the one that is divided by.
        relative = tolerances.FIRST_STEP.get(self.dtype, tolerances.COARSEST_STEP)
        first = relative * 2.0 ** round(math.log2(max(1.0, self.x)))
        quotient = self.quotient(first)
        yield quotient
        if quotient.noise > allowed.noise(abs(quotient.value)):
            for multiple in tolerances.STEP_MULTIPLES:
                yield self.quotient(multiple * first)
            return
        for n in range(1, tolerances.MOST_DIVISIONS + 1):
            if n > tolerances.FEWEST_DIVISIONS and quotient.correction <= quotient.noise:
                return
            quotient = self.quotient(first / tolerances.STEP_DIVISION**n)
            yield quotient
        if float(np.finfo(self.dtype).tiny) < self.x < quotient.step:  # beside a singularity at 0
            near = relative * 2.0 ** math.floor(math.log2(self.x))
            for division in tolerances.SINGULARITY_DIVISIONS:
                yield self.quotient(near / division)

    def quotient(self, step: float) -> Quotient:
        """Compute the quotients of one step."""
        y = self._at(0.0)
        right, left, far_right, far_left = others = [
            self._at(t) for t in (step, -step, 2 * step, -2 * step)
        ]
        # What is infinite or nan at all points, as under a mask, does not move.
        fixed = ~np.isfinite(y)
        for other in others:
            fixed &= (other == y) | (np.isnan(other) & np.isnan(y))

        def slope(*terms: tuple[float, Vector, Vector]) -> float:
            """The weighted sum of some differences, over the step."""
            total = sum(c * np.where(fixed, 0.0, a - b) for c, a, b in terms)
            return float(np.dot(self.problem.weights, total)) / step

        with np.errstate(all="ignore"):
            moved = ~fixed & np.any([other != y for other in others], axis=0)
            noise, grain, hidden = self._rounding_errors(np.maximum(abs(right), abs(left)), moved)
            near, far = (right, left), (far_right, far_left)
            narrow, wide = slope((1 / 2, *near)), slope((1 / 4, *far))
            return Quotient(
                step=step,
                value=slope((2 / 3, *near), (-1 / 12, *far)),
                correction=abs(narrow - wide) / 3,
                noise=noise / step,
                grain=grain / step,
                hidden=hidden / step,
                unseen=self._unseen / step,
                left=slope((2, y, left), (-1 / 2, y, far_left)),
                right=slope((2, right, y), (-1 / 2, far_right, y)),
            )

    def _rounding_errors(
        self, around: Vector, moved: NDArray[np.bool_]
    ) -> tuple[float, float, float]:
        """Bound what rounding leaves in the weighted sum of y: noise, grain and hidden, times h.

        `around` has the size of each element of y, and `moved` says which the step has changed.
        """
        eps = float(np.finfo(self.dtype).eps)
        several = tolerances.ROUNDING_UNITS * eps
        sizes = np.abs(self.problem.weights) * around
        known = np.isfinite(sizes)
        inner = self._noise * np.fmin(around / abs(self._at(0.0)), 1.0)  # y is large only at a pole
        # What does not move may have done so by half a unit in the last place.
        units = np.maximum(np.where(moved, several, eps / 2) * sizes, inner)

        def root(where: NDArray[np.bool_]) -> float:
            return math.sqrt(np.sum(np.square(units), where=where))

        largest_moved, largest = (
            several * float(np.max(sizes, initial=least, where=where))
            for least, where in ((0.0, known & moved), (1.0, known))
        )
        return root(moved), max(largest_moved, root(known & ~moved)), largest
