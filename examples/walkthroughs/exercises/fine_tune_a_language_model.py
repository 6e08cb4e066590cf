"""The exercises of "Fine-tune a language model". None of them needs the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import Checker, Exercise

Numbers = NDArray[np.float64]
Tokens = NDArray[np.int64]
Mask = NDArray[np.bool_]
NextScores = Callable[[Sequence[int]], Numbers]

_RNG = np.random.default_rng(14)

# --------------------------------------------------------------------------------------------------
# 1. Greedy generation
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StandIn:
    """A model with eight tokens, whose scores depend on all tokens that it has read."""

    factor: int

    def __call__(self, ids: Sequence[int]) -> Numbers:
        """Return the scores of the next token."""
        mixed = sum((self.factor + i) * (2 * token + 1) for i, token in enumerate(ids)) % 8
        scores: Numbers = np.cos(np.arange(8.0) - mixed)
        return scores

    def __repr__(self) -> str:
        return f"a small model (number {self.factor})"


def greedy(
    next_scores: NextScores, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> list[int]:
    """Return the next tokens: always the likeliest one, up to a token that ends the answer."""
    new: list[int] = []
    while len(new) < max_tokens:
        token = int(np.argmax(next_scores([*ids, *new])))
        if token in ends:
            break
        new.append(token)
    return new


def _with_end(
    next_scores: NextScores, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> list[int]:
    new = greedy(next_scores, ids, ends, max_tokens)
    return greedy(next_scores, ids, (), len(new) + 1) if len(new) < max_tokens else new


def _from_prompt_only(
    next_scores: NextScores, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> list[int]:
    return greedy(lambda read: next_scores(read[: len(ids)]), ids, ends, max_tokens)


def _from_last_only(
    next_scores: NextScores, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> list[int]:
    return greedy(lambda read: next_scores(read[-1:]), ids, ends, max_tokens)


def _from_new_only(
    next_scores: NextScores, ids: Sequence[int], ends: Collection[int], max_tokens: int
) -> list[int]:
    return greedy(lambda read: next_scores(read[len(ids) :] or read), ids, ends, max_tokens)


# --------------------------------------------------------------------------------------------------
# 2. The loss of the answers
# --------------------------------------------------------------------------------------------------


def answer_loss(logp: Numbers, ids: Tokens, counted: Mask) -> float:
    """Return the mean of -log p over the tokens that count."""
    return float(-_of_right_tokens(logp, ids)[counted[1:]].mean())


def _of_right_tokens(logp: Numbers, ids: Tokens) -> Numbers:
    """Return log p of each token but the first: position i predicts token i + 1."""
    return np.asarray(logp[np.arange(len(ids) - 1), ids[1:]])


def _not_shifted(logp: Numbers, ids: Tokens, counted: Mask) -> float:
    return float(-logp[np.arange(len(ids)), ids][counted].mean())


def _mask_not_shifted(logp: Numbers, ids: Tokens, counted: Mask) -> float:
    return float(-_of_right_tokens(logp, ids)[counted[:-1]].mean())


def _without_end(logp: Numbers, ids: Tokens, counted: Mask) -> float:
    counted = counted.copy()
    counted[np.flatnonzero(counted)[-1]] = False
    return answer_loss(logp, ids, counted)


def _of_likeliest(logp: Numbers, ids: Tokens, counted: Mask) -> float:
    return float(-logp[:-1].max(axis=1)[counted[1:]].mean())


def _example(prompt: int, answer: int, after: int) -> tuple[Numbers, Tokens, Mask]:
    """Return a prompt, an answer and the tokens after it, as arguments of `answer_loss`."""
    length = prompt + answer + after
    scores = _RNG.standard_normal((length, 6))
    logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    place = np.arange(length)
    return logp, _RNG.integers(0, 6, length), (place >= prompt) & (place < prompt + answer)


# --------------------------------------------------------------------------------------------------
# 3. A standard error of a difference
# --------------------------------------------------------------------------------------------------


def paired(old: Numbers, new: Numbers) -> tuple[float, float]:
    """Return by how much the loss has fallen in the mean, and the standard error of this."""
    gain = old - new
    return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))


def _error(change: Callable[[Numbers, Numbers], Any]) -> Callable[[Numbers, Numbers], Any]:
    """Return a slip that has the right mean and another standard error."""
    return lambda old, new: (paired(old, new)[0], change(old, new))


def _independent(old: Numbers, new: Numbers) -> Any:
    return np.sqrt((old.var(ddof=1) + new.var(ddof=1)) / len(old))


# --------------------------------------------------------------------------------------------------
# 4. bfloat16
# --------------------------------------------------------------------------------------------------


def to_bfloat16(x: Numbers) -> Numbers:
    """Return the nearest numbers with 8 significant binary digits, ties to the even one."""
    return _rounded(x, 8, np.round)


def _rounded(x: Numbers, digits: int, rounding: Callable[[Numbers], Numbers]) -> Numbers:
    mantissa, exponent = np.frexp(x)
    rounded: Numbers = np.ldexp(rounding(np.ldexp(mantissa, digits)), exponent - digits)
    return rounded


def _half_up(x: Numbers) -> Numbers:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def _float16(x: Numbers) -> Numbers:
    with np.errstate(over="ignore"):
        return np.asarray(x.astype(np.float16), np.float64)


check = Checker(
    {
        1: Exercise(
            greedy,
            trials=[
                (StandIn(3), [1, 2], {0}, 6),
                (StandIn(5), [4], {2, 7}, 4),
                (StandIn(3), [5, 5, 1], {6}, 12),
                (StandIn(3), [2, 6], (), 3),
            ],
            slips={
                "The token that ends the answer is not a part of it.": _with_end,
                "These tokens begin with those of the prompt; only what follows is wanted.": (
                    lambda f, ids, ends, most: [*ids, *greedy(f, ids, ends, most)]
                ),
                "This does not stop at a token that ends the answer.": (
                    lambda f, ids, ends, most: greedy(f, ids, (), most)
                ),
                "This writes one token more than `max_tokens`.": (
                    lambda f, ids, ends, most: greedy(f, ids, ends, most + 1)
                ),
                "This writes one token less than `max_tokens`.": (
                    lambda f, ids, ends, most: greedy(f, ids, ends, most - 1)
                ),
                "The model reads only the prompt, again and again. It must also read what it has "
                "written.": _from_prompt_only,
                "The model reads only the last token. It must read all that is there so "
                "far.": _from_last_only,
                "After the first token, the model no longer reads the prompt. It must read both "
                "the prompt and what it has written.": _from_new_only,
                "This takes the token with the lowest score.": (
                    lambda f, ids, ends, most: greedy(lambda read: -f(read), ids, ends, most)
                ),
            },
        ),
        2: Exercise(
            answer_loss,
            trials=[_example(4, 3, 0), _example(2, 5, 3), _example(7, 2, 0)],
            slips={
                "Row i of `logp` is about token i + 1, which has not been read yet; this looks up "
                "token i itself.": _not_shifted,
                "The right log p, but the wrong ones of them: a token counts if *it* is in the "
                "answer, and not if the token before it is.": _mask_not_shifted,
                "This is the mean over all tokens. Those of the prompt do not count.": (
                    lambda logp, ids, counted: -_of_right_tokens(logp, ids).mean()
                ),
                "These are the tokens that do *not* count.": (
                    lambda logp, ids, counted: answer_loss(logp, ids, ~counted)
                ),
                "This is a sum. The loss is a mean over the tokens that count.": (
                    lambda logp, ids, counted: -_of_right_tokens(logp, ids)[counted[1:]].sum()
                ),
                "The sum is right, but it is divided by the number of all tokens instead of those "
                "that count.": (
                    lambda logp, ids, counted: (
                        -_of_right_tokens(logp, ids)[counted[1:]].sum() / len(ids)
                    )
                ),
                "The sign is wrong: log p is negative, and a loss is not.": (
                    lambda logp, ids, counted: -answer_loss(logp, ids, counted)
                ),
                "The last token that counts is missing: it ends the answer, and the model must "
                "learn to stop.": _without_end,
                "This takes log p of the likeliest token, and not of the one that is there.": (
                    _of_likeliest
                ),
            },
        ),
        3: Exercise(
            paired,
            trials=[
                (np.array([3.0, 5.0, 4.0, 6.0]), np.array([2.0, 3.5, 3.0, 4.0])),
                (_RNG.uniform(2, 6, 24), _RNG.uniform(1, 4, 24)),
            ],
            slips={
                "This treats the two losses of a function as independent. They belong together: "
                "take the difference for each function first.": _error(_independent),
                "This is the standard deviation of the differences: how much *one* function "
                "varies. A mean of many varies less.": _error(lambda a, b: (a - b).std(ddof=1)),
                "The standard deviation is divided by the number of functions; the mean of n "
                "varies less by the *root* of n.": _error(
                    lambda a, b: (a - b).std(ddof=1) / len(a)
                ),
                "This is the variance of the mean; the standard error is its root.": _error(
                    lambda a, b: (a - b).var(ddof=1) / len(a)
                ),
                "The mean was computed from the same numbers, so the sum of squares is divided by "
                "n - 1: `ddof=1`.": _error(lambda a, b: (a - b).std() / np.sqrt(len(a))),
                "The sign is wrong: a loss that has fallen is a gain above zero.": (
                    lambda a, b: paired(b, a)
                ),
                "This is the standard error of the loss after training, and not of the "
                "difference.": _error(lambda a, b: b.std(ddof=1) / np.sqrt(len(b))),
            },
        ),
        4: Exercise(
            to_bfloat16,
            trials=[
                (np.array([1.0, 1.001, 1.01, -1.01, 1.7, 1 + 1 / 256, 1 + 3 / 256, -1.9999]),),
                (np.array([0.011, -0.0123, 0.0199, 0.0, 0.015625]),),
                (np.array([70000.0, 123456.0, -99999.0]),),
            ],
            slips={
                "The further digits are cut off here. A number is rounded to the nearest one, "
                "which may be larger.": lambda x: _rounded(x, 8, np.trunc),
                "Rounding down is right for positive numbers at most: the nearest number is "
                "wanted.": lambda x: _rounded(x, 8, np.floor),
                "This keeps 9 significant digits. The 1 before the point is one of the 8.": (
                    lambda x: _rounded(x, 9, np.round)
                ),
                "This keeps only 7 significant digits. The 1 before the point is not stored, so "
                "there is one more than the 7 that are.": lambda x: _rounded(x, 7, np.round),
                "A number in the middle between two others goes to the one whose last digit is 0, "
                "and not always away from zero.": lambda x: _rounded(x, 8, _half_up),
                "This is float16: 11 significant digits, and nothing above 65504.": _float16,
                "The steps have one size everywhere here. In a floating-point format, they grow "
                "with the number.": lambda x: np.round(x * 128) / 128,
                "These numbers are not rounded.": lambda x: x,
            },
        ),
    }
)
