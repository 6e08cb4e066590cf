"""Losses, in every reduction."""

import math

import numpy as np

from tests.cases.case import (
    HUGE,
    Case,
    below,
    classes,
    distinct,
    fixed,
    fractions,
    joined,
    log_softmax,
    logistic,
    normal,
    positive,
    softmax,
)

REDUCTIONS = ("mean", "sum", "none")


def reduced(losses, reduction="mean"):
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](losses)


def squared_error(x, y, reduction="mean"):
    return reduced(np.square(x - y), reduction)


def absolute_error(x, y, reduction="mean"):
    return reduced(np.abs(x - y), reduction)


def huber(x, y, reduction="mean", delta=1.0):
    losses = [
        0.5 * d * d if abs(d) <= delta else delta * (abs(d) - 0.5 * delta) for d in np.ravel(x - y)
    ]
    return reduced(np.reshape(losses, x.shape), reduction)


def nll(scores, target, reduction="mean", weight=None, ignore_index=-100, label_smoothing=0.0):
    """One target after the other, for scores that are logarithms of probabilities."""
    rows = np.moveaxis(scores, 1 if scores.ndim > 1 else 0, -1)
    weight = np.ones(rows.shape[-1]) if weight is None else np.asarray(weight, np.float64)
    losses, counts = np.zeros(target.shape), np.zeros(target.shape)
    for where in np.ndindex(target.shape):
        label = target[where]
        if label != ignore_index and not (weight[label] == 0 and not label_smoothing):
            spread = np.mean([-w * v for w, v in zip(weight, rows[where], strict=True)])
            own = -weight[label] * rows[where][label]
            losses[where] = (1 - label_smoothing) * own + label_smoothing * spread
            counts[where] = weight[label]
    return np.sum(losses) / np.sum(counts) if reduction == "mean" else reduced(losses, reduction)


def cross_entropy(logits, target, reduction="mean", **options):
    return nll(log_softmax(logits, 1 if logits.ndim > 1 else 0), target, reduction, **options)


def linear_cross_entropy(x, weight, target, reduction="mean", chunk=None, **options):
    rows = np.reshape(x @ weight.T, (-1, len(weight)))
    losses = cross_entropy(rows, target.reshape(-1), reduction, **options)
    return losses.reshape(target.shape) if reduction == "none" else losses


HEAD = np.array([[0.3, -1.7], [0.9, 0.2], [-0.6, 2.1]])


def with_frozen_head(f, x, target, **options):
    head = HEAD.astype(str(x.dtype).removeprefix("torch."))  # x is PyTorch's, too
    return f(x, head, target, **options)


def soft_cross_entropy(logits, target, reduction="mean", weight=None, label_smoothing=0.0):
    """For the probabilities of all classes."""
    axis = 1 if logits.ndim > 1 else 0
    rows, probabilities = (np.moveaxis(x, axis, -1) for x in (log_softmax(logits, axis), target))
    classes = rows.shape[-1]
    weight = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    probabilities = (1 - label_smoothing) * probabilities + label_smoothing / classes
    losses = np.einsum("...c,...c,c->...", -rows, probabilities, weight)
    return reduced(losses, reduction)


def binary_cross_entropy(logits, target, reduction="mean", weight=1.0, pos_weight=1.0):
    s = logistic(logits)
    losses = -pos_weight * target * np.log(s) - (1 - target) * np.log(1 - s)
    return reduced(weight * losses, reduction)


def far_out(g, x, target, pos_weight=1.0):
    s = np.array([0.0, 0.0, 1.0, 1.0])
    return g * (s * (1 - target) - pos_weight * target * (1 - s))


def log_probabilities(shape, axis=1):
    """Those of softmax, and the class of each."""

    def make(rng):
        logits, target = classes(shape, axis)(rng)
        return log_softmax(logits, axis), target

    return make


