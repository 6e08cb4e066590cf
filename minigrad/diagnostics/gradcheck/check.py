"""gradcheck: compare the gradients of a function with differences of the function itself.

Each element of each operand is moved, one at a time, and the results are contracted with random
cotangents, so that no error cancels in a sum. For order 2 the same is done to the gradient itself,
as a function of the operands and the cotangents.

Differences are taken in float64 if f can be computed in it, because its own rounding would hide
faults. Gradients that were computed in float32 are compared with them too, with the errors that
float32 must be allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad.diagnostics.gradcheck.checked_function import (
    CheckedFunction,
    Vector,
    flat,
    gradcheck_error,
    largest_of,
)
from minigrad.diagnostics.gradcheck.compare import compare
from minigrad.diagnostics.gradcheck.problem import first_order, second_order
from minigrad.diagnostics.gradcheck.report import GradcheckReport
from minigrad.diagnostics.gradcheck.tolerances import SAME_VALUES
from minigrad.diagnostics.rng_state import Draws
from minigrad.random import generator


class GradientError(AssertionError):
    """A gradient is wrong, or cannot be judged; the message is the report."""


def gradcheck(
    f: Callable[..., Any],
    inputs: Any,
    order: int = 2,
    *,
    tolerance: float = 1e-6,
    samples: int | None = None,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> GradcheckReport:
    """Compare the gradients of `f` with differences, for every element of every operand.

    Args:
        f: a function of Tensors that returns a Tensor, or a tuple, list or dict of them; or a
            Module, whose trainable parameters are operands too.
        inputs: one tensor, array or number, or a sequence of them. They are copied; integers and
            booleans are passed on as constants.
        order: up to which: 1 for the gradient, 2 for the gradient of the gradient as well.
        tolerance: the difference to allow in float64, relative to the larger of both numbers.
        samples: of a larger operand compare only so many elements, drawn at random, and the slope
            in some random directions; `GradcheckReport.missed` says how much that can overlook.
        rng: where cotangents and samples are drawn from; by default a fixed seed.
        progress: show a progress bar if it takes longer than a second or two.

    Raises:
        TypeError: if there is no float among the inputs, or `f` returns anything but Tensors of
            which one is of floats.
        ValueError: for another order, a tolerance that is not between 0 and 1, or samples that are
            no positive number; or if `f` or a VJP writes to the inputs.
    """
    _check_options(order, tolerance, samples)
    rng = np.random.default_rng(0) if rng is None else generator(rng)
    function = CheckedFunction(f, inputs)
    report = GradcheckReport(function.name, tolerance)
    with np.errstate(all="ignore"), Draws().put_back():  # what is not finite is in the report
        with function.explained("with the inputs it was given"):
            start, again = (function.values(function.operands) for _ in range(2))
        function.check_unwritten("")
        if unstable := _instability("two calls", start, again):
            return replace(report, reason=unstable)
        problem = first_order(function, rng, tolerance, recorded=order == 2)
        function.check_unwritten(" where a gradient is required, in it or in a VJP")
        for each_order in range(1, order + 1):
            problem = second_order(problem, rng) if each_order == 2 else problem
            plain, repeated = flat(problem.paths["grad"]), flat(problem.repeated)
            if unstable := _instability("two passes for its gradient", plain, repeated):
                return replace(report, reason=unstable)
            report = compare(problem, report, samples, rng, progress)
        end = function.values(function.operands)
        if unstable := _instability("the first call and the last", start, end):
            return replace(report, reason=unstable)
        return report


def assert_gradients(f: Callable[..., Any], *inputs: Any, order: int = 2, **options: Any) -> None:
    """Raise an AssertionError with the report as its message unless `gradcheck` agrees.

        def test_gelu():
            assert_gradients(minigrad.gelu, np.array([-1.0, 0.3]))

    Args:
        f: a function or a Module, as for `gradcheck`.
        inputs: what to call it with.
        order: up to which.
        options: those of `gradcheck`.

    Raises:
        GradientError: if the verdict is "disagree" or "cannot tell".
    """
    report = gradcheck(f, inputs, order, **options)
    if not report:
        raise GradientError(repr(report))


def _check_options(order: int, tolerance: float, samples: int | None) -> None:
    """Raise a ValueError unless the options can be used."""
    if order not in (1, 2) or isinstance(order, bool):
        raise gradcheck_error(ValueError, f"order is 1 or 2, not {order!r}")
    if not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise gradcheck_error(
            ValueError, f"tolerance is a number between 0 and 1, not {tolerance!r}"
        )
    integral = isinstance(samples, (int, np.integer)) and not isinstance(samples, bool)
    if samples is not None and not (integral and samples > 0):
        raise gradcheck_error(
            ValueError, f"samples is a positive number of elements, not {samples!r}"
        )


def _instability(what: str, first: Vector, second: Vector) -> str:
    """Say why f is no function of its operands, or nothing if it is one."""
    if first.shape != second.shape:
        return f"not deterministic: {what} gave {first.size} and {second.size} numbers"
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    difference = float(np.max(np.abs(first - second), initial=0.0, where=~same))
    if difference <= SAME_VALUES * largest_of([first]):
        return ""
    return (
        f"not deterministic: {what} with the same inputs differ by up to {difference:.3g}; is "
        f"there dropout in training mode, an rng that goes on drawing, or a count that goes on?"
    )
