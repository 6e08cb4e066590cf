"""The exercises of "Two directions, two costs"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

import minigrad as mg
from examples.walkthroughs.checking import Checker, Exercise

Pair = tuple[float, float]


def multiplications(sizes: Sequence[int]) -> tuple[int, int]:
    """Return how many multiplications a chain takes, from the inputs and from the output."""
    steps = list(pairwise(sizes))
    forward = sum(n * m * sizes[0] for n, m in steps[1:])
    return forward, sum(n * m * sizes[-1] for n, m in steps[:-1])


def with_own_step(sizes: Sequence[int]) -> tuple[int, int]:
    """Count the step at the end where the order begins, too."""
    total = sum(n * m for n, m in pairwise(sizes))
    return total * sizes[0], total * sizes[-1]


def one_pass(sizes: Sequence[int]) -> tuple[int, int]:
    """Count the entries of all Jacobians: the cost of a single vector."""
    total = sum(n * m for n, m in pairwise(sizes))
    return total, total


def squared(sizes: Sequence[int]) -> tuple[int, int]:
    """Take each intermediate result for a square matrix."""
    steps = list(pairwise(sizes))
    return sum(n * m * n for n, m in steps[1:]), sum(n * m * m for n, m in steps[:-1])


def twice(count: Callable[[Sequence[int]], tuple[int, int]]) -> Any:
    """Return a function that counts each multiplication and its addition."""
    return lambda sizes: tuple(2 * each for each in count(sizes))


def quotient(slope: Callable[[float, float, float, float], float]) -> Any:
    """Return a quotient of pairs whose slope is computed from u, u', v and v'."""

    def divide(u: Pair, v: Pair) -> Pair:
        return u[0] / v[0], slope(*u, *v)

    return divide


DIRECTIONS = {
    "a loss, by a million weights": "reverse",
    "each of 1000 points of a path, by the speed at the start": "forward",
    "300 sensors, by 3 settings": "forward",
    "10 scores of an image, by its 50,000 pixels": "reverse",
    "a loss, along one given direction of a million weights": "forward",
    "the losses of 32 examples, each by 1000 weights": "reverse",
}
LOSS, PATH, SENSORS, SCORES, ALONG, EXAMPLES = DIRECTIONS


def directions(**changes: str) -> dict[str, str]:
    """Return the right directions with some changes, under the names of the cases in capitals."""
    return DIRECTIONS | {globals()[name]: direction for name, direction in changes.items()}


def bowl(x: Any) -> Any:
    """Return the function of the notebook of which the step is asked for."""
    return (mg.exp(x[0]) * x[1:] ** 2).sum() + mg.square(x).sum()


def step(rule: Callable[[Any, Any], Any]) -> Any:
    """Return a function of x that applies a rule to the gradient g of `bowl` and to H g."""

    def best_step(x: Any) -> Any:
        g = mg.gradient(bowl)(x).data
        return rule(g, mg.hvp(bowl, x, g).data)

    return best_step


check = Checker(
    {
        1: Exercise(
            multiplications,
            trials=[([7, 5, 3, 2, 4],), ([1000, 300, 100, 1],), ([1, 100, 300, 1000],), ([3, 2],)],
            slips={
                "The two counts are exchanged: from the inputs, each product has as many columns "
                "as there are inputs.": lambda sizes: multiplications(sizes)[::-1],
                "The Jacobian at which an order begins is there already. It costs no product: two "
                "matrices take one product, not two.": with_own_step,
                "This is the cost of carrying one vector through the chain. For the whole "
                "Jacobian, what is carried is a matrix: how many columns, or rows, does it have?": (
                    one_pass
                ),
                "The intermediate results are not square: on one side they keep the size at which "
                "the order began.": squared,
                "Only multiplications are asked for, and these are the additions as well.": twice(
                    multiplications
                ),
                "The step that is left out is at the wrong end: from the inputs it is the first "
                "one, from the output it is the last one.": lambda sizes: (
                    with_own_step(sizes)[0] - sizes[-1] * sizes[-2] * sizes[0],
                    with_own_step(sizes)[1] - sizes[0] * sizes[1] * sizes[-1],
                ),
                "Each step has been multiplied by the size of both ends. From one end, only the "
                "size of this end remains in each product.": lambda sizes: tuple(
                    each * end
                    for each, end in zip(multiplications(sizes), (sizes[-1], sizes[0]), strict=True)
                ),
            },
        ),
        2: Exercise(
            quotient(lambda u, du, v, dv: (du * v - u * dv) / v**2),
            trials=[
                ((1.0, 0.5), (2.0, 3.0)),
                ((-3.0, 2.0), (0.5, 1.0)),
                ((2.0, -1.0), (-4.0, 0.25)),
            ],
            slips={
                "The sign of the second term is wrong: if v grows, the quotient of positive "
                "numbers falls.": quotient(lambda u, du, v, dv: (du * v + u * dv) / v**2),
                "The slope of a quotient is not the quotient of the slopes.": quotient(
                    lambda u, du, v, dv: du / dv
                ),
                "The denominator is wrong: u'v - uv' is divided by the square of v.": quotient(
                    lambda u, du, v, dv: (du * v - u * dv) / v
                ),
                "The two terms are exchanged, so the slope has the wrong sign.": quotient(
                    lambda u, du, v, dv: (u * dv - du * v) / v**2
                ),
                "Here v is taken for a constant, and its slope does not count.": quotient(
                    lambda u, du, v, dv: du / v
                ),
                "Here u is taken for a constant, and its slope does not count.": quotient(
                    lambda u, du, v, dv: -u * dv / v**2
                ),
                "This is the slope of the product of the two.": quotient(
                    lambda u, du, v, dv: du * v + u * dv
                ),
            },
        ),
        3: Exercise(
            DIRECTIONS,
            choices=("forward", "reverse"),
            slips={
                "A million numbers move, and one is asked about: forward mode would take a million "
                "passes for the loss.": directions(LOSS="forward"),
                "On the path, one number moves, and 1000 are asked about: reverse mode would take "
                "1000 passes.": directions(PATH="reverse"),
                "With 3 settings, 3 passes in one direction are enough. How many does it take to "
                "go back from each of 300 sensors?": directions(SENSORS="reverse"),
                "There are more pixels than scores: count how many passes it takes to move each "
                "pixel.": directions(SCORES="forward"),
                "One direction is one thing that moves, however many weights there are. Reverse "
                "mode finds this slope in one pass too, but it has to keep all values.": directions(
                    ALONG="reverse"
                ),
                "32 losses are 32 outputs, and there are 1000 weights: which of the two numbers is "
                "smaller?": directions(EXAMPLES="forward"),
                "All directions are the wrong way round: forward mode takes one pass for each "
                "input that moves, reverse mode one for each output.": {
                    case: "forward" if direction == "reverse" else "reverse"
                    for case, direction in DIRECTIONS.items()
                },
                "Reverse mode is not always the best: it pays for each output.": dict.fromkeys(
                    DIRECTIONS, "reverse"
                ),
                "Forward mode is not always the best: it pays for each input.": dict.fromkeys(
                    DIRECTIONS, "forward"
                ),
            },
        ),
        4: Exercise(
            lambda u: np.cumsum(u[::-1])[::-1],
            trials=[(np.array([1.0, 2.0, 4.0]),), (np.array([0.5, -1.0, 3.0, 2.0, -2.5]),)],
            slips={
                "This multiplies by J. Its rows are added up where its columns should be.": (
                    np.cumsum
                ),
                "The sums run from the end, as they should, but they are in the wrong order: the "
                "gradient of the first number comes first.": lambda u: np.cumsum(u[::-1]),
                "Only the order is turned around. The sums still begin at the first number of u.": (
                    lambda u: np.cumsum(u)[::-1]
                ),
                "This is the inverse of J, which undoes the sum. A VJP needs the transpose.": (
                    lambda u: np.diff(u, prepend=0.0)
                ),
                "This is the inverse of the transposed Jacobian.": lambda u: (
                    -np.diff(u, append=0.0)
                ),
                "Not every number is contained in all sums: the last one is contained in one.": (
                    lambda u: np.full_like(u, u.sum())
                ),
                "The number itself is missing: x[j] is contained in y[j], too.": lambda u: (
                    np.cumsum(u[::-1])[::-1] - u
                ),
                "This passes u on as it is, as if J were the identity.": lambda u: u,
            },
        ),
        5: Exercise(
            step(lambda g, Hg: (g @ g) / (g @ Hg)),
            trials=[(np.array([0.1, 0.5, -0.5]),), (np.array([-0.3, 1.0, 0.2, 0.4]),)],
            slips={
                "This is the curvature along g. Its inverse is the step.": step(
                    lambda g, Hg: (g @ Hg) / (g @ g)
                ),
                "The sign is wrong: the step already goes along -g, so t is positive where the "
                "curvature is.": step(lambda g, Hg: -(g @ g) / (g @ Hg)),
                "The slope along -g is not -1: how fast does f fall when t grows?": step(
                    lambda g, Hg: 1 / (g @ Hg)
                ),
                "The slope at t = 0 is g times g, the square of the length of g.": step(
                    lambda g, Hg: np.sqrt(g @ g) / (g @ Hg)
                ),
                "This is the distance that x moves. The step t is multiplied by g, which has a "
                "length of its own.": step(lambda g, Hg: np.sqrt(g @ g) * (g @ g) / (g @ Hg)),
                "One number is asked for, a step for all elements. This divides element by "
                "element.": step(lambda g, Hg: g / Hg),
                "The curvature along g is g times H g. The length of H g also counts what "
                "points elsewhere.": step(lambda g, Hg: np.sqrt(g @ g) / np.sqrt(Hg @ Hg)),
                "A factor of 2 is wrong: the slope of t²/2 is t.": step(
                    lambda g, Hg: 2 * (g @ g) / (g @ Hg)
                ),
            },
        ),
    }
)
