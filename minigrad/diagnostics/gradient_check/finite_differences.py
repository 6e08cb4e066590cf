"""Difference quotients of a function along a line, and what they say about a derivative.

With D(h) = (f(x + h) - f(x - h)) / 2h, Richardson's extrapolation of two steps,

    f'(x) ~ (4 D(h) - D(2h)) / 3,

has an error of order h^4 from curvature and an error of order eps / h from rounding. The correction
of D(h) is an upper bound of the first error.

If a quotient differs from the derivative in question, other steps follow: smaller steps if f is
steep, or near a kink or a singularity; larger steps if rounding hides the answer. They end as soon
as one of three things is sure. The derivative is right. Or it is wrong: the quotients agree with
each other and not with the derivative, and no error bar of a smaller step reaches it. Or
differences cannot decide here, for a stated reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    CHECKERS,
    Array,
    Gradients,
    Vector,
    copied,
    largest_of,
)
from minigrad.diagnostics.gradient_check.problem import GradientProblem, RoundedArrays
from minigrad.diagnostics.gradient_check.report import Judgement, Verdict
from minigrad.diagnostics.gradient_check.tolerances import FLOAT32, FLOAT64, Tolerance, finfo
from minigrad.errors import op_of


@dataclass(frozen=True)
class Move:
    """A direction in which one element, or all elements of some operands, are moved."""

    name: str  # the name of the operand, or of the direction
    directions: dict[int, Array]  # how far the elements of each operand move, by its position
    index: tuple[int, ...] | None = None  # of the only element that moves; None if all do

    def moved(self, point: Sequence[Array], t: float) -> list[Array]:
        """Return a point, moved by t times the directions."""
        moved, where = list(point), ... if self.index is None else self.index
        for i, direction in self.directions.items():
            moved[i] = copied(point[i])
            moved[i][where] += (t * direction).astype(moved[i].dtype)
        return moved

    def slope(self, gradients: Gradients) -> float:
        """Return the derivative along the move, given the gradients by all operands."""
        if self.index is not None:
            (i,) = self.directions
            return float(gradients[i][self.index])
        return float(sum(np.sum(gradients[i] * d) for i, d in self.directions.items()))

    def spread(self, spreads: Gradients) -> float:
        """Return the change of the slope if elements of the gradients change by `spreads`."""
        absolute = {i: abs(d) for i, d in self.directions.items()}
        return replace(self, directions=absolute).slope(spreads)

    def size(self, point: Sequence[Array]) -> float:
        """Return the size of the elements that move; steps are relative to it."""
        if self.index is not None:
            return abs(self.slope([*point]))
        return largest_of([point[i] for i in self.directions])


@dataclass(frozen=True)
class Quotient:
    """The difference quotients of one step."""

    step: float  # h
    value: float  # by Richardson's extrapolation
    correction: float  # its difference from D(h): a bound on the error from curvature
    # Bounds on its rounding error, each for another guess of what was rounded:
    noise: float  # elements of y that change with the step: each by some units in its last place
    grain: float  # half a unit of the largest element that changes, or of all that do not change
    hidden: float  # units of the largest element of y, whether it changes or not, and at least of 1
    unseen: float  # results inside f that the check could not observe
    left: float  # the slope on the left, of second order
    right: float  # the slope on the right

    @property
    def bend(self) -> float:
        """The slope on the right minus the slope on the left."""
        return self.right - self.left

    @property
    def error(self) -> float:
        """The error bar of the value."""
        return self.noise + self.correction


class Line:
    """The values of a problem's function along a move, as a vector y(t) = f(x + t d).

    The derivative is that of sum(weights y). Differences are computed before the sum, so elements
    of y that do not change cancel exactly, however large they are, and add no noise.

    The operands x and the dtype in which f computes are those of the problem unless they are given.
    For another dtype, the error bars of the values are not known.
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
        # The size of the elements that move; steps are relative to it, or to 1 if it is smaller.
        self.x = move.size(self.point)
        self.failure = ""  # an error of f at some point, where y counts as not finite
        noise, unseen = (problem.noise, problem.unseen) if dtype is None else (0.0, 0.0)
        self._noise = np.abs(problem.weights) * noise
        self._unseen = float(np.hypot.reduce(problem.weights * unseen))
        self._known: dict[float, Vector] = {0.0: problem.here} if point is None else {}

    def at(self, t: float) -> Vector:
        """Return y(t), which is computed only once."""
        if t not in self._known:
            name = self.move.name + str(list(self.move.index or []) or "")
            try:
                with self.problem.function.explained(f"with {name} moved by {t:g}"):
                    self._known[t] = self.problem.values(self.move.moved(self.point, t))
            except Exception as error:
                if t == 0.0 or op_of(error) in CHECKERS:
                    raise
                self.failure = f"with a step of {t:.2g} it raises {error!r}"
                self._known[t] = np.full(self.problem.weights.shape, np.nan)
        return self._known[t]

    def slope_nearby(self, rng: np.random.Generator) -> float:
        """Return the slope at a random point near this one, to find slopes around a kink."""
        reach, step = tolerances.NEARBY.get(self.dtype, tolerances.COARSEST_NEARBY)
        near = [copied(x) for x in self.point]
        for x in near:
            noise = rng.uniform(-reach, reach, x.shape) * max(1.0, largest_of([x]))
            x += noise.astype(x.dtype)
        return Line(self.problem, self.move, near).quotient(step).value

    def quotients(self, allowed: Tolerance) -> Iterator[Quotient]:
        """Yield quotients for one step after another, from the most to the least promising."""
        # A power of two, so that x + h - x is exactly the step h that is divided by.
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
        if float(finfo(self.dtype).tiny) < self.x < quotient.step:  # beside a singularity at 0
            near = relative * 2.0 ** math.floor(math.log2(self.x))
            for division in tolerances.SINGULARITY_DIVISIONS:
                yield self.quotient(near / division)

    def quotient(self, step: float) -> Quotient:
        """Compute the quotients of one step."""
        y = self.at(0.0)
        right, left, far_right, far_left = others = [
            self.at(t) for t in (step, -step, 2 * step, -2 * step)
        ]
        # Elements that are infinite or nan at all points, as under a mask, do not change.
        fixed = ~np.isfinite(y)
        for other in others:
            fixed &= (other == y) | (np.isnan(other) & np.isnan(y))

        def slope(*terms: tuple[float, Vector, Vector]) -> float:
            """Return the weighted sum of some differences, divided by the step."""
            total = sum(c * np.where(fixed, 0.0, a - b) for c, a, b in terms)
            return float(np.dot(self.problem.weights, total)) / step

        moved = ~fixed & np.any([other != y for other in others], axis=0)
        errors = self._rounding_errors(np.maximum(abs(right), abs(left)), moved)
        noise, grain, hidden, unseen = (error / step for error in (*errors, self._unseen))
        near, far = (right, left), (far_right, far_left)
        value = slope((2 / 3, *near), (-1 / 12, *far))
        correction = abs(slope((1 / 2, *near)) - slope((1 / 4, *far))) / 3
        on_left = slope((2, y, left), (-1 / 2, y, far_left))
        on_right = slope((2, right, y), (-1 / 2, far_right, y))
        return Quotient(step, value, correction, noise, grain, hidden, unseen, on_left, on_right)

    def _rounding_errors(self, around: Vector, moved: NDArray[np.bool_]) -> list[float]:
        """Bound the rounding errors of the weighted sum of y: noise, grain and hidden, times h.

        `around` has the size of each element of y, and `moved` says which elements have changed.
        """
        eps = float(finfo(self.dtype).eps)
        fine = self.dtype in (FLOAT64, FLOAT32)
        several = eps * (tolerances.ROUNDING_UNITS if fine else tolerances.COARSE_UNITS)
        sizes = np.abs(self.problem.weights) * around
        known = np.isfinite(sizes)
        inner = self._noise * np.fmin(around / abs(self.at(0.0)), 1.0)  # y is large only at a pole
        # An element that does not change may hide a change of half a unit in its last place.
        units = np.maximum(np.where(moved, several, eps / 2) * sizes, inner)

        largest_moved = several * float(np.max(sizes, initial=0.0, where=known & moved))
        largest = float(np.max(sizes, initial=1.0, where=known))
        largest *= tolerances.ROUNDING_UNITS * eps
        # The root of the sum of the squares, of which none overflows or becomes 0.
        of_moved, of_others = (np.hypot.reduce(units[each]) for each in (moved, known & ~moved))
        return [float(of_moved), max(largest_moved, float(of_others)), largest]


