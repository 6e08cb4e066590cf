"""The exercises of "Learning to walk downhill"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from examples.walkthroughs.checking import Checker, Exercise

Array = Any
Point = tuple[float, float]

CURVATURES = np.array([1.0, 25.0])  # of the valley, along x and along y

# --------------------------------------------------------------------------------------------------
# 1. The best learning rate
# --------------------------------------------------------------------------------------------------

RATE = Exercise(
    lambda flattest, steepest: 2 / (flattest + steepest),
    trials=[(1, 25), (1, 400), (0.5, 8), (3, 3)],
    slips={
        "This is the limit: with this rate, the steepest direction jumps from side to side for "
        "ever.": lambda flattest, steepest: 2 / steepest,
        "This brings the steepest direction to its lowest point in one step, but the flattest one "
        "decides how long it takes.": lambda flattest, steepest: 1 / steepest,
        "This is the best rate for the flattest direction alone; the steepest one grows with it.": (
            lambda flattest, steepest: 1 / flattest
        ),
        "With this rate both factors are positive, and so it is too careful: the steepest "
        "direction may overshoot, as long as it shrinks as fast as the flattest.": (
            lambda flattest, steepest: 1 / (flattest + steepest)
        ),
        "The factors are 1 - lr · curvature, so the curvatures enter as a sum. This is their "
        "geometric mean.": lambda flattest, steepest: 1 / np.sqrt(flattest * steepest),
        "Look at the signs: the factor of the steepest direction is negative, and that of the "
        "flattest is positive.": lambda flattest, steepest: (
            2 / (steepest - flattest) if steepest != flattest else np.inf
        ),
        "This is the factor by which both directions shrink, and not the learning rate.": (
            lambda flattest, steepest: (steepest - flattest) / (steepest + flattest)
        ),
    },
)

# --------------------------------------------------------------------------------------------------
# 2. Momentum
# --------------------------------------------------------------------------------------------------

Move = Callable[[Array, Array, Array, float, float], tuple[Array, Array]]


def momentum_walk(start: Point, steps: int, lr: float, momentum: float) -> Array:
    """Return where gradient descent with momentum gets."""
    return _walked(_usual)(start, steps, lr, momentum)


def _usual(
    point: Array, velocity: Array, slope: Array, lr: float, momentum: float
) -> tuple[Array, Array]:
    velocity = momentum * velocity + slope
    return point - lr * velocity, velocity


def _walked(move: Move, curvatures: Array = CURVATURES, extra: int = 0) -> Callable[..., Array]:
    """Return a function that walks with a rule for one step."""

    def walk(start: Point, steps: int, lr: float, momentum: float) -> Array:
        point, velocity = np.array(start, float), np.zeros(2)
        for _ in range(steps + extra):
            point, velocity = move(point, velocity, curvatures * point, lr, momentum)
        return point

    return walk


MOMENTUM = Exercise(
    momentum_walk,
    trials=[((10.0, 1.0), 1, 0.03, 0.7), ((10.0, 1.0), 20, 0.03, 0.7), ((-3.0, 2.0), 7, 0.05, 0.3)],
    slips={
        "This is plain gradient descent: the velocity of the last step has no effect.": _walked(
            lambda point, velocity, slope, lr, momentum: (point - lr * slope, velocity)
        ),
        "The new slope is multiplied by 1 - momentum here. That makes an average; in these two "
        "lines slopes are added up.": _walked(
            lambda point, velocity, slope, lr, momentum: (
                point - lr * (momentum * velocity + (1 - momentum) * slope),
                momentum * velocity + (1 - momentum) * slope,
            )
        ),
        "The point moves with the velocity from before the update. First the velocity changes, "
        "and then the point.": _walked(
            lambda point, velocity, slope, lr, momentum: (
                point - lr * velocity,
                momentum * velocity + slope,
            )
        ),
        "This looks one step ahead: it is Nesterov's momentum, another method.": _walked(
            lambda point, velocity, slope, lr, momentum: (
                point - lr * (slope + momentum * (momentum * velocity + slope)),
                momentum * velocity + slope,
            )
        ),
        "The slope along y is 25 y, and not y.": _walked(_usual, np.array([1.0, 1.0])),
        "This goes uphill: the velocity is the sum of slopes, and they point uphill.": _walked(
            lambda point, velocity, slope, lr, momentum: (
                point + lr * (momentum * velocity + slope),
                momentum * velocity + slope,
            )
        ),
        "The momentum multiplies the new slope too; it belongs to the old velocity only.": _walked(
            lambda point, velocity, slope, lr, momentum: (
                point - lr * momentum * (velocity + slope),
                momentum * (velocity + slope),
            )
        ),
        "This is one step too many.": _walked(_usual, extra=1),
        "This is one step too few.": _walked(_usual, extra=-1),
    },
)

# --------------------------------------------------------------------------------------------------
# 3. The factor of a step
# --------------------------------------------------------------------------------------------------


def roots(lr: float, momentum: float, curvature: float) -> Array:
    """Return the sizes of both solutions of z² = (1 + momentum - lr curvature) z - momentum."""
    return np.abs(np.roots([1.0, -(1 + momentum - lr * curvature), momentum]))


FACTOR = Exercise(
    lambda lr, momentum, curvature: roots(lr, momentum, curvature).max(),
    trials=[
        (0.03, 0.7, 1),
        (0.03, 0.7, 25),
        (0.01, 0.2, 25),
        (0.05, 0.0, 25),
        (0.13, 0.5, 25),
        (0.1, 0.6, 25),
    ],
    tolerance=1e-5,
    slips={
        "This is right where the solutions are complex, and there the learning rate has no effect. "
        "Where they are real, the larger one counts.": lambda lr, momentum, curvature: (
            momentum**0.5
        ),
        "This is the factor without momentum.": lambda lr, momentum, curvature: abs(
            1 - lr * curvature
        ),
        "After many steps the slower part is left: the larger of the two solutions counts.": (
            lambda lr, momentum, curvature: roots(lr, momentum, curvature).min()
        ),
        "This is the product of the two solutions.": lambda lr, momentum, curvature: momentum,
        "The slope pulls back: check the sign of lr · curvature in the equation.": (
            lambda lr, momentum, curvature: roots(-lr, momentum, curvature).max()
        ),
        "Check the sign of the last term: with xₖ = zᵏ, the equation is "
        "z² - (1 + momentum - lr · curvature) z + momentum = 0.": lambda lr, momentum, curvature: (
            np.abs(np.roots([1.0, -(1 + momentum - lr * curvature), -momentum])).max()
        ),
        "A factor has no sign, and of a complex number the size counts, not the real part.": (
            lambda lr, momentum, curvature: float(
                np.roots([1.0, -(1 + momentum - lr * curvature), momentum]).real.max()
            )
        ),
        "With momentum, a learning rate acts in the long run like lr / (1 - momentum), but only "
        "where it is small; this is not exact.": lambda lr, momentum, curvature: abs(
            1 - lr * curvature / (1 - momentum)
        ),
    },
)

# --------------------------------------------------------------------------------------------------
# 4. Adam
# --------------------------------------------------------------------------------------------------


def _adam(
    first: float = 0.9,
    second: float = 0.999,
    *,
    corrected: bool = True,
    start_at: int = 1,
    power: float = 0.5,
    square: Callable[[Array], Array] = np.square,
    stored: bool = False,
    product: bool = False,
    gain: float | None = None,
    extra: int = 0,
    below_root: bool = False,
) -> Callable[..., Array]:
    """Return a function that walks with Adam, or with a mistake in it."""

    def walk(start: Point, steps: int, lr: float) -> Array:
        point, m, v = np.array(start, float), np.zeros(2), np.zeros(2)
        with np.errstate(all="ignore"):
            for t in range(start_at, start_at + steps + extra):
                slope = CURVATURES * point
                m = first * m + (1 - first if gain is None else gain) * slope
                v = second * v + (1 - second) * square(slope)
                by_m = 1 - (first * t if product else first**t) if corrected else 1.0
                by_v = 1 - (second * t if product else second**t) if corrected else 1.0
                m_hat, v_hat = m / by_m, v / by_v
                if stored:
                    m, v = m_hat, v_hat
                below = np.sqrt(v_hat + 1e-8) if below_root else v_hat**power + 1e-8
                point = point - lr * m_hat / below
        return point

    return walk


ADAM = Exercise(
    _adam(),
    trials=[
        ((10.0, 1.0), 1, 0.3),
        ((10.0, 1.0), 20, 0.3),
        ((-3.0, 2.0), 7, 0.1),
        ((1e-6, -1e-7), 3, 1e-7),
    ],
    slips={
        "The averages start at 0, so at first they are far too small. The correction is "
        "missing.": _adam(corrected=False),
        "In the first step t is 1; with t = 0 the correction divides 0 by 0.": _adam(start_at=0),
        "The correction has a power of 0.9 and of 0.999, and here is a product with t.": _adam(
            product=True
        ),
        "The average of the squares is divided by, without its square root.": _adam(power=1.0),
        "v is the average of the squares of the slopes, and here of their absolute values.": _adam(
            square=np.abs
        ),
        "The two factors are exchanged: 0.9 belongs to the slopes, 0.999 to their squares.": _adam(
            0.999, 0.9
        ),
        "The corrected averages are stored here, and corrected again in the next step. Keep m and "
        "v as they are, and use the corrected ones in the step only.": _adam(stored=True),
        "The new slope enters m with the weight 0.1.": _adam(gain=1.0),
        "The 10⁻⁸ is added under the root here. It is added to the root.": _adam(below_root=True),
        "This is one step too many.": _adam(extra=1),
        "This is one step too few.": _adam(extra=-1),
    },
)

# --------------------------------------------------------------------------------------------------
# 5. A turned valley
# --------------------------------------------------------------------------------------------------

TURN = np.array([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5  # from the valley to the turned valley


def counts(
    condition: float, matrix: Array = TURN, start: Array | None = None, extra: int = 0
) -> dict[str, int]:
    """Return the steps of each method in a valley that a matrix turns."""
    slopes = matrix @ np.diag([1.0, condition]) @ matrix.T
    begin = TURN @ [10.0, 1.0] if start is None else np.array(start)
    root = condition**0.5
    best, kept = (2 / (1 + root)) ** 2, ((root - 1) / (root + 1)) ** 2
    return {
        "plain": _steps(slopes, begin, 2 / (1 + condition), 0.0) + extra,
        "momentum": _steps(slopes, begin, best, kept) + extra,
        "Adam": _steps(slopes, begin, 0.3, None) + extra,
    }


def _steps(slopes: Array, point: Array, lr: float, momentum: float | None) -> int:
    """Count the steps to a height below 1e-6; without a momentum, Adam's."""
    m, v = np.zeros(2), np.zeros(2)
    for t in range(1, 4000):
        slope = slopes @ point
        if point @ slope / 2 < 1e-6:
            return t - 1
        if momentum is None:
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            point = point - lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        else:
            m = momentum * m + slope
            point = point - lr * m
    return 4000


TURNED = Exercise(
    counts(400),
    slips={
        "These are the counts of the valley along the axes, before the turn.": counts(
            400, np.eye(2), np.array([10.0, 1.0])
        ),
        "The valley is turned, and the start is not. Then the path begins elsewhere in the "
        "valley.": counts(400, start=np.array([10.0, 1.0])),
        "The start is turned in one direction, and the valley in the other.": counts(
            400, start=TURN.T @ [10.0, 1.0]
        ),
        "A turn keeps lengths: divide x - y and x + y by √2. Divided by 2, the valley becomes "
        "half as steep.": counts(400, TURN / 2**0.5),
        "This is the valley with the condition number 25.": counts(25),
        "The start counts as a step here.": counts(400, extra=1),
    },
)

check = Checker({1: RATE, 2: MOMENTUM, 3: FACTOR, 4: ADAM, 5: TURNED})
