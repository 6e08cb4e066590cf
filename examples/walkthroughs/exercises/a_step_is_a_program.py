"""The exercises of "A step is a program"."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import minigrad as mg
from examples.walkthroughs.checking import (
    Checker,
    Exercise,
    WrongAnswerError,
    called,
    described,
)

# The text of a program


@functools.cache
def example() -> tuple[str, dict[str, Any], tuple[Any, Any]]:
    """Return the text of the notebook's step, its namespace, and a batch."""
    draw = np.random.default_rng(0)
    model = mg.nn.MLP([2, 8, 1], activation=mg.tanh, rng=draw)
    optimizer = mg.optim.Adam(model.trainable_parameters(), lr=0.01)

    @mg.capture
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = mg.square(model(x) - y).mean()
        loss.backward()
        optimizer.step()
        return loss

    x = draw.standard_normal((16, 2), dtype=np.float32)
    y = np.sin(2 * x[:, :1]) * x[:, 1:]
    for _ in range(2):
        step(x, y)
    return step.source, step.namespace, (x, y)


class Recorder:
    """An optimiser that keeps the gradients that it gets, and changes nothing."""

    gradients: list[Any] | None = None

    def step_group(self, group: Any, parameters: Any, gradients: list[Any]) -> None:
        """Keep the gradients."""
        self.gradients = [np.array(g) for g in gradients]


def effect(text: Any) -> dict[str, Any]:
    """Return the loss that a program returns, and the gradients that its optimiser gets.

    Raises:
        WrongAnswerError: if it is not text, does not run, or does not call the optimiser.
    """
    if not isinstance(text, str):
        raise WrongAnswerError(
            f"The text of the changed program is expected, and this is {described(text)}."
        )
    _, namespace, batch = example()
    optimizer = Recorder()
    space = {**namespace, "adam": optimizer}
    space.pop("program", None)
    try:
        exec(text, space)
        loss = space["program"](*batch)
    except KeyError as error:
        raise WrongAnswerError(f"The text does not define {error}.") from error
    except Exception as error:
        raise WrongAnswerError(
            f"The changed program raises {type(error).__name__}: {error}"
        ) from error
    if optimizer.gradients is None:
        raise WrongAnswerError("The changed program does not call the optimiser.")
    return {"loss": loss, "gradients": optimizer.gradients}


def with_line(line: str, before: str) -> str:
    """Return the text of the step with one more line before the line that begins as given."""
    text = example()[0]
    at = text.index(f"    {before}")
    return f"{text[:at]}    {line}\n{text[at:]}"


# Flags of VJPs

INPUTS = ("x", "weight", "A", "B", "bias")
FLAGS = {"layers.0": "", "layers.1": "A B", "layers.2": "x A B", "layers.3": "x"}


def sets_of_inputs(answer: Any) -> Any:
    """Return the inputs that are named for each layer, in the order of the op.

    Raises:
        WrongAnswerError: if a name is not an input.
    """
    if not isinstance(answer, dict):
        return answer
    found = {}
    for layer, text in answer.items():
        if not isinstance(text, str | list | tuple | set):
            raise WrongAnswerError(f"{layer!r}: A text is expected, and this is {described(text)}.")
        names = text.replace(",", " ").split() if isinstance(text, str) else text
        for name in names:
            if name not in INPUTS:
                raise WrongAnswerError(
                    f"{layer!r}: {name!r} is not an input. The inputs are {', '.join(INPUTS)}, as "
                    f"in 'A B', and an empty text stands for none."
                )
        found[layer] = " ".join(name for name in INPUTS if name in names)
    return found


def flags(**changes: str) -> dict[str, str]:
    """Return the right flags, with changes for `layers_0`, `layers_1`, ..."""
    return FLAGS | {name.replace("_", "."): text for name, text in changes.items()}


# A choice without an if

LOSSES = (0.25, 1.5, 4.0)


def softened(loss: Any) -> Any:
    """Return the square root of a loss above 1, and any other as it is."""
    return mg.where(loss > 1, mg.sqrt(loss), loss)


def by_if(loss: Any) -> Any:
    """Choose in Python."""
    return mg.sqrt(loss) if loss > 1 else loss


def in_a_step(function: Any) -> dict[str, dict[str, float]]:
    """Return value and slope at small and large losses, of a function that can be captured.

    Raises:
        NoAnswerError: if it returns `...`.
        WrongAnswerError: if it is not a function, raises, or cannot be captured.
    """
    if not callable(function):
        raise WrongAnswerError(f"A function is expected, and this is {described(function)}.")
    called(function, (mg.tensor(4.0),))
    weight = mg.tensor(1.0, requires_grad=True)
    optimizer = mg.optim.SGD([weight], lr=0.1)

    @mg.capture
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = function(weight * x)
        loss.backward()
        optimizer.step()
        return loss

    try:
        found = [mg.value_and_grad(function)(mg.tensor(x)) for x in LOSSES]
        for _ in range(2):
            step(mg.tensor(4.0))
    except mg.CaptureError as error:
        if "bool()" in str(error) or "item()" in str(error):
            raise WrongAnswerError(
                "This cannot be captured, because it decides in Python: compute both sides, and "
                "choose with an op."
            ) from error
        raise WrongAnswerError(f"This cannot be captured: {error}") from error
    except Exception as error:
        raise WrongAnswerError(f"In a step, it raises {type(error).__name__}: {error}") from error
    return {
        f"at the loss {x}": {"value": value.item(), "slope": slope.item()}
        for x, (value, slope) in zip(LOSSES, found, strict=True)
    }


