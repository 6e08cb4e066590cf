"""The exercises of "Order matters".

The notebook writes its own `Scalar`. The checks call a reader's functions with numbers of their
own, which have the same attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from examples.walkthroughs.checking import (
    Checker,
    Exercise,
    NoAnswerError,
    WrongAnswerError,
    described,
)
from examples.walkthroughs.exercises.a_derivative_is_a_program import Number, add, multiply


def sent_back(x: Number, g: float) -> list[tuple[Number, float]]:
    """Return each input of a number, with the gradient that it is sent."""
    if not x.inputs:
        return []
    first, second = x.inputs
    if x.op == "add":
        return [(first, g), (second, g)]
    return [(first, g * second.value), (second, g * first.value)]


# --------------------------------------------------------------------------------------------------
# 2. An order without recursion
# --------------------------------------------------------------------------------------------------

Order = Callable[[Any], Any]

NO_LIST = "A list of the numbers is expected, and this is not a list. A set has no order."
NO_NUMBERS = "The list should contain the numbers themselves, and nothing else."
TWICE = "A number is in the list twice. It is reached on two paths, and should be visited once."
BACKWARDS = (
    "The order is the opposite one: `end` is the last of the list, and the inputs of a number come "
    "before it."
)
NO_END = "The number itself is missing: `end` is the last of the list."
NO_LEAVES = "Numbers without inputs are missing: they belong to the list too."
TOO_EARLY = (
    "A number comes before one of its inputs. It may be appended only when all its inputs are in "
    "the list; the first visit is too early."
)
TOO_DEEP = "At a depth of 5,000, this raises a RecursionError: the function still calls itself."
AGAIN_AND_AGAIN = (
    "At a depth of 5,000, this reads `inputs` more than a million times, and there are only 5,001 "
    "numbers: each path to a number is followed again. Skip a number that was visited before."
)
MISSING = "Some numbers from which `end` was computed are not in the list."


def order_of_small() -> tuple[Number, list[Number]]:
    """Return the end of a graph with two shared numbers, and all its numbers in order."""
    a, b = Number(2.0), Number(-5.0)
    product = multiply(a, b)
    c = add(product, a)
    square, other = multiply(c, c), multiply(b, c)
    end = add(square, other)
    return end, [a, b, product, c, square, other, end]


def is_an_order(answer: Any) -> bool:
    """Return whether a function lists the numbers behind a number in a topological order.

    Raises:
        NoAnswerError: if it returns `...`.
        WrongAnswerError: if it does not.
    """
    if not callable(answer):
        raise WrongAnswerError(f"A function is expected, and this is {described(answer)}.")
    end, numbers = order_of_small()
    found = called_with_graph(answer, end)
    if found is ...:
        raise NoAnswerError
    if found is None:
        raise WrongAnswerError("Your function returns nothing. Does it end with `return`?")
    if not isinstance(found, list | tuple):
        raise WrongAnswerError(NO_LIST)
    if not all(isinstance(x, Number) for x in found):
        raise WrongAnswerError(NO_NUMBERS)
    place = {x: i for i, x in enumerate(found)}
    if len(place) < len(found):
        raise WrongAnswerError(TWICE)
    if end not in place:
        raise WrongAnswerError(NO_END)
    if missing := [x for x in numbers if x not in place]:
        raise WrongAnswerError(MISSING if any(x.inputs for x in missing) else NO_LEAVES)
    if len(found) > len(numbers):
        raise WrongAnswerError(
            f"The list has {len(found)} entries, and {end.value:g} was computed from "
            f"{len(numbers)} numbers, itself included."
        )
    pairs = [(source, x) for x in numbers for source in x.inputs]
    if all(place[source] > place[x] for source, x in pairs):
        raise WrongAnswerError(BACKWARDS)
    if any(place[source] > place[x] for source, x in pairs):
        raise WrongAnswerError(TOO_EARLY)
    deep: Number = Counted(1.0)
    for _ in range(5000):
        deep = Counted(1.0, "add", (deep, deep))
    Counted.left = 1_000_000
    if len(called_with_graph(answer, deep)) != 5001:
        raise WrongAnswerError("In a chain of 5,000 doublings, the list should have 5,001 entries.")
    return True


class Counted(Number):
    """A number that limits how often its inputs are read, so that every function ends."""

    left = 0

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute.

        Raises:
            WrongAnswerError: if inputs have been read too often.
        """
        if name == "inputs":
            Counted.left -= 1
            if Counted.left < 0:
                raise WrongAnswerError(AGAIN_AND_AGAIN)
        return super().__getattribute__(name)


