"""The comparison: each element of each operand is moved, and its derivative is judged by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, isnan, nan

import numpy as np

from minigrad.diagnostics.gradcheck import tolerances
from minigrad.diagnostics.gradcheck.checked_function import flat
from minigrad.diagnostics.gradcheck.finite_differences import Line, Move
from minigrad.diagnostics.gradcheck.gradient_paths import elsewhere
from minigrad.diagnostics.gradcheck.problem import GradientProblem
from minigrad.diagnostics.gradcheck.report import (
    GradcheckReport,
    GradientComparison,
    GradientEntry,
)
from minigrad.diagnostics.gradcheck.tolerances import (
    RANDOM_DIRECTIONS,
    Tolerance,
    relative_tolerance,
)
from minigrad.diagnostics.gradcheck.verdict import Judgement, judge, judge_narrow
from minigrad.progress import progress_bar

DOUBT = {"agree": 0, "cannot tell": 1, "disagree": 2}


def compare(
    problem: GradientProblem,
    report: GradcheckReport,
    samples: int | None,
    rng: np.random.Generator,
    progress: bool,
) -> GradcheckReport:
    """Compare the gradients of a problem with differences, and add what is found to a report.

    Args:
        problem: whose gradients to compare.
        report: of what came before.
        samples: how many elements of an operand to compare at most.
        rng: where samples are drawn from.
        progress: show a progress bar if it takes long.
    """
    comparing = _Comparing(problem, rng)
    sizes = [x.size for x in problem.operands]
    chosen: list[Sequence[int]] = [
        range(size)
        if samples is None or size <= samples
        else [int(n) for n in np.sort(rng.choice(size, samples, replace=False))]
        for size in sizes
    ]
    total, sampled = sum(map(len, chosen)), []
    what = f"gradcheck, order {problem.order}"
    with progress_bar(what=what, unit="entry", shown=progress, total=total) as bar:
        for operand, picks in enumerate(chosen):
            for pick in picks:
                comparing.element(operand, pick)
                bar.update()
            if len(picks) < sizes[operand]:
                sampled.append(len(picks))
                comparing.random_directions(operand)
    if problem.order == 1:
        comparing.ties()
        comparing.another_point()
    flaws = [
        GradientEntry(1, name, None, nan, nan, reason=reason) for name, reason in problem.flaws
    ]
    wrong = [*report.wrong, *flaws, *comparing.wrong]
    return replace(
        report,
        compared=report.compared + total,
        total=report.total + sum(sizes),
        tolerance=max(report.tolerance, problem.base.relative),
        others=max(report.others, problem.others),
        wrong=sorted(wrong, key=lambda entry: -entry.relative_difference),
        undecided=[*report.undecided, *comparing.undecided],
        comparisons=[*report.comparisons, *comparing.comparisons.values()],
        directions=RANDOM_DIRECTIONS if sampled else report.directions,
        fewest=min([report.fewest, *sampled]),
    )


class _Comparing:
    """A comparison: it moves operands, judges the gradients, and notes what does not agree."""

    def __init__(self, problem: GradientProblem, rng: np.random.Generator) -> None:
        self.problem = problem
        self.wrong: list[GradientEntry] = []
        self.undecided: list[GradientEntry] = []
        self.comparisons: dict[tuple[int, str], GradientComparison] = {}
        self._rng = rng
        self._kinks = False
        self._sure = 0  # entries that are wrong, and not at a kink
        computed = {str(problem.dtype): problem.paths["grad"]}
        if problem.narrow is not None:
            computed[str(problem.narrow.dtype)] = problem.narrow.gradients
        for i, name in enumerate(problem.names):
            numeric = np.full(problem.operands[i].shape, np.nan)
            for dtype, gradients in computed.items():
                self.comparisons[i, dtype] = GradientComparison(
                    problem.order, name, dtype, gradients[i], numeric, np.full_like(numeric, np.nan)
                )

    # ----------------------------------------------------------------------------------------------
    # Moves
    # ----------------------------------------------------------------------------------------------

    def element(self, operand: int, position: int) -> None:
        """Compare one element of one operand."""
        shape = self.problem.operands[operand].shape
        index = tuple(int(n) for n in np.unravel_index(position, shape))
        move = Move(self.problem.names[operand], {operand: np.ones(())}, index)
        for dtype, judgements in self._compare(move).items():
            compared = self.comparisons[operand, dtype]
            compared.numeric[index] = judgements[0].numeric
            compared.doubt[index] = max(DOUBT[each.verdict] for each in judgements)

    def random_directions(self, operand: int) -> None:
        """Compare the slope in random directions of one operand."""
        name = f"{self.problem.names[operand]} in a random direction"
        for _ in range(RANDOM_DIRECTIONS):
            direction = self._rng.standard_normal(self.problem.operands[operand].shape)
            self._compare(Move(name, {operand: direction / np.abs(direction).max()}))

    def ties(self) -> None:
        """Compare slopes that ties leave smooth, if some operand is at a kink.

        The maximum of two equal numbers has a kink in each of them, but none when both are moved
        alike; and then the shares that it gives to each must add up.
        """
        if not self._kinks:
            return
        ones = {i: np.ones(x.shape) for i, x in enumerate(self.problem.operands)}
        for i, direction in ones.items():
            name = f"{self.problem.names[i]}, all elements alike"
            self._compare(Move(name, {i: direction}), ties=True)
        if len(ones) > 1:
            self._compare(Move("all operands alike", ones), ties=True)

    def another_point(self) -> None:
        """Compare a slope at another point, which a VJP may not know of, if all is right here."""
        problem = self.problem
        if self.wrong or problem.flaws or self._kinks:
            return
        operands = elsewhere(problem.operands)
        try:
            gradients = problem.function.gradients(operands, problem.cotangents)
        except Exception:  # f may not be defined there
            return
        directions = [self._rng.choice([-1.0, 1.0], x.shape) for x in operands]
        move = Move("another point, in a random direction", dict(enumerate(directions)))
        analytic = float(np.dot(flat(gradients), flat(directions)))
        found = self._judge(analytic, Line(problem, move, operands), problem.base)
        if found.verdict == "disagree" and not found.kink:
            self._note(found, move, analytic, str(problem.dtype))

    # ----------------------------------------------------------------------------------------------
    # Judgements
    # ----------------------------------------------------------------------------------------------

    def _compare(self, move: Move, ties: bool = False) -> dict[str, list[Judgement]]:
        """Compare the slope along a move: the plain one, and by each path that gives another one.

        With `ties` only what is surely wrong is noted, and no kink. Return the judgements for each
        dtype in which gradients were computed.
        """
        problem, dtype = self.problem, str(self.problem.dtype)
        line = Line(problem, move)
        allowed = problem.allowed(move.spread(problem.spread.each), ties)
        plain = move.slope(problem.paths["grad"])
        exact = self._judge(plain, line, allowed)
        judged = {dtype: [exact]}
        for path, gradients in problem.paths.items():
            value, judgement = move.slope(gradients), exact
            if path != "grad":
                close = max(tolerances.SAME_PATH * abs(plain), allowed.rounding)
                if abs(value - plain) <= close or value == plain or (isnan(value) and isnan(plain)):
                    continue
                judgement = self._judge(value, line, allowed)
                reason = "; ".join(filter(None, (f"by {path}", judgement.reason)))
                judgement = replace(judgement, reason=reason)
                judged[dtype].append(judgement)
            if not ties or (judgement.verdict == "disagree" and not judgement.kink):
                self._note(judgement, move, value, dtype)
        if problem.narrow is not None and (move.index is not None or exact.verdict == "agree"):
            value, judgement = self._judge_narrow(move, exact)
            judged[str(problem.narrow.dtype)] = [judgement]
            if judgement is not exact:
                self._note(judgement, move, value, str(problem.narrow.dtype))
        return judged

    def _judge(self, analytic: float, line: Line, allowed: Tolerance) -> Judgement:
        """Judge a slope, but call none wrong that is a limit of slopes near a kink."""
        judgement = judge(analytic, line, allowed)
        self._kinks |= judgement.kink
        if judgement.verdict != "disagree":
            return judgement
        few = self.problem.order == 1 and self._sure < tolerances.ENOUGH_WRONG
        if (judgement.kink or few) and self._is_a_limit(analytic, line):
            self._kinks = True
            reason = judgement.reason or "a kink: slopes at points near this one are not the same"
            return replace(judgement, verdict="cannot tell", kink=True, reason=reason)
        self._sure += 1
        return judgement

    def _is_a_limit(self, analytic: float, line: Line) -> bool:
        """Return whether a slope at a kink is between slopes at points near it (Clarke, 1975).

        Where three numbers tie, moving the middle one shows the slopes of the first and the last of
        them only, and a sort may yet have given it that of the middle. And where two kinks meet,
        the slopes on both sides of them may be the same.
        """
        slopes = [line.slope_nearby(self._rng) for _ in range(tolerances.NEIGHBOURS)]
        slopes = [slope for slope in slopes if isfinite(slope)]
        if not slopes:
            return True
        low, high, size = min(slopes), max(slopes), max(map(abs, slopes))
        margin = tolerances.NEIGHBOUR_MARGIN * size
        return high - low > tolerances.ALIKE * size and low - margin <= analytic <= high + margin

    def _judge_narrow(self, move: Move, exact: Judgement) -> tuple[float, Judgement]:
        """Return the slope in the dtype of the inputs, and its judgement."""
        problem, narrow = self.problem, self.problem.narrow
        assert narrow is not None
        value, spread = move.slope(narrow.gradients), move.spread(narrow.spread.each)
        found = judge_narrow(value, spread, exact, narrow)
        if found.verdict == "disagree":  # unless f itself is another function in this dtype
            given = problem.function.operands
            line = Line(problem, move, [*given, *problem.operands[len(given) :]], narrow.dtype)
            allowed = Tolerance(relative_tolerance(narrow.dtype, problem.tolerance))
            if judge(value, line, allowed).verdict == "agree":
                reason = f"in {narrow.dtype} f is another function than in float64"
                found = replace(found, verdict="cannot tell", reason=reason)
        return value, found

    def _note(self, judgement: Judgement, move: Move, analytic: float, dtype: str) -> None:
        """Add a derivative to the entries that are wrong or undecided, unless it agrees."""
        if judgement.verdict != "agree":
            numeric, error, reason = judgement.numeric, judgement.error, judgement.reason
            order, name, index = self.problem.order, move.name, move.index
            entry = GradientEntry(order, name, index, analytic, numeric, error, dtype, reason)
            (self.wrong if judgement.verdict == "disagree" else self.undecided).append(entry)
