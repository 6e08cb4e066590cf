"""The exercises of "A derivative is a program".

The notebook writes its own `Scalar`, so an answer made of them is read by its attributes `value`,
`op` and `inputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.walkthroughs.checking import (
    Checker,
    Exercise,
    WrongAnswerError,
    called,
    described,
)


@dataclass(eq=False)
class Number:
    """A number with the attributes of the notebook's `Scalar`."""

    value: float
    op: str | None = None
    inputs: tuple[Number, ...] = field(default=(), repr=False)
    grad: float = field(default=0.0, repr=False)


def add(x: Number, y: Number) -> Number:
    """Return x + y, which remembers its inputs."""
    return Number(x.value + y.value, "add", (x, y))


def multiply(x: Number, y: Number) -> Number:
    """Return x * y, which remembers its inputs."""
    return Number(x.value * y.value, "multiply", (x, y))


def tanh(x: Number) -> Number:
    """Return the tanh of a number, which remembers its input."""
    return Number(math.tanh(x.value), "tanh", (x,))


def has_a_graph(answer: Any) -> bool:
    """Return whether an answer looks like a `Scalar`."""
    return all(hasattr(answer, name) for name in ("value", "op", "inputs"))


# --------------------------------------------------------------------------------------------------
# 1. A backward pass by hand
# --------------------------------------------------------------------------------------------------


def slopes_by_hand(a: float, b: float) -> tuple[float, float]:
    """Return the slopes of `tanh(a * b) * a` with a and with b."""
    t = math.tanh(a * b)
    p_grad = a * (1 - t * t)
    return t + p_grad * b, p_grad * a


def without_the_first_path(a: float, b: float) -> tuple[float, float]:
    """Return the slopes if the slope through `a * b` overwrites the slope through `t * a`."""
    t = math.tanh(a * b)
    return a * (1 - t * t) * b, a * (1 - t * t) * a


def without_the_second_path(a: float, b: float) -> tuple[float, float]:
    """Return the slopes if a gets only the slope through `t * a`."""
    t = math.tanh(a * b)
    return t, a * (1 - t * t) * a


def with_the_square_of_p(a: float, b: float) -> tuple[float, float]:
    """Return the slopes if the slope of tanh is computed from its input."""
    p = a * b
    return math.tanh(p) + a * (1 - p * p) * b, a * (1 - p * p) * a


def without_tanh(a: float, b: float) -> tuple[float, float]:
    """Return the slopes if p gets the gradient of t."""
    return math.tanh(a * b) + a * b, a * a


def with_t_at_rate_one(a: float, b: float) -> tuple[float, float]:
    """Return the slopes if t gets the gradient of y, without the factor a."""
    t = math.tanh(a * b)
    return t + (1 - t * t) * b, (1 - t * t) * a


# --------------------------------------------------------------------------------------------------
# 3. The logistic function as a graph
# --------------------------------------------------------------------------------------------------

AT = 0.7
SLOPES: dict[str, Callable[..., Sequence[float]]] = {
    "add": lambda out, x, y: (1.0, 1.0),
    "multiply": lambda out, x, y: (y, x),
    "tanh": lambda out, x: (1 - out * out,),
}


def value_and_slope(answer: Any) -> dict[str, float]:
    """Return the value of a graph, and its slope with the inputs that are 0.7.

    Raises:
        WrongAnswerError: if this is not a graph of the engine's operations that starts at 0.7.
    """
    if not has_a_graph(answer):
        raise WrongAnswerError(f"A `Scalar` is expected, and this is {described(answer)}.")
    reached = 0

    def slope(x: Any) -> float:
        nonlocal reached
        if not x.inputs:
            reached += x.value == AT
            return float(x.value == AT)
        if x.op not in SLOPES:
            raise WrongAnswerError(
                f"This graph has the operation {x.op!r}. The task is to use no other than "
                f"{', '.join(SLOPES)}."
            )
        rates = SLOPES[x.op](x.value, *[source.value for source in x.inputs])
        return sum(rate * slope(source) for rate, source in zip(rates, x.inputs, strict=True))

    found = slope(answer)
    if not reached:
        raise WrongAnswerError(NOT_REMEMBERED)
    return {"value": answer.value, "slope": found}


