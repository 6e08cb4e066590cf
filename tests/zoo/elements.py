"""Wrong VJPs in the library's own table of derivatives: of each element on its own."""

from __future__ import annotations

import math

import numpy as np

import minigrad
from minigrad import kernels
from minigrad.core.tensor import Tensor
from tests.zoo.mutant import Mutant, Port, misled, spoiled, vjp, wrong
from tests.zoo.words import in_memory

_rng = np.random.default_rng(2)
normal, uniform = _rng.standard_normal, _rng.uniform


MUTANTS: list[Mutant] = [
    vjp(
        "multiply: the gradient of b is 0.1% too small",
        "off by 0.1%",
        minigrad.multiply,
        lambda op: spoiled(op, "b", lambda gradient: 0.999 * gradient),
        normal((2, 3)),
        normal((2, 3)),
        port=Port(
            lambda m, a, b: a * b,
            lambda m, g, a, b: (g * b, g * a),
            lambda m, g, a, b: (g * b, 0.999 * (g * a)),
        ),
    ),
    vjp(
        "subtract: b gets the sign of a",
        "wrong formula",
        minigrad.subtract,
        lambda op: wrong(op, "b", lambda g: g),
        normal((2, 3)),
        normal((2, 3)),
        port=Port(lambda m, a, b: a - b, lambda m, g, a, b: (g, -g), lambda m, g, a, b: (g, 1 * g)),
    ),
    vjp(
        "divide: one division by b is forgotten",
        "wrong formula",
        minigrad.divide,
        lambda op: wrong(op, "b", lambda g, out: -g * out),
        normal(3),
        uniform(0.5, 2, 3),
        port=Port(
            lambda m, a, b: a / b,
            lambda m, g, a, b: (g / b, -g * a / b / b),
            lambda m, g, a, b: (g / b, -g * a / b),
        ),
    ),
    vjp(
        "power: 0 times infinity at 0^0",
        "at zero",
        minigrad.power,
        lambda op: wrong(op, "a", lambda g, a, b: g * b * a ** (b - 1)),
        np.array([0.0, 1.5, 2.0]),
        f=lambda a: minigrad.power(a, np.array([0.0, 2.0, 1.0])),
    ),
    vjp(
        "sqrt: the factor 1/2 is dropped",
        "dropped scale",
        minigrad.sqrt,
        lambda op: wrong(op, "x", lambda g, out: g / out),
        uniform(0.5, 2, 3),
        port=Port(
            lambda m, x: m.sqrt(x),
            lambda m, g, x: 0.5 * g / m.sqrt(x),
            lambda m, g, x: g / m.sqrt(x),
        ),
    ),
    vjp(
        "log2: the factor 1 / log 2 is dropped",
        "dropped scale",
        minigrad.log2,
        lambda op: wrong(op, "x", lambda g, x: g / x),
        uniform(0.5, 2, 3),
        port=Port(
            lambda m, x: m.log2(x),
            lambda m, g, x: g / (x * math.log(2)),
            lambda m, g, x: g / x,
        ),
    ),
    vjp(
        "where: the branches are swapped",
        "wrong formula",
        minigrad.where,
        lambda op: wrong(op, "x", lambda g, condition: minigrad.where(condition, 0.0, g)),
        normal(3),
        normal(3),
        f=lambda x, y: minigrad.where(np.array([True, False, True]), x, y),
    ),
    vjp(
        "maximum: at a tie both get the whole gradient",
        "wrong tie",
        minigrad.maximum,
        lambda op: wrong(op, "a", lambda g, a, b: minigrad.where(a < b, 0.0, g)),
        normal(3),
        f=lambda x: minigrad.maximum(x, x),  # which is x, and smooth
    ),
    vjp(
        "abs: slope 1 at 0",
        "at zero",
        minigrad.abs,
        lambda op: wrong(op, "x", lambda g, x: minigrad.where(x >= 0, g, -g)),
        np.array([-1.0, 0.0, 2.0]),
        f=lambda x: minigrad.abs(x) + 2.0 * minigrad.minimum(x, 0.0),  # which is x, and smooth
    ),
    vjp(
        "clip: the gradient passes beyond the bounds",
        "wrong formula",
        minigrad.clip,
        lambda op: wrong(op, "x", lambda g: g),
        np.array([-2.0, 0.3, 3.0]),
        f=lambda x: minigrad.clip(x, -1.0, 1.0),
    ),
    vjp(
        "relu: the gradient passes below 0 too",
        "wrong formula",
        minigrad.relu,
        lambda op: wrong(op, "x", lambda g, out: minigrad.where(out < 0, 0.0, g)),
        np.array([-1.0, 2.0]),
        port=Port(
            lambda m, x: m.where(x > 0, x, 0 * x),
            lambda m, g, x: m.where(x > 0, g, 0 * g),
            lambda m, g, x: 1 * g,
        ),
    ),
    vjp(
        "leaky_relu: the VJP takes the default slope",
        "wrong option",
        minigrad.leaky_relu,
        lambda op: misled(op, negative_slope=0.01),
        np.array([-1.0, 2.0]),
        f=lambda x: minigrad.leaky_relu(x, 0.2),
        port=Port(
            lambda m, x: m.where(x > 0, x, 0.2 * x),
            lambda m, g, x: m.where(x > 0, g, 0.2 * g),
            lambda m, g, x: m.where(x > 0, g, 0.01 * g),
        ),
    ),
    vjp(
        "softplus: beta is dropped",
        "dropped scale",
        minigrad.softplus,
        lambda op: misled(op, beta=1.0),
        normal(3),
        f=lambda x: minigrad.softplus(x, 2.0),
        port=Port(
            lambda m, x: m.log(1 + m.exp(2 * x)) / 2,
            lambda m, g, x: g / (1 + m.exp(-2 * x)),
            lambda m, g, x: g / (1 + m.exp(-x)),
        ),
    ),
    vjp(
        "gelu: the erf form has the gradient of the tanh form",
        "wrong option",
        minigrad.gelu,
        lambda op: misled(op, approximate="tanh"),
        normal(3),
    ),
    vjp(
        "tanh: the float32 VJP is 0.1% too large",
        "wrong only for one dtype",
        minigrad.tanh,
        lambda op: spoiled(op, "x", lambda r: 1.001 * r if r.dtype == np.float32 else r),
        normal(3).astype(np.float32),
    ),
    vjp(
        "gelu: the float32 VJP is that of the tanh form",
        "wrong only for one dtype",
        minigrad.gelu,
        lambda op: wrong(
            op,
            "x",
            lambda g, x, approximate: (
                kernels.activation.gelu_tanh_gradient(g, x)
                if g.dtype == np.float32 or approximate == "tanh"
                else kernels.activation.gelu_gradient(g, x)
            ),
        ),
        np.array([-2.4, 0.5, 2.4], np.float32),
    ),
    vjp(
        "sigmoid: the factor 1 - s is missing from what a recorded pass runs",
        "wrong only at second order",
        minigrad.sigmoid,
        lambda op: wrong(
            op, "x", lambda g, out: g * out if isinstance(g, Tensor) else g * out * (1 - out)
        ),
        normal(3),
        order=2,
    ),
    vjp(
        "cos: the sign is lost, which the derivative of sin inherits",
        "wrong only at second order",
        minigrad.cos,
        lambda op: wrong(op, "x", lambda g, x: g * minigrad.sin(x)),
        normal(3),
        f=minigrad.sin,
        order=2,
    ),
    vjp(
        "square: the VJP reads memory from its beginning, whatever the strides",
        "negative strides",
        minigrad.square,
        lambda op: wrong(op, "x", lambda g, x: 2.0 * g * in_memory(x)),
        normal(4)[::-1],
    ),
]