# What is recorded again

CHANGES = {
    "another learning rate": "same",
    "a batch of other values": "same",
    "a batch with fewer rows": "new",
    "a layer is frozen": "new",
    "other weights, by load_state_dict": "same",
    "another activation": "new",
}
RATE, VALUES, ROWS, FROZEN, WEIGHTS, ACTIVATION = CHANGES


check = Checker(
    {
        1: Exercise(
            example()[0].replace("[g7, g8, g4, g5]", "[-g7, -g8, -g4, -g5]"),
            observe=effect,
            slips={
                "The gradients that the optimiser gets are the same as before.": example()[0],
                "The loss that is returned has the other sign, but no gradient is computed from "
                "it: they all begin at `seed`.": with_line("v6 = -v6", "return"),
                "Only the second layer has the other sign. By which line do all four gradients "
                "pass?": with_line("g4, g5 = -g4, -g5", "g6 ="),
                "Only the first layer has the other sign. By which line do all four gradients "
                "pass?": with_line("g3 = -g3", "g4 ="),
                "Only the weights have the other sign, and the biases do not.": with_line(
                    "g4, g7 = -g4, -g7", "g8 ="
                ),
                "Only the biases have the other sign, and the weights do not.": with_line(
                    "g5, g8 = -g5, -g8", "# update"
                ),
                "The gradients are 0 now, so nothing is learned.": with_line("g2 = 0 * g2", "g3 ="),
            },
            tolerance=1e-5,
        ),
        2: Exercise(
            FLAGS,
            observe=sets_of_inputs,
            slips={
                "Nothing before layer 1 is trained, so the gradient of its input is not needed.": (
                    flags(layers_1="x A B")
                ),
                "Layer 3 is frozen, but what is trained lies before it: the gradient has to get "
                "through.": flags(layers_3=""),
                "Layer 3 has no adapter, and it is frozen: `attach` freezes all that it does not "
                "train.": flags(layers_3="x weight bias"),
                "Layer 1 comes before layer 2, and it is trained: how does it get its gradient?": (
                    flags(layers_2="A B")
                ),
                "The backward pass ends at the lowest parameter that trains, in layer 1.": (
                    flags(layers_0="x")
                ),
                "A weight under an adapter is frozen, and its gradient is never computed.": flags(
                    layers_1="weight A B", layers_2="x weight A B"
                ),
                "A bias of the base is frozen too.": flags(
                    layers_1="A B bias", layers_2="x A B bias"
                ),
                "At the first step the gradient of A is 0, because B is 0. It is computed all the "
                "same.": flags(layers_1="B", layers_2="x B"),
            },
        ),
        3: Exercise(
            softened,
            observe=in_a_step,
            slips={
                "This cannot be captured, because it decides in Python: compute both sides, and "
                "choose with an op.": by_if,
                "The two sides are exchanged: the root is for a loss above 1.": lambda loss: (
                    mg.where(loss > 1, loss, mg.sqrt(loss))
                ),
                "A loss of at most 1 must stay as it is.": mg.sqrt,
                "A loss above 1 must become its root.": lambda loss: loss * 1,
                "The value is right, but the root is not in the graph, so that its slope is 0.": (
                    lambda loss: mg.where(loss > 1, mg.sqrt(loss).detach(), loss)
                ),
                "The value is right, but no gradient follows: all is detached.": lambda loss: (
                    mg.where(loss > 1, mg.sqrt(loss), loss).detach() + 0 * loss
                ),
                "This makes 1 of a loss below 1.": lambda loss: mg.sqrt(mg.maximum(loss, 1.0)),
            },
            tolerance=1e-5,
        ),
        4: Exercise(
            CHANGES,
            choices=("same", "new"),
            slips={
                "Look at the update line: it hands over `group`, a dict, and the learning rate is "
                "read from it in each step.": CHANGES | {RATE: "new"},
                "The batch is an argument of the program, so its values are not constants.": (
                    CHANGES | {VALUES: "new"}
                ),
                "Look at `mean_vjp_x`: the text contains the shape of the batch.": (
                    CHANGES | {ROWS: "same"}
                ),
                "A frozen layer has fewer lines, as you have seen.": CHANGES | {FROZEN: "same"},
                "`load_state_dict` writes into the arrays that the model has, as a step of the "
                "optimiser does.": CHANGES | {WEIGHTS: "new"},
                "The name of the activation is in the text.": CHANGES | {ACTIVATION: "same"},
                "A program that is never recorded again would be wrong after some of these.": (
                    dict.fromkeys(CHANGES, "same")
                ),
                "If each change were recorded again, the program would save nothing.": (
                    dict.fromkeys(CHANGES, "new")
                ),
                "These are exchanged: what is in the text makes a program new.": {
                    case: "new" if word == "same" else "same" for case, word in CHANGES.items()
                },
            },
        ),
    }
)