NOT_REMEMBERED = (
    "There is no 0.7 in this graph: the function computes with plain numbers, such as `x.value`, "
    "so the result does not remember that it was computed from x."
)


def logistic(factor: float, inner: float = 0.5, plus: float = 1.0) -> Number:
    """Return `factor * (plus + tanh(inner * 0.7))` as a graph."""
    half = tanh(multiply(Number(inner), Number(AT)))
    return multiply(Number(factor), add(Number(plus), half))


# --------------------------------------------------------------------------------------------------
# 4. Exclusive or
# --------------------------------------------------------------------------------------------------

XOR = (((0, 0), -1), ((0, 1), 1), ((1, 0), 1), ((1, 1), -1))
Layers = Sequence[Sequence[Any]]

ALIKE = (
    "All three hidden neurons have the same weights, so together they are no better than one. "
    "Neurons that start equal get equal slopes, and stay equal."
)
OPPOSITE = (
    "Each of the four results has the wrong sign: the loss has grown. A step goes against the "
    "slope."
)
OR = (
    "This network has learnt the word or: for (1, 1) it says 1, and should say -1. Which cases are "
    "in the loss?"
)
ZERO = (
    "For (0, 0) and (1, 1), this network says nearly 0, and should say -1. Which targets are in "
    "the loss?"
)
MEAN = (
    "The mean of the squared errors is below 0.1, but the loss is their sum, and that is not below "
    "0.1 yet: it needs more steps."
)
LAYOUT = (
    "Four lists are expected: three with the 3 weights of a hidden neuron, and one with the 4 "
    "weights of the last neuron (three inputs and a bias)."
)


def learnt(answer: Any) -> bool:
    """Return whether the network with these weights computes the exclusive or.

    Raises:
        WrongAnswerError: if it does not.
    """
    outputs = network_outputs(answer)
    targets = [target for _, target in XOR]
    errors = [output - target for output, target in zip(outputs, targets, strict=True)]
    loss = sum(error * error for error in errors)
    hidden = [[weight_of(w) for w in weights] for weights in answer[:3]]
    if loss < 0.1:
        return True
    if hidden[0] == hidden[1] == hidden[2]:
        raise WrongAnswerError(ALIKE)
    if all(output * target < -0.1 for output, target in zip(outputs, targets, strict=True)):
        raise WrongAnswerError(OPPOSITE)
    if near(outputs, (-1, 1, 1, 1)):
        raise WrongAnswerError(OR)
    if near(outputs, (0, 1, 1, 0)):
        raise WrongAnswerError(ZERO)
    if loss < 0.4:
        raise WrongAnswerError(MEAN)
    raise WrongAnswerError(
        f"With these weights the results are {', '.join(f'{o:.2f}' for o in outputs)}, and the "
        f"loss is {loss:.3g}. It should be below 0.1: train longer, or with other steps."
    )


def near(outputs: Sequence[float], targets: Sequence[float]) -> bool:
    """Return whether each output is nearer than 0.4 to its target."""
    return all(abs(o - t) < 0.4 for o, t in zip(outputs, targets, strict=True))


def weight_of(weight: Any) -> float:
    """Return the number in a `Scalar`, or a plain number."""
    return float(getattr(weight, "value", weight))


