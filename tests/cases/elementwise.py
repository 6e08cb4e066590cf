"""Functions of each element: powers, exponentials, staircases, angles."""

import math

import numpy as np

from tests.cases.case import (
    GIVE_FLOAT32,
    INF,
    NAN,
    Case,
    below,
    each,
    fixed,
    fractions,
    narrow,
    nonzero,
    normal,
    positive,
    rows_of_two,
)

erf = each(math.erf)
normal_cdf = each(lambda v: math.erfc(-v / math.sqrt(2)) / 2)


def xlogy(x, y):
    return np.where(x == 0, 0.0, x * np.log(y))


def inside(*shapes):
    """Between -1 and 1, at a distance from both."""
    return lambda rng: tuple(2 * x - 1 for x in fractions(*shapes)(rng))


def above_1(*shapes):
    return lambda rng: tuple(1 + x for x in positive(*shapes)(rng))


def copysign_slope(g, a, b):
    return g * np.sign(a) * np.copysign(1, b), 0 * g


ONE_NUMBER = {
    "abs": (nonzero, np.abs),
    "sign": (nonzero, np.sign),
    "floor": (nonzero, np.floor),
    "ceil": (nonzero, np.ceil),
    "round": (nonzero, np.round),
    "trunc": (nonzero, np.trunc),
    "square": (normal, np.square),
    "sqrt": (positive, np.sqrt),
    "rsqrt": (positive, each(lambda v: 1 / math.sqrt(v))),
    "reciprocal": (nonzero, np.reciprocal),
    "exp": (normal, np.exp),
    "expm1": (normal, np.expm1),
    "exp2": (normal, np.exp2),
    "log": (positive, np.log),
    "log1p": (positive, np.log1p),
    "log2": (positive, np.log2),
    "log10": (positive, np.log10),
    "erf": (normal, erf),
    "normal_cdf": (normal, normal_cdf),
    "sin": (normal, np.sin),
    "cos": (normal, np.cos),
    "tan": (inside, np.tan),
    "arcsin": (inside, np.arcsin),
    "arccos": (inside, np.arccos),
    "arctan": (normal, np.arctan),
    "sinh": (normal, np.sinh),
    "cosh": (normal, np.cosh),
    "tanh": (normal, np.tanh),
    "arcsinh": (normal, np.arcsinh),
    "arccosh": (above_1, np.arccosh),
    "arctanh": (inside, np.arctanh),
}

