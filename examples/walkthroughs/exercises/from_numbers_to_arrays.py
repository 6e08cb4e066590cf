"""The exercises of "From numbers to arrays"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.walkthroughs.checking import Checker, Exercise

Array = NDArray[Any]

_rng = np.random.default_rng(26)


def drawn(*shape: int) -> Array:
    """Return random numbers of this shape, rounded so that a message can show them."""
    return _rng.standard_normal(shape).round(2)


# --------------------------------------------------------------------------------------------------
# 1. Un-broadcasting
# --------------------------------------------------------------------------------------------------


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Return `g` summed over the axes along which a value of this shape was stretched."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return np.asarray(g.sum(axis=stretched(g, shape), keepdims=True))


def stretched(g: Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of size 1 in a shape that are larger in `g`."""
    return tuple(i for i, size in enumerate(shape) if size == 1 and g.shape[i] != 1)


def by(reduce: Callable[..., Any]) -> Callable[[Array, tuple[int, ...]], Array]:
    """Return an un-broadcasting that reduces the axes by another function than the sum."""

    def unbroadcast_by(g: Array, shape: tuple[int, ...]) -> Array:
        extra = tuple(range(g.ndim - len(shape)))
        g = reduce(g, axis=extra) if extra else g
        axes = stretched(g, shape)
        return np.asarray(reduce(g, axis=axes, keepdims=True) if axes else g)

    return unbroadcast_by


def first(g: Array, axis: tuple[int, ...], keepdims: bool = False) -> Array:
    """Return the first entry along these axes."""
    for i in axis:
        g = np.take(g, [0], axis=i)
    return g if keepdims else g.squeeze(axis)