def network_outputs(answer: Any) -> list[float]:
    """Return what the network says in the four cases.

    Raises:
        WrongAnswerError: if the answer is not four lists of weights.
    """
    try:
        layers = [[weight_of(w) for w in weights] for weights in answer]
    except (TypeError, ValueError) as problem:
        raise WrongAnswerError(LAYOUT) from problem
    if [len(weights) for weights in layers] != [3, 3, 3, 4]:
        raise WrongAnswerError(LAYOUT)

    def say(x1: float, x2: float) -> float:
        h = [math.tanh(w1 * x1 + w2 * x2 + bias) for w1, w2, bias in layers[:3]]
        v1, v2, v3, bias = layers[3]
        return math.tanh(v1 * h[0] + v2 * h[1] + v3 * h[2] + bias)

    return [say(*x) for x, _ in XOR]


def both_or_neither(size: float, second: float = -1.0, bias: float = -1.0) -> list[list[float]]:
    """Return weights that compute the exclusive or from "at least one" and "both".

    Args:
        size: how far the last neuron goes towards 1 and -1.
        second: the weight of "both", relative to that of "at least one".
        bias: the last neuron's bias, relative to the same.
    """
    last = [size, second * size, 0.0, bias * size]
    return [[9.0, 9.0, -4.5], [9.0, 9.0, -13.5], [1.0, -1.0, 0.0], last]


# --------------------------------------------------------------------------------------------------
# 5. The slope of the slope
# --------------------------------------------------------------------------------------------------

POINTS = (0.5, -1.0, 2.0)
PLAIN = (
    "The slope is a `Scalar` without inputs: it does not remember how it was computed, so its own "
    "slope cannot be computed."
)
Pair = tuple[Number, Number]


def both_slopes(answer: Any) -> list[dict[str, float]]:
    """Return the slope and the slope of the slope that a function computes at three points.

    Raises:
        WrongAnswerError: if they are not `Scalar`s that remember how they were computed.
    """
    if not callable(answer):
        raise WrongAnswerError(f"A function is expected, and this is {described(answer)}.")
    found = []
    for point in POINTS:
        pair = called(answer, (point,))
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise WrongAnswerError(f"Two `Scalar`s are expected, and this is {described(pair)}.")
        for part in pair:
            if not has_a_graph(part):
                raise WrongAnswerError(f"A `Scalar` is expected, and this is {described(part)}.")
        first, second = pair
        if not first.inputs:
            raise WrongAnswerError(PLAIN)
        found.append({"slope": first.value, "slope of the slope": second.value})
    return found


def pair_of(first: Callable[[float], float], second: Callable[[float], float]) -> Any:
    """Return a function that gives both slopes as numbers with inputs, computed from t = tanh."""

    def both(at: float) -> Pair:
        t = math.tanh(at)
        given = (Number(at),)
        return Number(first(t), "multiply", given), Number(second(t), "multiply", given)

    return both


def without_inputs(at: float) -> Pair:
    """Return the right slope as a number that does not remember its inputs."""
    return Number(1 - math.tanh(at) ** 2), Number(0.0)


def slope_of_tanh(t: float) -> float:
    """Return the slope of tanh where its value is t."""
    return 1 - t * t


def bend_of_tanh(t: float) -> float:
    """Return the slope of the slope of tanh where its value is t."""
    return -2 * t * (1 - t * t)


