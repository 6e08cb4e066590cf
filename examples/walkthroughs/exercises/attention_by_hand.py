"""The exercises of "Attention by hand"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import (
    Checker,
    Exercise,
    WrongAnswerError,
    called,
    described,
)

Array = NDArray[Any]
Gradients = tuple[Array, Array, Array]
Mapped = Callable[[Array], Array]
Both = tuple[Callable[[Array, int], Array], Mapped]

_RNG = np.random.default_rng(11)


def _normal(*shape: int) -> Array:
    return _RNG.standard_normal(shape)


# Exercise 1: the VJP of softmax


def softmax(s: Array, axis: int = -1) -> Array:
    """Return positive weights that sum to 1."""
    e = np.exp(s - s.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softmax_vjp(g: Array, p: Array) -> Array:
    """Return the gradient of the scores from g, the gradient of p; each row of p is a softmax."""
    return p * (g - (g * p).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


# Exercise 2: causal attention


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """Return a mean of the rows of v for each row of q, over its own position and earlier ones."""
    return softmax(_masked(_scores(q, k), _past(q))) @ v


def _scores(q: Array, k: Array) -> Array:
    return q @ k.T / np.sqrt(q.shape[1])  # type: ignore[no-any-return]


def _past(q: Array) -> Array:
    return np.tri(len(q), dtype=bool)


def _masked(scores: Array, allowed: Array, forbidden: float = -np.inf) -> Array:
    return np.where(allowed, scores, forbidden)


def _strictly_causal(q: Array, k: Array, v: Array) -> Array:
    with np.errstate(invalid="ignore"):  # the first position has nothing to look at
        return softmax(_masked(_scores(q, k), np.tri(len(q), k=-1, dtype=bool))) @ v


# Exercise 4: heads


def split(x: Array, heads: int) -> Array:
    """Cut (length, width) into (heads, length, d)."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def join(x: Array) -> Array:
    """Make (length, width) of (heads, length, d)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def split_and_joined(both: Any) -> dict[str, list[Any]]:
    """Return what the two functions of an answer make of arrays of whole numbers."""
    if not isinstance(both, tuple | list) or len(both) != 2 or not all(map(callable, both)):
        raise WrongAnswerError("A tuple of two functions is expected: (split, join).")
    whole = (np.arange(24).reshape(4, 6), 3), (np.arange(36).reshape(6, 6), 2)
    return {
        "split": [called(both[0], arguments) for arguments in whole],
        "join": [called(both[1], (split(*arguments),)) for arguments in whole],
    }


# Exercise 5: the gradients of attention


def attention_gradients(q: Array, k: Array, v: Array, g: Array) -> Gradients:
    """Return the gradients of q, k and v, from the gradient g of softmax(q kᵀ / √d) v."""
    p, ds = _weights_and_slopes(q, k, v, g, softmax_vjp)
    scale = 1 / np.sqrt(q.shape[1])
    return ds @ k * scale, ds.T @ q * scale, p.T @ g


def _weights_and_slopes(
    q: Array, k: Array, v: Array, g: Array, vjp: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    p = softmax(_scores(q, k))
    return p, vjp(g @ v.T, p)


def _with_vjp(vjp: Callable[[Array, Array], Array]) -> Callable[..., Gradients]:
    """Return `attention_gradients` with another VJP of softmax."""

    def gradients(q: Array, k: Array, v: Array, g: Array) -> Gradients:
        p, ds = _weights_and_slopes(q, k, v, g, vjp)
        scale = 1 / np.sqrt(q.shape[1])
        return ds @ k * scale, ds.T @ q * scale, p.T @ g

    return gradients


def _but(change: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return `attention_gradients` with its results changed."""

    def gradients(q: Array, k: Array, v: Array, g: Array) -> Gradients:
        p, ds = _weights_and_slopes(q, k, v, g, softmax_vjp)
        scale = 1 / np.sqrt(q.shape[1])
        return change(q, k, g, p, ds, scale)

    return gradients


# Exercise 6: which output depends on which input


def depends(f: Mapped, x: Array) -> Array:
    """Return whether output s (row) of f depends on input t (column), by changing each input."""
    return _depends(f, x)


