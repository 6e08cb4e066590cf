"""The exercises of "Do you believe it?"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import (
    Checker,
    Exercise,
    WrongAnswerError,
    called,
    described,
    numbers,
)

Array = NDArray[Any]

# --------------------------------------------------------------------------------------------------
# 2. A VJP that a weak check accepts
# --------------------------------------------------------------------------------------------------

RIGHT = "This is the right VJP of softmax. The task is a wrong one that looks right with ones."
SEEN = "With ones for g, this is not 0 everywhere. So a check with ones would see that it is wrong."
SHAPE = "The gradient has the shape of x. This has another one."

_x = np.random.default_rng(3).standard_normal((3, 4))
_g = np.random.default_rng(4).standard_normal((3, 4))


def softmax(x: Any) -> Array:
    """Return the softmax along the last axis."""
    e = np.exp(np.asarray(x) - np.max(x))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def softmax_vjp(g: Array, x: Array) -> Array:
    """Return the right gradient for the input of a softmax."""
    p = softmax(x)
    return np.asarray(p * (g - (g * p).sum(axis=-1, keepdims=True)))


def fools_ones(answer: Any) -> bool:
    """Return whether a VJP is right for ones and wrong for random numbers.

    Raises:
        WrongAnswerError: if it is not.
    """
    if not callable(answer):
        raise WrongAnswerError(f"A function is expected, and this is {described(answer)}.")
    with_ones, with_random = gradient(answer, np.ones_like(_x)), gradient(answer, _g)
    if np.allclose(with_random, softmax_vjp(_g, _x)):
        raise WrongAnswerError(RIGHT)
    if not np.allclose(with_ones, 0.0):
        slips = {NOT_ONES: np.ones_like(_x), NO_SUM: softmax(_x), ONLY_OWN: own_slope(_x)}
        for sentence, slip in slips.items():
            if np.allclose(with_ones, slip):
                raise WrongAnswerError(sentence)
        raise WrongAnswerError(SEEN)
    return True


NOT_ONES = (
    "With ones for g, this is 1 everywhere. The right gradient of the plain sum is another number: "
    "how much does the sum of a softmax change?"
)
NO_SUM = (
    "With ones for g, this is the softmax itself. A check with ones would see that, as the right "
    "gradient is 0."
)
ONLY_OWN = (
    "With ones for g, this is p (1 - p), the slope of each result with its own input. A check with "
    "ones would see that the other inputs are missing."
)


def own_slope(x: Array) -> Array:
    """Return the slope of each entry of a softmax with its own input."""
    p = softmax(x)
    return np.asarray(p * (1 - p))


def gradient(answer: Callable[..., Any], g: Array) -> Array:
    """Return what a VJP returns, as an array of the shape of x.

    Raises:
        NoAnswerError: if it is `...`.
        WrongAnswerError: if it is something else.
    """
    result = called(answer, (g, _x))
    try:
        found = numbers(result)
    except (TypeError, ValueError):
        raise WrongAnswerError(f"An array is expected, and this is {described(result)}.") from None
    if found.shape != _x.shape:
        raise WrongAnswerError(SHAPE)
    return np.asarray(found)


# --------------------------------------------------------------------------------------------------
# 4. Richardson extrapolation
# --------------------------------------------------------------------------------------------------

Function = Callable[[float], float]


def central(f: Function, x: float, h: float) -> float:
    """Return the central difference of f at x."""
    return (f(x + h) - f(x - h)) / (2 * h)


def forward(f: Function, x: float, h: float) -> float:
    """Return the forward difference of f at x."""
    return (f(x + h) - f(x)) / h


def combined(
    first: float,
    second: float,
    difference: Callable[..., float] = central,
    steps: tuple[float, float] = (1, 2),
) -> Callable[[Function, float, float], float]:
    """Return a function that adds two differences, each with a factor and a step."""

    def slope(f: Function, x: float, h: float) -> float:
        a, b = steps
        return first * difference(f, x, a * h) + second * difference(f, x, b * h)

    return slope


check = Checker(
    {
        1: Exercise(
            lambda eps: math.sqrt(2 * eps),
            trials=[(2.0**-52,), (2.0**-23,)],
            slips={
                "The 2 of h/2 has got lost.": lambda eps: math.sqrt(eps),
                "This is the best step of *central* differences, whose second error is h²/6.": (
                    lambda eps: (6 * eps) ** (1 / 3)
                ),
                "The order of magnitude is that of central differences. For forward differences "
                "the second error grows with h, and not with h².": lambda eps: eps ** (1 / 3),
                "The 2 is on the wrong side: solve eps/h = h/2 for h once more.": (
                    lambda eps: math.sqrt(eps / 2)
                ),
                "This is h², and not h: the root is missing.": lambda eps: 2 * eps,
                "The factor e is in both errors, and cancels.": (
                    lambda eps: math.sqrt(2 * math.e * eps)
                ),
                "This is the smallest difference between numbers near 1. At such a step, nearly "
                "all digits cancel.": lambda eps: eps,
            },
        ),
        2: Exercise(
            lambda g, x: 0 * g,
            observe=fools_ones,
            slips={
                RIGHT: softmax_vjp,
                NOT_ONES: lambda g, x: g,
                NO_SUM: lambda g, x: g * softmax(x),
                ONLY_OWN: lambda g, x: g * own_slope(x),
                SHAPE: lambda g, x: 0.0,
                SEEN: lambda g, x: g * x,
            },
        ),
        3: Exercise(
            lambda g, x: g / (1 + np.abs(x)) ** 2,
            trials=[
                (np.array([1.0, 2.0, -1.5]), np.array([0.5, -0.5, -3.0])),
                (np.array([[-1.0, 0.25]]), np.array([[0.0, 2.0]])),
            ],
            slips={
                "This is the VJP from above: for negative x, 1 + x is not 1 + |x|.": (
                    lambda g, x: g / (1 + x) ** 2
                ),
                "The square is missing: the slope is 1 / (1 + |x|)².": (
                    lambda g, x: g / (1 + np.abs(x))
                ),
                "g is missing: this is the slope of softsign, and a VJP multiplies it by what has "
                "arrived.": lambda g, x: 1 / (1 + np.abs(x)) ** 2,
                "Softsign rises on both sides of 0, so its slope is never negative; and here it "
                "has the sign of x.": lambda g, x: g * np.sign(x) / (1 + np.abs(x)) ** 2,
                "This is the slope of another function: 1 + x² is not (1 + |x|)².": (
                    lambda g, x: g / (1 + x**2)
                ),
                "This is g times softsign itself, and not times its slope.": (
                    lambda g, x: g * x / (1 + np.abs(x))
                ),
                "The slope is 1 *divided* by (1 + |x|)².": lambda g, x: g * (1 + np.abs(x)) ** 2,
            },
        ),
        4: Exercise(
            combined(4 / 3, -1 / 3),
            trials=[(math.exp, 1.0, 0.5), (math.sin, 0.5, 0.5)],
            slips={
                "This is one central difference: its error c h² is still there.": combined(1, 0),
                "This is the mean of both. Both errors have the same sign, so they do not "
                "cancel.": combined(1 / 2, 1 / 2),
                "The two differences are exchanged: the one with the step 2h has the larger "
                "error, so it has the smaller weight.": combined(-1 / 3, 4 / 3),
                "The division by 3 is missing: 4 slopes minus 1 slope are 3 slopes.": (
                    combined(4, -1)
                ),
                "Here an error of 2 c h would cancel. The step is doubled, but the error of a "
                "central difference grows by 4.": combined(2, -1),
                "Here is divided by 4, and 4 slopes minus 1 slope are 3 slopes.": (
                    combined(1, -1 / 4)
                ),
                "These are forward differences. Their errors are c h and 2 c h.": combined(
                    4 / 3, -1 / 3, forward
                ),
                "The combination is right, but the steps are h/2 and h in place of h and 2h.": (
                    combined(4 / 3, -1 / 3, steps=(0.5, 1))
                ),
            },
        ),
    }
)
