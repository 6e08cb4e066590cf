"""Reductions over axes, running sums and products, statistics and norms."""

import numpy as np

from tests.cases.case import (
    GIVE_FLOAT32,
    HUGE,
    INF,
    MASK,
    NAN,
    TIED,
    Case,
    below,
    distinct,
    fixed,
    logsumexp,
    narrow,
    nonzero,
    normal,
    softmax,
)


def shared(g, x, axis=None, extreme=np.max):
    """The derivative of max: those that are the largest share."""
    largest = x == extreme(x, axis=axis, keepdims=True)
    if axis is not None:
        g = np.expand_dims(g, axis)
    return largest * g / largest.sum(axis=axis, keepdims=True)


# How the axes of an array with three can be named.
AXES = [
    {},
    {"axis": 0},
    {"axis": -1, "keepdims": True},
    {"axis": (0, -1)},
    {"axis": (1,)},
    {"axis": None, "keepdims": True},
]
OVER_AXES = {
    "sum": (normal, np.sum),
    "mean": (normal, np.mean),
    "var": (normal, np.var),
    "std": (normal, np.std),
    "prod": (nonzero, np.prod),
    "max": (distinct, np.max),
    "min": (distinct, np.min),
    "logsumexp": (normal, logsumexp),
}
ZEROS = {
    "no zero": [2.0, -3.0, 0.5, 1.5],
    "one zero": [2.0, 0.0, 0.5, 1.5],
    "first is zero": [0.0, -3.0, 0.5, 1.5],
    "last is zero": [2.0, -3.0, 0.5, 0.0],
    "two zeros": [2.0, 0.0, 0.5, 0.0],
    "three zeros": [0.0, 0.0, 0.5, 0.0],
    "only zeros": [0.0, 0.0, 0.0, 0.0],
}
ROWS_OF_ZEROS = [[2.0, 0.0, 0.5], [0.0, 3.0, 0.0], [-1.0, 2.0, 3.0]]

SIZES = [[0.5, -1.2, 2.0], [-0.3, 0.9, -1.7]]  # no two of which are equal