def judge(analytic: float, line: Line, allowed: Tolerance) -> Judgement:
    """Decide whether `analytic` is the derivative along a line."""
    if not math.isfinite(line.x):
        return Judgement("cannot tell", math.nan, math.inf, "the operand itself is not finite")
    judgement = _by_quotients(analytic, line, allowed)
    if judgement.verdict == "disagree" and not np.isfinite(line.at(0.0)).all():
        judgement = Judgement("cannot tell", judgement.numeric, math.inf, "f is not finite here")
    if judgement.verdict == "cannot tell" and line.failure:
        judgement = replace(judgement, reason=f"{judgement.reason}; {line.failure}")
    return judgement


def judge_narrow(
    value: float, move: Move, exact: Judgement, problem: GradientProblem, narrow: RoundedArrays
) -> Judgement:
    """Decide whether a derivative in fewer digits agrees with the differences in float64.

    It is right if the error is within a relative tolerance, or within its change under other
    roundings. It is wrong only if the error is larger than rounding can explain, even for a small
    difference of large terms, and if f is the same function in this dtype.
    """
    info, numeric, dtype = finfo(narrow.dtype), exact.numeric, narrow.dtype
    if exact.verdict == "cannot tell" or exact.kink:
        return exact
    if not math.isfinite(value):
        if abs(numeric) > float(info.max) and value == math.copysign(math.inf, numeric):
            return replace(exact, verdict="agree", reason="")
        why = f"not finite in {dtype}, though it is in float64: does a number on the way overflow, "
        return replace(exact, verdict="cannot tell", reason=f"{why}or become 0?")
    eps, spread, largest = float(info.eps), move.spread(narrow.spread), largest_of(narrow.arrays)
    distance, size = abs(value - numeric), max(abs(value), abs(numeric))
    right = max(
        tolerances.TOLERANCE_ROOTS * math.sqrt(eps) * size,
        tolerances.NARROW_RIGHT_SPREADS * spread,
        tolerances.NARROW_RIGHT_SHARE * largest,
        tolerances.NARROW_RIGHT_SPREADS * float(info.smallest_normal),
    )
    if distance <= exact.error + right:
        return replace(exact, verdict="agree", reason="")
    # The largest number that the backward pass started with, or that a VJP gave.
    on_the_way = max(narrow.largest, largest_of([problem.weights, *problem.cotangents]))
    wrong = max(
        tolerances.NARROW_WRONG_EPS * eps * largest + tolerances.NARROW_WRONG_SPREADS * spread,
        tolerances.UNSEEN_EPS * eps * on_the_way,
    )
    rough = exact.error > tolerances.NARROW_DIFFERENCES * size
    if distance <= exact.error + wrong or rough:
        return replace(exact, verdict="cannot tell", reason=f"below what {dtype} can resolve")
    given = problem.function.operands
    line = Line(problem, move, [*given, *problem.operands[len(given) :]], dtype)
    allowed = Tolerance(tolerances.relative_tolerance(dtype, problem.tolerance))
    if judge(value, line, allowed).verdict == "agree":
        reason = f"in {dtype} f is another function than in float64"
        return replace(exact, verdict="cannot tell", reason=reason)
    return replace(exact, verdict="disagree", reason="")


