"""Arithmetic, comparisons and logic, and choices between elements."""

import math

import numpy as np

import minigrad
from tests.cases.case import (
    INF,
    MASK,
    NAN,
    Case,
    below,
    distinct,
    fixed,
    joined,
    narrow,
    nonzero,
    normal,
    positive,
)


def power(a, b):
    return np.power(a, b)  # which itself takes no keywords


def clip(x, min=None, max=None):
    return np.clip(x, min, max)


DIVISIONS = [("floor_divide", np.floor_divide), ("remainder", np.remainder), ("fmod", np.fmod)]

CASES = [
    # Sums and products
    Case("add", normal((2, 3), (2, 3)), np.add),
    Case("add", normal((2, 3)), lambda a, b: a + b, {"b": 2.5}, note="number"),
    Case("add", normal((0, 3), (3,)), np.add, note="empty"),
    Case("add", normal((), ()), np.add, note="0-d"),
    Case("add", below(9, (3,), (3,)), np.add, order=0, note="integers"),
    Case("subtract", normal((2, 3), (2, 3)), np.subtract),
    Case("subtract", normal((3,)), np.subtract, function=lambda f, b: 1 - b, note="number first"),
    Case("subtract", normal((2, 1), (3,)), np.subtract, note="broadcast"),
    Case("multiply", normal((2, 3), (2, 3)), np.multiply),
    Case("multiply", normal((2, 3)), np.multiply, function=lambda f, a: a * a, note="with itself"),
    Case("multiply", normal((2, 1), (3,)), np.multiply, note="broadcast"),
    Case("multiply", joined(normal((3,)), below(9, (3,))), np.multiply, note="by integers"),
    Case("divide", nonzero((2, 3), (2, 3)), np.divide),
    Case("divide", nonzero((3,)), np.divide, function=lambda f, b: 1 / b, note="number first"),
    Case("divide", nonzero((), (3,)), np.divide, note="0-d by row"),
    Case(
        "divide", fixed([1, 2], [3, -4]), narrow(np.divide), order=0, note="integers give float32"
    ),
    Case(
        "divide",
        fixed([1.0, -2.0], [0.0, 4.0]),
        np.divide,
        note="by zero",
        derivative=lambda g, a, b: (g / b, -g * a / b**2),
        quiet="1 / 0 is inf",
    ),
    Case("negative", normal((2, 3)), np.negative),
    Case("negative", below(9, (3,)), np.negative, order=0, note="integers"),
    # Division with rest: a staircase, and what lies above it
    *[
        Case(name, make, getattr(np, name), note=note)
        for name in ("floor_divide", "remainder", "fmod")
        for note, make in {
            "both signs": nonzero((2, 3), (2, 3)),
            "each sign": fixed([7.0, -7.0, 7.0, -7.0], [3.0, 3.0, -3.0, -3.0]),
            "broadcast": nonzero((2, 1), (3,)),
        }.items()
    ],
    *[
        Case(name, fixed([7.0, -7.0, 0.5]), lambda a, b, f=f: f(a, b), {"b": b}, note=f"by {b}")
        for name, f in DIVISIONS
        for b in (3, -3, 1.5)
    ],
    *[
        Case(name, fixed([7, -7, 7, -7], [3, 3, -3, -3]), f, order=0, note="integers")
        for name, f in DIVISIONS
    ],
    *[
        Case(
            name,
            fixed([1.0, -1.0, 0.0], [0.0, 0.0, 0.0]),
            f,
            order=0,
            note="by zero",
            quiet="there is no such number: inf or nan",
        )
        for name, f in DIVISIONS
    ],
    Case(
        "floor_divide",
        fixed([6.0, -6.0], [3.0, 3.0]),
        np.floor_divide,
        note="on a step: 0",
        derivative=lambda g, a, b: (0 * g, 0 * g),
    ),
    Case(
        "remainder",
        fixed([6.0, -6.0], [3.0, 3.0]),
        np.remainder,
        note="at a jump: 1 in a",
        derivative=lambda g, a, b: (g, g * [-2, 2]),
    ),
    Case(
        "fmod",
        fixed([6.0, -6.0], [3.0, 3.0]),
        np.fmod,
        note="at a jump: 1 in a",
        derivative=lambda g, a, b: (g, g * [-2, 2]),
    ),
    # Powers: a^0 = 1 also at a = 0, with derivative 0 in a; at a = 0 the derivative in b is 0.
    Case("power", positive((2, 3), (2, 3)), np.power),
    Case("power", positive((2, 1), (3,)), np.power, note="broadcast"),
    Case("power", positive((), ()), np.power, note="0-d"),
    *[
        Case("power", nonzero((2, 3)), power, {"b": b}, note=f"number {b}")
        for b in (2, 3.0, -1, -2, 1, 0)
    ],
    *[
        Case("power", positive((2, 3)), power, {"b": b}, note=f"number {b}")
        for b in (0.5, 2.5, -0.5)
    ],
    Case("power", nonzero((2, 3)), power, {"b": np.float32([2, 3, 0])}, note="array"),
    Case("power", positive((2, 3)), power, {"b": np.float32([0.5, 2.5, -1])}, note="fractions"),
    Case("power", nonzero((2, 3)), power, {"b": np.array([2, 3, 0])}, note="integer array"),
    Case("power", fixed([-2.0, 3.0], [3, -2]), np.power, note="integer tensor"),
    Case(
        "power",
        nonzero((3,)),
        lambda a, b: np.square(a),
        {"b": minigrad.tensor(2.0)},
        note="frozen tensor",
    ),
    Case("power", normal((3,)), np.power, function=lambda f, b: 2.0**b, note="number first"),
    Case("power", fixed([0.0, 0.0]), power, {"b": 1}, note="zero to number 1"),
    Case("power", fixed([0.0, 0.0]), power, {"b": 2}, note="zero squared"),
    Case("power", fixed([0.0, 0.0]), power, {"b": 3.0}, note="zero cubed"),
    Case("power", fixed([0.0, 0.0, 0.0]), power, {"b": np.float32([1, 2, 3])}, note="zero^array"),
    Case("power", fixed([0.0, 2.0]), power, {"b": 0}, note="zero to number 0"),
    Case("power", fixed([0.0, 2.0]), power, {"b": 0.0}, note="zero to number 0.0"),
    Case("power", fixed([0.0, 2.0]), power, {"b": np.float32([0, 0])}, note="zero to array 0"),
    Case("power", fixed([0.0, -2.0], [0, 0]), np.power, note="zero to integer tensor 0"),
    *[
        Case(
            "power",
            fixed([0.0, 4.0]),
            power,
            {"b": b},
            note=f"zero to {b}",
            derivative=lambda g, a, b=b, at_zero=at_zero: g * [at_zero, b * 4 ** (b - 1)],
            quiet="1 / 0 is inf",
        )
        for b, at_zero in [(1.5, 0), (0.5, INF), (-1, -INF), (-0.5, -INF)]
    ],
    Case(
        "power",
        fixed([0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 2.0, 0.0]),
        np.power,
        note="zero to tensor",
        derivative=lambda g, a, b: (g * [0, 1, 0, 0], g * [0, 0, 0, math.log(3)]),
    ),
    Case(
        "power",
        fixed([0.0, 0.0], [-1.0, -0.5]),
        np.power,
        note="zero to a negative tensor",
        derivative=lambda g, a, b: (g * -INF, g * -INF),
        quiet="1 / 0 is inf",
    ),
    Case(
        "power",
        fixed([-2.0, -3.0], [3.0, 2.0]),
        np.power,
        note="negative to tensor",
        derivative=lambda g, a, b: (g * b * a ** (b - 1), np.full(2, np.nan)),
        quiet="the derivative in b does not exist: nan",
    ),
    Case(
        "power",
        fixed([-2.0, 4.0]),
        power,
        {"b": 0.5},
        note="root of a negative",
        derivative=lambda g, a: g * [NAN, 0.25],
        quiet="it does not exist: nan",
    ),
    # Comparisons and logic
    *[
        Case(name, make, getattr(np, name), order=0, note=note)
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
        for note, make in {
            "": fixed([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
            "nan and inf": fixed([NAN, NAN, INF, -INF], [NAN, 1.0, INF, INF]),
            "broadcast": fixed([[1.0], [2.0]], [1.0, 2.0, 3.0]),
            "integers": fixed([1, 2, 3], [1, 3, 2]),
        }.items()
    ],
    *[
        Case("isclose", fixed(a, b), np.isclose, options, order=0, note=note)
        for note, a, b, options in [
            ("", [1.0, 1.0, 0.0], [1.0 + 1e-6, 1.1, 1e-9], {}),
            ("tolerances", [1.0, 3.0], [1.2, 3.5], {"rtol": 0.1, "atol": 0.1}),
            ("nan and inf", [NAN, NAN, INF, INF], [NAN, 1.0, INF, -INF], {}),
            ("nan is nan", [NAN, NAN], [NAN, 1.0], {"equal_nan": True}),
            ("broadcast", [[1.0], [2.0]], [1.0, 2.0, 3.0], {}),
            ("integers", [1, 2], [1, 3], {}),
        ]
    ],
    *[
        Case(name, fixed([1.0, NAN, INF, -INF, 0.0]), getattr(np, name), order=0)
        for name in ("isfinite", "isinf", "isnan")
    ],
    *[
        Case(name, lambda rng: (MASK, MASK[:, ::-1]), getattr(np, name), order=0)
        for name in ("logical_and", "logical_or")
    ],
    Case("logical_not", lambda rng: (MASK,), np.logical_not, order=0),
    *[
        Case(name, fixed(values), getattr(np, name), options, order=0, note=note)
        for name in ("any", "all")
        for note, values, options in [
            ("", MASK, {}),
            ("axis 0", MASK, {"axis": 0}),
            ("axis -1", MASK, {"axis": -1, "keepdims": True}),
            ("two axes", MASK[None], {"axis": (0, -1)}),
            ("no axis", MASK, {"axis": ()}),
            ("of none", np.zeros((0, 2), bool), {}),
            ("of none along an axis", np.zeros((2, 0), bool), {"axis": 1}),
            ("0-d", True, {}),
        ]
    ],
    # Choices
    Case("where", joined(fixed(MASK), normal((2, 3), (2, 3))), np.where),
    Case("where", joined(fixed(MASK[0]), normal((2, 3), (1,))), np.where, note="broadcast"),
    Case("where", joined(fixed(True), normal((), ())), np.where, note="0-d"),
    Case(
        "where",
        normal((2, 3)),
        np.where,
        function=lambda f, a: f(MASK, a, 0.5),
        note="plain mask and number",
    ),
    *[
        case
        for name, f in [("maximum", np.maximum), ("minimum", np.minimum)]
        for case in [
            Case(name, distinct((2, 3), (2, 3)), f),
            Case(name, distinct((2, 1), (3,)), f, note="broadcast"),
            Case(name, distinct((2, 3)), lambda a, b, f=f: f(a, b), {"b": 0.1}, note="number"),
            Case(name, distinct((), ()), f, note="0-d"),
            Case(
                name,
                fixed([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
                f,
                note="tie: each gets half",
                derivative=lambda g, a, b, f=f: tuple(
                    g * np.where(a == b, 0.5, v == f(a, b)) for v in (a, b)
                ),
            ),
            Case(
                name,
                fixed([NAN, 1.0], [2.0, NAN]),
                f,
                note="nan: goes to both",
                derivative=lambda g, a, b: (g, g),
            ),
        ]
    ],
    Case("clip", distinct((3, 4)), clip, {"min": -0.9, "max": 1.1}),
    Case("clip", distinct((3, 4)), clip, {"min": -0.9}),
    Case("clip", distinct((3, 4)), clip, {"max": 1.1}),
    Case("clip", distinct((3, 4)), clip, {"min": None, "max": 1.1}),
    Case("clip", distinct((3,)), clip, {"min": 1.1, "max": -0.9}, note="min above max"),
    Case("clip", normal(()), clip, {"min": 5.0}, note="0-d"),
    Case("clip", below(9, (5,)), clip, {"min": 2, "max": 6}, order=0, note="integers"),
    Case("clip", distinct((3, 4), (4,), (3, 1)), clip, note="tensor bounds"),
    Case("clip", distinct((3, 4), (4,)), clip, names=("x", "min"), note="tensor min"),
    Case("clip", distinct((3, 4), ()), clip, names=("x", "max"), note="tensor max"),
    Case(
        "clip",
        distinct((3, 4), (4,)),
        clip,
        {"min": -0.9},
        names=("x", "max"),
        note="number and tensor",
    ),
    Case(
        "clip",
        fixed([-1.0, 0.0, 1.0]),
        clip,
        {"min": -1.0, "max": 1.0},
        note="on a bound: x's",
        derivative=lambda g, a: g,
    ),
    Case(
        "clip",
        fixed([-1.0, 0.0, 1.0], -1.0, 1.0),
        clip,
        note="on a tensor bound: x's",
        derivative=lambda g, a, low, high: (g, 0.0, 0.0),
    ),
    Case(
        "clip",
        fixed([-2.0, 0.0, 3.0], 1.0, -1.0),
        clip,
        note="tensor min above max: max's",
        derivative=lambda g, a, low, high: (0 * g, 0.0, g.sum()),
    ),
    Case(
        "clip",
        fixed([NAN, 0.0]),
        clip,
        {"min": -1.0, "max": 1.0},
        note="nan: x's",
        derivative=lambda g, a: g,
    ),
]