def _depends(
    f: Mapped,
    x: Array,
    column: int | slice = slice(None),
    keep: bool = False,
    judge: Callable[..., Any] = np.any,
) -> Array:
    before, found, changed = f(x), np.zeros((len(x), len(x)), dtype=bool), x.copy()
    for t in range(len(x)):
        changed = changed if keep else x.copy()
        changed[t, column] += 1
        found[:, t] = judge(f(changed) != before, axis=1)
    return found


@dataclass(frozen=True)
class Named:
    """A function of a trial, with words for it that a message can say."""

    words: str
    f: Mapped

    def __call__(self, x: Array) -> Array:
        """Call the function."""
        return self.f(x)

    def __repr__(self) -> str:
        return self.words


def _means(column: Array) -> Array:
    return np.cumsum(column, axis=0) / np.arange(1, len(column) + 1)[:, None]


FUNCTIONS = (
    Named(
        "a running sum of column 0, and column 1 as it is",
        lambda x: np.stack([np.cumsum(x[:, 0]), x[:, 1]], axis=1),
    ),
    Named(
        "column 1 of the row before, twice",
        lambda x: np.concatenate([np.zeros((1, 2)), x[:-1, 1:].repeat(2, axis=1)]),
    ),
    Named("the mean of column 0 so far, twice", lambda x: _means(x[:, :1]).repeat(2, axis=1)),
    Named(
        "the sum of each row and the next one",
        lambda x: np.concatenate([x[:-1] + x[1:], x[-1:]]),
    ),
)


# Exercise 7: where the order matters

MODELS = ("no mask", "causal", "two causal", "positions")


def in_words(answer: Any) -> dict[str, str]:
    """Return for each model whether its last output changes."""
    names = ", ".join(map(repr, MODELS))
    if not isinstance(answer, Mapping) or set(answer) != set(MODELS):
        raise WrongAnswerError(
            f"A dict with the keys {names} is expected, and this is {described(answer)}."
        )
    if not all(isinstance(value, bool | np.bool_) for value in answer.values()):
        raise WrongAnswerError("The values of the dict are True or False.")
    return {name: "it changes" if answer[name] else "it does not change" for name in MODELS}


