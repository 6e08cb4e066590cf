"""The exercises of "A GPT in one file"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import Checker, Exercise, WrongAnswerError, called

Array = NDArray[Any]
Moved = tuple[Array, Array, Array]

_RNG = np.random.default_rng(12)


def _normal(*shape: int) -> Array:
    return _RNG.standard_normal(shape)


# Exercise 1: a row of the table


def values_and_slopes(row: Any) -> dict[str, float]:
    """Return what the forward function and the rule of a row of the table give at some places."""
    if not _is_row(row):
        raise WrongAnswerError(
            "A row is expected: a tuple of a function and a list with one rule for each input."
        )
    forward, (rule,) = row
    found = {}
    for x in (-2.0, -0.5, 0.5, 3.0):
        found[f"the function at x = {x:g}"] = called(forward, (x,))
        for g in (4.0, -1.0):
            out = max(x, 0.0)
            found[f"the rule at g = {g:g}, x = {x:g}"] = called(rule, (g, x, out))
    return found


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, tuple)
        and len(row) == 2
        and callable(row[0])
        and isinstance(row[1], list | tuple)
        and len(row[1]) == 1
        and callable(row[1][0])
    )


def _relu(x: float) -> float:
    return max(x, 0.0)


# Exercise 2: the number of parameters


def parameters(characters: int, width: int, layers: int, context: int) -> int:
    """Return the number of all weights of the model."""
    return (2 * characters + context + layers * 12 * width) * width


# Exercise 3: a loss that does not overflow


def stable_loss(scores: Array, right: Array) -> Any:
    """Return the mean of -log p(right) of scores (n, characters), for scores of any size."""
    return (_logsumexp(scores) - _of_right(scores, right)).mean()


def _logsumexp(scores: Array, axis: int | None = -1) -> Any:
    top = scores.max(axis=axis, keepdims=True)
    return np.log(np.exp(scores - top).sum(axis=-1)) + top[:, 0]


def _of_right(scores: Array, right: Array) -> Array:
    return scores[np.arange(len(scores)), right]


def _overflowing(scores: Array, right: Array) -> Any:
    with np.errstate(all="ignore"):
        return (np.log(np.exp(scores).sum(axis=-1)) - _of_right(scores, right)).mean()


def _quotient_of_infinities(scores: Array, right: Array) -> Any:
    """Return the loss as in the file, from the quotient of two exponentials that overflow."""
    with np.errstate(all="ignore"):
        e = np.exp(scores)
        return np.log(e.sum(axis=-1) / _of_right(e, right)).mean()


def _with_one_maximum(scores: Array, right: Array) -> Any:
    """Return the loss if the maximum of all scores is subtracted from each row."""
    with np.errstate(all="ignore"):
        return (_logsumexp(scores, axis=None) - _of_right(scores, right)).mean()


def _underflowing(scores: Array, right: Array) -> Any:
    """Return the loss as the logarithm of a softmax that does not overflow."""
    with np.errstate(all="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return -np.log(_of_right(e / e.sum(axis=-1, keepdims=True), right)).mean()


# Exercise 4: a step of Adam


def adam_step(w: Array, g: Array, mean: Array, square: Array, t: int, rate: float) -> Moved:
    """Return the weight, the mean and the mean square after step t = 1, 2, ..."""
    return _adam(w, g, mean, square, t, rate)


def _adam(
    w: Array,
    g: Array,
    mean: Array,
    square: Array,
    t: int,
    rate: float,
    corrected: bool = True,
    power: float = 0.5,
    sign: float = -1.0,
    early: bool = False,
    keep: tuple[float, float] = (0.9, 0.99),
    below_root: bool = False,
    added: float = 1e-8,
) -> Moved:
    a, b = keep
    new_mean, new_square = a * mean + (1 - a) * g, b * square + (1 - b) * g * g
    up, down = (mean, square) if early else (new_mean, new_square)
    if corrected:
        up, down = up / (1 - a**t), down / (1 - b**t)
    below = (down + added) ** power if below_root else down**power + added
    return w + sign * rate * up / below, new_mean, new_square


def _adam_but(**options: Any) -> Callable[..., Moved]:
    return lambda w, g, mean, square, t, rate: _adam(w, g, mean, square, t, rate, **options)


def _adam_of_g(w: Array, g: Array, mean: Array, square: Array, t: int, rate: float) -> Moved:
    """Take the gradient itself in place of its mean."""
    _, new_mean, new_square = _adam(w, g, mean, square, t, rate)
    return w - rate * g / (np.sqrt(new_square / (1 - 0.99**t)) + 1e-8), new_mean, new_square


def _adam_corrected_twice(
    w: Array, g: Array, mean: Array, square: Array, t: int, rate: float
) -> Moved:
    """Return the corrected means, which the next step would correct again."""
    moved, new_mean, new_square = _adam(w, g, mean, square, t, rate)
    return moved, new_mean / (1 - 0.9**t), new_square / (1 - 0.99**t)


# Exercise 5: the temperature


def chances(scores: Array, temperature: float) -> Array:
    """Return the probabilities of the next character at a temperature."""
    return _softmax(scores / temperature)


def _softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max())
    return e / e.sum()  # type: ignore[no-any-return]


_MOMENTS = (_normal(3), _normal(3), _normal(3), np.abs(_normal(3)))

check = Checker(
    {
        1: Exercise(
            (_relu, [lambda g, x, out: g * (x > 0)]),
            observe=values_and_slopes,
            slips={
                "The rule passes g on everywhere. How fast does the result grow below 0?": (
                    _relu,
                    [lambda g, x, out: g],
                ),
                "The rule returns the slope alone. It has to be multiplied by what arrives.": (
                    _relu,
                    [lambda g, x, out: float(x > 0)],
                ),
                "The rule returns g times the value, and not g times the slope.": (
                    _relu,
                    [lambda g, x, out: g * out],
                ),
                "The rule asks whether g is positive. The place decides, not the gradient.": (
                    _relu,
                    [lambda g, x, out: max(g, 0.0)],
                ),
                "The rule lets the gradient pass on the wrong side.": (
                    _relu,
                    [lambda g, x, out: g * (x < 0)],
                ),
                "The forward function returns the absolute value.": (
                    abs,
                    [lambda g, x, out: g * (x > 0)],
                ),
                "The forward function returns whether x is positive, and not x.": (
                    lambda x: float(x > 0),
                    [lambda g, x, out: g * (x > 0)],
                ),
            },
        ),
        2: Exercise(
            parameters,
            trials=[(59, 64, 2, 32), (27, 16, 1, 8), (100, 48, 3, 50)],
            slips={
                "The vectors of the positions are missing.": (
                    lambda characters, width, layers, context: (
                        (2 * characters + layers * 12 * width) * width
                    )
                ),
                "Each character has two vectors: one at the beginning, and a column of the last "
                "matrix. Here it has one.": (
                    lambda characters, width, layers, context: (
                        (characters + context + layers * 12 * width) * width
                    )
                ),
                "The matrix after the heads, which mixes them, is missing.": (
                    lambda characters, width, layers, context: (
                        (2 * characters + context + layers * 11 * width) * width
                    )
                ),
                "The hidden layer has two matrices, one up and one down.": (
                    lambda characters, width, layers, context: (
                        (2 * characters + context + layers * 8 * width) * width
                    )
                ),
                "The hidden layer is four times as wide as the vectors.": (
                    lambda characters, width, layers, context: (
                        (2 * characters + context + layers * 6 * width) * width
                    )
                ),
                "This counts one layer only.": (
                    lambda characters, width, layers, context: (
                        (2 * characters + context + 12 * width) * width
                    )
                ),
                "This counts the matrices of the layers only.": (
                    lambda characters, width, layers, context: layers * 12 * width**2
                ),
            },
        ),
        3: Exercise(
            stable_loss,
            trials=[
                (_normal(4, 5), np.array([0, 4, 2, 2])),
                (np.array([[1000.0, 0.0, 999.0]]), np.array([0])),
                (np.array([[-1000.0, 0.0, -1.0]]), np.array([0])),
                (np.array([[1000.0, 999.0], [0.0, 1.0]]), np.array([0, 0])),
            ],
            slips={
                "With small scores this is right, but e^1000 is larger than any float. What can "
                "you subtract from all scores of a row without changing p?": _overflowing,
                "With small scores this is right, but e^1000 is infinite as a float, and a "
                "quotient of two infinite numbers is nan. What can you subtract from all scores of "
                "a row without changing p?": _quotient_of_infinities,
                "With small scores this is right, but a probability of e^-1000 is 0 as a float, "
                "and its logarithm is infinite. Take the logarithm of the quotient by hand.": (
                    _underflowing
                ),
                "One maximum is subtracted from all scores here. In a row whose scores are much "
                "smaller, every exponential is then 0. Each row needs a maximum of its own.": (
                    _with_one_maximum
                ),
                "This is the sum, and the mean is asked for.": (
                    lambda scores, right: (_logsumexp(scores) - _of_right(scores, right)).sum()
                ),
                "The sign is wrong: a loss is not negative.": (
                    lambda scores, right: (_of_right(scores, right) - _logsumexp(scores)).mean()
                ),
                "The largest score was subtracted before the exponential, and not added again "
                "after the logarithm.": (
                    lambda scores, right: (
                        _logsumexp(scores) - scores.max(axis=-1) - _of_right(scores, right)
                    ).mean()
                ),
                "This takes the character with the largest score for the right one.": (
                    lambda scores, right: (_logsumexp(scores) - scores.max(axis=-1)).mean()
                ),
                "This is the score of the right character alone; the sum over all of them is "
                "missing.": lambda scores, right: -_of_right(scores, right).mean(),
                "This returns a loss for each row; their mean is asked for.": (
                    lambda scores, right: _logsumexp(scores) - _of_right(scores, right)
                ),
            },
        ),
        4: Exercise(
            adam_step,
            trials=[
                (*_MOMENTS, 3, 0.1),
                (_normal(2), _normal(2), np.zeros(2), np.zeros(2), 1, 0.5),
                (np.ones(2), np.array([1e-6, -1e-7]), np.zeros(2), np.zeros(2), 2, 0.5),
            ],
            slips={
                "Both means began at 0 and are still too small: they must be divided before they "
                "are used.": _adam_but(corrected=False),
                "The mean of the squares has the unit of a squared gradient: take its root.": (
                    _adam_but(power=1.0)
                ),
                "The step goes uphill.": _adam_but(sign=1.0),
                "The step uses the gradient of this step, and not the mean of the last ones.": (
                    _adam_of_g
                ),
                "The shares are exchanged: a mean keeps most of its old value.": (
                    _adam_but(keep=(0.1, 0.01))
                ),
                "The corrected means are returned, and the next step would correct them again.": (
                    _adam_corrected_twice
                ),
                "Adam forgets squares more slowly than gradients: they keep 0.99.": (
                    _adam_but(keep=(0.9, 0.9))
                ),
                "The 1e-8 is added under the root here. It is added to the root.": (
                    _adam_but(below_root=True)
                ),
                "Nearly right: the 1e-8 is missing, which counts where gradients are tiny.": (
                    _adam_but(added=0.0)
                ),
                "The weight moves by the old means, from before this gradient.": (
                    _adam_but(early=True)
                ),
            },
        ),
        5: Exercise(
            chances,
            trials=[(_normal(5), 0.5), (np.array([1.0, 2.0, 4.0]), 2.0)],
            slips={
                "The scores are multiplied by the temperature. A low one should make likely "
                "characters likelier.": lambda scores, temperature: _softmax(scores * temperature),
                "The probabilities are divided, and no longer sum to 1. What has to be divided is "
                "what goes into the softmax.": (
                    lambda scores, temperature: _softmax(scores) / temperature
                ),
                "The temperature has no effect here. (Subtracting it has none either: all scores "
                "get the same.)": lambda scores, temperature: _softmax(scores),
                "The results do not sum to 1.": (
                    lambda scores, temperature: np.exp(scores / temperature)
                ),
                "This always takes the likeliest character, as a temperature of nearly 0 would.": (
                    lambda scores, temperature: (scores == scores.max()).astype(float)
                ),
            },
        ),
    }
)
