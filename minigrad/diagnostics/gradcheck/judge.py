"""What difference quotients say of a derivative: right, wrong, or why they cannot tell.

A derivative is a limit of difference quotients, and these need no rule that could be wrong. A
quotient that differs from the derivative in question is taken again with other steps: smaller ones,
where f is steep, or beside a kink or a singularity; larger ones, where rounding hides the answer.
Until one of three things is sure: the derivative is right; it is wrong, for the quotients agree
with each other and not with it, and none of a smaller step has an error bar that reaches it; or
differences cannot see it here, and then why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from minigrad.diagnostics.gradcheck.quotients import Line, Quotient

Verdict = Literal["agree", "disagree", "cannot tell"]

GROWTH = 1.5  # of a slope when the step becomes an eighth, from which on it has no limit
SETTLED = 0.5  # of the last change of a slope on one side, if it has a limit


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


@dataclass(frozen=True)
class Allowance:
    """What a right number may be off by.

    Attributes:
        tolerance: relative to the number.
        scale: of the numbers that rules give, but 1 at most: noise of differences is compared with
            the tolerance of it.
        own: the error bar of the number in question: what rounding has left in it.
        doubt: what rounding might have left in it where it could not be watched. A number that is
            off by less is not called wrong.
    """

    tolerance: float
    scale: float = 1.0
    own: float = 0.0
    doubt: float = 0.0

    def is_fine(self, noise: float, size: float) -> bool:
        """Whether noise is small enough to say that a number of this size is right."""
        return noise <= self.tolerance * max(self.scale, size)


def judge(analytic: float, line: Line, allowed: Allowance) -> Judgement:
    """Whether `analytic` is the derivative along a line."""
    if not math.isfinite(line.x):
        return Judgement("cannot tell", math.nan, math.inf, "the operand itself is not finite")
    judgement = _judge(analytic, line, allowed)
    if judgement.verdict == "disagree" and not line.is_finite:
        judgement = Judgement("cannot tell", judgement.numeric, math.inf, "f is not finite here")
    if judgement.verdict == "cannot tell" and line.failure:
        reason = f"{judgement.reason}; {line.failure}"
        judgement = replace(judgement, reason=reason)
    return judgement


def _judge(analytic: float, line: Line, allowed: Allowance) -> Judgement:
    seen: list[Quotient] = []
    for now in line.quotients(allowed.tolerance, allowed.scale):
        seen.append(now)
        if not math.isfinite(now.value):
            continue
        size = max(abs(analytic), abs(now.value)) if math.isfinite(analytic) else abs(now.value)
        distance = abs(analytic - now.value)
        before = seen[-2] if len(seen) > 1 and math.isfinite(seen[-2].value) else None
        if distance <= now.noise + allowed.own + allowed.tolerance * size:
            # A quotient across a kink is the mean of two slopes, and may be right by chance.
            straight = abs(now.bend) <= 1e-3 * size + 10 * max(now.noise, now.grain)
            straight |= before is not None and not _bends(before, now)
            if straight and allowed.is_fine(now.noise, size):
                return Judgement("agree", now.value, now.error)
        elif len(seen) == 1 and distance <= now.grain and allowed.is_fine(now.grain, size):
            return Judgement("agree", now.value, now.grain)
        elif before is not None and _is_contradicted(analytic, seen, allowed):
            if not _bends(before, now):
                return Judgement("disagree", now.value, now.error)
            error = now.noise + before.noise + allowed.tolerance * size
            judgement = _at_kink(analytic, before, now, error)
            if judgement is not None:
                return judgement
    return _undecided(analytic, seen, line, allowed)


def _is_contradicted(analytic: float, seen: list[Quotient], allowed: Allowance) -> bool:
    """Whether the last quotients agree with each other, and no bar of a finer one reaches it.

    Two quotients do, or three where rounding inside f could be larger than its values show. And
    there it is no answer that f does not move at all.
    """
    now = seen[-1]
    distance = abs(analytic - now.value)
    hidden = distance <= now.hidden
    last = seen[-3:] if hidden else seen[-2:]
    if distance <= allowed.doubt or _diverges(seen) or len(last) < (3 if hidden else 2):
        return False
    if hidden and all(q.value == 0 for q in last):
        return False
    alike = all(
        abs(a.value - b.value)
        <= a.noise + b.noise + allowed.tolerance * min(abs(a.value), abs(b.value))
        for a, b in pairwise(last)
    )
    reach = allowed.own
    reached = any(abs(analytic - q.value) <= q.error + reach for q in seen if q.step <= now.step)
    unseen = max(min(q.grain for q in last), min(q.doubt for q in last))
    return alike and not reached and distance > unseen


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


def _at_kink(analytic: float, before: Quotient, now: Quotient, error: float) -> Judgement | None:
    """The judgement where the slopes on both sides stay apart; None if they are not clear."""
    error += abs(now.left - before.left) + abs(now.right - before.right)
    if error > 0.1 * abs(now.bend):
        return None
    low, high = sorted((now.left, now.right))
    slopes = f"a kink: slope {now.left:.6g} on the left, {now.right:.6g} on the right"
    between = low - error <= analytic <= high + error
    verdict: Verdict = "cannot tell" if between else "disagree"
    return Judgement(verdict, now.value, (high - low) / 2, slopes, kink=True)


def _undecided(analytic: float, seen: list[Quotient], line: Line, allowed: Allowance) -> Judgement:
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
    unresolved = f"below what {line.dtype} can resolve here"
    if len(finite) > 1 and _bends(*finite[-2:]):
        judgement = _at_kink(analytic, finite[-2], finite[-1], finite[-1].noise)
        rough = abs(finite[-1].bend) > finite[-1].hidden
        reason = "not smooth here" if rough else unresolved
        return judgement or Judgement("cannot tell", best.value, math.inf, reason)
    if _tends_to(analytic, finite, allowed.own):
        return Judgement("agree", best.value, best.error)
    distance, good = abs(analytic - best.value), f"differences are good to {best.error:.1g}"
    unseen = max(allowed.doubt, min(max(q.grain, q.doubt) for q in finite))
    if all(q.value == 0 for q in finite):
        reason = f"f does not move: what it changes by is below its last digit in {line.dtype}"
    elif distance <= best.error + allowed.own:
        reason = f"{unresolved}: {good}, and the two do not differ by more"
    elif distance <= unseen:
        reason = f"{unresolved}: the last digits of larger numbers may hide up to {unseen:.1g}"
    elif best.correction > best.noise:
        reason = f"too steep, or too close to a kink, for a step of {best.step:.1g}: {good}"
    else:
        reason = (
            f"{unresolved}: differences should be good to {best.error:.1g}, but those of other "
            f"steps are not the same"
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
        # A limit is approached: of x log(x) at 0 the slopes go on by as much each time.
        settled = len(slopes) > 2 and error <= SETTLED * abs(before - slopes[-3])
        reason = f"f is finite on the {side} only"
        if math.isfinite(analytic) and settled and abs(analytic - slope) > 10 * error:
            return Judgement("disagree", slope, error, f"{reason}, with slope {slope:.6g}")
        return Judgement("cannot tell", slope, error, reason)
    return Judgement("cannot tell", math.nan, math.inf, "f is not finite around this point")
