"""The verdict of difference quotients on a derivative: right, wrong, or why they cannot tell.

A derivative is a limit of difference quotients, and these need no VJP that could be wrong. Where a
quotient differs from the derivative in question, other steps follow: smaller ones, where f is
steep, or beside a kink or a singularity; larger ones, where rounding hides the answer. They end as
soon as one of three things is sure: the derivative is right; it is wrong, because the quotients
agree with each other and not with it, and none of a smaller step has an error bar that reaches it;
or differences cannot see it here, and then why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.finite_differences import Line, Move, Quotient
from minigrad.diagnostics.gradient_check.problem import GradientProblem, NarrowGradients
from minigrad.diagnostics.gradient_check.tolerances import Tolerance

Verdict = Literal["agree", "disagree", "cannot tell"]


@dataclass(frozen=True)
class Judgement:
    """The answer of difference quotients about one derivative."""

    verdict: Verdict  # whether it is right
    numeric: float  # the derivative by differences; nan if there is none
    error: float  # the error bar of `numeric`
    reason: str = ""  # why they cannot tell, or what else there is to say
    kink: bool = False  # whether the slopes on both sides differ


def judge(analytic: float, line: Line, allowed: Tolerance) -> Judgement:
    """Decide whether `analytic` is the derivative along a line."""
    if not math.isfinite(line.x):
        return Judgement("cannot tell", math.nan, math.inf, "the operand itself is not finite")
    judgement = _by_quotients(analytic, line, allowed)
    if judgement.verdict == "disagree" and not line.is_finite:
        judgement = Judgement("cannot tell", judgement.numeric, math.inf, "f is not finite here")
    if judgement.verdict == "cannot tell" and line.failure:
        judgement = replace(judgement, reason=f"{judgement.reason}; {line.failure}")
    return judgement


def judge_narrow(
    value: float,
    move: Move,
    exact: Judgement,
    problem: GradientProblem,
    narrow: NarrowGradients,
) -> Judgement:
    """Decide whether a derivative in fewer digits agrees with what was found in float64.

    A right VJP in float32 is off by rounding. It is called right within a relative tolerance, or
    within what other roundings change it by. It is called wrong only if the error is larger than
    what rounding can leave in a small difference of large terms, and if f is the same function in
    this dtype.
    """
    info, numeric, dtype = np.finfo(narrow.dtype), exact.numeric, narrow.dtype
    if exact.verdict == "cannot tell" or exact.kink:
        return exact
    if not math.isfinite(value):
        if abs(numeric) > float(info.max) and value == math.copysign(math.inf, numeric):
            return replace(exact, verdict="agree", reason="")
        reason = (
            f"not finite in {dtype}, though it is in float64: does a number on the way "
            f"overflow, or become 0?"
        )
        return replace(exact, verdict="cannot tell", reason=reason)
    eps, spread = float(info.eps), move.spread(narrow.spread.each)
    distance, size = abs(value - numeric), max(abs(value), abs(numeric))
    right = max(
        tolerances.TOLERANCE_ROOTS * math.sqrt(eps) * size,
        tolerances.NARROW_RIGHT_SPREADS * spread,
        tolerances.NARROW_RIGHT_SHARE * narrow.largest,
        tolerances.NARROW_RIGHT_SPREADS * float(info.smallest_normal),
    )
    if distance <= exact.error + right:
        return replace(exact, verdict="agree", reason="")
    small = tolerances.NARROW_WRONG_EPS * eps * narrow.largest
    wrong = max(
        small + tolerances.NARROW_WRONG_SPREADS * spread,
        tolerances.UNSEEN_EPS * eps * narrow.on_the_way,
    )
    rough = exact.error > tolerances.NARROW_DIFFERENCES * size
    if distance <= exact.error + wrong or rough:
        reason = f"below what {dtype} can resolve"
        return replace(exact, verdict="cannot tell", reason=reason)
    given = problem.function.operands
    line = Line(problem, move, [*given, *problem.operands[len(given) :]], dtype)
    allowed = Tolerance(tolerances.relative_tolerance(dtype, problem.tolerance))
    if judge(value, line, allowed).verdict == "agree":
        reason = f"in {dtype} f is another function than in float64"
        return replace(exact, verdict="cannot tell", reason=reason)
    return replace(exact, verdict="disagree", reason="")


def _by_quotients(analytic: float, line: Line, allowed: Tolerance) -> Judgement:
    """Take quotients of one step after the other, until they decide."""
    seen: list[Quotient] = []
    for now in line.quotients(allowed):
        seen.append(now)
        if not math.isfinite(now.value):
            continue
        size = max(abs(analytic), abs(now.value)) if math.isfinite(analytic) else abs(now.value)
        distance = abs(analytic - now.value)
        before = seen[-2] if len(seen) > 1 and math.isfinite(seen[-2].value) else None
        if distance <= now.noise + allowed.rounding + allowed.relative * size:
            rounding = tolerances.STRAIGHT_NOISE * max(now.noise, now.grain)
            straight = abs(now.bend) <= tolerances.STRAIGHT * size + rounding
            straight |= before is not None and not _bends(before, now)
            if straight and now.noise <= allowed.noise(size):
                return Judgement("agree", now.value, now.error)
        elif len(seen) == 1 and distance <= now.grain and now.grain <= allowed.noise(size):
            return Judgement("agree", now.value, now.grain)
        elif before is not None and _is_contradicted(analytic, seen, allowed):
            if not _bends(before, now):
                return Judgement("disagree", now.value, now.error)
            error = now.noise + before.noise + allowed.relative * size
            judgement = _at_kink(analytic, before, now, error)
            if judgement is not None:
                return judgement
    return _undecided(analytic, seen, line, allowed)


def _is_contradicted(analytic: float, seen: list[Quotient], allowed: Tolerance) -> bool:
    """Return whether the last quotients agree, and no error bar of a finer one reaches `analytic`.

    Two quotients must agree, or three where rounding inside f could be larger than its values show.
    And there it is no answer that f does not move at all.
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
    """Judge where the slopes on both sides stay apart; return None if they are not clear."""
    error += abs(now.left - before.left) + abs(now.right - before.right)
    if error > tolerances.KINK_ERROR * abs(now.bend):
        return None
    low, high = sorted((now.left, now.right))
    slopes = f"a kink: slope {now.left:.6g} on the left, {now.right:.6g} on the right"
    between = low - error <= analytic <= high + error
    verdict: Verdict = "cannot tell" if between else "disagree"
    return Judgement(verdict, now.value, (high - low) / 2, slopes, kink=True)


def _undecided(analytic: float, seen: list[Quotient], line: Line, allowed: Tolerance) -> Judgement:
    """Judge where no step has decided, and say why."""
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
    distances = [abs(analytic - q.value) for q in finite]
    if (  # the quotients come nearer from step to step, to as near as can be seen
        len(finite) > tolerances.APPROACH_QUOTIENTS
        and all(b <= tolerances.APPROACH * a for a, b in pairwise(distances))
        and distances[-1] <= max(finite[-1].hidden, finite[-1].error + allowed.rounding)
    ):
        return Judgement("agree", best.value, best.error)
    distance, good = abs(analytic - best.value), f"differences are good to {best.error:.1g}"
    unseen = max(allowed.unseen, min(max(q.grain, q.unseen) for q in finite))
    if all(q.value == 0 for q in finite):
        reason = f"f does not move: what it changes by is below its last digit in {line.dtype}"
    elif distance <= best.error + allowed.rounding:
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
    """Judge where f is finite on one side of x at most."""
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