def called_with_graph(function: Order, end: Number) -> Any:
    """Return what a function returns for a graph.

    Raises:
        WrongAnswerError: if it raises.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, 4_000))  # some packages raise it above the depth of our graph
    try:
        return function(end)
    except WrongAnswerError:
        raise
    except RecursionError as error:
        raise WrongAnswerError(TOO_DEEP) from error
    except Exception as error:
        raise WrongAnswerError(f"Your function raises {type(error).__name__}: {error}") from error
    finally:
        sys.setrecursionlimit(limit)


def in_order(end: Number) -> list[Number]:
    """Return all numbers behind a number, each after its inputs."""
    order: list[Number] = []
    seen: set[Number] = set()
    waiting = [(end, False)]
    while waiting:
        x, inputs_done = waiting.pop()
        if inputs_done:
            order.append(x)
        elif x not in seen:
            seen.add(x)
            waiting.append((x, True))
            waiting += [(source, False) for source in x.inputs]
    return order


def recursive(end: Number) -> list[Number]:
    """Return the order by a function that calls itself."""
    order: list[Number] = []

    def visit(x: Number) -> None:
        if x not in order:
            for source in x.inputs:
                visit(source)
            order.append(x)

    visit(end)
    return order


def without_skipping(end: Number) -> list[Number]:
    """Return the right order, by a loop that visits a number as often as there are paths to it."""
    order: dict[Number, None] = {}
    waiting = [(end, False)]
    while waiting:
        x, inputs_done = waiting.pop()
        if inputs_done:
            order.setdefault(x)
        else:
            waiting.append((x, True))
            waiting += [(source, False) for source in x.inputs]
    return list(order)


def at_first_sight(end: Number) -> list[Number]:
    """Return the numbers in the opposite of the order in which they are first seen."""
    order, waiting = [end], [end]
    while waiting:
        for source in waiting.pop(0).inputs:
            if source not in order:
                order.append(source)
                waiting.append(source)
    return order[::-1]


def path_by_path(end: Number) -> list[Number]:
    """Return a number as often as there are paths to it."""
    return [x for source in end.inputs for x in path_by_path(source)] + [end]


# --------------------------------------------------------------------------------------------------
# 3. A backward pass that can be repeated
# --------------------------------------------------------------------------------------------------

Backward = Callable[[Any], Any]


def three_passes(answer: Any) -> dict[str, list[float]]:
    """Return the gradient of the leaf of two graphs after each of three backward passes.

    Raises:
        NoAnswerError: if it returns `...`.
        WrongAnswerError: if it raises.
    """
    if not callable(answer):
        raise WrongAnswerError(f"A function is expected, and this is {described(answer)}.")
    found: dict[str, list[float]] = {}
    for name, graph in {"h + h with h = 2 x": diamond, "x * x + x": square_and_more}.items():
        leaf, end = graph()
        found[name] = []
        for _ in range(3):
            if called_with_graph(answer, end) is ...:
                raise NoAnswerError
            found[name].append(leaf.grad)
    return found


def diamond() -> tuple[Number, Number]:
    """Return x = 3 and h + h with h = 2 x."""
    x = Number(3.0)
    h = multiply(Number(2.0), x)
    return x, add(h, h)


def square_and_more() -> tuple[Number, Number]:
    """Return x = 3 and x * x + x."""
    x = Number(3.0)
    return x, add(multiply(x, x), x)


def backward_again(end: Number) -> None:
    """Add the slope to the gradient of each leaf."""
    arrived = {end: 1.0}
    for x in reversed(in_order(end)):
        for source, g in sent_back(x, arrived[x]):
            arrived[source] = arrived.get(source, 0.0) + g
        if not x.inputs:
            x.grad += arrived[x]


def without_clearing(end: Number) -> None:
    """Run the notebook's first backward pass, which leaves gradients in the middle."""
    end.grad = 1.0
    for x in reversed(in_order(end)):
        for source, g in sent_back(x, x.grad):
            source.grad += g


