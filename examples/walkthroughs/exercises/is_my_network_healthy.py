"""The exercises of "Is my network healthy?"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import minigrad as mg
from examples.walkthroughs.checking import Checker, Exercise, WrongAnswerError, described

Array = Any

# --------------------------------------------------------------------------------------------------
# 1. The loss of chance
# --------------------------------------------------------------------------------------------------


def frequencies(counts: Sequence[int]) -> Array:
    """Return the frequencies of the classes that occur."""
    p = np.array(counts) / np.sum(counts)
    return p[p > 0]


def chance_loss(counts: Sequence[int]) -> float:
    """Return the entropy of the frequencies."""
    p = frequencies(counts)
    return float(-(p * np.log(p)).sum())


CHANCE = Exercise(
    chance_loss,
    trials=[([50, 50],), ([90, 10],), ([5, 0, 15],), ([180] * 10,)],
    slips={
        "This is the loss for equally frequent classes. Someone who knows that one class is rare "
        "gives it a smaller probability, and does better.": lambda counts: np.log(len(counts)),
        "A class that never occurs gets the probability 0, and 0 · log 0 is NaN in floating point, "
        "but in the sum it must count as 0.": lambda counts: (
            -(np.array(counts) / np.sum(counts) * _log_or_nan(counts)).sum()
        ),
        "A loss is not negative, and this has the wrong sign.": lambda counts: -chance_loss(counts),
        "The losses of the classes are averaged with the same weight here, but a frequent class "
        "has more examples.": lambda counts: -np.log(frequencies(counts)).mean(),
        "This is the loss of the most frequent class only; the other examples count too.": (
            lambda counts: -np.log(frequencies(counts).max())
        ),
        "This is in bits, with the logarithm to the base 2. The loss uses the natural one.": (
            lambda counts: chance_loss(counts) / np.log(2)
        ),
        "This is the sum over all examples, and the loss is the mean.": (
            lambda counts: chance_loss(counts) * np.sum(counts)
        ),
    },
)


def _log_or_nan(counts: Sequence[int]) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.array(counts) / np.sum(counts)
        return np.where(p > 0, np.log(p), np.nan)


# --------------------------------------------------------------------------------------------------
# 2. The initial weights
# --------------------------------------------------------------------------------------------------

SPREAD = Exercise(
    lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    trials=[(64, 64), (64, 10), (784, 100), (1, 3)],
    slips={
        "This keeps the signal without an activation. relu takes half of the mean square away, and "
        "the weights must make up for it.": lambda fan_in, fan_out: np.sqrt(1 / fan_in),
        "This is the variance; the standard deviation is its square root.": (
            lambda fan_in, fan_out: 2 / fan_in
        ),
        "A sum has as many terms as the layer has inputs, not units. (The number of units keeps "
        "the gradient's size, in the backward pass.)": lambda fan_in, fan_out: np.sqrt(2 / fan_out),
        "This is Glorot's compromise between the forward and the backward pass, without an "
        "activation; here only the forward pass is asked for.": (
            lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out))
        ),
        "The factor for relu is on the wrong side: this makes the signal smaller still.": (
            lambda fan_in, fan_out: np.sqrt(1 / (2 * fan_in))
        ),
        "The mean square is halved, so the variance of the weights must double; here the standard "
        "deviation has doubled.": lambda fan_in, fan_out: 2 / np.sqrt(fan_in),
        "This is right for a layer after tanh, whose gain is 5/3.": (
            lambda fan_in, fan_out: 5 / 3 / np.sqrt(fan_in)
        ),
        "This is the bound of a uniform distribution with the right standard deviation, and not "
        "the standard deviation.": lambda fan_in, fan_out: np.sqrt(6 / fan_in),
    },
)

# --------------------------------------------------------------------------------------------------
# 3. Dead units
# --------------------------------------------------------------------------------------------------


def dead_units(activations: Array) -> list[int]:
    """Return the numbers of the columns of zeros."""
    dead: list[int] = np.flatnonzero((activations == 0).all(axis=0)).tolist()
    return dead


EXAMPLE = np.array(
    [
        [0.0, 0.0, 1.2, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.7, 0.0, 0.0, 0.4, 0.0],
        [0.0, 0.0, 0.3, 0.0, 0.0],
    ]
)
ALIVE = np.array([[0.5, 0.0, 0.0], [0.0, 0.2, 1e-3], [1.0, 0.0, 0.0]])

DEAD = Exercise(
    dead_units,
    trials=[(EXAMPLE,), (ALIVE,), (np.zeros((2, 3)),)],
    slips={
        "These are the examples for which no unit is on (the rows), and not the units that are on "
        "for no example.": lambda a: np.flatnonzero((a == 0).all(axis=1)),
        "These units are 0 for some example, which is normal. A dead one is 0 for all.": (
            lambda a: np.flatnonzero((a == 0).any(axis=0))
        ),
        "These are the units that are alive.": lambda a: np.flatnonzero(a.any(axis=0)),
        "This is a mask, with an entry for each unit. The numbers of the dead ones are asked for; "
        "np.flatnonzero finds them.": lambda a: (a == 0).all(axis=0),
        "This is how many there are. Which ones are they?": lambda a: len(dead_units(a)),
        "This is the share of the zeros, and half of all outputs of relu are 0 in a healthy "
        "network.": lambda a: float((a == 0).mean()),
        "The units are counted from 0, like columns.": lambda a: [n + 1 for n in dead_units(a)],
    },
)

# --------------------------------------------------------------------------------------------------
# 4. Early stopping
# --------------------------------------------------------------------------------------------------


def stopped(losses: Sequence[float], patience: int) -> tuple[int, int]:
    """Return the epoch after which training stops, and the best one before it."""
    best = 0
    for epoch in range(1, len(losses)):
        if losses[epoch] < losses[best]:
            best = epoch
        elif epoch - best >= patience:
            return epoch + 1, best + 1
    return len(losses), best + 1


def _stopped_after_rises(losses: Sequence[float], patience: int) -> tuple[int, int]:
    rises = 0
    for epoch in range(1, len(losses)):
        rises = rises + 1 if losses[epoch] > losses[epoch - 1] else 0
        if rises >= patience:
            return epoch + 1, int(np.argmin(losses[: epoch + 1])) + 1
    return len(losses), int(np.argmin(losses)) + 1


def _stopped_after_bad_ones(losses: Sequence[float], patience: int) -> tuple[int, int]:
    best, bad = 0, 0
    for epoch in range(1, len(losses)):
        if losses[epoch] < losses[best]:
            best = epoch
        else:
            bad += 1
            if bad >= patience:
                return epoch + 1, best + 1
    return len(losses), best + 1


def _stopped_with_ties(losses: Sequence[float], patience: int) -> tuple[int, int]:
    best = 0
    for epoch in range(1, len(losses)):
        if losses[epoch] <= losses[best]:
            best = epoch
        elif epoch - best >= patience:
            return epoch + 1, best + 1
    return len(losses), best + 1


EARLY = Exercise(
    stopped,
    trials=[
        ([3.0, 2.0, 2.5, 2.4, 1.0], 2),
        ([3.0, 2.0, 2.5, 1.5, 1.7, 1.6, 1.8, 1.0], 3),
        ([2.0, 1.0, 1.0, 1.2, 0.5], 2),
        ([4.0, 3.0, 2.0, 1.0], 1),
        ([1.0, 2.0, 3.0], 5),
        ([2.0, 3.0, 1.9, 3.0, 1.8, 3.0], 2),
        ([3.0, 1.0, 2.0, 2.5, 2.2, 2.6], 2),
    ],
    slips={
        "The epochs are counted from 1.": lambda losses, patience: tuple(
            n - 1 for n in stopped(losses, patience)
        ),
        "Both numbers are asked for, and their order is: where training stops, then which weights "
        "are kept.": lambda losses, patience: stopped(losses, patience)[::-1],
        "The weights of the last epoch are kept here, and they are worse than those of the best.": (
            lambda losses, patience: (stopped(losses, patience)[0],) * 2
        ),
        "This stops one epoch too late: after `patience` epochs without a better one it is "
        "over.": lambda losses, patience: stopped(losses, patience + 1),
        "This counts how often the loss has risen from one epoch to the next. An epoch that is "
        "better than the one before, but not better than the best, uses up patience too.": (
            _stopped_after_rises
        ),
        "The count of bad epochs begins again at 0 when there is a better one.": (
            _stopped_after_bad_ones
        ),
        "A loss that is equal to the best is not better.": _stopped_with_ties,
        "This looks into the future: the best of all epochs is used, also of those that are never "
        "run because training has stopped.": lambda losses, patience: (
            stopped(losses, patience)[0],
            int(np.argmin(losses)) + 1,
        ),
    },
)

# --------------------------------------------------------------------------------------------------
# 5. Strangers
# --------------------------------------------------------------------------------------------------

ILLNESSES = (
    "pixels not scaled",
    "held-out rows in training",
    "a pixel that never changes",
    "detach() in the model",
    "a wrong VJP",
    "output weights too large",
    "biases far below 0",
    "weights too large",
    "weights too small",
    "zero_grad forgotten",
    "learning rate too small",
    "learning rate too large",
    "softmax twice",
    "labels of other images",
    "60 examples, 300 epochs",
)

ANSWER = {
    "A": "weights too small",
    "B": "labels of other images",
    "C": "softmax twice",
    "D": "weights too large",
}


def stranger(name: str) -> dict[str, Any]:
    """Return the model, the data and the loss of a sick network, "A" to "D".

    Raises:
        ValueError: for another name.
    """
    if name not in ANSWER:
        raise ValueError(f"the strangers are {', '.join(ANSWER)}, and there is no {name!r}")
    rng = np.random.default_rng(11)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    x, y = digits.data[order] / 8 - 1, digits.target[order]
    activation, gain = (mg.tanh, 9.0) if name == "D" else (mg.relu, 0.25 if name == "A" else 2**0.5)
    model = mg.nn.MLP([64, 48, 48, 48, 10], activation=activation, dtype="float64", rng=rng)
    for layer in model.layers:
        size = (0.5 if layer is model.layers[-1] else gain) / layer.in_features**0.5
        mg.nn.init.normal_(layer.weight, 0, size, rng=rng)
        assert layer.bias is not None
        layer.bias.data[:] = 0
    labels = rng.permutation(y[:1200]) if name == "B" else y[:1200]
    return {
        "model": model,
        "train": (x[:1200], labels),
        "held_out": (x[1200:], y[1200:]),
        "loss": _loss_of_softmax if name == "C" else mg.cross_entropy,
    }


def _loss_of_softmax(output: mg.Tensor, target: Array) -> mg.Tensor:
    loss: mg.Tensor = mg.cross_entropy(mg.softmax(output), target)
    return loss


CONFUSED = {
    ("A", "learning rate too small"): "A: the updates are small compared with the weights only "
    "because the gradients are; look at the numbers that were there before training.",
    ("A", "biases far below 0"): "A: how many of its units are dead before training?",
    ("B", "60 examples, 300 epochs"): "B: training goes on for no longer than in a healthy "
    "network, and with as many examples; and is the held-out loss better than chance at any time?",
    ("B", "held-out rows in training"): "B: leakage makes the held-out loss better, and this one "
    "is worse than chance.",
    ("C", "learning rate too small"): "C: its update ratio is normal, and the loss on 20 examples "
    "has stopped falling far above 0. Is there a smallest loss that it cannot fall below?",
    ("C", "output weights too large"): "C: its first loss is exactly as it should be.",
    ("D", "output weights too large"): "D: how large is its first loss? The outputs are not the "
    "problem; look at the hidden layers.",
    ("D", "weights too small"): "D: is its signal too small, or at its limit?",
}


def diagnosis(answer: Any) -> Any:
    """Return a diagnosis that is right.

    Raises:
        WrongAnswerError: with a sentence about the first stranger whose illness is another one.
    """
    if not isinstance(answer, Mapping) or set(answer) != set(ANSWER):
        raise WrongAnswerError(
            f"A dict with the keys {', '.join(map(repr, ANSWER))} is expected, and this is "
            f"{described(answer)}."
        )
    names = {illness.casefold(): illness for illness in ILLNESSES}
    for name, right in ANSWER.items():
        said = answer[name]
        said = said.strip().casefold() if isinstance(said, str) else said
        if not isinstance(said, str) or said not in names:
            raise WrongAnswerError(f"{name}: {said!r} is not the name of an illness of the list.")
        said = names[said]
        if said != right:
            default = f"{name}: it is not {said!r}. In a network with that illness, which number "
            default += "would be the first that is not normal? Is it here?"
            raise WrongAnswerError(CONFUSED.get((name, said), default))
    return ANSWER


check = Checker(
    {
        1: CHANCE,
        2: SPREAD,
        3: DEAD,
        4: EARLY,
        5: Exercise(
            ANSWER,
            slips={
                sentence: {**ANSWER, name: illness}
                for (name, illness), sentence in CONFUSED.items()
            },
            observe=diagnosis,
        ),
    }
)
