"""Is a gradient right? Compare it with differences of the function itself.

A derivative is a limit of difference quotients, and a difference quotient needs no rule that could
be wrong. With values at four points around x, the error of

    f'(x) ~ (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / 12h

is of order h^4 from the curvature and of order eps / h from rounding; in float64 with h = 1e-3 both
are far below the 1e-6 that is asked for. Where they are not, beside a singularity, smaller steps
tell more; at a kink, and where rounding hides the answer, none does, and the report says so. All
elements of all operands are moved, one at a time, and the result is contracted with a random
cotangent, so that no error cancels in a sum.

For order 2 the same is done to the gradient itself, as a function of the operands and the
cotangent.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minigrad.engine import grad
from minigrad.mode import grad_mode
from minigrad.random import generator
from minigrad.tensor import Tensor, as_array

STEP = 1e-3  # relative to x, or to 1: where curvature and rounding both stay far below 1e-6
SHRINK = (1.0, 1 / 8, 1 / 64, 1 / 512, 1 / 4096)  # of the step, where a quotient differs
ROUNDING = 50 * np.finfo(np.float64).eps  # what a value of f may be off by, relative to it

Verdict = Literal["agree", "disagree", "cannot tell"]
Function = Callable[..., Tensor]


class GradientError(AssertionError):
    """A gradient is wrong; the message is the report."""


@dataclass(frozen=True)
class Entry:
    """One element of a gradient, computed in two ways."""

    order: int
    operand: str
    index: tuple[int, ...]
    analytic: float
    numeric: float

    @property
    def relative_difference(self) -> float:
        """|analytic - numeric| over the larger of the two."""
        scale = max(abs(self.analytic), abs(self.numeric))
        if not math.isfinite(scale):
            return math.inf
        return abs(self.analytic - self.numeric) / scale if scale else 0.0

    def __str__(self) -> str:
        return (
            f"order {self.order}, {self.operand}{list(self.index) or ''}: "
            f"analytic {self.analytic:.9g}, numeric {self.numeric:.9g}, "
            f"relative difference {self.relative_difference:.2g}"
        )


@dataclass(frozen=True, repr=False)
class GradcheckReport:
    """What a gradcheck found. It is true only if all entries agree.

    Attributes:
        function: the name of the function.
        compared: how many elements of gradients were compared.
        tolerance: the relative difference that was allowed.
        wrong: the entries that differ by more, worst first.
        undecided: the entries that difference quotients cannot judge: at a kink, or where they are
            not finite or too noisy.
    """

    function: str
    compared: int
    tolerance: float
    wrong: list[Entry] = field(default_factory=list)
    undecided: list[Entry] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """One of "agree", "disagree" and "cannot tell"."""
        if self.wrong:
            return "disagree"
        return "cannot tell" if self.undecided else "agree"

    def __bool__(self) -> bool:
        return self.verdict == "agree"

    def __repr__(self) -> str:
        lines = [
            f"gradcheck of {self.function}: {self.verdict} ({self.compared} entries compared, "
            f"{len(self.wrong)} wrong, {len(self.undecided)} undecided, "
            f"tolerance {self.tolerance:g})"
        ]
        for title, entries in (("wrong", self.wrong), ("undecided", self.undecided)):
            lines += [f"  {title}: {entry}" for entry in entries[:5]]
            if len(entries) > 5:
                lines.append(f"  ... and {len(entries) - 5} more {title}")
        return "\n".join(lines)


def gradcheck(
    f: Function,
    inputs: Any,
    order: int = 1,
    *,
    tolerance: float = 1e-6,
    raise_on_failure: bool = False,
    rng: np.random.Generator | None = None,
) -> GradcheckReport:
    """Compare the gradients of `f` with central differences, for every element of every operand.

    Floats are checked in float64, whatever dtype they come in; integers and booleans are handed on.

    Args:
        f: a function of tensors that returns one.
        inputs: one tensor or array, or a sequence of them. They are copied.
        order: 1 for the gradient, 2 for the gradient of the gradient as well.
        tolerance: the relative difference to allow.
        raise_on_failure: raise unless all entries agree.
        rng: where the cotangents are drawn from; by default a fixed seed.

    Raises:
        TypeError: if there is no float among the inputs, or `f` returns no float Tensor.
        ValueError: for another order.
        GradientError: if asked for, with the report as its message.
    """
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order is 1 or 2, not {order!r}")
    single = isinstance(inputs, (Tensor, np.ndarray, np.generic, int, float))
    operands = [np.array(as_array(x)) for x in ([inputs] if single else inputs)]
    operands = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in operands]
    names = [f"input {i}" for i in range(len(operands))]
    if not any(x.dtype.kind == "f" for x in operands):
        raise TypeError(
            "gradcheck: no input is of floats, so there is nothing to differentiate by; the inputs "
            f"are {[str(x.dtype) for x in operands]}"
        )
    rng = np.random.default_rng(0) if rng is None else generator(rng)
    result = f(*map(Tensor, operands))
    if not isinstance(result, Tensor) or result.dtype.kind != "f":
        what = result.describe() if isinstance(result, Tensor) else type(result).__name__
        raise TypeError(f"gradcheck: the function must return a Tensor of floats, not {what}")
    report = GradcheckReport(getattr(f, "__name__", type(f).__name__), 0, tolerance)
    cotangent = rng.standard_normal(result.shape)
    report = _compare(f, operands, names, cotangent, 1, report)
    if order == 2:
        floats = [i for i, x in enumerate(operands) if x.dtype.kind == "f"]
        weights = [rng.standard_normal(operands[i].shape) for i in floats]

        def gradient(*operands_and_cotangent: Tensor) -> Tensor:
            """The gradient of f, contracted with fixed weights to one number."""
            *xs, v = operands_and_cotangent
            with grad_mode(True):
                for i in floats:
                    if not xs[i].requires_grad:
                        xs[i] = Tensor(xs[i], requires_grad=True)
                out = f(*xs)
                gradients = grad(
                    out, [xs[i] for i in floats], v, create_graph=True, allow_unused=True
                )
                parts = [(g * w).sum() for g, w in zip(gradients, weights, strict=True)]
                total: Tensor = functools.reduce(operator.add, parts)
                return total

        report = _compare(
            gradient, [*operands, cotangent], [*names, "cotangent"], np.ones(()), 2, report
        )
    if raise_on_failure and not report:
        raise GradientError(repr(report))
    return report


def _compare(
    f: Function,
    operands: Sequence[NDArray[Any]],
    names: Sequence[str],
    cotangent: NDArray[Any],
    order: int,
    earlier: GradcheckReport,
) -> GradcheckReport:
    """The report of one order, with what was found before."""
    tensors = [Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in operands]
    differentiable = [i for i, x in enumerate(tensors) if x.requires_grad]
    with grad_mode(True):
        out = f(*tensors)
        gradients = grad(out, [tensors[i] for i in differentiable], cotangent, allow_unused=True)
    wrong, undecided = list(earlier.wrong), list(earlier.undecided)
    compared = earlier.compared
    # What is far smaller than the largest element of all may be what rounding inside f left of 0.
    floor = 1e-8 * max(_largest(g.data) for g in gradients)
    for i, g in zip(differentiable, gradients, strict=True):
        for index in np.ndindex(g.shape):
            analytic = float(g.data[index])
            difference = partial(_difference, f, operands, i, index, cotangent)
            verdict, numeric = _judge(analytic, difference, earlier.tolerance, floor)
            compared += 1
            if verdict != "agree":
                entry = Entry(order, names[i], index, analytic, numeric)
                (wrong if verdict == "disagree" else undecided).append(entry)
    wrong.sort(key=lambda entry: -entry.relative_difference)
    return GradcheckReport(earlier.function, compared, earlier.tolerance, wrong, undecided)


def _largest(values: NDArray[Any]) -> float:
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


@dataclass(frozen=True)
class _Difference:
    """A difference quotient, what rounding may have added to it, and what it says of a kink.

    Attributes:
        quotient: the central one, of fourth order.
        noise: a bound on its error from rounding.
        grain: the same where f has cancelled terms of the size of the cotangents, which is 1.
        bend: the slope to the right less the slope to the left.
    """

    quotient: float
    noise: float
    grain: float
    bend: float


def _judge(
    analytic: float, difference: Callable[[float], _Difference], tolerance: float, floor: float
) -> tuple[Verdict, float]:
    """Whether a derivative agrees with difference quotients, and the last of these.

    Beside a singularity, or across a kink, a quotient is wrong by itself. So one that differs is
    taken again with smaller steps. The derivative is wrong if two quotients agree with one another
    and not with it; at a kink, where the slopes on the two sides stay apart, nothing can be told.
    """
    earlier: _Difference | None = None
    now = difference(1.0)
    for shrink in SHRINK:
        now = now if earlier is None else difference(shrink)
        size = max(abs(analytic), abs(now.quotient))
        if math.isfinite(now.quotient):
            if not math.isfinite(analytic):
                return "disagree", now.quotient
            clear = now.noise <= tolerance * max(1.0, size)
            if abs(analytic - now.quotient) <= now.noise + tolerance * size:
                return ("agree" if clear else "cannot tell"), now.quotient
            hidden = abs(analytic - now.quotient) <= max(floor, now.grain)
            if (
                earlier is not None
                and not hidden
                and abs(now.quotient - earlier.quotient)
                <= now.noise + earlier.noise + tolerance * size
            ):
                kink = abs(now.bend) > max(0.5 * abs(earlier.bend), 10 * now.noise)
                return ("cannot tell" if kink else "disagree"), now.quotient
        earlier = now
    return "cannot tell", now.quotient


def _difference(
    f: Function,
    operands: Sequence[NDArray[Any]],
    position: int,
    index: tuple[int, ...],
    cotangent: NDArray[Any],
    shrink: float,
) -> _Difference:
    """The difference quotient of sum(cotangent * f) by one element of an operand.

    The differences are taken before the sum: elements of f that do not move cancel exactly, however
    large they are, and add no noise.
    """
    moved = [x.copy() for x in operands]
    x = moved[position]
    centre = float(x[index])
    # A power of two, so that the step that is taken is the one that is divided by.
    h = 2.0 ** round(math.log2(STEP * shrink * max(1.0, abs(centre))))
    values = []
    with grad_mode(False), np.errstate(all="ignore"):
        for offset in (0.0, h, -h, 2 * h, -2 * h):
            x[index] = centre + offset
            values.append(f(*(Tensor(m.copy()) for m in moved)).data)
        middle, right, left, far_right, far_left = values
        difference = 8 * (right - left) - (far_right - far_left)
        rounding = ROUNDING * np.abs(cotangent * middle)
        noise, grain = np.sum(rounding, where=difference != 0) / h, ROUNDING / h
        if not difference.any():
            noise = grain = np.float64(ROUNDING)
        return _Difference(
            float(np.sum(cotangent * difference) / (12 * h)),
            float(noise),
            float(grain),
            float(np.sum(cotangent * ((right - middle) - (middle - left))) / h),
        )
