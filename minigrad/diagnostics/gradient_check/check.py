"""gradcheck: compare the gradients of a function with finite differences of the function.

Each element of each operand is moved, one at a time, and its derivative is judged by the change of
the results. The results are contracted with random cotangents, so that no error cancels in a sum.
For order 2, the same is done with the gradient, as a function of the operands and the cotangents.

Differences are computed in float64 if f can be computed in it, because rounding would hide faults.
Gradients in float32 are compared with these differences too, with a tolerance for their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan, nan
from typing import Any

import numpy as np

from minigrad.checks import check_positive, shown
from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    CheckedFunction,
    Inputs,
    NoGradient,
    Vector,
    elsewhere,
    flat,
    largest_of,
)
from minigrad.diagnostics.gradient_check.finite_differences import Line, Move, judge, judge_narrow
from minigrad.diagnostics.gradient_check.functions import ArrayPair, TensorFunction, framework_of
from minigrad.diagnostics.gradient_check.problem import GradientProblem, SecondOrder
from minigrad.diagnostics.gradient_check.report import (
    GradcheckReport,
    GradientComparison,
    Judgement,
)
from minigrad.diagnostics.gradient_check.tolerances import RANDOM_DIRECTIONS, Tolerance
from minigrad.progress import progress_bar
from minigrad.random import generator
from minigrad.renamed import with_hints

DOUBT = {"agree": 0, "cannot tell": 1, "disagree": 2}


class GradientError(AssertionError):
    """A gradient is wrong, or cannot be judged; the message is the report."""


@with_hints
def gradcheck(
    f: Callable[..., Any],
    inputs: Any,
    order: int | None = None,
    *,
    tolerance: float = 1e-6,
    samples: int | None = None,
    nondet_tol: float = 0.0,
    rng: np.random.Generator | None = None,
    progress: bool = True,
    raise_on_failure: bool = False,
) -> GradcheckReport:
    """Compare the gradients of `f` with finite differences, for every element of every operand.

    `f` may be a function of PyTorch (`torch.autograd.Function.apply`, a Module, or a function that
    uses its ops) or of JAX. Then the gradient of that framework is checked, in the same way.

    Args:
        f: a function of Tensors that returns a Tensor, or a tuple, list or dict of Tensors; or a
            Module, whose trainable parameters are operands too. It may differentiate by its inputs
            itself, as for a gradient penalty.
        inputs: one or several tensors, arrays or numbers; they are copied. Inputs that are not of
            floats are constants. Containers of them (dicts, lists, tuples, dataclasses) are allowed
            at any depth; a list of plain numbers is an array. If any of PyTorch's tensors requires
            a gradient, only those that do are operands.
        order: the highest order of derivatives: 1 for the gradient, 2 for the gradient of the
            gradient as well. The default is 2, and 1 for functions of other frameworks.
        tolerance: the allowed difference in float64, relative to the larger of both numbers.
        samples: for larger operands, compare only this number of elements, drawn at random, and the
            slope in some random directions. `GradcheckReport.missed` gives the probability that
            this overlooks a fault.
        nondet_tol: the allowed difference between two calls of `f`, or of its gradient, with the
            same inputs, relative to the largest number. Calls may differ because atomics add in any
            order. Then the differences between calls widen error bars and tolerances, and the check
            is as exact as in float32. The default is that a function whose calls differ by more
            than 1e-12 cannot be judged.
        rng: the random generator for cotangents and samples; the default has a fixed seed.
        progress: show a progress bar if the check takes longer than a second or two.
        raise_on_failure: raise an error unless the verdict is "agree".

    Raises:
        GradientError: if `raise_on_failure`; it is an AssertionError, with the report as its
            message.
        TypeError: if `f` is not a function, no input is of floats, no result is a Tensor of floats,
            or `rng` is not a generator.
        ValueError: for another order, a tolerance that is not between 0 and 1, samples that are not
            a positive integer, or a `nondet_tol` that is not in [0, 1); or if `f` or a VJP writes
            to the inputs.
    """
    given = Inputs(f, inputs if type(inputs) in (list, tuple) else [inputs])
    framework = framework_of(f, given.leaves)
    function: CheckedFunction = (framework or TensorFunction)(f, given)
    if order is None:
        order = 2 if framework is None else 1
    report = _checked(function, order, tolerance, samples, nondet_tol, rng, progress)
    if raise_on_failure and not report:
        raise GradientError(repr(report))
    return report


def check_vjp(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Any,
    *,
    tolerance: float = 1e-6,
    samples: int | None = None,
    nondet_tol: float = 0.0,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> GradcheckReport:
    """Compare a gradient that `backward` computes with finite differences of `forward`.

    Both are functions of numpy arrays, in any language that Python can call: C by ctypes or cffi,
    numba, Cython, or a kernel on a GPU with copies to and from it. With y = forward(*inputs),
    backward computes the vector-Jacobian product

        backward(g, *inputs)[i] = sum_k g[k] dy[k] / dinputs[i],

    an array with the shape and the dtype of input i. All arrays that the functions get are aligned;
    g and copies of contiguous inputs are C-contiguous.

    The check is in float64 if both functions accept and return float64, whatever the dtype of the
    inputs. Otherwise it is in the dtype of the inputs, and the report says which errors it can see.
    The verdict is also "disagree" if backward returns None, or an array of another shape or dtype;
    if it writes to g; if its next call overwrites its result; if its result shares memory with an
    input; if it uses values of another call; or if it is not linear in g, as if it clips gradients.

    Args:
        forward: a function of the inputs that returns an array or a number, or a tuple of them.
        backward: a function of g, which has the shape of the result, and of the inputs. If it has a
            parameter `out`, it gets the result too. With several results, g and out are tuples, and
            g is None for results that are not of floats. For one input it returns an array; for
            several, a tuple with an array for each input, or None for integers and booleans.
        inputs: an array or a number, or a list or tuple of several; they are copied. bfloat16 is
            that of the package ml_dtypes.
        tolerance: the allowed difference in float64; for this and the next arguments see
            `gradcheck`.
        samples: for larger operands, compare only this number of elements.
        nondet_tol: the allowed difference between two calls, relative to the largest number.
        rng: the random generator for cotangents and samples.
        progress: show a progress bar if the check takes longer than a second or two.

    Raises:
        TypeError: if no input or no result is of floats, if backward does not return one array for
            each input, if a function cannot be called, or if `rng` is not a generator.
        ValueError: if a function writes to the inputs, or an argument is not as described above.
            Errors that the functions raise get a note that says how they were called.
    """
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    function = ArrayPair(forward, backward, inputs)
    return _checked(function, 1, tolerance, samples, nondet_tol, rng, progress)


def assert_gradients(
    f: Callable[..., Any], *inputs: Any, order: int | None = None, **options: Any
) -> None:
    """Raise an AssertionError with the report as its message unless `gradcheck` agrees.

        def test_gelu():
            assert_gradients(minigrad.gelu, np.array([-1.0, 0.3]))

    The arguments are those of `gradcheck`, but each input is a separate argument.

    Raises:
        GradientError: if the verdict is "disagree" or "cannot tell"; it is an AssertionError.
        TypeError, ValueError: as in `gradcheck`.
    """
    gradcheck(f, inputs, order, raise_on_failure=True, **options)


def assert_vjp(
    forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Any, **options: Any
) -> None:
    """Raise an AssertionError with the report as its message unless `check_vjp` agrees.

        def test_square():
            assert_vjp(lambda x: x * x, lambda g, x: 2 * g * x, np.array([-1.0, 0.3]))

    The arguments are those of `check_vjp`, but each input is a separate argument.

    Raises:
        GradientError: if the verdict is "disagree" or "cannot tell"; it is an AssertionError.
        TypeError, ValueError: as in `check_vjp`.
    """
    if not (report := check_vjp(forward, backward, inputs, **options)):
        raise GradientError(repr(report))


def _checked(
    function: CheckedFunction,
    order: int,
    tolerance: float,
    samples: int | None,
    nondet_tol: float,
    rng: np.random.Generator | None,
    progress: bool,
) -> GradcheckReport:
    """Compare the gradients of a function of any kind with finite differences."""
    is_integer = isinstance(order, (int, np.integer)) and not isinstance(order, bool)
    if not (is_integer and order in (1, 2)):
        several = "; several inputs are one tuple, (x, y)" if not isinstance(order, int) else ""
        raise function.error(f"order is 1 or 2, not {shown(order)}{several}", ValueError)
    if not (isinstance(tolerance, (int, float, np.floating)) and 0 < tolerance < 1):
        message = f"tolerance is a number between 0 and 1, not {tolerance!r}"
        raise function.error(message, ValueError)
    if not (isinstance(nondet_tol, (int, float, np.floating)) and 0 <= nondet_tol < 1):
        message = f"nondet_tol is a number from 0 to below 1, not {nondet_tol!r}"
        raise function.error(message, ValueError)
    if samples is not None:
        check_positive(f"{function.checker}: samples", samples)
    rng = np.random.default_rng(0) if rng is None else generator(rng)
    function.nondet_tol = float(nondet_tol)
    function.unsteady = nondet_tol > 0  # even if all calls here happen to give the same numbers
    report = GradcheckReport(function.name, tolerance, checker=function.checker)
    with np.errstate(all="ignore"), function.restored():  # what is not finite is in the report
        with function.explained(f"with the inputs it was given{function.given_as}"):
            start, again = (function.values(function.operands) for _ in range(2))
        function.check_unwritten("")
        report.reason = _instability(function, "two calls", start, again)
        if report.reason:
            return report
        try:
            problem = GradientProblem(function, rng, tolerance, recorded=order == 2)
            function.check_unwritten(" where a gradient is required, in it or in a VJP")
            for each_order in range(1, order + 1):
                problem = SecondOrder(problem, rng) if each_order == 2 else problem
                plain, repeated = flat(problem.plain.arrays), flat(problem.repeated)
                what = "two passes for its gradient"
                report.reason = _instability(function, what, plain, repeated)
                if report.reason:
                    return report
                _Comparison(problem, report, rng, order == 2).run(samples, progress)
        except NoGradient as found:
            wrong = Judgement("disagree", nan, 0.0, found.reason, operand=found.operand)
            report.wrong.append(wrong)
        end = function.values(function.operands)
        report.reason = _instability(function, "the first call and the last", start, end)
        return report


def _instability(function: CheckedFunction, what: str, first: Vector, second: Vector) -> str:
    """Say why f is not a function of its operands alone; empty if it is."""
    if first.shape != second.shape:
        return f"not deterministic: {what} gave {first.size} and {second.size} numbers"
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    difference = float(np.max(np.abs(first - second), initial=0.0, where=~same))
    size = largest_of([first, second])
    if difference <= tolerances.SAME_VALUES * size:
        return ""
    function.unsteady = True
    if difference <= function.nondet_tol * size:
        return ""
    return (
        f"not deterministic: {what} with the same inputs differ by up to {difference:.3g}, "
        f"{difference / size:.2g} of the largest; is there dropout in training mode, an rng that "
        f"goes on drawing, or a count that goes on? If sums are added in any order, as by atomics, "
        f"allow it by nondet_tol="
    )


@dataclass
class _Comparison:
    """Moves each element of a problem, judges its derivative, and adds findings to the report."""

    problem: GradientProblem
    report: GradcheckReport
    rng: np.random.Generator
    in_forward_mode: bool  # whether forward mode is compared too
    kinks: bool = False  # whether any kink was found
    sure: int = 0  # how many entries are wrong, and not at a kink

    def run(self, samples: int | None, progress: bool) -> None:
        """Compare all elements, or this number of samples of each operand."""
        problem, report = self.problem, self.report
        for name, reason in problem.flaws:
            report.wrong.append(Judgement("disagree", nan, 0.0, reason, operand=name))
        sizes = [x.size for x in problem.operands]
        chosen: list[Sequence[int]] = [range(size) for size in sizes]
        for i, size in enumerate(sizes):
            if samples is not None and size > samples:
                chosen[i] = np.sort(self.rng.choice(size, samples, replace=False)).tolist()
        total = sum(map(len, chosen))
        what = f"gradcheck, order {problem.order}"
        with progress_bar(what=what, unit="entry", shown=progress, total=total) as bar:
            for operand, picks in enumerate(chosen):
                name, shape = problem.names[operand], problem.operands[operand].shape
                compared = {}
                for computed in filter(None, (problem.plain, problem.narrow)):
                    dtype, analytic = str(computed.dtype), computed.arrays[operand]
                    numeric, doubt = np.full(shape, nan), np.full(shape, nan)
                    compared[dtype] = GradientComparison(
                        problem.order, name, dtype, analytic, numeric, doubt
                    )
                report.comparisons += compared.values()
                for pick in picks:
                    index = tuple(map(int, np.unravel_index(pick, shape)))
                    move = Move(name, {operand: np.ones(())}, index)
                    for dtype, judgements in self._compare(move).items():
                        report.slack = max(report.slack, judgements[0].slack)
                        compared[dtype].numeric[index] = judgements[0].numeric
                        compared[dtype].doubt[index] = max(DOUBT[j.verdict] for j in judgements)
                    bar.update()
                if len(picks) == sizes[operand]:
                    continue
                report.directions = RANDOM_DIRECTIONS
                report.fewest = min(report.fewest, len(picks))
                for _ in range(RANDOM_DIRECTIONS):
                    direction = self.rng.standard_normal(shape)
                    moves = {operand: direction / np.abs(direction).max()}
                    self._compare(Move(f"{name} in a random direction", moves))
        if problem.order == 1:
            self._compare_ties()
            self._compare_at_another_point()
        self._compare_with_forward_mode()
        report.compared += total
        report.total += sum(sizes)
        report.tolerance = max(report.tolerance, problem.base.relative)
        report.others = problem.function.others
        report.dtype, report.unsteady = str(problem.dtype), problem.function.unsteady
        report.wrong.sort(key=lambda entry: -entry.relative_difference)

    def _compare_ties(self) -> None:
        """If an operand is at a kink, compare slopes in directions without a kink.

        The maximum of two equal numbers has a kink if one of them moves, but not if both move
        together. So the gradients that it gives to both must add up to the right slope.
        """
        if not self.kinks:
            return
        ones = {i: np.ones(x.shape) for i, x in enumerate(self.problem.operands)}
        for i, direction in ones.items():
            name = f"{self.problem.names[i]}, all elements alike"
            self._compare(Move(name, {i: direction}), ties=True)
        if len(ones) > 1:
            self._compare(Move("all operands alike", ones), ties=True)

    def _compare_at_another_point(self) -> None:
        """If all is right here, compare a slope at another point: a VJP may use old values."""
        problem = self.problem
        if self.report.wrong or self.kinks:
            return
        operands = elsewhere(problem.operands)
        try:
            gradients = problem.function.gradients(operands, problem.cotangents)
        except Exception:  # f may be undefined there
            return
        # The elements move by different distances, because all steps are powers of two, and a wave
        # may have a period of such a length.
        signs = [self.rng.choice([-1.0, 1.0], x.shape) for x in operands]
        rng = np.random.default_rng(0)  # a separate one, so that order 2 draws the same numbers
        directions = [sign * rng.uniform(0.5, 1.0, sign.shape) for sign in signs]
        move = Move("another point, in a random direction", dict(enumerate(directions)))
        analytic = float(np.dot(flat(gradients), flat(directions)))
        found = self._judge(analytic, Line(problem, move, operands), problem.base)
        self._note(found, only_sure=True)

    def _compare_with_forward_mode(self) -> None:
        """If all is right so far, compare u^T (J v), computed in forward mode, with (u^T J) v.

        If an op is linear or fused, the two run different code. For order 2, J is the Hessian, in
        forward mode over a backward pass, as `hvp` and `hessian` compute it. With order=1 this is
        left out, because forward mode needs VJPs that are written with ops.
        """
        problem, operands = self.problem, self.problem.function.operands
        if self.report.wrong or self.kinks or not self.in_forward_mode:
            return
        rng = np.random.default_rng(0)  # a separate one, so that order 2 draws the same numbers
        vs = dict(enumerate(rng.choice([-1.0, 1.0], x.shape) for x in operands))
        moves = [Move("forward mode, in a random direction", vs)]
        if len(vs) > 1:  # the rule of an op may be another one where an input has no tangent
            alone = "forward mode, in a random direction of {} alone"
            moves += [Move(alone.format(problem.names[i]), {i: v}) for i, v in vs.items()]
        for move in moves:
            with problem.function.explained(f"in {move.name}"):
                slope = problem.slope(move.directions)
            if slope is None:
                return
            allowed = problem.allowed(move.spread(problem.plain.spread))
            close = max(tolerances.SAME_PATH * abs(slope), allowed.rounding)
            if abs(slope - move.slope(problem.plain.arrays)) > close:
                self._note(self._judge(slope, Line(problem, move), allowed), only_sure=True)

    def _compare(self, move: Move, ties: bool = False) -> dict[str, list[Judgement]]:
        """Compare the slope along a move: that of `grad`, and of each path with another result.

        With `ties`, only sure errors are noted, and no kinks. The result has judgements by dtype.
        """
        problem, narrow = self.problem, self.problem.narrow
        line = Line(problem, move)
        allowed = problem.allowed(move.spread(problem.plain.spread), ties)
        plain = move.slope(problem.plain.arrays)
        exact = self._judge(plain, line, allowed)
        found = [exact]
        close = max(tolerances.SAME_PATH * abs(plain), allowed.rounding)
        # Where the first path is wrong, another wrong number would be no further finding.
        others = problem.paths.items() if exact.verdict != "disagree" else ()
        for path, gradients in others:
            value = move.slope(gradients)
            if abs(value - plain) <= close or value == plain or (isnan(value) and isnan(plain)):
                continue
            judgement = self._judge(value, line, allowed)
            reason = "; ".join(filter(None, (f"by {path}", judgement.reason)))
            found.append(replace(judgement, reason=reason))
        for judgement in found:
            self._note(judgement, only_sure=ties)
        judged = {exact.dtype: found}
        if narrow is not None and (move.index is not None or exact.verdict == "agree"):
            value = move.slope(narrow.arrays)
            judgement = judge_narrow(value, move, exact, problem, narrow)
            judged[str(narrow.dtype)] = [judgement]
            if judgement is not exact and exact.verdict != "disagree":  # that was noted already
                self._note(replace(judgement, analytic=value, dtype=str(narrow.dtype)))
        return judged

    def _judge(self, analytic: float, line: Line, allowed: Tolerance) -> Judgement:
        """Judge a slope; at a kink, a slope that is a limit of nearby slopes is not wrong."""
        judgement = replace(
            judge(analytic, line, allowed),
            analytic=analytic,
            order=self.problem.order,
            operand=line.move.name,
            index=line.move.index,
            dtype=str(self.problem.dtype),
        )
        self.kinks |= judgement.kink
        if judgement.verdict != "disagree":
            return judgement
        few = self.problem.order == 1 and self.sure < tolerances.ENOUGH_WRONG
        if (judgement.kink or few) and self._is_a_limit(analytic, line):
            self.kinks = True
            reason = judgement.reason or "slopes nearby are not the same: a kink, or a curve"
            return replace(judgement, verdict="cannot tell", kink=True, reason=reason)
        self.sure += 1
        return judgement

    def _is_a_limit(self, analytic: float, line: Line) -> bool:
        """Return whether a slope at a kink is between slopes at points near it (Clarke, 1975).

        Differences at the kink alone do not show this. If three elements tie in a sort, moving one
        shows the slopes of the first and the last, but the gradient may be that of the middle one.
        And where two kinks meet, the slopes on both sides may be equal.
        """
        slopes = [line.slope_nearby(self.rng) for _ in range(tolerances.NEIGHBOURS)]
        slopes = [slope for slope in slopes if isfinite(slope)]
        if not slopes:
            return True
        low, high, size = min(slopes), max(slopes), max(map(abs, slopes))
        margin = tolerances.NEIGHBOUR_MARGIN * size
        return high - low > tolerances.ALIKE * size and low - margin <= analytic <= high + margin

    def _note(self, judgement: Judgement, only_sure: bool = False) -> None:
        """Add a derivative to the wrong or undecided entries, unless it agrees.

        With `only_sure`, it is added only if it is wrong and not at a kink.
        """
        is_wrong = judgement.verdict == "disagree"
        if judgement.verdict == "agree" or (only_sure and (not is_wrong or judgement.kink)):
            return
        cut = self.problem.function.unreached.get(judgement.operand, "") if is_wrong else ""
        reason = "; ".join(filter(None, (judgement.reason, cut)))
        entries = self.report.wrong if is_wrong else self.report.undecided
        entries.append(replace(judgement, reason=reason))
