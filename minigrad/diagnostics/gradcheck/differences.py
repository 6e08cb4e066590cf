"""What difference quotients say of a derivative: a number, an error bar, or why there is none.

A derivative is a limit of difference quotients, and these need no rule that could be wrong. With
D(h) = (f(x + h) - f(x - h)) / 2h, Richardson's extrapolation of two steps,

    f'(x) ~ (4 D(h) - D(2h)) / 3,

is off by an amount of order h^4 from the curvature, for which the correction it makes to D(h) is an
upper bound, and of order eps / h from rounding. A quotient that differs from the derivative in
question is taken again with other steps: smaller ones, beside a kink or a singularity; larger ones,
where rounding hides the answer. Until one of three things is sure: the derivative is right; it is
wrong, for the quotients agree with each other and not with it; or f has no derivative here that
differences could see, and then why.
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
ROUNDING = 50  # units in the last place that a value of f may be off by
GROWTH = 1.5  # of a slope when the step becomes an eighth, from which on it has no limit


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
    """

    def __init__(
        self, values: Callable[[float], Vector], weights: Vector, x: float, dtype: np.dtype[Any]
    ) -> None:
        self._values = values
        self._weights = weights
        self.x = abs(x)
        self.dtype = dtype
        self._step = STEPS.get(dtype, 2.0**-2)
        self._known: dict[float, Vector] = {}

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
            steps = [8 * first, 64 * first]
        else:
            steps = [first / 8**n for n in range(1, 5)]
            if 1e-100 < self.x < 1:  # beside a singularity at 0
                near = self._step * 2.0 ** math.floor(math.log2(self.x))
                steps += [step for step in (near / 4, near / 32) if step < steps[-1]]
        yield from map(self.quotient, steps)

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
            moved = (near != 0) | (far != 0)
            rounding = ROUNDING * float(np.finfo(self.dtype).eps)
            sizes = np.abs(self._weights * np.maximum(np.abs(right), np.abs(left)))
            noise = rounding * float(np.sum(sizes, where=moved)) / step
            largest = float(np.max(sizes, initial=0.0, where=np.isfinite(sizes)))
            narrow, wide = total(near) / (2 * step), total(far) / (4 * step)
            return Quotient(
                step=step,
                value=total(8 * near - far) / (12 * step),
                correction=abs(narrow - wide) / 3,
                noise=noise,
                grain=rounding * largest / step,
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
        grain: the same where f has cancelled terms of the size of its largest value.
        hidden: the same where they were at least of size 1.
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


def judge(analytic: float, line: Line, tolerance: float, floor: float = 0.0) -> Judgement:
    """Whether `analytic` is the derivative along a line.

    Args:
        analytic: the number in question.
        line: along which f is evaluated.
        tolerance: the relative difference to allow.
        floor: the absolute difference below which it is not called wrong: what rounding inside f
            may have left of 0.
    """
    if not math.isfinite(line.x):
        return Judgement("cannot tell", math.nan, math.inf, "the operand itself is not finite")
    judgement = _judge(analytic, line, tolerance, floor)
    if judgement.verdict == "disagree" and not line.is_finite:
        return Judgement("cannot tell", judgement.numeric, math.inf, "f is not finite here")
    return judgement


def _judge(analytic: float, line: Line, tolerance: float, floor: float) -> Judgement:
    seen: list[Quotient] = []
    for now in line.quotients(tolerance):
        seen.append(now)
        if not math.isfinite(now.value):
            continue
        size = max(abs(analytic), abs(now.value)) if math.isfinite(analytic) else abs(now.value)
        distance = abs(analytic - now.value)
        error = now.noise + now.correction
        before = seen[-2] if len(seen) > 1 and math.isfinite(seen[-2].value) else None
        if distance <= now.noise + tolerance * size:
            straight = abs(now.bend) <= 1e-3 * size + 10 * max(now.noise, now.grain)
            if before is not None and not straight and not _bends(before, now):
                straight = True
            if straight and now.noise <= tolerance * max(1.0, size):
                return Judgement("agree", now.value, error)
            # A quotient across a kink is the mean of two slopes, and may be right by chance.
            continue
        if len(seen) == 1 and distance <= now.grain <= tolerance * max(1.0, size):
            return Judgement("agree", now.value, now.grain)
        if before is None:
            continue
        if _diverges(seen) or distance <= max(floor, now.hidden):
            continue
        allowed = now.noise + before.noise + tolerance * size
        if abs(now.value - before.value) > allowed or distance <= error:
            continue
        if not _bends(before, now):
            return Judgement("disagree", now.value, error)
        judgement = _at_kink(analytic, before, now, allowed)
        if judgement is not None:
            return judgement
    return _undecided(analytic, seen, line, tolerance, floor)


def _diverges(seen: list[Quotient]) -> bool:
    """Whether a slope on one side, or the quotient, grows from step to step without bound."""
    if len(seen) < 3:
        return False
    series = ([abs(getattr(q, name)) for q in seen[-3:]] for name in ("value", "left", "right"))
    return any(
        math.isfinite(a) and a > 0 and b > GROWTH * a and c > max(GROWTH * b, seen[-1].hidden)
        for a, b, c in series
    )


def _tends_to(analytic: float, finite: list[Quotient], floor: float) -> bool:
    """Whether the quotients come nearer from step to step, to as near as can be told."""
    last = finite[-1]
    distances = [abs(analytic - q.value) for q in finite]
    return (
        len(finite) > 3
        and all(b <= 0.5 * a for a, b in pairwise(distances))
        and distances[-1] <= max(floor, last.hidden, last.noise + last.correction)
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


def _undecided(
    analytic: float, seen: list[Quotient], line: Line, tolerance: float, floor: float
) -> Judgement:
    """The judgement where no step has decided, with the reason."""
    finite = [q for q in seen if math.isfinite(q.value)]
    if not finite:
        return _one_sided(analytic, seen, tolerance)
    best = min(finite, key=lambda q: q.noise + q.correction)
    error = best.noise + best.correction
    if _diverges(seen):
        reason = "not smooth here: the slope grows without bound as the step shrinks"
        return Judgement("cannot tell", finite[-1].value, math.inf, reason)
    if not math.isfinite(analytic):
        return Judgement("disagree", best.value, error, "the analytic gradient is not finite")
    if len(finite) > 1 and _bends(*finite[-2:]):
        judgement = _at_kink(analytic, finite[-2], finite[-1], finite[-1].noise)
        return judgement or Judgement("cannot tell", best.value, math.inf, "not smooth here")
    if _tends_to(analytic, finite, floor):
        return Judgement("agree", best.value, error)
    if abs(analytic - best.value) <= floor:
        reason = "both are so small that they may be what rounding inside f has left of 0"
        return Judgement("cannot tell", best.value, error, reason)
    reason = f"below what {line.dtype} can resolve here: differences are good to {error:.1g}"
    return Judgement("cannot tell", best.value, error, reason)


def _one_sided(analytic: float, seen: list[Quotient], tolerance: float) -> Judgement:
    """The judgement where f is finite on one side of x at most."""
    for side in ("left", "right"):
        slopes = [(getattr(q, side), q.noise) for q in seen if math.isfinite(getattr(q, side))]
        if len(slopes) < 2:
            continue
        (before, _), (slope, noise) = slopes[-2:]
        error = abs(slope - before) + (noise if math.isfinite(noise) else 0.0)
        reason = f"f is finite on the {side} only"
        if math.isfinite(analytic) and abs(analytic - slope) > 10 * error + tolerance * abs(slope):
            return Judgement("disagree", slope, error, f"{reason}, with slope {slope:.6g}")
        return Judgement("cannot tell", slope, error, reason)
    return Judgement("cannot tell", math.nan, math.inf, "f is not finite around this point")