def _by_quotients(analytic: float, line: Line, allowed: Tolerance) -> Judgement:
    """Compute quotients for one step after another, until they decide."""
    seen: list[Quotient] = []
    for now in line.quotients(allowed):
        seen.append(now)
        if not math.isfinite(now.value):
            continue
        if _is_below_last_digit(seen, line, allowed):
            seen.pop()
            break
        size = max(abs(analytic), abs(now.value)) if math.isfinite(analytic) else abs(now.value)
        distance = abs(analytic - now.value)
        before = seen[-2] if len(seen) > 1 and math.isfinite(seen[-2].value) else None
        slack = now.noise + allowed.rounding + allowed.relative * size
        if distance <= slack:
            rounding = tolerances.STRAIGHT_NOISE * max(now.noise, now.grain)
            straight = abs(now.bend) <= tolerances.STRAIGHT * size + rounding
            straight |= before is not None and not _bends(before, now)
            if straight and now.noise <= allowed.noise(size):
                return Judgement("agree", now.value, now.error, slack=slack)
        elif len(seen) == 1 and distance <= now.grain and now.grain <= allowed.noise(size):
            return Judgement("agree", now.value, now.grain, slack=now.grain)
        elif before is not None and _is_contradicted(analytic, seen, allowed):
            if not _bends(before, now):
                return Judgement("disagree", now.value, now.error)
            error = now.noise + before.noise + allowed.relative * size
            judgement = _at_kink(analytic, before, now, error)
            if judgement is not None:
                return judgement
    return _undecided(analytic, seen, line, allowed)