check = Checker(
    {
        1: Exercise(
            softmax_vjp,
            trials=[
                (_normal(3, 5), softmax(_normal(3, 5))),
                (_normal(4, 4), softmax(_normal(4, 4))),
            ],
            slips={
                "This has only the slope of each weight with respect to its own score. A score "
                "changes the other weights of its row too.": lambda g, p: g * p * (1 - p),
                "The mean of g is taken over the whole matrix, but each row is a softmax of its "
                "own.": lambda g, p: p * (g - (g * p).sum()),
                "The mean of g is taken along the columns, but the weights of a row sum to 1.": (
                    lambda g, p: p * (g - (g * p).sum(axis=0, keepdims=True))
                ),
                "Nothing is subtracted from g. If all entries of g are equal, the result must be "
                "0, because the weights always sum to 1.": lambda g, p: g * p,
                "The mean of g is the plain one. The derivation weights its entries.": (
                    lambda g, p: p * (g - g.mean(axis=-1, keepdims=True))
                ),
                "The sum over g does not have the weights p in it.": (
                    lambda g, p: p * (g - g.sum(axis=-1, keepdims=True))
                ),
                "A factor is missing in front of the bracket: a score whose weight is nearly 0 "
                "can hardly change anything.": (
                    lambda g, p: g - (g * p).sum(axis=-1, keepdims=True)
                ),
                "This is the VJP of the logarithm of the softmax.": (
                    lambda g, p: g - p * g.sum(axis=-1, keepdims=True)
                ),
                "The sign is wrong: a weight grows with its own score.": (
                    lambda g, p: -softmax_vjp(g, p)
                ),
            },
        ),
        2: Exercise(
            causal_attention,
            trials=[(_normal(5, 4), _normal(5, 4), _normal(5, 3)), tuple(_normal(3, 6, 2))],
            slips={
                "Each position looks at all positions: there is no mask.": (
                    lambda q, k, v: softmax(_scores(q, k)) @ v
                ),
                "The mask forbids a position to look at itself. Then the first one has nothing to "
                "look at.": _strictly_causal,
                "Each position looks at itself and at later ones: the mask is the wrong way "
                "round.": lambda q, k, v: softmax(_masked(_scores(q, k), _past(q).T)) @ v,
                "The mask comes after the softmax, so the weights of a row no longer sum to 1.": (
                    lambda q, k, v: softmax(_scores(q, k)) * _past(q) @ v
                ),
                "Forbidden scores are set to 0. But 0 is a score like any other, and its weight is "
                "not 0.": lambda q, k, v: softmax(_masked(_scores(q, k), _past(q), 0)) @ v,
                "The scores are not divided.": (
                    lambda q, k, v: softmax(_masked(q @ k.T, _past(q))) @ v
                ),
                "The scores are divided by d itself.": (
                    lambda q, k, v: softmax(_masked(q @ k.T / q.shape[1], _past(q))) @ v
                ),
                "The scores are divided by the root of the number of positions; d is the number "
                "of entries of a query.": (
                    lambda q, k, v: softmax(_masked(q @ k.T / np.sqrt(len(q)), _past(q))) @ v
                ),
                "The softmax runs along the columns: each key shares itself out among the "
                "queries. It is the other way round.": (
                    lambda q, k, v: softmax(_masked(_scores(q, k), _past(q)), axis=0) @ v
                ),
                "These are the weights. The means of the values are still to be taken.": (
                    lambda q, k, v: softmax(_masked(_scores(q, k), _past(q)))
                ),
                "Queries and keys are exchanged: row i of the scores belongs to query i.": (
                    lambda q, k, v: softmax(_masked(_scores(k, q), _past(q))) @ v
                ),
            },
        ),
        3: Exercise(
            lambda d, sigma: sigma**2 * np.sqrt(d),
            trials=[(64, 0.5), (16, 1.0), (9, 3.0)],
            slips={
                "This is the variance; its root is asked for.": lambda d, sigma: d * sigma**4,
                "A query and a key both have the size sigma, and here it counts only once.": (
                    lambda d, sigma: sigma * np.sqrt(d)
                ),
                "Variances add up, and standard deviations do not.": lambda d, sigma: d * sigma**2,
                "The size of the entries does not appear in this.": (lambda d, sigma: np.sqrt(d)),
                "This is the standard deviation after the division by the root of d.": (
                    lambda d, sigma: sigma**2
                ),
                "The variance of each entry is sigma squared; this takes sigma for the variance of "
                "a product.": lambda d, sigma: np.sqrt(d * sigma),
            },
        ),
        4: Exercise(
            (split, join),
            observe=split_and_joined,
            slips={
                "`split` is a reshape alone, which cuts the numbers in the order of the rows: its "
                "first matrix has the first positions, with all their columns.": (
                    lambda x, heads: x.reshape(heads, len(x), -1),
                    join,
                ),
                "`split` does not move the axis of the heads to the front.": (
                    lambda x, heads: x.reshape(len(x), heads, -1),
                    join,
                ),
                "In `split`, a head takes columns that are not next to each other: the last axis "
                "was cut into (d, heads).": (
                    lambda x, heads: x.reshape(len(x), -1, heads).transpose(2, 0, 1),
                    join,
                ),
                "`join` is a reshape alone, which puts positions of the same head side by side.": (
                    split,
                    lambda x: x.reshape(x.shape[1], -1),
                ),
                "`join` moves the wrong axis: the heads and the positions change places.": (
                    split,
                    lambda x: x.swapaxes(1, 2).reshape(x.shape[1], -1),
                ),
                "Both are a reshape alone. They undo each other, but the heads are not groups of "
                "columns.": (
                    lambda x, heads: x.reshape(heads, len(x), -1),
                    lambda x: x.reshape(x.shape[1], -1),
                ),
                "`join` puts the heads below each other; they belong side by side.": (
                    split,
                    lambda x: x.reshape(-1, x.shape[2]),
                ),
            },
        ),
        5: Exercise(
            attention_gradients,
            trials=[
                (_normal(4, 3), _normal(4, 3), _normal(4, 2), _normal(4, 2)),
                tuple(_normal(4, 3, 3)),
            ],
            slips={
                "The scale is in the scores, but missing in the gradients of q and k.": _but(
                    lambda q, k, g, p, ds, scale: (ds @ k, ds.T @ q, p.T @ g)
                ),
                "The scale is missing in the gradient of k.": _but(
                    lambda q, k, g, p, ds, scale: (ds @ k * scale, ds.T @ q, p.T @ g)
                ),
                "The gradient of v is not transposed: value j collects from all queries, which is "
                "a column of the weights.": _but(
                    lambda q, k, g, p, ds, scale: (ds @ k * scale, ds.T @ q * scale, p @ g)
                ),
                "The gradient of k is not transposed: key j collects from all queries, which is a "
                "column of the scores.": _but(
                    lambda q, k, g, p, ds, scale: (ds @ k * scale, ds @ q * scale, p.T @ g)
                ),
                "The gradient of q contains q, and that of k contains k: each should contain the "
                "other factor of the product.": _but(
                    lambda q, k, g, p, ds, scale: (ds @ q * scale, ds.T @ k * scale, p.T @ g)
                ),
                "The gradients of q and k have changed places.": _but(
                    lambda q, k, g, p, ds, scale: (ds.T @ q * scale, ds @ k * scale, p.T @ g)
                ),
                "The gradients come in another order: q first, v last.": _but(
                    lambda q, k, g, p, ds, scale: (p.T @ g, ds @ k * scale, ds.T @ q * scale)
                ),
                "In the VJP of softmax, the mean is not subtracted.": _with_vjp(lambda g, p: g * p),
                "The VJP of softmax has only the slope of a weight by its own score.": _with_vjp(
                    lambda g, p: g * p * (1 - p)
                ),
                "The VJP of softmax runs along the columns.": _with_vjp(
                    lambda g, p: p * (g - (g * p).sum(axis=0, keepdims=True))
                ),
                "The VJP of softmax is missing: the gradient of the weights was taken for that of "
                "the scores.": _with_vjp(lambda g, p: g),
            },
        ),
        6: Exercise(
            depends,
            trials=[(f, _normal(4, 2)) for f in FUNCTIONS],
            slips={
                "Rows and columns are exchanged: a row belongs to an output.": (
                    lambda f, x: _depends(f, x).T
                ),
                "The changes of earlier rounds are still there: each round needs a fresh copy.": (
                    lambda f, x: _depends(f, x, keep=True)
                ),
                "An output counts as changed only if all its entries are; any is enough.": (
                    lambda f, x: _depends(f, x, judge=np.all)
                ),
                "Only the first entry of an input is changed, and an output may depend on "
                "another one.": lambda f, x: _depends(f, x, column=0),
                "Only the last entry of an input is changed, and an output may depend on "
                "another one.": lambda f, x: _depends(f, x, column=-1),
                "Only outputs before t are looked at. That finds leaks, but the matrix should "
                "have all outputs.": lambda f, x: np.triu(_depends(f, x), 1),
                "The matrix says where an output does not depend on an input.": (
                    lambda f, x: ~_depends(f, x)
                ),
            },
        ),
        7: Exercise(
            {"no mask": False, "causal": False, "two causal": True, "positions": True},
            observe=in_words,
            slips={
                "One of these models is wrong: without positions, one layer takes a mean over the "
                "same set of vectors, mask or no mask, since the last position sees them all.": {
                    "no mask": False,
                    "causal": True,
                    "two causal": True,
                    "positions": True,
                },
                "Look again at two causal layers: what is at position 0 of the first layer's "
                "output, before and after the swap?": {
                    "no mask": False,
                    "causal": False,
                    "two causal": False,
                    "positions": True,
                },
                "Look again at the vectors of positions: they stay where they are while the inputs "
                "are swapped, so their sums are other vectors.": {
                    "no mask": False,
                    "causal": False,
                    "two causal": True,
                    "positions": False,
                },
                "Not all of them change: some of these models take a mean over the same set of "
                "vectors before and after the swap.": {
                    "no mask": True,
                    "causal": True,
                    "two causal": True,
                    "positions": True,
                },
                "Some of them do change. In which of these models does a vector that the last "
                "position looks at depend on its place?": {
                    "no mask": False,
                    "causal": False,
                    "two causal": False,
                    "positions": False,
                },
                "Without a mask and without positions, attention permutes its outputs with its "
                "inputs, and the last input has stayed in place.": {
                    "no mask": True,
                    "causal": False,
                    "two causal": True,
                    "positions": True,
                },
            },
        ),
    }
)