def clearing_everything(end: Number) -> None:
    """Run a backward pass that first clears all gradients, also the gradients of leaves."""
    for x in in_order(end):
        x.grad = 0.0
    without_clearing(end)


def overwriting(end: Number) -> None:
    """Run a pass in which a gradient that arrives replaces the earlier one."""
    arrived = {end: 1.0}
    for x in reversed(in_order(end)):
        arrived.update(sent_back(x, arrived[x]))
        if not x.inputs:
            x.grad += arrived[x]


def at_once(end: Number, g: float = 1.0, arrived: dict[Number, float] | None = None) -> None:
    """Run the eager pass with gradients that belong to the pass."""
    top = arrived is None
    arrived = {} if arrived is None else arrived
    arrived[end] = arrived.get(end, 0.0) + g
    for source, sent in sent_back(end, arrived[end]):
        at_once(source, sent, arrived)
    if top:
        for x, gradient in arrived.items():
            x.grad += 0.0 if x.inputs else gradient


def twice(end: Number) -> None:
    """Add the slope two times."""
    backward_again(end)
    backward_again(end)


def without_storing(end: Number) -> None:
    """Compute the gradients and store none."""


check = Checker(
    {
        1: Exercise(
            (114, 276),
            slips={
                "These are the right numbers in the other order: the slope comes first.": (
                    276,
                    114,
                ),
                "The slope is that of h * h alone. h is used a third time.": (108, 276),
                "The slope is right. The eager result is not: h passes on what it has, each time "
                "that something arrives.": (114, 114),
                "The slope is right. In the eager result, the last term, + h, is missing.": (
                    114,
                    162,
                ),
                "The slope is right. The eager pass visits the left term h * h before the right "
                "term h, and here it is the other way around.": (114, 180),
                "The slope is right. In the eager result, h sends each time only one gradient to "
                "x; but x is both inputs of x * x.": (114, 138),
                "In the slope, x is both inputs of x * x, and only one of them counts here.": (
                    57,
                    276,
                ),
                "This is the value of y at 3, and not its slope.": (90, 276),
            },
        ),
        2: Exercise(
            in_order,
            observe=is_an_order,
            slips={
                TOO_DEEP: recursive,
                AGAIN_AND_AGAIN: without_skipping,
                BACKWARDS: lambda end: in_order(end)[::-1],
                TWICE: path_by_path,
                NO_END: lambda end: in_order(end)[:-1],
                NO_LEAVES: lambda end: [x for x in in_order(end) if x.inputs],
                MISSING: lambda end: [*end.inputs, end],
                TOO_EARLY: at_first_sight,
                NO_LIST: lambda end: set(in_order(end)),
                NO_NUMBERS: lambda end: [x.value for x in in_order(end)],
            },
        ),
        3: Exercise(
            backward_again,
            observe=three_passes,
            slips={
                "The first pass is right, and the second one is not: the numbers in the middle "
                "still have their gradients, and pass them on again.": without_clearing,
                "Each pass gives the slope alone. But a leaf adds up the slopes of all passes.": (
                    clearing_everything
                ),
                "Two gradients arrive at a number that is used twice, and one is lost.": (
                    overwriting
                ),
                "A number passes on a gradient before it is complete: this is the eager pass.": (
                    at_once
                ),
                "Each pass adds the slope twice.": twice,
                "The leaf still has the gradient 0: nothing was added to its `grad`.": (
                    without_storing
                ),
            },
        ),
        4: Exercise(
            lambda rows, total: rows / total,
            trials=[(48, 64), (16, 64), (1, 10)],
            slips={
                "Without a factor, each part counts the same, and so a row of a small part counts "
                "more than a row of a large one.": lambda rows, total: 1,
                "One half is right for two parts of the same size. Here one has three times as "
                "many rows.": lambda rows, total: 1 / 2,
                "This is upside down: the larger part must have the larger factor.": (
                    lambda rows, total: total / rows
                ),
                "This factor turns the mean of a part into a sum. The loss is the mean over all "
                "rows.": lambda rows, total: rows,
                "The loss of a part is a mean already, divided by its rows. With this factor it "
                "is divided once more.": lambda rows, total: 1 / total,
                "This gives the large part the share of the small one.": (
                    lambda rows, total: 1 - rows / total
                ),
                "This divides by the rows of the part again: its loss is already a mean.": (
                    lambda rows, total: 1 / rows
                ),
            },
        ),
    }
)