WEIGHTS = np.float32([0.5, 2, 1.25])
LABELLED = {
    "": {},
    "weight": {"weight": WEIGHTS},
    "ignored": {"ignore_index": 1},
    "weight and ignored": {"weight": WEIGHTS, "ignore_index": 2},
    "a weight of 0": {"weight": np.float32([1, 0, 2])},
}
SMOOTHED = {
    "smoothing": {"label_smoothing": 0.3},
    "smoothing 1": {"label_smoothing": 1.0},
    "smoothing and weight": {"label_smoothing": 0.3, "weight": WEIGHTS},
    "smoothing and ignored": {"label_smoothing": 0.3, "ignore_index": 1},
    "all": {"label_smoothing": 0.3, "weight": WEIGHTS, "ignore_index": 0},
}
SHAPES = [((3,), 0), ((5, 3), 1), ((2, 3, 2), 1)]

CASES = [
    *[
        Case(name, distinct((2, 3), (2, 3)), reference, {"reduction": reduction, **options})
        for name, reference, options in [
            ("mse", squared_error, {}),
            ("l1", absolute_error, {}),
            ("huber", huber, {}),
            ("huber", huber, {"delta": 0.5}),
            ("huber", huber, {"delta": 10}),
        ]
        for reduction in REDUCTIONS
    ],
    *[
        Case(name, distinct((), ()), reference, note="0-d")
        for name, reference in [("mse", squared_error), ("l1", absolute_error), ("huber", huber)]
    ],
    *[
        Case(
            name,
            normal((0, 2), (0, 2)),
            reference,
            {"reduction": reduction},
            note=f"of none {reduction}",
        )
        for name, reference in [("mse", squared_error), ("l1", absolute_error), ("huber", huber)]
        for reduction in ("sum", "none")
    ],
    Case(
        "l1",
        fixed([1.0, 2.0, 3.0], [1.0, 3.0, 1.0]),
        absolute_error,
        {"reduction": "sum"},
        note="no error: 0",
        derivative=lambda g, x, y: (g * np.sign(x - y), g * np.sign(y - x)),
    ),
    Case(
        "huber",
        fixed([1.0, -1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]),
        huber,
        {"reduction": "sum"},
        note="where both meet",
        derivative=lambda g, x, y: (g * np.clip(x, -1, 1), -g * np.clip(x, -1, 1)),
    ),
    # Of classes
    *[
        Case(
            name,
            make(shape, axis),
            reference,
            {"reduction": reduction, **options},
            note=f"{note} {shape} {reduction}".strip(),
        )
        for name, make, reference, extra in [
            ("cross_entropy", classes, cross_entropy, SMOOTHED),
            ("nll", log_probabilities, nll, {}),
        ]
        for note, options in (LABELLED | extra).items()
        for shape, axis in (SHAPES if note in ("", "all", "weight and ignored") else [((5, 3), 1)])
        for reduction in REDUCTIONS
        # all of one target may be ignored, and then there is no mean
        if not (reduction == "mean" and "ignore_index" in options and len(shape) == 1)
    ],
    *[
        Case(
            name,
            fixed([[1.0, 2.0], [3.0, 0.0]], [-100, -100]),
            reference,
            {"reduction": reduction},
            note=f"all ignored {reduction}",
        )
        for name, reference in [("cross_entropy", cross_entropy), ("nll", nll)]
        for reduction in ("sum", "none")
    ],
    *[
        Case(
            "cross_entropy",
            joined(normal(shape), fractions(shape)),
            soft_cross_entropy,
            {"reduction": reduction, **options},
            note=f"probabilities {note} {shape} {reduction}",
        )
        for note, options in {
            "": {},
            "weight": {"weight": WEIGHTS},
            "smoothing": {"label_smoothing": 0.3},
            "all": {"label_smoothing": 0.3, "weight": WEIGHTS},
        }.items()
        for shape in ([(3,), (4, 3), (2, 3, 2)] if note in ("", "all") else [(4, 3)])
        for reduction in REDUCTIONS
    ],
    Case(
        "cross_entropy",
        fixed(HUGE, [0, 1]),
        cross_entropy,
        note="far out",
        derivative=lambda g, x, target: g * (softmax(x) - np.eye(3)[target]) / 2,
    ),
    Case(
        "nll",
        fixed([[-math.inf, 0.0], [-1.0, -2.0]], [0, 1]),
        nll,
        {"weight": np.float32([0, 1])},
        note="an impossible class of weight 0",
        derivative=lambda g, x, target: g * [[0, 0], [0, -1]],
    ),
    *[
        Case(
            "cross_entropy",
            joined(normal((3, 3)), fixed(np.array([0, 2, 2], np.uint8))),
            cross_entropy,
            options,
            note=f"bytes{note}",
        )
        for note, options in {"": {}, ", ignored": {"ignore_index": 2}}.items()
    ],
    *[
        Case(
            "cross_entropy",
            joined(normal((0, 3)), below(3, (0,))),
            cross_entropy,
            {"reduction": reduction},
            note=f"of none {reduction}",
        )
        for reduction in ("sum", "none")
    ],
    # Of classes, with logits that are a product
    *[
        Case(
            "linear_cross_entropy",
            joined(normal(shape), below(3, shape[:-1])),
            linear_cross_entropy,
            {"reduction": reduction, "chunk": 2, **options},
            function=with_frozen_head,
            note=f"frozen {note} {shape} {reduction}",
        )
        for note, options in {
            "": {},
            "smoothing": {"label_smoothing": 0.3},
            "ignored": {"ignore_index": 1},
            "all": {"label_smoothing": 0.3, "ignore_index": 2},
        }.items()
        for shape in ([(2,), (5, 2), (2, 3, 2)] if note in ("", "smoothing") else [(5, 2)])
        for reduction in REDUCTIONS
    ],
    *[
        Case(
            "linear_cross_entropy",
            joined(normal((2, 2, 2), (3, 2)), below(3, (2, 2))),
            linear_cross_entropy,
            {"reduction": reduction},
            note=f"trained {reduction}",
        )
        for reduction in REDUCTIONS
    ],
    *[
        Case(
            "linear_cross_entropy",
            joined(normal((0, 2)), below(3, (0,))),
            linear_cross_entropy,
            {"reduction": reduction},
            function=with_frozen_head,
            note=f"of none {reduction}",
        )
        for reduction in ("sum", "none")
    ],
    # Of two classes
    *[
        Case(
            "binary_cross_entropy_with_logits",
            joined(normal((2, 3)), fractions((2, 3))),
            binary_cross_entropy,
            {"reduction": reduction, **options},
            note=f"{note} {reduction}".strip(),
        )
        for note, options in {
            "": {},
            "pos_weight": {"pos_weight": 2.5},
            "pos_weight of each": {"pos_weight": np.float32([0.5, 2, 1])},
            "weight": {"weight": 2.5},
            "both weights": {
                "weight": np.array([[0.5], [3]]),
                "pos_weight": np.float32([0.5, 2, 1]),
            },
        }.items()
        for reduction in REDUCTIONS
    ],
    *[
        Case(
            "binary_cross_entropy_with_logits",
            joined(normal((2, 3)), fractions((2, 3)), positive((3,))),
            binary_cross_entropy,
            names=("logits", "target", name),
            note=f"{name} is learned",
        )
        for name in ("weight", "pos_weight")
    ],
    Case(
        "binary_cross_entropy_with_logits",
        normal((4,)),
        binary_cross_entropy,
        {"target": np.array([0.0, 1.0, 0.0, 1.0])},
        note="hard targets",
    ),
    Case(
        "binary_cross_entropy_with_logits",
        fixed([-1000.0, -1000.0, 1000.0, 1000.0]),
        lambda logits, target, reduction: np.array([0.0, 1000.0, 1000.0, 0.0]),
        {"target": np.array([0.0, 1.0, 0.0, 1.0]), "reduction": "none"},
        note="far out",
        derivative=lambda g, x: g * [0, -1, 1, 0],
    ),
]
