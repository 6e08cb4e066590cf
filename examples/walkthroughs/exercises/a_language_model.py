"""The exercises of "A language model on your laptop"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import Checker, Exercise

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]

_RNG = np.random.default_rng(13)

# --------------------------------------------------------------------------------------------------
# 1 and 2. Probabilities
# --------------------------------------------------------------------------------------------------


def perplexity(p: Numbers) -> float:
    """Return the perplexity of a model that gave the right characters these probabilities."""
    return float(np.exp(-np.log(p).mean()))


def probabilities(scores: Numbers, temperature: float) -> Numbers:
    """Return the softmax of the scores, divided by the temperature."""
    scaled = scores / temperature
    e = np.exp(scaled - scaled.max())
    return np.asarray(e / e.sum())


def _overflowing(scores: Numbers, temperature: float) -> Numbers:
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(scores / temperature)
        return np.asarray(e / e.sum())


def _maximum_too_late(scores: Numbers, temperature: float) -> Numbers:
    """Subtract the largest score from scores that are already divided by the temperature."""
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(scores / temperature - scores.max())
        return np.asarray(e / e.sum())


def _likeliest(scores: Numbers, temperature: float) -> Numbers:
    return np.where(scores == scores.max(), 1.0, 0.0)


# --------------------------------------------------------------------------------------------------
# 3. Pieces of a text
# --------------------------------------------------------------------------------------------------


def pieces(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
    """Return what a model reads, and what it should predict at each position."""
    rows = codes[starts[:, None] + np.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def _shifted(by: int) -> Callable[[Codes, Codes, int], tuple[Codes, Codes]]:
    """Return a slip whose targets are moved by a wrong number of positions, not by 1."""

    def slip(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
        places = starts[:, None] + np.arange(length)
        return codes[places], codes[places + by]

    return slip


def _rolled(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
    rows = pieces(codes, starts, length)[0]
    return rows, np.roll(rows, -1, axis=1)


def _short(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
    return pieces(codes, starts, length - 1)


def _only_last(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
    rows, targets = pieces(codes, starts, length)
    return rows, targets[:, -1]


def _swapped(codes: Codes, starts: Codes, length: int) -> tuple[Codes, Codes]:
    rows, targets = pieces(codes, starts, length)
    return targets, rows


# --------------------------------------------------------------------------------------------------
# 4. Looking ahead
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A function of a `(time, width)` array, with a name for messages."""

    name: str
    function: Callable[[Numbers], Numbers]

    def __call__(self, x: Numbers) -> Numbers:
        """Return an output for each position."""
        return self.function(x)

    def __repr__(self) -> str:
        return f"a layer with {self.name}"


def _total(x: Numbers) -> Numbers:
    return x + x.sum(axis=0)


def _last_feature(x: Numbers) -> Numbers:
    total: float = x[:, -1].sum()
    return x + total


def _two_ahead(x: Numbers) -> Numbers:
    return x + np.vstack([x[2:], np.zeros_like(x[:2])])


def _first_sees_last(x: Numbers) -> Numbers:
    out = x.copy()
    out[0] += 1e-9 * x[-1]
    return out


def _next(x: Numbers) -> Numbers:
    return x + np.vstack([x[1:], np.zeros_like(x[:1])])


LAYERS = [
    Layer("a running sum", lambda x: np.cumsum(x, axis=0)),
    Layer("no memory", lambda x: 2 * x),
    Layer("the sum of all positions", _total),
    Layer("the sum of the last feature", _last_feature),
    Layer("a look at the position after the next", _two_ahead),
    Layer("a look at the next position", _next),
    Layer("a weak look from the first position to the last", _first_sees_last),
]


def looks_ahead(layer: Any, x: Numbers) -> bool:
    """Tell whether an output before the last one changes with the last input."""
    return _compared(layer, x, slice(None, -1))


def _compared(layer: Any, x: Numbers, outputs: Any, changed: Any = -1) -> bool:
    other = x.copy()
    other[changed] += 1.0
    return not np.array_equal(layer(x)[outputs], layer(other)[outputs])


def _nearly(layer: Any, x: Numbers) -> bool:
    other = x.copy()
    other[-1] += 1.0
    return not np.allclose(layer(x)[:-1], layer(other)[:-1])


# --------------------------------------------------------------------------------------------------
# 5. Full training instead of LoRA
# --------------------------------------------------------------------------------------------------


def _found(sonnets: str, manual: str, way_back: str) -> dict[str, str]:
    return {"sonnets": sonnets, "manual": manual, "way back": way_back}