check = Checker(
    {
        1: Exercise(
            slopes_by_hand,
            trials=[(0.5, 2.0), (-1.0, 0.25)],
            slips={
                "The slope with a lacks a path: a is also a factor of the last product, and the "
                "gradients of both paths add up.": without_the_first_path,
                "The slope with a lacks a path: a is also a factor of p, so something reaches it "
                "through tanh.": without_the_second_path,
                "The rate of tanh is 1 minus the square of its result, and this is the square of "
                "its input.": with_the_square_of_p,
                "The gradient of t goes through tanh before it reaches p: a rate is missing on "
                "that path.": without_tanh,
                "y is t times a, so y grows with t at the rate a, and not 1.": with_t_at_rate_one,
                "These are the right slopes in the wrong order: that of a comes first.": (
                    lambda a, b: slopes_by_hand(a, b)[::-1]
                ),
            },
        ),
        2: Exercise(
            lambda g, x, out: g * out,
            trials=[(1.0, 0.5, math.exp(0.5)), (3.0, -1.0, math.exp(-1.0)), (-0.5, 1.0, math.e)],
            slips={
                "g does not count: it is the rate at which the end result grows with out, and "
                "along a path rates multiply.": lambda g, x, out: out,
                "Along a path, rates multiply. Here they are added.": lambda g, x, out: g + out,
                "This is the rule for a power, x^n. Here x is the exponent.": (
                    lambda g, x, out: g * x * math.exp(x - 1)
                ),
                "out is e^x already. This is e to the power of that.": (
                    lambda g, x, out: g * math.exp(out)
                ),
                "This is the VJP of tanh.": lambda g, x, out: g * (1 - out * out),
                "The result grows with x at the rate of its own slope, and x is not that slope.": (
                    lambda g, x, out: g * x
                ),
                "With this VJP, exp would be as steep as a sum: its slope is not 1 everywhere.": (
                    lambda g, x, out: g
                ),
            },
        ),
        3: Exercise(
            logistic(0.5),
            observe=value_and_slope,
            slips={
                NOT_REMEMBERED: Number(1 / (1 + math.exp(-AT))),
                "This is tanh of half of x. It runs from -1 to 1, and the logistic function from "
                "0 to 1.": tanh(multiply(Number(0.5), Number(AT))),
                "Half of the right function is missing: the argument of tanh is x / 2, and not "
                "x.": logistic(0.5, 1.0),
                "The argument of tanh is x / 2, and this is 2 x.": logistic(0.5, 2.0),
                "The half multiplies the sum, and not only tanh.": add(
                    Number(1.0), multiply(Number(0.5), tanh(multiply(Number(0.5), Number(AT))))
                ),
                "The factor 1/2 before the sum is missing: this runs from 0 to 2.": logistic(1.0),
                "The sign of x is wrong: this falls where the logistic function rises.": (
                    logistic(0.5, -0.5)
                ),
                "The 1 is missing in the sum: at 0 this is 0, and should be 1/2.": (
                    logistic(0.5, 0.5, 0.0)
                ),
            },
        ),
        4: Exercise(
            both_or_neither(4.0),
            observe=learnt,
            slips={
                ALIKE: [[0.0] * 3] * 3 + [[0.0] * 4],
                OPPOSITE: both_or_neither(-4.0),
                OR: both_or_neither(4.0, -0.1, 0.0),
                ZERO: both_or_neither(2.0, -1.0, 0.0),
                MEAN: both_or_neither(1.0),
                LAYOUT: [[1.0] * 2] * 3 + [[1.0] * 3],
            },
        ),
        5: Exercise(
            pair_of(slope_of_tanh, bend_of_tanh),
            observe=both_slopes,
            slips={
                PLAIN: without_inputs,
                "`1 - x` is computed as `x - 1`: in `__rsub__`, `self` is what is subtracted.": (
                    pair_of(lambda t: -slope_of_tanh(t), lambda t: -bend_of_tanh(t))
                ),
                "In `out * out`, out is used twice, and half of its gradient is lost: the "
                "gradients that arrive at a number add up.": (
                    pair_of(slope_of_tanh, lambda t: bend_of_tanh(t) / 2)
                ),
                "The gradients of the first pass are still there when the second one begins: this "
                "is the sum of the slope and the slope of the slope.": (
                    pair_of(slope_of_tanh, lambda t: slope_of_tanh(t) + bend_of_tanh(t))
                ),
                "This is how fast the slope grows with t = tanh(x). The path from x to t is "
                "missing.": pair_of(slope_of_tanh, lambda t: -2 * t),
                "Both numbers are the slope: the second pass starts at the slope, and not at "
                "tanh(x) again.": pair_of(slope_of_tanh, slope_of_tanh),
                "The slope does not change with x in this answer. It does: the graph of the slope "
                "goes through tanh(x) to x.": pair_of(slope_of_tanh, lambda t: 0.0),
            },
        ),
    }
)