def _is_below_last_digit(seen: list[Quotient], line: Line, allowed: Tolerance) -> bool:
    """Return whether f has few digits, so that a step as small as the last does not change it."""
    now = seen[-1]
    if line.dtype in (FLOAT64, FLOAT32) or now.noise or not any(q.noise for q in seen):
        return False
    return now.grain > allowed.noise(0.0) or now.step < float(finfo(line.dtype).eps) * line.x


def _is_contradicted(analytic: float, seen: list[Quotient], allowed: Tolerance) -> bool:
    """Return whether the last quotients agree, and no error bar of a smaller step has `analytic`.

    Two quotients must agree, or three if rounding inside f may be larger than its values show. In
    that case, quotients of 0 from an f that does not change do not count.
    """
    now = seen[-1]
    distance = abs(analytic - now.value)
    hidden = distance <= now.hidden
    last = seen[-3:] if hidden else seen[-2:]
    if distance <= allowed.unseen or _diverges(seen) or len(last) < (3 if hidden else 2):
        return False
    if hidden and all(q.value == 0 for q in last):
        return False
    alike = all(
        abs(a.value - b.value)
        <= a.noise + b.noise + allowed.relative * min(abs(a.value), abs(b.value))
        for a, b in pairwise(last)
    )
    finer = [q for q in seen if q.step <= now.step]
    reached = any(abs(analytic - q.value) <= q.error + allowed.rounding for q in finer)
    unseen = max(min(q.grain for q in last), min(q.unseen for q in last))
    return alike and not reached and distance > unseen


def _diverges(seen: list[Quotient]) -> bool:
    """Return whether a slope on one side, or the quotient, grows without bound."""
    if len(seen) < 3:
        return False
    series = ([abs(getattr(q, name)) for q in seen[-3:]] for name in ("value", "left", "right"))
    return any(
        math.isfinite(a)
        and a > 0
        and b > tolerances.GROWTH * a
        and c > max(tolerances.GROWTH * b, seen[-1].hidden)
        for a, b, c in series
    )


def _bends(one: Quotient, other: Quotient) -> bool:
    """Return whether the slopes on both sides stay apart as the step shrinks."""
    fine, coarse = sorted((one, other), key=lambda q: q.step)
    return abs(fine.bend) > max(
        tolerances.BEND_REMAINS * abs(coarse.bend), tolerances.BEND_NOISE * fine.noise
    )


