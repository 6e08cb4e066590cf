"""Wrong VJPs in the library's own table of derivatives: reductions, and places in arrays."""

from __future__ import annotations

import numpy as np

import minigrad
from minigrad import functional
from minigrad.ops import shape
from minigrad.ops.shape import reduced
from tests.zoo.mutant import Mutant, Port, edited, misled, replaced, spoiled, vjp, wrong
from tests.zoo.words import reverse, softmax

_rng = np.random.default_rng(5)
normal = _rng.standard_normal


MUTANTS: list[Mutant] = [
    # Reductions
    vjp(
        "sum: each element gets its share of the gradient, as of a mean",
        "mean for sum",
        minigrad.sum,
        lambda op: spoiled(op, "x", lambda gradient: gradient / 3.0),
        normal(3),
        port=Port(
            lambda m, x: m.sum(x), lambda m, g, x: g + 0 * x, lambda m, g, x: (g + 0 * x) / 3
        ),
    ),
    vjp(
        "max: at a tie all get the whole gradient",
        "wrong tie",
        minigrad.max,
        lambda op: wrong(
            op,
            "x",
            lambda g, x, axis, out: minigrad.where(
                x == minigrad.reshape(out, reduced(x.shape, axis, keepdims=True)),
                minigrad.reshape(g, reduced(x.shape, axis, keepdims=True)),
                0.0,
            ),
        ),
        normal(3),
        f=lambda x: minigrad.max(minigrad.stack([x, x]), 0),
    ),
    vjp(
        "prod: divided by each factor, of which one is 0",
        "at zero",
        minigrad.prod,
        lambda op: wrong(
            op,
            "x",
            lambda g, x, axis, out: (
                minigrad.reshape(g * out, reduced(x.shape, axis, keepdims=True)) / x
            ),
        ),
        np.array([2.0, 0.0, 3.0]),
    ),
    vjp(
        "norm: 0/0 at 0",
        "at zero",
        minigrad.sqrt,
        lambda op: edited(functional.normalization.root, ("zero = x == 0", "zero = x != x")),
        np.zeros(3),
        f=lambda x: minigrad.norm(x) ** 4,  # which has no kink
    ),
    vjp(
        "cumsum: summed from the same end again",
        "wrong place",
        minigrad.cumsum,
        lambda op: wrong(
            op, "x", lambda g, x_shape, axis: minigrad.reshape(minigrad.cumsum(g, axis), x_shape)
        ),
        normal((2, 3)),
        f=lambda x: minigrad.cumsum(x, 1),
    ),
    vjp(
        "softmax: the VJP runs along another axis",
        "wrong option",
        minigrad.softmax,
        lambda op: misled(op, axis=0),
        normal((3, 3)),
        port=Port(
            softmax,
            lambda m, g, x: softmax(m, x) * (g - m.sum(g * softmax(m, x), axis=1, keepdims=True)),
            lambda m, g, x: softmax(m, x) * (g - m.sum(g * softmax(m, x), axis=0, keepdims=True)),
        ),
    ),
    vjp(
        "log_softmax: the VJP takes the result for probabilities",
        "wrong formula",
        minigrad.log_softmax,
        lambda op: wrong(
            op, "x", lambda g, axis, out: g - out * minigrad.sum(g, axis, keepdims=True)
        ),
        normal((2, 3)),
        port=Port(
            lambda m, x: m.log(softmax(m, x)),
            lambda m, g, x: g - softmax(m, x) * m.sum(g, axis=1, keepdims=True),
            lambda m, g, x: g - m.log(softmax(m, x)) * m.sum(g, axis=1, keepdims=True),
        ),
    ),
    # Places
    vjp(
        "transpose: the axes are not inverted",
        "lost transpose",
        minigrad.transpose,
        lambda op: wrong(op, "x", lambda g, axes: minigrad.transpose(g, axes)),
        normal((2, 2, 2)),
        f=lambda x: minigrad.transpose(x, (1, 2, 0)),
        port=Port(
            lambda m, x: (m.permute if m.__name__ == "torch" else m.transpose)(x, (1, 2, 0)),
            lambda m, g, x: (m.permute if m.__name__ == "torch" else m.transpose)(g, (2, 0, 1)),
            lambda m, g, x: (m.permute if m.__name__ == "torch" else m.transpose)(g, (1, 2, 0)),
        ),
    ),
    vjp(
        "roll: back in the same direction",
        "wrong place",
        minigrad.roll,
        lambda op: misled(op, shift=np.negative),
        normal(4),
        f=lambda x: minigrad.roll(x, 1),
        port=Port(
            lambda m, x: m.roll(x, 1), lambda m, g, x: m.roll(g, -1), lambda m, g, x: m.roll(g, 1)
        ),
    ),
    vjp(
        "flip: the gradient is not flipped back",
        "wrong place",
        minigrad.flip,
        lambda op: wrong(op, "x", lambda g: g),
        normal(4),
        port=Port(reverse, lambda m, g, x: reverse(m, g), lambda m, g, x: 1 * g),
    ),
    vjp(
        "getitem: of a repeated index only the last counts",
        "repeated indices",
        minigrad.getitem,
        lambda op: replaced([shape], "may_repeat", lambda index: False),
        normal(3),
        f=lambda x: x[np.array([0, 2, 0])],
    ),
    vjp(
        "getitem: a negative index counts from the wrong end",
        "wrong place",
        minigrad.getitem,
        lambda op: misled(op, index=lambda i: np.abs(i) if isinstance(i, np.ndarray) else i),
        normal(4),
        f=lambda x: x[np.array([-1, 0])],
    ),
]