def without_keepdims(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum, from which the axes of size 1 are gone."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return np.asarray(g.sum(axis=stretched(g, shape)))


def front_only(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum over the axes in front, and leave axes of size 1 stretched."""
    return np.asarray(g.sum(axis=tuple(range(g.ndim - len(shape)))))


def one_axis(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum over the axes in front, and over the first axis that was stretched."""
    g = front_only(g, shape)
    axes = stretched(g, shape)
    return np.asarray(g.sum(axis=axes[0], keepdims=True) if axes else g)


def last_axis(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum over the axes in front, and over the last axis if it was stretched."""
    g = front_only(g, shape)
    return np.asarray(g.sum(axis=-1, keepdims=True) if shape[-1:] == (1,) else g)


def not_in_front(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum over the axes that had size 1, with the axes in front as they are."""
    extra = g.ndim - len(shape)
    axes = tuple(extra + i for i, size in enumerate(shape) if size == 1)
    return np.asarray(g.sum(axis=axes, keepdims=True))


def from_the_end(g: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum over the last axes instead of the extra axes in front."""
    extra = g.ndim - len(shape)
    g = g.sum(axis=tuple(range(g.ndim - extra, g.ndim)))
    return np.asarray(g.sum(axis=stretched(g, shape), keepdims=True))


# --------------------------------------------------------------------------------------------------
# 4. Cross-entropy
# --------------------------------------------------------------------------------------------------


def cross_entropy(
    scores: Array,
    labels: Array,
    axis: int = 1,
    sign: float = -1.0,
    safe: bool = True,
    one_maximum: bool = False,
) -> Array:
    """Return the gradient of the summed cross-entropy with respect to the scores.

    Args:
        scores: one row for each example.
        labels: the right class of each.
        axis: over which the softmax is taken.
        sign: of the one-hot array.
        safe: subtract the maximum before `exp`.
        one_maximum: subtract that of all scores, and not that of each row.
    """
    with np.errstate(all="ignore"):
        top = scores.max(axis=None if one_maximum else axis, keepdims=True)
        e = np.exp(scores - top if safe else scores)
        return np.asarray(e / e.sum(axis=axis, keepdims=True) + sign * onehot(scores, labels))


def onehot(scores: Array, labels: Array) -> Array:
    """Return an array like `scores` with a 1 at the right class of each row."""
    return np.asarray(np.eye(scores.shape[1])[labels])


def only_right_class(scores: Array, labels: Array) -> Array:
    """Return the gradient, but with 0 for all classes except the right class."""
    return cross_entropy(scores, labels) * onehot(scores, labels) / len(labels)


# --------------------------------------------------------------------------------------------------
# 5. Backward passes with a mistake
# --------------------------------------------------------------------------------------------------


def with_mistake(mistake: str) -> Callable[..., dict[str, Array]]:
    """Return a backward pass of the notebook's network, with a mistake of this name."""

    def backward_pass(
        X: Array, labels: Array, W1: Array, b1: Array, W2: Array, b2: Array, W3: Array, b3: Array
    ) -> dict[str, Array]:
        A1 = X @ W1 + b1
        H1 = np.tanh(A1)
        A2 = H1 @ W2 + b2
        H2 = np.maximum(A2, 0)
        scores = H2 @ W3 + b3
        dscores = cross_entropy(scores, labels) / (1 if mistake == "1/n" else len(X))
        dA2 = (dscores @ W3.T) * (A2 > 0)
        dA1 = (dA2 @ W2.T) * (1 if mistake == "tanh" else 1 - H1**2)
        return {
            "W1": X.T @ dA1,
            "b1": dA1.sum(axis=0),
            "W2": (A1 if mistake == "wrong array" else H1).T @ dA2,
            "b2": dA2.mean(axis=0) if mistake == "mean for sum" else dA2.sum(axis=0),
            "W3": H2.T @ dscores,
            "b3": dscores.sum(axis=0),
        }

    return backward_pass


FOUND: dict[str, str] = {"A": "mean for sum", "B": "wrong array", "C": "1/n", "D": "tanh"}
CHOICE = ("1/n", "minus", "softmax axis", "relu", "tanh", "wrong array", "mean for sum")
MYSTERIES = {name: with_mistake(mistake) for name, mistake in FOUND.items()}


# --------------------------------------------------------------------------------------------------
# 6. Batch normalisation
# --------------------------------------------------------------------------------------------------


def normalised_vjp(
    g: Array,
    x: Array,
    through_mean: float = 1.0,
    through_variance: float = 1.0,
    power: int = 1,
    axis: int = 0,
    eps: float = 1e-5,
) -> Array:
    """Return the gradient with respect to the input of a batch normalisation.

    Args:
        g: the gradient with respect to the result.
        x: the input.
        through_mean: a factor on the path through the mean.
        through_variance: a factor on the path through the variance.
        power: of the standard deviation by which is divided.
        axis: over which mean and variance are taken.
        eps: what is added to the variance.
    """
    std = np.sqrt(x.var(axis=axis, keepdims=True) + eps)
    y = (x - x.mean(axis=axis, keepdims=True)) / std
    mean_path = through_mean * g.mean(axis=axis, keepdims=True)
    variance_path = through_variance * y * (g * y).mean(axis=axis, keepdims=True)
    return np.asarray((g - mean_path - variance_path) / std**power)


check = Checker(
    {
        1: Exercise(
            unbroadcast,
            trials=[
                (drawn(3, 4), (4,)),
                (drawn(3, 3), (3,)),
                (drawn(3, 4), (3, 1)),
                (drawn(2, 3, 4), (3, 1)),
                (drawn(3, 4), (3, 4)),
                (drawn(1, 4), (1, 4)),
                (drawn(2, 3), ()),
                (drawn(3, 4), (1, 4)),
                (drawn(2, 3, 4), (1, 3, 1)),
            ],
            slips={
                "The gradient has the shape of the value. This is one number, the sum of all "
                "entries.": lambda g, shape: g.sum(),
                "An axis of size 1 stays: the gradient of a value of shape (3, 1) has the shape "
                "(3, 1), and here the axis is gone.": without_keepdims,
                "The paths add up. This is their mean.": by(np.mean),
                "The axes in front are right, but an axis of size 1 that was stretched is still "
                "stretched.": front_only,
                "This is right if the last axis was stretched. Any other axis of size 1 may have "
                "been stretched, too.": last_axis,
                "One axis that was stretched is summed, and there may be several.": one_axis,
                "The axes of size 1 are right, but those that numpy has added in front are still "
                "there.": not_in_front,
                "This is the first copy of the gradient. All copies are paths to the value, and "
                "they add up.": by(first),
                "Shapes are aligned on the right, so numpy adds axes in front. Here the last axes "
                "are summed away.": from_the_end,
                "This is the gradient as it arrived. A value that was stretched needs a sum.": (
                    lambda g, shape: g
                ),
            },
        ),
        2: Exercise(
            lambda g: g - g.mean(axis=0),
            trials=[(drawn(5, 3),), (drawn(2, 2),)],
            slips={
                "Here the mean is treated as a constant. But it is computed from x, so there is a "
                "second path.": lambda g: g,
                "The mean grows with an entry at the rate 1/n, and not 1.": (
                    lambda g: g - g.sum(axis=0)
                ),
                "The mean is that of a column. Here the rows are averaged.": (
                    lambda g: g - g.mean(axis=1, keepdims=True)
                ),
                "The mean is subtracted, so what goes through it has a minus.": (
                    lambda g: g + g.mean(axis=0)
                ),
                "This is the path through the mean alone. x is also used directly.": (
                    lambda g: np.broadcast_to(-g.mean(axis=0), g.shape)
                ),
                "An entry changes the mean, and the mean changes the results of *all* rows, not "
                "only that of its own.": lambda g: g * (1 - 1 / len(g)),
                "Each column has a mean of its own. Here all entries are averaged.": (
                    lambda g: g - g.mean()
                ),
            },
        ),
        3: Exercise(
            lambda G, X, W: (G @ W, G.T @ X),
            trials=[
                (drawn(2, 4), drawn(2, 3), drawn(4, 3)),
                (drawn(1, 2), drawn(1, 3), drawn(2, 3)),
            ],
            slips={
                "dX is right. dW has the shape of W.T: this is the gradient of the transpose.": (
                    lambda G, X, W: (G @ W, X.T @ G)
                ),
                "Both arrays are right, but in the other order: dX comes first.": (
                    lambda G, X, W: (G.T @ X, G @ W)
                ),
                "G is missing: these are the gradients of the plain sum of Y.": (
                    lambda G, X, W: (np.ones_like(G) @ W, np.ones_like(G).T @ X)
                ),
                "There is no mean in Y, so no 1/n in its gradients.": (
                    lambda G, X, W: (G @ W / len(X), G.T @ X / len(X))
                ),
                "dX is right. dW takes only the first row of the batch into account.": (
                    lambda G, X, W: (G @ W, np.outer(G[0], X[0]))
                ),
                "dW is right. In dX each row has the sum over the batch: a row of X reaches only "
                "its own row of Y.": (
                    lambda G, X, W: (np.ones((len(G), 1)) * (G.sum(axis=0) @ W), G.T @ X)
                ),
                "Both signs are wrong: there is no minus in Y.": (
                    lambda G, X, W: (-(G @ W), -(G.T @ X))
                ),
            },
        ),
        4: Exercise(
            lambda scores, labels: cross_entropy(scores, labels) / len(labels),
            trials=[
                (drawn(4, 3), np.array([2, 0, 0, 1])),
                (1000 * drawn(2, 3), np.array([1, 2])),
                (np.array([[1000.0, 999.0], [-1000.0, -1001.0]]), np.array([0, 0])),
            ],
            slips={
                "The loss is the mean over the batch, so each row counts 1/n. Here it is the "
                "sum.": cross_entropy,
                "Every sign is wrong: this is the direction in which the loss falls.": (
                    lambda scores, labels: -cross_entropy(scores, labels) / len(labels)
                ),
                "The right classes have the wrong sign: the one-hot array is subtracted.": (
                    lambda scores, labels: cross_entropy(scores, labels, sign=1.0) / len(labels)
                ),
                "This is the softmax alone, over n. The right class is pulled up by nothing.": (
                    lambda scores, labels: cross_entropy(scores, labels, sign=0.0) / len(labels)
                ),
                "The softmax is taken over the columns: the probabilities of one row sum to 1.": (
                    lambda scores, labels: cross_entropy(scores, labels, axis=0) / len(labels)
                ),
                "This is right for small scores. For large ones, exp overflows: subtract the "
                "maximum of each row first.": (
                    lambda scores, labels: cross_entropy(scores, labels, safe=False) / len(labels)
                ),
                "One maximum is subtracted from all scores here. In a row whose scores are much "
                "smaller, every exp is then 0. Each row needs a maximum of its own.": (
                    lambda scores, labels: (
                        cross_entropy(scores, labels, one_maximum=True) / len(labels)
                    )
                ),
                "The mean is over the rows. Here is divided by the number of all entries.": (
                    lambda scores, labels: cross_entropy(scores, labels) / scores.size
                ),
                "The scores of the other classes have a gradient too: the loss rises when they "
                "rise.": only_right_class,
            },
        ),
        5: Exercise(
            FOUND,
            choices=CHOICE,
            slips={
                "A: the 1/n is in the loss, so without it every gradient would be wrong. Here only "
                "one is.": FOUND | {"A": "1/n"},
                "A: the wrong gradient is that of a bias, and a bias is in no matrix product.": (
                    FOUND | {"A": "wrong array"}
                ),
                "B: what passes through tanh arrives at W1 and b1, and these are right.": (
                    FOUND | {"B": "tanh"}
                ),
                "B: relu's mask would also change b2, W1 and b1, and these are right.": (
                    FOUND | {"B": "relu"}
                ),
                "C: compare the signs with those of `by_hand`. They are right.": (
                    FOUND | {"C": "minus"}
                ),
                "C: divide the gradients by those of `by_hand`. One number comes out for all "
                "entries, and a softmax over the columns would not do that.": (
                    FOUND | {"C": "softmax axis"}
                ),
                "C: a mean in place of a sum makes one gradient too small. Here all are too "
                "large.": FOUND | {"C": "mean for sum"},
                "D: relu's mask is on the path to W2 and b2 too, and these are right.": (
                    FOUND | {"D": "relu"}
                ),
                "D: a wrong array in a product changes one dW, and no bias. Here a bias is wrong "
                "too.": FOUND | {"D": "wrong array"},
                "B and D are exchanged: in one of them a bias is wrong too. Can a product do "
                "that?": FOUND | {"B": "tanh", "D": "wrong array"},
            },
        ),
        6: Exercise(
            normalised_vjp,
            trials=[(drawn(5, 3), 3 * drawn(5, 3)), (drawn(4, 2), drawn(4, 2) + 10)],
            slips={
                "Mean and variance are treated as constants here. Both are computed from x.": (
                    lambda g, x: normalised_vjp(g, x, 0.0, 0.0)
                ),
                "The path through the variance is missing.": (
                    lambda g, x: normalised_vjp(g, x, 1.0, 0.0)
                ),
                "The path through the mean is missing.": (
                    lambda g, x: normalised_vjp(g, x, 0.0, 1.0)
                ),
                "Mean and variance are divided by n. Here both of their paths are n times too "
                "large.": lambda g, x: normalised_vjp(g, x, len(x), len(x)),
                "The path through the variance is twice too large: a root has the slope "
                "1 / (2 root).": lambda g, x: normalised_vjp(g, x, 1.0, 2.0),
                "The path through the variance is half of what it should be: a square has the "
                "slope 2 x.": lambda g, x: normalised_vjp(g, x, 1.0, 0.5),
                "The path through the variance has the wrong sign: a larger std makes y "
                "smaller.": lambda g, x: normalised_vjp(g, x, 1.0, -1.0),
                "Here is divided by the variance, and y divides by its root.": (
                    lambda g, x: normalised_vjp(g, x, power=2)
                ),
                "Nearly right: the 1e-5 under the root is missing.": (
                    lambda g, x: normalised_vjp(g, x, eps=0.0)
                ),
                "The division by std is missing.": lambda g, x: normalised_vjp(g, x, power=0),
                "The statistics are those of a column. Here they are taken over each row.": (
                    lambda g, x: normalised_vjp(g, x, axis=1)
                ),
            },
        ),
    }
)
