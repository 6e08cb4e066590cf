"""What difference quotients say of a derivative: a number, an error bar, or why there is none.

A derivative is a limit of difference quotients, and these need no rule that could be wrong. With
D(h) = (f(x + h) - f(x - h)) / 2h, Richardson's extrapolation of two steps,

    f'(x) ~ (4 D(h) - D(2h)) / 3,

is off by an amount of order h^4 from the curvature, for which the correction it makes to D(h) is an
upper bound, and of order eps / h from rounding. A quotient that differs from the derivative in
question is taken again with other steps: smaller ones, where f is steep, or beside a kink or a
singularity; larger ones, where rounding hides the answer. Until one of three things is sure: the
derivative is right; it is wrong, for the quotients agree with each other and not with it, and none
of a smaller step has an error bar that reaches it; or differences cannot see it here, and then why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["agree", "disagree", "cannot tell"]
Vector = NDArray[np.float64]

# The first step, relative to x or to 1: with it curvature and rounding are far below the tolerance.
STEPS = {np.dtype(np.float64): 2.0**-10, np.dtype(np.float32): 2.0**-4}
COARSEST = 2.0**-2  # the first step for dtypes with fewer digits than these
DIVISION = 8  # of a step, from one to the next
DIVISIONS = 4, 13  # at least, and at most while curvature is what hides the answer
MULTIPLES = 8, 64  # of the first step, where rounding is what hides it
ROUNDING = 50  # units in the last place that a value of f may be off by
GROWTH = 1.5  # of a slope when the step becomes an eighth, from which on it has no limit
SETTLED = 1.2  # of a slope on one side, up to which it may still have one


@dataclass(frozen=True)
class Judgement:
    """What differences say of one number.

    Attributes:
        verdict: whether it is the derivative.
        numeric: the derivative by differences; nan if there is none.
        error: the error bar of `numeric`.
        reason: why they cannot tell, or what else there is to say.
        kink: whether the slopes on both sides differ.
    """

    verdict: Verdict
    numeric: float
    error: float
    reason: str = ""
    kink: bool = False


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
    """

    def __init__(
        self,
        values: Callable[[float], Vector],
        weights: Vector,
        x: float,
        dtype: np.dtype[Any],
        here: Vector | None = None,
        noise: Vector | float = 0.0,
    ) -> None:
        self._values = values
        self._weights = weights
        self._noise = np.abs(weights) * noise
        self.x = abs(x)
        self.dtype = dtype
        self._step = STEPS.get(dtype, COARSEST)
        self._known: dict[float, Vector] = {} if here is None else {0.0: here}

    def _at(self, t: float) -> Vector:
        if t not in self._known:
            self._known[t] = self._values(t)
        return self._known[t]

    @property
    def is_finite(self) -> bool:
        """Whether all values of f at the point itself are finite."""
        return bool(np.isfinite(self._at(0.0)).all())

    def quotients(self, tolerance: float) -> Iterator[Quotient]:
        """Quotients of one step after the other, those most likely to be exact first."""
        # A power of two, so that the step that is taken is the one that is divided by.
        first = self._step * 2.0 ** round(math.log2(max(1.0, self.x)))
        quotient = self.quotient(first)
        yield quotient
        if quotient.noise > tolerance * max(1.0, abs(quotient.value)):
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
        y, right, left, far_right, far_left = (
            self._at(t) for t in (0.0, step, -step, 2 * step, -2 * step)
        )

        def total(values: Vector) -> float:
            return float(np.dot(self._weights, values))

        # What is infinite or nan at all points, as under a mask, does not move.
        fixed = ~np.isfinite(y)
        for other in (right, left, far_right, far_left):
            fixed &= (other == y) | (np.isnan(other) & np.isnan(y))

        def less(a: Vector, b: Vector) -> Vector:
            return np.where(fixed, 0.0, a - b)

        with np.errstate(all="ignore"):
            near, far = less(right, left), less(far_right, far_left)
            moved = ~fixed & np.any([z != y for z in (right, left, far_right, far_left)], axis=0)
            eps = float(np.finfo(self.dtype).eps)
            rounding = ROUNDING * eps
            around = np.maximum(np.abs(right), np.abs(left))
            sizes = np.abs(self._weights) * around
            known = np.isfinite(sizes)
            # What does not move may have done so by half a unit in the last place.
            inner = self._noise * np.fmin(around / np.abs(y), 1.0)  # beside a pole y is far larger
            units = np.maximum(np.where(moved, rounding, eps / 2) * sizes, inner)
            noise = math.sqrt(np.sum(np.square(units), where=moved))
            unmoved = math.sqrt(np.sum(np.square(units), where=known & ~moved))
            largest = float(np.max(sizes, initial=0.0, where=known))
            largest_moved = float(np.max(sizes, initial=0.0, where=known & moved))
            narrow, wide = total(near) / (2 * step), total(far) / (4 * step)
            return Quotient(
                step=step,
                value=total(8 * near - far) / (12 * step),
                correction=abs(narrow - wide) / 3,
                noise=noise / step,
                grain=max(rounding * largest_moved, unmoved) / step,
                hidden=rounding * max(1.0, largest) / step,
                left=total(4 * less(y, left) - less(y, far_left)) / (2 * step),
                right=total(4 * less(right, y) - less(far_right, y)) / (2 * step),
            )


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
        left: the slope on the left, of second order.
        right: the slope on the right.
    """

    step: float
    value: float
    correction: float
    noise: float
    grain: float
    hidden: float
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


def judge(analytic: float, line: Line, tolerance: float, own: float = 0.0) -> Judgement:
    """Whether `analytic` is the derivative along a line.

    Args:
        analytic: the number in question.
        line: along which f is evaluated.
        tolerance: the relative difference to allow.
        own: the error bar of `analytic`: what rounding has left in it.
    """
    if not math.isfinite(line.x):
        return Judgement("cannot tell", math.nan, math.inf, "the operand itself is not finite")
    judgement = _judge(analytic, line, tolerance, own)
    if judgement.verdict == "disagree" and not line.is_finite:
        return Judgement("cannot tell", judgement.numeric, math.inf, "f is not finite here")
    return judgement


def _judge(analytic: float, line: Line, tolerance: float, own: float) -> Judgement:
    seen: list[Quotient] = []
    for now in line.quotients(tolerance):
        seen.append(now)
        if not math.isfinite(now.value):
            continue
        size = max(abs(analytic), abs(now.value)) if math.isfinite(analytic) else abs(now.value)
        distance = abs(analytic - now.value)
        before = seen[-2] if len(seen) > 1 and math.isfinite(seen[-2].value) else None
        if distance <= now.noise + own + tolerance * size:
            # A quotient across a kink is the mean of two slopes, and may be right by chance.
            straight = abs(now.bend) <= 1e-3 * size + 10 * max(now.noise, now.grain)
            straight |= before is not None and not _bends(before, now)
            if straight and now.noise <= tolerance * max(1.0, size):
                return Judgement("agree", now.value, now.error)
        elif len(seen) == 1 and distance <= now.grain <= tolerance * max(1.0, size):
            return Judgement("agree", now.value, now.grain)
        elif before is not None and _is_contradicted(analytic, seen, tolerance, own):
            if not _bends(before, now):
                return Judgement("disagree", now.value, now.error)
            allowed = now.noise + before.noise + tolerance * size
            judgement = _at_kink(analytic, before, now, allowed)
            if judgement is not None:
                return judgement
    return _undecided(analytic, seen, line, own)


def _is_contradicted(analytic: float, seen: list[Quotient], tolerance: float, own: float) -> bool:
    """Whether the last quotients agree with each other, and no bar of a finer one reaches it.

    Two quotients do, or three where rounding inside f could be larger than its values show.
    """
    now = seen[-1]
    distance = abs(analytic - now.value)
    last = seen[-3:] if distance <= now.hidden else seen[-2:]
    if _diverges(seen) or len(last) < (3 if distance <= now.hidden else 2):
        return False
    alike = all(
        abs(a.value - b.value) <= a.noise + b.noise + tolerance * min(abs(a.value), abs(b.value))
        for a, b in pairwise(last)
    )
    reached = any(abs(analytic - q.value) <= q.error + own for q in seen if q.step <= now.step)
    return alike and not reached and distance > min(q.grain for q in last)


def _diverges(seen: list[Quotient]) -> bool:
    """Whether a slope on one side, or the quotient, grows from step to step without bound."""
    if len(seen) < 3:
        return False
    series = ([abs(getattr(q, name)) for q in seen[-3:]] for name in ("value", "left", "right"))
    return any(
        math.isfinite(a) and a > 0 and b > GROWTH * a and c > max(GROWTH * b, seen[-1].hidden)
        for a, b, c in series
    )


def _tends_to(analytic: float, finite: list[Quotient], own: float) -> bool:
    """Whether the quotients come nearer from step to step, to as near as can be told."""
    distances = [abs(analytic - q.value) for q in finite]
    return (
        len(finite) > 3
        and all(b <= 0.5 * a for a, b in pairwise(distances))
        and distances[-1] <= max(finite[-1].hidden, finite[-1].error + own)
    )


def _bends(one: Quotient, other: Quotient) -> bool:
    """Whether the slopes on both sides stay apart as the step shrinks."""
    fine, coarse = sorted((one, other), key=lambda q: q.step)
    return abs(fine.bend) > max(0.5 * abs(coarse.bend), 10 * fine.noise)


def _at_kink(analytic: float, before: Quotient, now: Quotient, allowed: float) -> Judgement | None:
    """The judgement where the slopes on both sides stay apart; None if they are not clear."""
    error = allowed + abs(now.left - before.left) + abs(now.right - before.right)
    if error > 0.1 * abs(now.bend):
        return None
    low, high = sorted((now.left, now.right))
    slopes = f"a kink: slope {now.left:.6g} on the left, {now.right:.6g} on the right"
    between = low - error <= analytic <= high + error
    verdict: Verdict = "cannot tell" if between else "disagree"
    return Judgement(verdict, now.value, (high - low) / 2, slopes, kink=True)


def _undecided(analytic: float, seen: list[Quotient], line: Line, own: float) -> Judgement:
    """The judgement where no step has decided, with the reason."""
    finite = [q for q in seen if math.isfinite(q.value)]
    if not finite:
        return _one_sided(analytic, seen)
    best = min(finite, key=lambda q: q.error)
    if _diverges(seen):
        reason = "not smooth here: the slope grows without bound as the step shrinks"
        if not math.isfinite(analytic):
            reason = f"the analytic gradient is not finite, and f is {reason}"
        return Judgement("cannot tell", finite[-1].value, math.inf, reason)
    if not math.isfinite(analytic):
        return Judgement("disagree", best.value, best.error, "the analytic gradient is not finite")
    if len(finite) > 1 and _bends(*finite[-2:]):
        judgement = _at_kink(analytic, finite[-2], finite[-1], finite[-1].noise)
        return judgement or Judgement("cannot tell", best.value, math.inf, "not smooth here")
    if _tends_to(analytic, finite, own):
        return Judgement("agree", best.value, best.error)
    good = f"differences are good to {best.error:.1g}"
    if abs(analytic - best.value) <= best.error + own:
        reason = (
            f"below what {line.dtype} can resolve here: {good}, and the two do not differ by more"
        )
    elif best.correction > best.noise:
        reason = f"too steep, or too close to a kink, for a step of {best.step:.1g}: {good}"
    else:
        reason = (
            f"below what {line.dtype} can resolve here: differences should be good to "
            f"{best.error:.1g}, but those of other steps are not the same"
        )
    return Judgement("cannot tell", best.value, best.error, reason)


def _one_sided(analytic: float, seen: list[Quotient]) -> Judgement:
    """The judgement where f is finite on one side of x at most."""
    for side in ("left", "right"):
        slopes = [getattr(q, side) for q in seen if math.isfinite(getattr(q, side))]
        if len(slopes) < 2:
            continue
        before, slope = slopes[-2:]
        error = abs(slope - before)
        reason = f"f is finite on the {side} only"
        settled = abs(slope) <= SETTLED * abs(before)
        if math.isfinite(analytic) and settled and abs(analytic - slope) > 10 * error:
            return Judgement("disagree", slope, error, f"{reason}, with slope {slope:.6g}")
        return Judgement("cannot tell", slope, error, reason)
    return Judgement("cannot tell", math.nan, math.inf, "f is not finite around this point")