def _at_kink(analytic: float, before: Quotient, now: Quotient, error: float) -> Judgement | None:
    """Judge at a kink, where the slopes on both sides differ; return None if they are not clear."""
    error += abs(now.left - before.left) + abs(now.right - before.right)
    if error > tolerances.KINK_ERROR * abs(now.bend):
        return None
    low, high = sorted((now.left, now.right))
    slopes = f"a kink: slope {now.left:.6g} on the left, {now.right:.6g} on the right"
    between = low - error <= analytic <= high + error
    verdict: Verdict = "cannot tell" if between else "disagree"
    return Judgement(verdict, now.value, (high - low) / 2, slopes, kink=True)


def _undecided(analytic: float, seen: list[Quotient], line: Line, allowed: Tolerance) -> Judgement:
    """Judge if no step has decided, and give the reason."""
    finite = [q for q in seen if math.isfinite(q.value)]
    if not finite:
        return _one_sided(analytic, seen)
    best = min(finite, key=lambda q: q.error)
    undefined = line.problem.undefined if math.isnan(analytic) else ""
    if _diverges(seen):
        reason = "not smooth here: the slope grows without bound as the step shrinks"
        reason = f"{undefined}, and f is {reason}" if undefined else reason
        return Judgement("cannot tell", finite[-1].value, math.inf, reason)
    if undefined:
        return Judgement("cannot tell", best.value, best.error, undefined)
    if not math.isfinite(analytic):
        if any(q.value == analytic for q in seen):
            reason = f"the slope is too large for {line.dtype}, and so is the gradient"
            return Judgement("cannot tell", analytic, math.inf, reason)
        return Judgement("disagree", best.value, best.error, "the analytic gradient is not finite")
    unresolved = f"below what {line.dtype} can resolve here"
    if len(finite) > 1 and _bends(*finite[-2:]):
        judgement = _at_kink(analytic, finite[-2], finite[-1], finite[-1].noise)
        rough = abs(finite[-1].bend) > finite[-1].hidden
        reason = "not smooth here" if rough else unresolved
        return judgement or Judgement("cannot tell", best.value, math.inf, reason)
    distances = [abs(analytic - q.value) for q in finite]
    if (  # the quotients approach it from step to step, up to their error bars
        len(finite) > tolerances.APPROACH_QUOTIENTS
        and all(b <= tolerances.APPROACH * a for a, b in pairwise(distances))
        and distances[-1] <= max(finite[-1].hidden, finite[-1].error + allowed.rounding)
    ):
        return Judgement("agree", best.value, best.error)
    hidden = max(allowed.unseen, min(max(q.grain, q.unseen) for q in finite))
    hidden = max(hidden, best.error + allowed.rounding)
    if abs(analytic - best.value) <= hidden:
        reason = f"{unresolved}: differences may be wrong by {hidden:.1g}"
    elif best.correction > best.noise:
        reason = f"too steep, or too close to a kink, for a step of {best.step:.1g}"
    else:
        reason = f"{unresolved}: differences with other steps are not the same"
    return Judgement("cannot tell", best.value, best.error, reason)


def _one_sided(analytic: float, seen: list[Quotient]) -> Judgement:
    """Judge if f is finite on at most one side of x."""
    for side in ("left", "right"):
        slopes = [getattr(q, side) for q in seen if math.isfinite(getattr(q, side))]
        if len(slopes) < 2:
            continue
        before, slope = slopes[-2:]
        error = abs(slope - before)
        settled = len(slopes) > 2 and error <= tolerances.SETTLED * abs(before - slopes[-3])
        reason = f"f is finite on the {side} only"
        far = abs(analytic - slope) > tolerances.ONE_SIDED_ERRORS * error
        if math.isfinite(analytic) and settled and far:
            return Judgement("disagree", slope, error, f"{reason}, with slope {slope:.6g}")
        return Judgement("cannot tell", slope, error, reason)
    return Judgement("cannot tell", math.nan, math.inf, "f is not finite around this point")
