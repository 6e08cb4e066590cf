"""Entry by entry: each element of each operand is moved, and the gradients are judged by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from minigrad.diagnostics.gradcheck.bars import Bars, tolerance_in
from minigrad.diagnostics.gradcheck.judge import Allowance, Judgement, judge
from minigrad.diagnostics.gradcheck.moves import Move, along, nearby, of_element
from minigrad.diagnostics.gradcheck.problem import Problem
from minigrad.diagnostics.gradcheck.quotients import Line
from minigrad.diagnostics.gradcheck.report import Comparison, Entry, GradcheckReport
from minigrad.diagnostics.gradcheck.roundings import Gradients
from minigrad.diagnostics.gradcheck.subject import FLOAT64, Array, Vector, flat, largest_of
from minigrad.diagnostics.gradcheck.ways import elsewhere
from minigrad.progress import progress_bar

DIRECTIONS = 8  # in which a sampled operand is moved as a whole
NEIGHBOURS = 24  # of a kink, at which slopes are taken: each order of three ties, most likely
ALIKE = 0.05  # slopes that differ by this share at most are of no kink
ENOUGH = 8  # entries that were looked at for a kink, and are wrong: it is not the kinks
# How far these points are, and the step there, relative to x or 1.
NEARBY = {FLOAT64: (2.0**-17, 2.0**-26), np.dtype(np.float32): (2.0**-7, 2.0**-11)}

DOUBT = {"agree": 0, "cannot tell": 1, "disagree": 2}


def compare(
    problem: Problem,
    report: GradcheckReport,
    samples: int | None,
    rng: np.random.Generator,
    progress: bool,
) -> GradcheckReport:
    """The report, with what is found in this problem.

    Args:
        problem: whose gradients to compare.
        report: of what came before.
        samples: how many elements of an operand to compare at most.
        rng: where samples are drawn from.
        progress: show a progress bar if it takes long.
    """
    comparing = _Comparing(problem, rng)
    sizes = [problem.operands[i].size for i in problem.moved]
    chosen = [_chosen(size, samples, rng) for size in sizes]
    sampled = [len(picks) for picks, size in zip(chosen, sizes, strict=True) if len(picks) < size]
    what = f"gradcheck, order {problem.order}"
    total = sum(map(len, chosen))
    with progress_bar(what=what, unit="entry", shown=progress, total=total) as bar:
        for at, picks in enumerate(chosen):
            for pick in picks:
                comparing.entry(at, int(pick))
                bar.update()
            if len(picks) < sizes[at]:
                comparing.directions(at)
    comparing.ties()
    comparing.elsewhere()
    wrong = [*report.wrong, *problem.flaws, *comparing.wrong]
    return replace(
        report,
        compared=report.compared + sum(map(len, chosen)),
        total=report.total + sum(sizes),
        tolerance=max(report.tolerance, tolerance_in(problem.dtype, problem.tolerance)),
        others=max(report.others, problem.others),
        wrong=sorted(wrong, key=lambda entry: -entry.relative_difference),
        undecided=[*report.undecided, *comparing.undecided],
        comparisons=[*report.comparisons, *comparing.comparisons()],
        directions=DIRECTIONS if sampled else report.directions,
        fewest=min([report.fewest, *sampled]),
    )


def _slope(gradients: Gradients, directions: Mapping[int, Array]) -> float:
    """The slope in a direction of some operands."""
    return float(sum(np.sum(gradients[at] * d) for at, d in directions.items()))


def _chosen(size: int, samples: int | None, rng: np.random.Generator) -> Sequence[int]:
    """The places of the elements to compare."""
    if samples is None or size <= samples:
        return range(size)
    return [int(n) for n in np.sort(rng.choice(size, samples, replace=False))]


class _Comparing:
    """Moves operands, asks the judge, and notes what does not agree."""

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self.problem = problem
        self.wrong: list[Entry] = []
        self.undecided: list[Entry] = []
        self._rng = rng
        self._kinks = False
        self._sure = 0  # entries that are wrong, and not at a kink
        self._bars = Bars(problem, rng)
        self._gradients = {str(problem.dtype): problem.ways["grad"]}
        if problem.narrow is not None:
            self._gradients[str(problem.narrow.dtype)] = problem.narrow.gradients
        shapes = [problem.operands[i].shape for i in problem.moved]
        self._numeric = [np.full(shape, np.nan) for shape in shapes]
        self._doubt = {
            dtype: [np.full(shape, np.nan) for shape in shapes] for dtype in self._gradients
        }

    # ----------------------------------------------------------------------------------------------
    # Moves
    # ----------------------------------------------------------------------------------------------

    def entry(self, at: int, place: int) -> None:
        """Compare one element of one operand."""
        problem, i = self.problem, self.problem.moved[at]
        index = tuple(int(n) for n in np.unravel_index(place, problem.operands[i].shape))

        name = f"{problem.names[i]}{list(index) or ''}"
        move = of_element(i, index)
        line = self._line(move, name, float(problem.operands[i][index]), problem.operands)
        analytic = {way: float(g[at][index]) for way, g in problem.ways.items()}
        allowed = self._bars.of(float(problem.spread.each[at][index]))
        judgement = self._judged(analytic, line, move, allowed)
        for way, found in judgement.items():
            self._note(found, i, index, analytic[way], str(problem.dtype))
        plain = judgement["grad"]
        self._numeric[at][index] = plain.numeric
        worst = max(judgement.values(), key=lambda j: DOUBT[j.verdict])
        self._doubt[str(problem.dtype)][at][index] = DOUBT[worst.verdict]
        if problem.narrow is not None:
            value, spread = (
                float(x[at][index]) for x in (problem.narrow.gradients, problem.narrow.spread.each)
            )
            low = self._narrow(value, spread, plain, move, line.x)
            self._doubt[str(problem.narrow.dtype)][at][index] = DOUBT[low.verdict]
            if low is not plain:
                self._note(low, i, index, value, str(problem.narrow.dtype))

    def directions(self, at: int) -> None:
        """Compare the slope in random directions of one operand."""
        name = f"{self.problem.names[self.problem.moved[at]]} in a random direction"
        for _ in range(DIRECTIONS):
            direction = self._rng.standard_normal(self._numeric[at].shape)
            self._direction({at: direction / np.abs(direction).max()}, name)

    def ties(self) -> None:
        """Where some operand is at a kink, compare slopes that ties leave smooth.

        The maximum of two equal numbers has a kink in each of them, but none when both are moved
        alike; and then the shares that it gives to each must add up.
        """
        if not self._kinks or self.problem.order != 1:
            return
        ones = [np.ones(x.shape) for x in self._numeric]
        for at, direction in enumerate(ones):
            name = f"{self.problem.names[self.problem.moved[at]]}, all elements alike"
            self._direction({at: direction}, name, at_kinks=False)
        if len(ones) > 1:
            self._direction(dict(enumerate(ones)), "all operands alike", at_kinks=False)

    def elsewhere(self) -> None:
        """If all is right here, compare a slope at another point, which a rule may not know of."""
        problem = self.problem
        if problem.order != 1 or self.wrong or problem.flaws or self._kinks:
            return
        operands = elsewhere(problem.operands)
        try:
            gradient = problem.subject.gradient(operands, problem.cotangents)
        except Exception:  # f may not be defined there
            return
        directions = [self._rng.choice([-1.0, 1.0], x.shape) for x in self._numeric]
        move = along(dict(zip(problem.moved, directions, strict=True)))
        size = largest_of([operands[i] for i in problem.moved])
        line = self._line(move, "another point", size, operands)
        analytic = float(np.dot(gradient, flat(directions)))
        found = self._judge(analytic, line, move, self._bars.allowed, operands)
        if found.verdict == "disagree" and not found.kink:
            name = "another point, in a random direction"
            self._note(found, name, None, analytic, str(problem.dtype))

    def _direction(self, directions: dict[int, Array], name: str, at_kinks: bool = True) -> None:
        """Compare the slope where some operands move as a whole; at a kink too, or not there."""
        problem = self.problem
        move = along({problem.moved[at]: direction for at, direction in directions.items()})
        sizes = {at: abs(direction) for at, direction in directions.items()}
        size = largest_of([problem.operands[problem.moved[at]] for at in directions])
        line = self._line(move, name, size, problem.operands)
        analytic = {way: _slope(g, directions) for way, g in problem.ways.items()}
        allowed = self._bars.of(_slope(problem.spread.each, sizes), ties=not at_kinks)
        judgement = self._judged(analytic, line, move, allowed)
        for way, found in judgement.items():
            if at_kinks or (found.verdict == "disagree" and not found.kink):
                self._note(found, name, None, analytic[way], str(problem.dtype))
        narrow = problem.narrow
        if narrow is not None and judgement["grad"].verdict == "agree":
            value, spread = _slope(narrow.gradients, directions), _slope(narrow.spread.each, sizes)
            low = self._narrow(value, spread, judgement["grad"], move, size)
            self._note(low, name, None, value, str(narrow.dtype))

    def _line(self, move: Move, name: str, x: float, operands: Sequence[Array]) -> Line:
        def values(t: float) -> Vector:
            with self.problem.subject.explained(f"with {name} moved by {t:g}"):
                return self.problem.values(move(operands, t))

        here = self.problem.here if operands is self.problem.operands else None
        noise, doubt = self._bars.noise, self._bars.doubt
        return Line(values, self.problem.weights, x, self.problem.dtype, here, noise, doubt)

    # ----------------------------------------------------------------------------------------------
    # Judgements
    # ----------------------------------------------------------------------------------------------

    def _judged(
        self, analytic: dict[str, float], line: Line, move: Move, allowed: Allowance
    ) -> dict[str, Judgement]:
        """What is to be said of the plain gradient, and of each way that leads to another one."""
        plain = analytic["grad"]
        judged = {"grad": self._judge(plain, line, move, allowed)}
        for way, value in analytic.items():
            close = abs(value - plain) <= max(1e-9 * abs(plain), allowed.own)
            if not (close or value == plain or (math.isnan(value) and math.isnan(plain))):
                found = self._judge(value, line, move, allowed)
                reason = "; ".join(filter(None, (f"by {way}", found.reason)))
                judged[way] = replace(found, reason=reason)
        return judged

    def _judge(
        self,
        analytic: float,
        line: Line,
        move: Move,
        allowed: Allowance,
        point: Sequence[Array] | None = None,
    ) -> Judgement:
        judgement = judge(analytic, line, allowed)
        self._kinks |= judgement.kink
        suspect = judgement.kink or (self.problem.order == 1 and self._sure < ENOUGH)
        if (
            judgement.verdict == "disagree"
            and suspect
            and self._is_a_limit(analytic, move, point or self.problem.operands)
        ):
            self._kinks = True
            reason = judgement.reason or "a kink: slopes at points near this one are not the same"
            return replace(judgement, verdict="cannot tell", kink=True, reason=reason)
        self._sure += judgement.verdict == "disagree"
        return judgement

    def _is_a_limit(self, analytic: float, move: Move, point: Sequence[Array]) -> bool:
        """Whether a slope at a kink is between slopes at points near it (Clarke, 1975).

        Where three numbers tie, moving the middle one shows the slopes of the first and the last
        place only, and a sort may yet have given it that of the middle. And where two kinks meet,
        the slopes on both sides of them may be the same.
        """
        slopes: list[float] = []
        for _ in range(NEIGHBOURS):
            slope = self._slope_nearby(move, point)
            slopes += [slope] if math.isfinite(slope) else []
            size = max(map(abs, slopes), default=0.0)
        margin = 1e-4 * size  # slopes change a little on the way
        if slopes and max(slopes) - min(slopes) <= ALIKE * size:
            return False
        return not slopes or min(slopes) - margin <= analytic <= max(slopes) + margin

    def _slope_nearby(self, move: Move, point: Sequence[Array]) -> float:
        problem = self.problem
        reach, step = NEARBY.get(problem.dtype, NEARBY[np.dtype(np.float32)])
        near = nearby(point, problem.moved, reach, self._rng)
        return self._line(move, "a point near a kink", 0.0, near).quotient(step).value

    def _narrow(
        self, value: float, spread: float, exact: Judgement, move: Move, x: float
    ) -> Judgement:
        """What is to be said of a number in the dtype of the inputs, and its spread."""
        problem, narrow = self.problem, self.problem.narrow
        assert narrow is not None
        found = narrow.judge(value, spread, exact)
        if found.verdict != "disagree":
            return found
        given = problem.subject.operands
        operands = [*given, *problem.operands[len(given) :]]
        line = Line(lambda t: problem.values(move(operands, t)), problem.weights, x, narrow.dtype)
        allowed = Allowance(tolerance_in(narrow.dtype, problem.tolerance))
        if judge(value, line, allowed).verdict != "agree":
            return found
        reason = f"in {narrow.dtype} f is another function than in float64"
        return replace(found, verdict="cannot tell", reason=reason)

    def _note(
        self,
        judgement: Judgement,
        operand: int | str,
        index: tuple[int, ...] | None,
        analytic: float,
        dtype: str,
    ) -> None:
        if judgement.verdict == "agree":
            return
        name = operand if isinstance(operand, str) else self.problem.names[operand]
        numeric, error, reason = judgement.numeric, judgement.error, judgement.reason
        entry = Entry(self.problem.order, name, index, analytic, numeric, error, dtype, reason)
        (self.wrong if judgement.verdict == "disagree" else self.undecided).append(entry)

    def comparisons(self) -> list[Comparison]:
        """The gradients of each operand as a whole."""
        return [
            Comparison(
                self.problem.order,
                self.problem.names[i],
                dtype,
                gradients[at],
                self._numeric[at],
                self._doubt[dtype][at],
            )
            for at, i in enumerate(self.problem.moved)
            for dtype, gradients in self._gradients.items()
        ]