CASES = [
    *[
        Case(name, make((2, 3, 2)), reference, options)
        for name, (make, reference) in OVER_AXES.items()
        for options in AXES
    ],
    *[
        Case(name, make((2, 3)), reference, {"axis": ()})
        for name, (make, reference) in OVER_AXES.items()
        if name in ("sum", "mean", "prod", "max", "min", "logsumexp")  # one element each
    ],
    *[
        Case(name, make(()), reference, note="0-d")
        for name, (make, reference) in OVER_AXES.items()
        if name != "std"  # which has a kink there
    ],
    *[
        Case(name, make(()), reference, {"axis": axis}, note=f"0-d, axis {axis}")
        for name, (make, reference) in OVER_AXES.items()
        if name in ("sum", "prod", "max", "min")
        for axis in (0, -1)  # numpy takes these of a number too
    ],
    *[
        Case(name, make((0, 3)), reference, {"axis": 1}, note="of none along a full axis")
        for name, (make, reference) in OVER_AXES.items()
    ],
    *[
        Case(name, normal((0, 3)), reference, {"axis": axis}, note=f"of none, axis {axis}")
        for name, reference in [("sum", np.sum), ("prod", np.prod)]
        for axis in (0, None)
    ],
    *[
        Case(name, below(9, (2, 3)), reference, {"axis": 0}, order=0, note="integers")
        for name, reference in [
            ("sum", np.sum),
            ("prod", np.prod),
            ("max", np.max),
            ("min", np.min),
            ("cumsum", np.cumsum),
            ("cumprod", np.cumprod),
        ]
    ],
    *[
        Case(name, fixed(dtype([[0, 1, 3]])), narrow(reference), {"axis": 1}, note=note, order=0)
        for name, reference in [
            ("mean", np.mean),
            ("var", np.var),
            ("std", np.std),
            ("norm", np.linalg.norm),
            ("logsumexp", logsumexp),
        ]
        for note, dtype in GIVE_FLOAT32.items()
    ],
    Case("sum", fixed(MASK), np.sum, {"axis": 1}, order=0, note="counts booleans"),
    # The largest and the smallest
    *[
        case
        for name, extreme in [("max", np.max), ("min", np.min)]
        for case in [
            Case(
                name,
                fixed(TIED if name == "max" else np.negative(TIED)),
                extreme,
                note="tie",
                derivative=lambda g, x, f=extreme: shared(g, x, extreme=f),
            ),
            Case(
                name,
                fixed(TIED if name == "max" else np.negative(TIED)),
                extreme,
                {"axis": 1},
                note="tie along an axis",
                derivative=lambda g, x, f=extreme: shared(g, x, axis=1, extreme=f),
            ),
            Case(
                name,
                fixed([[1.0, INF], [-INF, 1.0]]),
                extreme,
                {"axis": 1},
                note="inf",
                derivative=lambda g, x, f=extreme: shared(g, x, axis=1, extreme=f),
            ),
            Case(
                name,
                fixed([1.0, NAN, 2.0, NAN]),
                extreme,
                note="nan: theirs",
                derivative=lambda g, x: g * np.isnan(x) / 2,
            ),
        ]
    ],
    *[
        Case(name, make, getattr(np, name), options, order=0, note=note)
        for name in ("argmax", "argmin")
        for note, make, options in [
            ("", distinct((2, 3)), {}),
            ("axis 0", distinct((2, 3)), {"axis": 0}),
            ("axis -1", distinct((2, 3)), {"axis": -1, "keepdims": True}),
            ("keepdims", distinct((2, 3)), {"keepdims": True}),
            ("0-d", distinct(()), {}),
            ("tie: the first", fixed([[2.0, 1, 1, 2], [1, 3, 3, 1]]), {"axis": 1}),
            ("nan: the first", fixed([1.0, NAN, 3.0, NAN]), {}),
            ("of none along a full axis", distinct((0, 3)), {"axis": 1}),
            ("integers", below(9, (2, 3)), {"axis": 1}),
        ]
    ],
    # Products with zeros, and running ones
    *[
        Case(name, fixed(values), getattr(np, name), note=note)
        for name in ("prod", "cumprod")
        for note, values in ZEROS.items()
    ],
    *[
        Case(name, fixed(ROWS_OF_ZEROS), getattr(np, name), {"axis": axis}, note=f"zeros, {axis}")
        for name in ("prod", "cumprod")
        for axis in (None, 0, -1)
    ],
    Case("prod", fixed([ROWS_OF_ZEROS]), np.prod, {"axis": (0, 2)}, note="zeros, two axes"),
    Case("prod", fixed(0.0), np.prod, note="zero, 0-d"),
    *[
        Case(name, make(shape), getattr(np, name), {"axis": axis}, note=f"{shape} {axis}")
        for name, make in [("cumsum", normal), ("cumprod", nonzero)]
        for shape, axis in [
            ((5,), None),
            ((2, 3), None),
            ((2, 3), 0),
            ((2, 3), -1),
            ((2, 3, 2), 1),
            ((0, 3), 0),
            ((0, 3), 1),
            ((), None),
            ((1,), 0),
            ((1, 1), None),
        ]
    ],
    # Statistics
    *[
        Case(name, normal((2, 3, 2)), reference, options)
        for name, reference in [("var", np.var), ("std", np.std)]
        for options in [
            {"ddof": 1},
            {"axis": 1, "ddof": 1},
            {"axis": 1, "ddof": 2},
            {"axis": (0, 2), "ddof": 1},
        ]
    ],
    Case(
        "var",
        fixed([2.0, 2.0, 2.0]),
        np.var,
        note="of a constant",
        derivative=lambda g, x: 0 * x,
    ),
    Case(
        "std",
        fixed([2.0, 2.0, 2.0]),
        np.std,
        note="of a constant: 0",
        derivative=lambda g, x: 0 * x,
    ),
    Case(
        "std",
        fixed([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]),
        np.std,
        {"axis": 1},
        note="of a constant row: 0",
        derivative=lambda g, x: g[:, None] * [[0, 0, 0], [-1 / np.sqrt(6), 0, 1 / np.sqrt(6)]],
    ),
    Case("std", fixed(2.0), np.std, note="0-d: 0", derivative=lambda g, x: 0 * x),
    # Norms
    *[
        Case("norm", nonzero(shape), np.linalg.norm, options, note=f"{shape} {options}")
        for shape, options in [
            ((3,), {}),
            ((2, 3), {}),
            ((2, 2, 2), {}),
            ((2, 2, 2), {"axis": None, "keepdims": True}),
            ((2, 3), {"axis": 0}),
            ((2, 3), {"axis": (0, 1)}),
            ((2, 3), {"axis": -1, "keepdims": True}),
            ((2, 3, 2), {"axis": (0, -1)}),
        ]
    ],
    *[
        Case("norm", fixed(SIZES), np.linalg.norm, {"ord": ord, "axis": 1})
        for ord in (1, 1.5, 2, 3, INF, -INF, 0, 0.5, -1, -2.5)
    ],
    Case("norm", fixed(SIZES[0]), np.linalg.norm, {"ord": 2.5}),
    *[
        Case("norm", fixed(SIZES), np.linalg.norm, {"ord": ord})
        for ord in ("fro", "nuc", 1, -1, 2, -2, INF, -INF)
    ],
    *[
        Case("norm", fixed([SIZES, SIZES]), np.linalg.norm, {"ord": ord, "axis": (-1, 1)})
        for ord in ("fro", "nuc", 1, -1, 2, -2, INF, -INF)
    ],
    Case(
        "norm",
        nonzero((2, 3, 2)),
        np.linalg.norm,
        {"ord": 1, "axis": (0, 2), "keepdims": True},
    ),
    Case("norm", nonzero((2, 3, 2)), np.linalg.norm, {"ord": 2, "axis": (2, 0), "keepdims": True}),
    *[
        Case(
            "norm",
            fixed([0.0, 0.0, 0.0]),
            np.linalg.norm,
            {"ord": ord},
            note=f"ord {ord} at 0: 0",
            derivative=lambda g, x: 0 * x,
            quiet={1.5: "its curvature is infinite", -1: "1 / 0 in numpy"}.get(ord, ""),
        )
        for ord in (None, 1, 1.5, 2, 3, INF, -INF, 0, 0.5, -1)
    ],
    *[
        Case(
            "norm",
            fixed([[0.0, 0.0], [0.0, 0.0]]),
            np.linalg.norm,
            {"ord": ord},
            note=f"matrix norm {ord} at 0: 0",
            derivative=lambda g, x: 0 * x,
        )
        for ord in (None, "fro", "nuc", 1, -1, 2, -2, INF, -INF)
    ],
    *[
        Case(
            "norm",
            fixed(2.0 * np.eye(2)),
            np.linalg.norm,
            {"ord": ord},
            note=f"equal singular values, {ord}",
            order=1,
            derivative=lambda g, x, c=c: g * c * np.eye(2),
        )
        for ord, c in {"nuc": 1, 2: 0.5, -2: 0.5}.items()
    ],
    Case(
        "norm",
        fixed([1.0, 0.0, 4.0]),
        np.linalg.norm,
        {"ord": 0.5},
        note="ord 0.5 beside 0: infinite, and 0 there",
        derivative=lambda g, x: g * [3.0, 0.0, 1.5],
    ),
    Case(
        "norm",
        fixed([[1.0, 0.0, 4.0], [1.0, 1.0, 1.0]]),
        np.linalg.norm,
        {"ord": -1, "axis": 1},
        note="ord -1 with an element of 0: 0",
        derivative=lambda g, x: g[:, None] * [[0, 0, 0], [1 / 9, 1 / 9, 1 / 9]],
        quiet="1 / 0 in numpy",
    ),
    Case(
        "norm",
        fixed([[0.0, 0.0], [3.0, 4.0]]),
        np.linalg.norm,
        {"axis": 1},
        note="of a zero row: 0",
        derivative=lambda g, x: g[:, None] * [[0, 0], [0.6, 0.8]],
    ),
    Case(
        "norm",
        fixed([0.0, 3.0, -4.0]),
        np.linalg.norm,
        {"ord": 1},
        note="kink: 0 at 0",
        derivative=lambda g, x: g * np.sign(x),
    ),
    Case("norm", fixed([0.0, 3.0, -4.0]), np.linalg.norm, {"ord": 3}, note="ord 3 beside 0"),
    Case(
        "norm",
        fixed([1.0, 2.0, -2.0]),
        np.linalg.norm,
        {"ord": INF},
        note="tie",
        derivative=lambda g, x: g * [0, 0.5, -0.5],
    ),
    # logsumexp far out
    Case(
        "logsumexp",
        fixed(HUGE),
        logsumexp,
        {"axis": 1},
        note="far out",
        derivative=lambda g, x: g[:, None] * softmax(x),
    ),
    Case(
        "logsumexp",
        fixed([[-INF, 1.0], [2.0, -INF]]),
        logsumexp,
        {"axis": 1},
        note="with -inf",
        derivative=lambda g, x: g[:, None] * np.isfinite(x),
    ),
    Case(
        "logsumexp",
        fixed([[-INF, -INF], [0.0, -INF]]),
        logsumexp,
        {"axis": 1},
        order=0,
        note="only -inf",
    ),
    Case("logsumexp", fixed([INF, 1.0]), logsumexp, order=0, note="with inf"),
]