CASES = [
    *[
        Case(name, make(shape), reference, note=note)
        for name, (make, reference) in ONE_NUMBER.items()
        for note, shape in {"": (2, 3), "0-d": (), "empty": (0, 2)}.items()
    ],
    *[
        Case(name, fixed(dtype(values)), narrow(reference), note=note, order=0)
        for name, (_, reference) in ONE_NUMBER.items()
        if name
        not in ("abs", "sign", "floor", "ceil", "round", "trunc", "square")  # integers again
        for values in [{"arctanh": [0], "arcsin": [0, 1], "arccos": [0, 1]}.get(name, [1, 3])]
        for note, dtype in GIVE_FLOAT32.items()
    ],
    # Staircases and kinks
    *[
        Case(name, fixed(values), reference, note=note, derivative=lambda g, x: 0 * g)
        for name, reference, note, values in [
            ("sign", np.sign, "kink: 0 at 0", [0.0, -0.0]),
            ("floor", np.floor, "on a step: 0", [-2.0, 0.0, 3.0]),
            ("ceil", np.ceil, "on a step: 0", [-2.0, 0.0, 3.0]),
            ("trunc", np.trunc, "on a step: 0", [-2.0, 0.0, -0.0, 3.0]),
            ("round", np.round, "half to even", [-1.5, -0.5, 0.5, 1.5, 2.5]),
        ]
    ],
    Case("round", nonzero((2, 3)), np.round, {"decimals": 2}),
    Case("round", lambda rng: (100 * rng.standard_normal(4),), np.round, {"decimals": -1}),
    Case("round", below(90, (3,)), np.round, order=0, note="integers"),
    Case(
        "abs",
        fixed([-2.0, 0.0, 3.0]),
        np.abs,
        note="kink: 0 at 0",
        derivative=lambda g, x: g * [-1, 0, 1],
    ),
    Case("abs", fixed([-2, 3]), np.abs, order=0, note="integers"),
    Case("square", fixed([0.0]), np.square, note="at 0"),
    Case("square", fixed([-2, 3]), np.square, order=0, note="integers"),
    # Where a slope is infinite
    *[
        Case(
            name,
            fixed(values),
            reference,
            note="infinite slope",
            derivative=lambda g, x, slopes=slopes: g * slopes,
            quiet="1 / 0 is inf",
        )
        for name, reference, values, slopes in [
            ("sqrt", np.sqrt, [0.0, 4.0], [INF, 0.25]),
            ("rsqrt", lambda x: 1 / np.sqrt(x), [0.0, 4.0], [-INF, -1 / 16]),
            ("reciprocal", np.reciprocal, [0.0, -2.0], [-INF, -0.25]),
            ("log", np.log, [0.0, 4.0], [INF, 0.25]),
            ("log1p", np.log1p, [-1.0, 3.0], [INF, 0.25]),
            ("log2", np.log2, [0.0, 4.0], [INF, 0.25 / math.log(2)]),
            ("log10", np.log10, [0.0, 4.0], [INF, 0.25 / math.log(10)]),
            ("arcsin", np.arcsin, [-1.0, 1.0], [INF, INF]),
            ("arccos", np.arccos, [-1.0, 1.0], [-INF, -INF]),
            ("arccosh", np.arccosh, [1.0, 2.0], [INF, 1 / math.sqrt(3)]),
            ("arctanh", np.arctanh, [-1.0, 0.5], [INF, 4 / 3]),
        ]
    ],
    # Close to where digits cancel
    *[
        Case(
            name,
            fixed([-1e-12, 1e-15]),
            reference,
            note="near 0",
            derivative=lambda g, x: g,
        )
        for name, reference in [("expm1", np.expm1), ("log1p", np.log1p)]
    ],
    # Far out
    Case(
        "exp",
        fixed([-INF, -1000.0, 1000.0]),
        lambda x: [0.0, 0.0, INF],
        note="far out",
        derivative=lambda g, x: g * [0, 0, INF],
        quiet="e^1000 is inf",
    ),
    *[
        Case(
            name,
            fixed([-1000.0, 1000.0]),
            reference,
            note="far out",
            derivative=derivative,
        )
        for name, reference, derivative in [
            ("tanh", np.tanh, lambda g, x: 0 * g),
            ("erf", erf, lambda g, x: 0 * g),
            ("arctan", np.arctan, lambda g, x: g / (1 + 1e6)),
            ("arcsinh", np.arcsinh, lambda g, x: g / math.hypot(1, 1e3)),
        ]
    ],
    *[
        Case(
            name,
            fixed([1e30]),
            getattr(np, name),
            note="very far out",
            derivative=lambda g, x: g / x,
        )
        for name in ("arcsinh", "arccosh")
    ],
    # The sine over its argument
    *[
        Case("sinc", make, np.sinc, note=note)
        for note, make in {
            "": normal((2, 3)),
            "0-d": normal(()),
            "empty": normal((0, 2)),
            "at 0": fixed([0.0, -0.0]),
            "near 0": fixed([1e-9, -1e-4, 0.01, 0.1]),
            "where the series ends": fixed([0.155, 0.1592, -0.16]),
            "far out": fixed([-7.3, 40.2]),
        }.items()
    ],
    *[
        Case("sinc", fixed(dtype([0])), narrow(np.sinc), order=0, note=note)
        for note, dtype in GIVE_FLOAT32.items()
    ],
    # Where there is no number
    *[
        Case("nan_to_num", make, np.nan_to_num, options, note=note, derivative=derivative)
        for note, make, options, derivative in [
            ("", normal((2, 3)), {}, None),
            ("0-d", normal(()), {}, None),
            ("empty", normal((0, 2)), {}, None),
            (
                "all kinds",
                fixed([NAN, INF, -INF, 2.0]),
                {"nan": 1.5, "posinf": 7.0, "neginf": -3},
                lambda g, x: g * np.isfinite(x),
            ),
        ]
    ],
    Case("nan_to_num", fixed([-2, 3]), np.nan_to_num, order=0, note="integers"),
    # Two operands
    *rows_of_two("logaddexp", np.logaddexp),
    *rows_of_two("hypot", np.hypot, nonzero),
    *rows_of_two("copysign", np.copysign, nonzero),
    Case("logaddexp", fixed([0.3, -2.0], [0.3, -2.0]), np.logaddexp, note="equal"),
    Case(
        "logaddexp",
        fixed([1000.0, -1000.0, 0.0], [1001.0, 1000.0, -1000.0]),
        np.logaddexp,
        note="far out",
        derivative=lambda g, a, b: (
            g * [1 / (1 + math.e), 0, 1],
            g * [math.e / (1 + math.e), 1, 0],
        ),
    ),
    Case(
        "logaddexp",
        fixed([INF, -INF, INF, -INF, 1.0], [INF, -INF, -INF, 1.0, INF]),
        np.logaddexp,
        note="infinite",
        derivative=lambda g, a, b: (g * [0.5, 0.5, 1, 0, 0], g * [0.5, 0.5, 0, 1, 1]),
    ),
    Case(
        "hypot",
        fixed([3e30, 3e-30], [4e30, 4e-30]),
        np.hypot,
        note="far out and near 0",
        derivative=lambda g, a, b: (0.6 * g, 0.8 * g),
    ),
    Case(
        "hypot",
        fixed([0.0], [-0.0]),
        np.hypot,
        note="at the origin: 0",
        derivative=lambda g, a, b: (0 * g, 0 * g),
    ),
    Case(
        "copysign",
        fixed([0.0, -0.0, -2.0, 2.0], [-1.0, 2.0, -0.0, 0.0]),
        np.copysign,
        note="zeros",
        derivative=copysign_slope,
    ),
    Case("xlogy", positive((2, 3), (2, 3)), xlogy),
    Case("xlogy", positive((2, 1), (3,)), xlogy, note="broadcast"),
    Case("xlogy", positive((), ()), xlogy, note="0-d"),
    Case("xlogy", positive((0, 2), (2,)), xlogy, note="empty"),
    Case("xlogy", positive((3,)), xlogy, {"y": 2.5}, note="number"),
    *[
        Case("xlogy", fixed(dtype([0, 2]), dtype([3, 3])), narrow(xlogy), note=note, order=0)
        for note, dtype in GIVE_FLOAT32.items()
    ],
    Case("xlogy", fixed([0.0, 0.0], [2.0, 0.1]), xlogy, note="x is 0"),
    Case(
        "xlogy",
        fixed([0.0, 0.0, 0.0], [0.0, -1.0, INF]),
        lambda x, y: 0 * x,
        note="x is 0, and no logarithm: 0",
        derivative=lambda g, x, y: (0 * g, 0 * g),
    ),
    Case(
        "xlogy",
        fixed([0.0, 2.0], [NAN, 0.0]),
        lambda x, y: [NAN, -INF],
        note="no logarithm",
        derivative=lambda g, x, y: (g * [NAN, -INF], g * [NAN, INF]),
        quiet="the logarithm of 0 is -inf",
    ),
    Case("erf", fixed([NAN, INF, -INF]), erf, note="nan", derivative=lambda g, x: g * [NAN, 0, 0]),
    Case(
        "normal_cdf",
        fixed([-1000.0, -30.0, -8.0, 8.0, 1000.0]),
        normal_cdf,
        note="tails",
        derivative=lambda g, x: g * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    # The angle of a point
    Case("arctan2", nonzero((2, 3), (2, 3)), np.arctan2),
    Case("arctan2", nonzero((2, 1), (3,)), np.arctan2, note="broadcast"),
    Case("arctan2", nonzero((), ()), np.arctan2, note="0-d"),
    Case("arctan2", nonzero((3,)), lambda y, x: np.arctan2(y, x), {"x": 2.0}, note="number"),
    Case("arctan2", fixed([0.0, 1.0, -1.0], [1.0, 0.0, 0.0]), np.arctan2, note="on the axes"),
    Case(
        "arctan2",
        fixed([0.0, -0.0], [-2.0, -2.0]),
        np.arctan2,
        note="on the cut",
        derivative=lambda g, y, x: (g * [-0.5, -0.5], 0 * g),
    ),
    Case(
        "arctan2",
        fixed([1e20, -1e-20], [1e20, 1e-20]),
        np.arctan2,
        note="far out and near 0",
        derivative=lambda g, y, x: (g * [5e-21, 5e19], g * [-5e-21, 5e19]),
    ),
    Case(
        "arctan2",
        fixed([0.0], [0.0]),
        np.arctan2,
        note="at the origin: 0",
        order=1,  # that of second order is nan
        derivative=lambda g, y, x: (0 * g, 0 * g),
    ),
]
