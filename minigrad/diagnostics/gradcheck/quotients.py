"""Difference quotients of a function along a line, and what may be left in them of other things.

With D(h) = (f(x + h) - f(x - h)) / 2h, Richardson's extrapolation of two steps,

    f'(x) ~ (4 D(h) - D(2h)) / 3,

is off by an amount of order h^4 from the curvature, for which the correction it makes to D(h) is an
upper bound, and of order eps / h from rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradcheck.subject import Vector
from minigrad.errors import op_of

Mask = NDArray[np.bool_]

# The first step, relative to x or to 1: with it curvature and rounding are far below the tolerance.
STEPS = {np.dtype(np.float64): 2.0**-10, np.dtype(np.float32): 2.0**-4}
COARSEST = 2.0**-2  # the first step for dtypes with fewer digits than these
DIVISION = 8  # of a step, from one to the next
DIVISIONS = 4, 13  # at least, and at most while curvature is what hides the answer
MULTIPLES = 8, 64  # of the first step, where rounding is what hides it
ROUNDING = 50  # units in the last place that a value of f may be off by


class Line:
    """The values of f along a line through x, as a vector y(t) = f(x + t d), and their weights.

    The derivative is that of sum(weights y). Differences are taken before the sum: elements of y
    that do not move cancel exactly, however large they are, and add no noise.

    Args:
        values: y as a function of t.
        weights: of the elements of y.
        x: where along d the point is; steps are relative to its size, or to 1 if it is smaller.
        dtype: in which f computes.
        here: y(0), if it is known.
        noise: what rounding leaves in each element of y, besides that of the element itself.
        doubt: what it might leave there, unseen.

    Attributes:
        failure: what f raised at some point; there it counts as not finite.
    """

    def __init__(
        self,
        values: Callable[[float], Vector],
        weights: Vector,
        x: float,
        dtype: np.dtype[Any],
        here: Vector | None = None,
        noise: Vector | float = 0.0,
        doubt: Vector | float = 0.0,
    ) -> None:
        self._values = values
        self._weights = weights
        self._noise = np.abs(weights) * noise
        self._doubt = float(np.linalg.norm(weights * doubt))
        self.x = abs(x)
        self.dtype = dtype
        self.failure = ""
        self._step = STEPS.get(dtype, COARSEST)
        self._known: dict[float, Vector] = {} if here is None else {0.0: here}

    def _at(self, t: float) -> Vector:
        if t not in self._known:
            try:
                self._known[t] = self._values(t)
            except Exception as error:
                if t == 0.0 or op_of(error) == "gradcheck":
                    raise
                self.failure = f"with a step of {t:.2g} it raises {error!r}"
                self._known[t] = np.full(self._weights.shape, np.nan)
        return self._known[t]

    @property
    def is_finite(self) -> bool:
        """Whether all values of f at the point itself are finite."""
        return bool(np.isfinite(self._at(0.0)).all())

    def quotients(self, tolerance: float, scale: float) -> Iterator[Quotient]:
        """Quotients of one step after the other, those most likely to be exact first."""
        # A power of two, so that the step that is taken is the one that is divided by.
        first = self._step * 2.0 ** round(math.log2(max(1.0, self.x)))
        quotient = self.quotient(first)
        yield quotient
        if quotient.noise > tolerance * max(scale, abs(quotient.value)):
            for multiple in MULTIPLES:
                yield self.quotient(multiple * first)
            return
        least, most = DIVISIONS
        for n in range(1, most + 1):
            if n > least and quotient.correction <= quotient.noise:
                return
            quotient = self.quotient(first / DIVISION**n)
            yield quotient
        if float(np.finfo(self.dtype).tiny) < self.x < quotient.step:  # beside a singularity at 0
            near = self._step * 2.0 ** math.floor(math.log2(self.x))
            yield self.quotient(near / 4)
            yield self.quotient(near / 32)

    def quotient(self, step: float) -> Quotient:
        """The quotient of one step."""
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
            return float(np.dot(self._weights, total)) / step

        with np.errstate(all="ignore"):
            moved = ~fixed & np.any([other != y for other in others], axis=0)
            noise, grain, hidden = self._roundings(np.maximum(abs(right), abs(left)), moved)
            near, far = (right, left), (far_right, far_left)
            narrow, wide = slope((1 / 2, *near)), slope((1 / 4, *far))
            return Quotient(
                step=step,
                value=slope((2 / 3, *near), (-1 / 12, *far)),
                correction=abs(narrow - wide) / 3,
                noise=noise / step,
                grain=grain / step,
                hidden=hidden / step,
                doubt=self._doubt / step,
                left=slope((2, y, left), (-1 / 2, y, far_left)),
                right=slope((2, right, y), (-1 / 2, far_right, y)),
            )

    def _roundings(self, around: Vector, moved: Mask) -> tuple[float, float, float]:
        """What rounding leaves in the weighted sum of y: noise, grain and hidden of a quotient.

        Args:
            around: the size of each element of y.
            moved: which of them the step has changed.
        """
        eps = float(np.finfo(self.dtype).eps)
        sizes = np.abs(self._weights) * around
        known = np.isfinite(sizes)
        inner = self._noise * np.fmin(around / abs(self._at(0.0)), 1.0)  # y is large only at a pole
        # What does not move may have done so by half a unit in the last place.
        units = np.maximum(np.where(moved, ROUNDING * eps, eps / 2) * sizes, inner)

        def root(where: Mask) -> float:
            return math.sqrt(np.sum(np.square(units), where=where))

        largest_moved, largest = (
            ROUNDING * eps * float(np.max(sizes, initial=least, where=where))
            for least, where in ((0.0, known & moved), (1.0, known))
        )
        return root(moved), max(largest_moved, root(known & ~moved)), largest


@dataclass(frozen=True)
class Quotient:
    """The difference quotients of one step.

    Attributes:
        step: h.
        value: Richardson's.
        correction: that it makes to the plain one: a bound on what curvature leaves in it.
        noise: a bound on what rounding leaves in it.
        grain: the same where terms were cancelled that are as large as the largest element that
            moves, or where those that do not move have done so by less than can be seen.
        hidden: the same where they were as large as anything in y, and at least 1.
        doubt: what rounding might have left in it, unseen.
        left: the slope on the left, of second order.
        right: the slope on the right.
    """

    step: float
    value: float
    correction: float
    noise: float
    grain: float
    hidden: float
    doubt: float
    left: float
    right: float

    @property
    def bend(self) -> float:
        """The slope on the right less the slope on the left."""
        return self.right - self.left

    @property
    def error(self) -> float:
        """The error bar of the value."""
        return self.noise + self.correction
