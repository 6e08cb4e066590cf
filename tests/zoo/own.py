"""Wrong gradients of functions of a user's own, which PyTorch and HIPS autograd can be given too.

Of each, the function, its right gradient and the wrong one stand side by side. A user who writes an
op makes these mistakes; a checker is there to tell.
"""

from __future__ import annotations

import numpy as np

from tests.zoo.mutant import Mutant
from tests.zoo.user_op import own
from tests.zoo.words import (
    constant,
    deviation,
    doubled,
    in_memory,
    like,
    mean,
    reverse,
    share,
    softmax,
    standard,
    with_the_last,
)

_rng = np.random.default_rng(1)
normal = _rng.standard_normal

LABELS = np.eye(4)[[1, 0, 3]]
CAUSAL = np.tri(3)
POWERS = np.array([0.0, 3.0, 2.0])
TAKEN = np.eye(3)[[0, 2, 0, 1]]
LAST = TAKEN * np.array([[0.0], [1.0], [1.0], [1.0]])


MUTANTS: list[Mutant] = [
    own(
        "x^3: 3 x^2 is 0.1% too large",
        "off by 0.1%",
        normal(3),
        forward=lambda m, x: x * x * x,
        right=lambda m, g, x: 3 * g * x * x,
        wrong=lambda m, g, x: 3.003 * g * x * x,
    ),
    own(
        "e^-x: the sign is lost",
        "wrong formula",
        normal(3),
        forward=lambda m, x: m.exp(-x),
        right=lambda m, g, x: -g * m.exp(-x),
        wrong=lambda m, g, x: g * m.exp(-x),
    ),
    own(
        "x W^T: the gradient of W is transposed",
        "lost transpose",
        normal((3, 3)),
        normal((3, 3)),
        forward=lambda m, x, w: m.matmul(x, w.T),
        right=lambda m, g, x, w: (m.matmul(g, w), m.matmul(g.T, x)),
        wrong=lambda m, g, x, w: (m.matmul(g, w), m.matmul(x.T, g)),
    ),
    own(
        "scale x: the scale is dropped",
        "dropped scale",
        normal(3),
        forward=lambda m, x: 2.5 * x,
        right=lambda m, g, x: 2.5 * g,
        wrong=lambda m, g, x: 1.0 * g,
    ),
    own(
        "x + bias: the bias gets the gradient of the first row only",
        "missing reduction over a broadcast axis",
        normal((4, 3)),
        normal(3),
        forward=lambda m, x, bias: x + bias,
        right=lambda m, g, x, bias: (g, m.sum(g, axis=0)),
        wrong=lambda m, g, x, bias: (g, g[0]),
    ),
    own(
        "x + bias: the bias gets the mean over rows, not the sum",
        "mean for sum",
        normal((4, 3)),
        normal(3),
        forward=lambda m, x, bias: x + bias,
        right=lambda m, g, x, bias: (g, m.sum(g, axis=0)),
        wrong=lambda m, g, x, bias: (g, m.mean(g, axis=0)),
    ),
    own(
        "var: forward over n - 1, backward over n",
        "wrong option",
        normal(5),
        forward=lambda m, x: m.sum((x - m.mean(x)) ** 2) / (len(x) - 1),
        right=lambda m, g, x: 2 * g * (x - m.mean(x)) / (len(x) - 1),
        wrong=lambda m, g, x: 2 * g * (x - m.mean(x)) / len(x),
    ),
    own(
        "layer norm: the term of the mean is forgotten",
        "wrong formula",
        normal((2, 4)),
        forward=lambda m, x: standard(m, x),
        right=lambda m, g, x: (
            (g - mean(m, g) - standard(m, x) * mean(m, g * standard(m, x))) / deviation(m, x)
        ),
        wrong=lambda m, g, x: (g - standard(m, x) * mean(m, g * standard(m, x))) / deviation(m, x),
    ),
    own(
        "layer norm: mean and deviation are taken for constants",
        "cut graph",
        normal((2, 4)),
        forward=lambda m, x: standard(m, x),
        right=lambda m, g, x: (
            (g - mean(m, g) - standard(m, x) * mean(m, g * standard(m, x))) / deviation(m, x)
        ),
        wrong=lambda m, g, x: g / deviation(m, x),
    ),
    own(
        "softmax: the other elements are forgotten",
        "wrong formula",
        normal((2, 4)),
        forward=lambda m, x: softmax(m, x),
        right=lambda m, g, x: softmax(m, x) * (g - m.sum(g * softmax(m, x), axis=1, keepdims=True)),
        wrong=lambda m, g, x: g * softmax(m, x) * (1 - softmax(m, x)),
    ),
    own(
        "loss of classes: 1/n is dropped",
        "dropped scale",
        normal((3, 4)),
        forward=lambda m, x: -m.sum(m.log(softmax(m, x)) * like(m, LABELS)) / 3,
        right=lambda m, g, x: g * (softmax(m, x) - like(m, LABELS)) / 3,
        wrong=lambda m, g, x: g * (softmax(m, x) - like(m, LABELS)),
    ),
    own(
        "log(sum(e^x)): overflow in the backward pass only",
        "wrong formula",
        np.array([999.0, 1000.0, 1001.0]),
        forward=lambda m, x: m.log(m.sum(m.exp(x - 1000))) + 1000,
        right=lambda m, g, x: g * m.exp(x - 1000) / m.sum(m.exp(x - 1000)),
        wrong=lambda m, g, x: g * m.exp(x) / m.sum(m.exp(x)),
    ),
    own(
        "attention scores: scaled by 1 / sqrt(d) forward only",
        "dropped scale",
        normal((3, 4)),
        normal((2, 4)),
        forward=lambda m, q, k: m.matmul(q, k.T) / 2,
        right=lambda m, g, q, k: (m.matmul(g, k) / 2, m.matmul(g.T, q) / 2),
        wrong=lambda m, g, q, k: (m.matmul(g, k) / 2, m.matmul(g.T, q)),
    ),
    own(
        "causal scores: the mask is lost in the backward pass",
        "wrong option",
        normal((3, 3)),
        forward=lambda m, x: x * like(m, CAUSAL),
        right=lambda m, g, x: g * like(m, CAUSAL),
        wrong=lambda m, g, x: 1.0 * g,
    ),
    own(
        "x^n with n = 0: 0/0 at x = 0",
        "at zero",
        np.array([0.0, 1.0, 2.0]),
        forward=lambda m, x: x ** like(m, POWERS),
        right=lambda m, g, x: g * like(m, POWERS) * x ** like(m, np.maximum(POWERS - 1, 0)),
        wrong=lambda m, g, x: g * like(m, POWERS) * x ** like(m, POWERS) / x,
    ),
    own(
        "product of all: divided by each factor, of which one is 0",
        "at zero",
        np.array([2.0, 0.0, 3.0]),
        forward=lambda m, x: x[0] * x[1] * x[2],
        right=lambda m, g, x: g * m.roll(x, -1) * m.roll(x, 1),
        wrong=lambda m, g, x: g * (x[0] * x[1] * x[2]) / x,
    ),
    own(
        "max(x, y): at a tie both get the whole gradient",
        "wrong tie",
        normal(3),
        forward=lambda m, x, y: m.maximum(x, y),
        right=lambda m, g, x, y: (g * share(m, x, y), g * share(m, y, x)),
        wrong=lambda m, g, x, y: (m.where(x >= y, g, 0 * g), m.where(y >= x, g, 0 * g)),
        around=lambda m, f, x: f(x, x),  # which is x, and smooth
    ),
    own(
        "max(x, y): at a tie nobody gets anything",
        "wrong tie",
        normal(3),
        forward=lambda m, x, y: m.maximum(x, y),
        right=lambda m, g, x, y: (g * share(m, x, y), g * share(m, y, x)),
        wrong=lambda m, g, x, y: (m.where(x > y, g, 0 * g), m.where(y > x, g, 0 * g)),
        around=lambda m, f, x: f(x, x),
    ),
    own(
        "clip: the gradient passes where the value is cut off",
        "wrong formula",
        np.array([-2.0, 0.3, 3.0]),
        forward=lambda m, x: m.where(x < 1, m.where(x > -1, x, 0 * x - 1), 0 * x + 1),
        right=lambda m, g, x: m.where(x < 1, m.where(x > -1, g, 0 * g), 0 * g),
        wrong=lambda m, g, x: 1.0 * g,
    ),
    own(
        "running sums: summed from the same end again",
        "wrong place",
        normal(4),
        forward=lambda m, x: m.cumsum(x, 0),
        right=lambda m, g, x: m.sum(g) - m.cumsum(g, 0) + g,
        wrong=lambda m, g, x: m.cumsum(g, 0),
    ),
    own(
        "rows of a table: of a repeated index only the last counts",
        "repeated indices",
        normal((3, 2)),
        forward=lambda m, x: m.matmul(like(m, TAKEN), x),
        right=lambda m, g, x: m.matmul(like(m, TAKEN.T), g),
        wrong=lambda m, g, x: m.matmul(like(m, LAST.T), g),
    ),
    own(
        "x^2: the VJP reads memory from its beginning, whatever the strides",
        "negative strides",
        normal(4)[::-1],
        forward=lambda m, x: x * x,
        right=lambda m, g, x: 2 * g * x,
        wrong=lambda m, g, x: 2 * g * in_memory(x),
        torch=False,
        jax=False,
    ),
    own(
        "x^2: right only for a gradient that lies forwards in memory",
        "negative strides",
        normal(4),
        forward=lambda m, x: x * x,
        right=lambda m, g, x: 2 * g * x,
        wrong=lambda m, g, x: 2 * in_memory(g) * x,
        around=lambda m, f, x: reverse(m, f(x)),
        torch=False,
        jax=False,
    ),
    own(
        "tanh: the float32 VJP is 1% too large",
        "wrong only for one dtype",
        normal(3).astype(np.float32),
        forward=lambda m, x: m.tanh(x),
        right=lambda m, g, x: g * (1 - m.tanh(x) ** 2),
        wrong=lambda m, g, x: (1.01 if "32" in str(x.dtype) else 1.0) * g * (1 - m.tanh(x) ** 2),
    ),
    own(
        "x^2: the VJP doubles the gradient in place, which others have too",
        "aliasing",
        normal(3),
        forward=lambda m, x: x * x,
        right=lambda m, g, x: 2 * g * x,
        jax=False,
        wrong=lambda m, g, x: doubled(g) * x,
        around=lambda m, f, x: f(x) + x,
    ),
    own(
        "x^2: the VJP adds to what it found the last time",
        "stale inner gradient",
        normal(3),
        forward=lambda m, x: x * x,
        right=lambda m, g, x: 2 * g * x,
        wrong=lambda m, g, x: 2 * with_the_last(g) * x,
        around=lambda m, f, x: f(f(x)),
    ),
    own(
        "e^x: a saved result is a constant in the derivative",
        "wrong only at second order",
        normal(3),
        order=2,
        forward=lambda m, x: m.exp(x),
        right=lambda m, g, x: g * m.exp(x),
        wrong=lambda m, g, x: g * constant(m.exp(x)),
    ),
    own(
        "x^2: the gradient is a constant in the derivative",
        "wrong only at second order",
        normal(3),
        order=2,
        forward=lambda m, x: x * x,
        right=lambda m, g, x: 2 * g * x,
        wrong=lambda m, g, x: 2 * constant(g) * x,
    ),
]