check = Checker(
    {
        1: Exercise(
            perplexity,
            trials=[
                (np.array([0.5, 0.25, 0.125]),),
                (np.ones(3),),
                (np.full(8, 0.01),),
                (_RNG.uniform(0.01, 1, 20),),
            ],
            slips={
                "The loss is in nats, with the natural logarithm, so the base of the power is e "
                "and not 2.": lambda p: 2 ** -np.log(p).mean(),
                "This is the mean of 1 / p. The mean is taken of the logarithms, before the "
                "power.": lambda p: (1 / p).mean(),
                "This is one divided by the mean probability. The mean is taken of the "
                "logarithms.": lambda p: 1 / p.mean(),
                "The losses of the characters are added up here. Perplexity does not grow with "
                "the length of the text: take the mean.": lambda p: np.exp(-np.log(p).sum()),
                "This is the loss, in nats. Its power of e is the perplexity.": (
                    lambda p: -np.log(p).mean()
                ),
                "The sign is wrong: a perplexity is at least 1.": lambda p: np.exp(
                    np.log(p).mean()
                ),
                "The loss is in bits here, and the power is one of e: both must have the same "
                "base.": lambda p: np.exp(-np.log2(p).mean()),
            },
        ),
        2: Exercise(
            probabilities,
            trials=[
                (np.array([1.0, 2.0, 3.0]), 1.0),
                (np.array([1.0, 2.0, 4.0]), 0.5),
                (np.array([0.0, -1.0, 1.0, 0.5]), 2.0),
                (np.array([1000.0, 1001.0, 999.0]), 1.0),
                (np.array([1000.0, 1001.0, 636.0]), 0.5),
            ],
            slips={
                "The scores are multiplied by the temperature. They are divided by it: a low "
                "temperature makes the likely ones likelier.": (
                    lambda scores, t: probabilities(scores, 1 / t)
                ),
                "The temperature divides the scores, and not the probabilities: these must add up "
                "to 1.": lambda scores, t: probabilities(scores, 1.0) / t,
                "The temperature has no effect.": lambda scores, t: probabilities(scores, 1.0),
                "The power of a large score is infinite. Subtract the largest score from all of "
                "them first: this changes no probability.": _overflowing,
                "Something is subtracted, but not what makes all exponents at most 0: this is the "
                "largest score, and it is divided by the temperature like the others.": (
                    _maximum_too_late
                ),
                "This always takes the likeliest character. That is so only if the temperature "
                "goes to zero.": _likeliest,
                "These are logarithms of probabilities.": (
                    lambda scores, t: np.log(probabilities(scores, t))
                ),
                "These are not divided by their sum: probabilities add up to 1.": (
                    lambda scores, t: np.exp((scores - scores.max()) / t)
                ),
                "The scores are divided by their sum here, without the exponential function: a "
                "score may be negative, a probability may not.": (
                    lambda scores, t: scores / t / (scores / t).sum()
                ),
            },
        ),
        3: Exercise(
            pieces,
            trials=[
                (np.arange(100, 130), np.array([0, 7, 20]), 5),
                (_RNG.integers(0, 50, 40), np.array([3, 11]), 8),
            ],
            slips={
                "The targets are the inputs themselves: the model would learn to copy the "
                "character that it reads, and not to predict the next one.": _shifted(0),
                "The targets are two characters ahead, so one character is skipped.": _shifted(2),
                "The targets are the *previous* characters: the model would learn to write "
                "backwards.": _shifted(-1),
                "The last target of each piece is the first character of the same piece. The text "
                "goes on after the piece: read one character more.": _rolled,
                "The pieces are one character too short. For `length` inputs and their targets, "
                "`length + 1` characters are needed.": _short,
                "There is a target only for the last position. Each position predicts its next "
                "character, so one piece has many examples.": _only_last,
                "Inputs and targets have changed places.": _swapped,
                "All pieces begin at the first character of the text; they should begin at "
                "`starts`.": lambda codes, starts, length: pieces(codes, 0 * starts, length),
            },
        ),
        4: Exercise(
            looks_ahead,
            trials=[(layer, _RNG.standard_normal((6, 3))) for layer in LAYERS],
            slips={
                "This reports every layer, even one without memory. Two things would explain it: "
                "the last output is compared, which may change; or other inputs than the last are "
                "changed, on which outputs may depend.": lambda layer, x: _compared(
                    layer, x, slice(None)
                ),
                "This never finds a difference. Is `x` changed without a copy, so that both calls "
                "get the same numbers?": lambda layer, x: False,
                "This is the opposite: true should mean that it looks ahead.": (
                    lambda layer, x: not looks_ahead(layer, x)
                ),
                "This looks only at the output before the last one. An earlier one may look "
                "ahead too.": lambda layer, x: _compared(layer, x, -2),
                "This looks only at the first output. A later one may look ahead too.": (
                    lambda layer, x: _compared(layer, x, 0)
                ),
                "This changes only the first number of the last input, and a layer may look at "
                "another number.": lambda layer, x: _compared(
                    layer, x, slice(None, -1), changed=(-1, 0)
                ),
                "This changes the *first* input. Later outputs may depend on it: that is "
                "memory.": lambda layer, x: _compared(layer, x, slice(1, None), changed=0),
                "This allows a small difference. A layer that does not look ahead computes the "
                "same bits.": _nearly,
            },
        ),
        5: Exercise(
            _found("lower", "higher", "copy"),
            choices=("lower", "same", "higher", "switch", "copy"),
            slips={
                "With no adapter there is nothing to switch off: the weights themselves have "
                "changed.": _found("lower", "higher", "switch"),
                "You expect that the model gets better on both texts. Only the sonnets are in "
                "this training; look at the loss on the manual.": _found("lower", "lower", "copy"),
                "You expect that the manual keeps its loss. All weights move towards the sonnets; "
                "nothing holds those that the manual needs.": _found("lower", "same", "copy"),
                "You expect that the sonnets get worse by a training on sonnets.": _found(
                    "higher", "higher", "copy"
                ),
                "The two texts have changed places: it is the sonnets that are trained.": _found(
                    "higher", "lower", "copy"
                ),
                "Nothing changes only if the learning rate is zero, or if all parameters are "
                "frozen.": _found("same", "same", "copy"),
            },
        ),
    }
)
