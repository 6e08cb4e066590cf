"""Activation functions."""

import math

import numpy as np

from tests.cases.case import (
    GIVE_FLOAT32,
    HUGE,
    INF,
    NAN,
    Case,
    each,
    fixed,
    log_softmax,
    logistic,
    narrow,
    nonzero,
    normal,
    rows_of_two,
    softmax,
)
from tests.cases.elementwise import normal_cdf


def relu(x):
    return np.maximum(x, 0)


def leaky_relu(x, negative_slope=0.01):
    return np.maximum(x, 0) + negative_slope * np.minimum(x, 0)


elu = each(lambda v, alpha=1.0: v if v > 0 else alpha * math.expm1(v))
silu = each(lambda v: v / (1 + math.exp(-v)))


def swiglu(gate, x):
    return silu(gate) * x


softplus = each(lambda v, beta=1.0: math.log(1 + math.exp(beta * v)) / beta)


def gelu(x):
    return x * normal_cdf(x)


def gelu_derivative(g, x):
    return g * (normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def gelu_by_tanh(x, approximate):
    assert approximate == "tanh"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax_derivative(g, x, axis=-1):
    s = softmax(x, axis)
    return s * (g - np.sum(g * s, axis=axis, keepdims=True))


FAR = [-1000.0, -40.0, 40.0, 1000.0]
TINY = math.exp(-40)

CASES = [
    *[
        Case(name, make(shape), reference, options, note=note)
        for name, make, reference, options in [
            ("sigmoid", normal, logistic, {}),
            ("relu", nonzero, relu, {}),
            ("leaky_relu", nonzero, leaky_relu, {}),
            ("elu", nonzero, elu, {}),
            ("silu", normal, silu, {}),
            ("softplus", normal, softplus, {}),
            ("gelu", normal, gelu, {}),
        ]
        for note, shape in {"": (2, 3), "0-d": (), "empty": (0, 2)}.items()
    ],
    *rows_of_two("swiglu", swiglu),
    Case(
        "swiglu",
        normal((3,)),
        swiglu,
        function=lambda f, x: f(-2.0, x),
        note="number first",
    ),
    Case(
        "swiglu",
        fixed([-1000.0, 1000.0, 2.0], [3.0, 3.0, 0.0]),
        lambda gate, x: np.array([0, 3000.0, 0]),
        note="far out",
        derivative=lambda g, gate, x: (g * [0, 3, 0], g * [0, 1000, silu(2.0)]),
    ),
    Case("leaky_relu", nonzero((2, 3)), leaky_relu, {"negative_slope": 0.3}),
    Case("leaky_relu", nonzero((2, 3)), leaky_relu, {"negative_slope": 2.0}),
    Case("leaky_relu", nonzero((2, 3)), leaky_relu, {"negative_slope": 0.0}),
    Case("leaky_relu", nonzero((2, 3)), leaky_relu, {"negative_slope": -0.5}),
    Case("elu", nonzero((2, 3)), elu, {"alpha": 0.3}),
    Case("softplus", normal((2, 3)), softplus, {"beta": 2.5}),
    Case("gelu", normal((2, 3)), gelu_by_tanh, {"approximate": "tanh"}),
    *[
        Case(name, fixed(dtype([[0, 1, 3]])), narrow(reference), note=note, order=0)
        for name, reference in [
            ("sigmoid", logistic),
            ("leaky_relu", leaky_relu),
            ("elu", elu),
            ("silu", silu),
            ("softplus", softplus),
            ("gelu", gelu),
            ("softmax", softmax),
            ("log_softmax", log_softmax),
        ]
        for note, dtype in GIVE_FLOAT32.items()
    ],
    # Kinks
    *[
        Case(
            name,
            fixed([-1.0, 0.0, 2.0]),
            reference,
            options,
            note=f"kink: {at_zero} at 0",
            derivative=lambda g, x, slopes=(below, at_zero, 1): g * slopes,
        )
        for name, reference, options, below, at_zero in [
            ("relu", relu, {}, 0, 0),
            ("leaky_relu", leaky_relu, {"negative_slope": 0.3}, 0.3, 0.3),
            ("elu", elu, {"alpha": 0.3}, 0.3 * math.exp(-1), 0.3),
        ]
    ],
    *[
        Case(
            name,
            fixed([NAN, 1.0]),
            lambda x: x,
            note="nan",
            derivative=lambda g, x, slope=slope: g * [slope, 1],
        )
        for name, slope in [("relu", 1), ("leaky_relu", 0.01)]
    ],
    # Far out
    *[
        Case(
            name,
            fixed(values),
            lambda x, expected=expected: np.array(expected, np.float64),
            note="far out",
            derivative=lambda g, x, slopes=slopes: g * slopes,
        )
        for name, values, expected, slopes in [
            ("sigmoid", FAR, [0, TINY, 1, 1], [0, TINY, 0, 0]),
            ("elu", FAR, [-1, -1, 40, 1000], [0, TINY, 1, 1]),
            ("silu", FAR, [0, -40 * TINY, 40, 1000], [0, -39 * TINY, 1, 1]),
            ("softplus", FAR, [0, TINY, 40, 1000], [0, TINY, 1, 1]),
        ]
    ],
    Case(
        "gelu",
        fixed([-1000.0, -30.0, -8.0, 8.0, 1000.0]),
        gelu,
        note="tails",
        derivative=gelu_derivative,
    ),
    Case(
        "gelu",
        fixed([-1000.0, 1000.0]),
        lambda x, approximate: relu(x),
        {"approximate": "tanh"},
        note="tails of tanh",
        derivative=lambda g, x: g * [0, 1],
    ),
    # Along an axis
    *[
        Case(name, normal(shape), reference, options)
        for name, reference in [("softmax", softmax), ("log_softmax", log_softmax)]
        for shape, options in [
            ((2, 3), {}),
            ((2, 3), {"axis": 0}),
            ((2, 3, 2), {"axis": 1}),
            ((2, 3, 2), {"axis": (0, -1)}),
            ((2, 3), {"axis": None}),
        ]
    ],
    *[
        Case(name, normal(shape), reference, note=note)
        for name, reference in [("softmax", softmax), ("log_softmax", log_softmax)]
        for note, shape in {"of one": (2, 1), "no rows": (0, 3)}.items()
    ],
    Case("softmax", fixed(HUGE), softmax, note="far out", derivative=softmax_derivative),
    Case(
        "softmax",
        fixed([[0.5, -INF, 1.0]]),
        softmax,
        note="with -inf",
        derivative=softmax_derivative,
    ),
    Case(
        "log_softmax",
        fixed(HUGE),
        log_softmax,
        note="far out",
        derivative=lambda g, x: g - softmax(x) * g.sum(-1, keepdims=True),
    ),
    Case(
        "log_softmax",
        fixed([[0.0, 800.0]]),
        log_softmax,
        note="beyond softmax",
        derivative=lambda g, x: g - [0, 1] * g.sum(-1, keepdims=True),
    ),
    Case(
        "log_softmax",
        fixed([[0.5, -INF, 1.0]]),
        log_softmax,
        note="with -inf",
        derivative=lambda g, x: g - softmax(x) * g.sum(-1, keepdims=True),
    ),
]
