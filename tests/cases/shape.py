"""The same elements in another arrangement, and arrays put together or taken apart."""

import numpy as np

from tests.cases.case import Case, below, normal


def all_parts(f, *xs, **options):
    """A sum of all results of `meshgrid`, each of which depends on one operand."""
    return sum((k + 1) * part for k, part in enumerate(f(*xs, **options)))


CASES = [
    Case("reshape", normal((2, 3)), np.reshape, {"shape": (3, 2)}),
    Case("reshape", normal((2, 3)), np.reshape, {"shape": -1}),
    Case("reshape", normal((2, 3)), np.reshape, {"shape": (1, -1, 2)}),
    Case("reshape", normal((1, 1)), np.reshape, {"shape": ()}),
    Case("reshape", normal(()), np.reshape, {"shape": (1, 1)}, note="0-d"),
    Case("reshape", normal((0, 3)), np.reshape, {"shape": (3, 0)}, note="empty"),
    Case("ravel", normal((2, 3)), np.ravel),
    Case("ravel", normal(()), np.ravel, note="0-d"),
    Case("ravel", normal((0, 3)), np.ravel, note="empty"),
    Case("transpose", normal((2, 3)), np.transpose),
    Case("transpose", normal((2, 3, 4)), np.transpose, {"axes": (1, 2, 0)}),
    Case("transpose", normal((2, 3, 4)), np.transpose, {"axes": (-1, 0, -2)}),
    Case("transpose", normal(()), np.transpose, note="0-d"),
    Case("swapaxes", normal((2, 3, 4)), np.swapaxes, {"axis1": -1, "axis2": -2}),
    Case("swapaxes", normal((2, 3)), np.swapaxes, {"axis1": 0, "axis2": 0}),
    *[
        Case("moveaxis", normal((2, 1, 3, 2)), np.moveaxis, {"source": s, "destination": d})
        for s, d in [(0, -1), (-1, 0), (1, 1), ((0, 1), (-1, -2)), ([3, 0], [0, 2]), ((), ())]
    ],
    Case("broadcast_to", normal((3,)), np.broadcast_to, {"shape": (2, 3)}),
    Case("broadcast_to", normal((2, 1)), np.broadcast_to, {"shape": (2, 2, 3)}),
    Case("broadcast_to", normal(()), np.broadcast_to, {"shape": (2, 2)}, note="0-d"),
    Case("broadcast_to", normal((1, 3)), np.broadcast_to, {"shape": (0, 3)}, note="to empty"),
    Case("expand_dims", normal((2, 3)), np.expand_dims, {"axis": 1}),
    Case("expand_dims", normal((2, 3)), np.expand_dims, {"axis": (0, -1)}),
    Case("expand_dims", normal(()), np.expand_dims, {"axis": 0}, note="0-d"),
    Case("squeeze", normal((1, 3, 1)), np.squeeze),
    Case("squeeze", normal((1, 3, 1)), np.squeeze, {"axis": -1}),
    Case("squeeze", normal((1, 3, 1)), np.squeeze, {"axis": (0, 2)}),
    *[
        Case("flip", normal((2, 3, 2)), np.flip, {"axis": axis})
        for axis in (None, 0, -1, (0, 2), ())
    ],
    Case("flip", normal(()), np.flip, note="0-d"),
    Case("flip", normal((0, 2)), np.flip, {"axis": 0}, note="empty"),
    *[
        Case("roll", normal((2, 3)), np.roll, options)
        for options in [
            {"shift": 1},
            {"shift": -2},
            {"shift": 7},
            {"shift": 0},
            {"shift": 1, "axis": 0},
            {"shift": -1, "axis": -1},
            {"shift": 4, "axis": 1},
            {"shift": (1, -1), "axis": (0, 1)},
            {"shift": 1, "axis": (0, 1)},
            {"shift": (1, 1), "axis": (1, 1)},
            {"shift": (1, -1), "axis": 1},
        ]
    ],
    Case("roll", normal((0, 3)), np.roll, {"shift": 1, "axis": 1}, note="empty"),
    Case("roll", normal(()), np.roll, {"shift": 1}, note="0-d"),
    # Put together and taken apart
    *[
        Case(
            name,
            normal(*shapes),
            getattr(np, name),
            {"axis": axis},
            function=lambda f, *arrays, axis: f(arrays, axis),
            note=f"{len(shapes)} along {axis}{note}",
        )
        for name, axis, note, shapes in [
            ("concatenate", 0, "", [(2, 3), (1, 3)]),
            ("concatenate", 1, "", [(2, 1), (2, 3)]),
            ("concatenate", -1, "", [(2, 2, 1), (2, 2, 2), (2, 2, 3)]),
            ("concatenate", 0, " with an empty one", [(2,), (0,), (1,)]),
            ("concatenate", 0, "", [(2, 3)]),
            ("stack", 0, "", [(2, 3), (2, 3)]),
            ("stack", 1, "", [(2, 3), (2, 3), (2, 3)]),
            ("stack", -1, "", [(2, 3), (2, 3)]),
            ("stack", 0, " of 0-d", [(), (), ()]),
            ("stack", -1, "", [(2,)]),
            ("stack", 1, " of empty ones", [(0, 2), (0, 2)]),
        ]
    ],
    *[
        Case(
            name,
            normal(*shapes),
            getattr(np, name),
            function=lambda f, *arrays: f(arrays),
            note=f"{shapes}",
        )
        for name, shapes in [
            ("vstack", [(3,), (2, 3)]),
            ("vstack", [(2, 3, 2), (1, 3, 2)]),
            ("vstack", [(), ()]),
            ("vstack", [(0,), (2, 0)]),
            ("hstack", [(3,), (2,)]),
            ("hstack", [(), (2,)]),
            ("hstack", [(2, 1), (2, 3)]),
            ("hstack", [(2, 1, 2), (2, 2, 2)]),
            ("hstack", [(0,)]),
            ("column_stack", [(3,), (3, 2), (3,)]),
            ("column_stack", [(2, 1, 2), (2, 2, 2)]),
            ("column_stack", [(), ()]),
            ("column_stack", [(0,), (0, 2)]),
        ]
    ],
    Case(
        "stack",
        normal((3,)),
        np.stack,
        function=lambda f, x: f([x, x]),
        note="with itself",
    ),
    *[
        Case(
            "split",
            normal(shape),
            np.split,
            {"indices_or_sections": parts, **options},
            function=lambda f, x, k=k, **options: f(x, **options)[k],
            note=f"{shape} into {parts}, part {k}",
        )
        for shape, parts, options, k in [
            *(((6, 2), 3, {}, k) for k in range(3)),
            ((4,), 1, {}, 0),
            ((2, 6), 3, {"axis": 1}, 1),
            ((2, 6), 3, {"axis": -1}, -1),
            ((5,), [2], {}, 0),
            ((5,), [1, 3], {}, 1),
            ((5, 2), (2, 2, 4), {}, 1),
            ((5, 2), (2, 2, 4), {}, -1),
            ((5,), [-2], {}, 1),
            ((5,), [3, 9], {}, 1),
            ((5,), [3, 9], {}, 2),
            ((3,), [], {}, 0),
            ((5,), np.array([1, 3]), {}, 1),
            ((0, 2), 2, {}, 1),
        ]
    ],
    *[
        Case(
            "array_split",
            normal(shape),
            np.array_split,
            {"indices_or_sections": parts, **options},
            function=lambda f, x, k=k, **options: f(x, **options)[k],
            note=f"{shape} into {parts}, part {k}",
        )
        for shape, parts, options, k in [
            *(((7, 2), 3, {}, k) for k in range(3)),
            ((2, 8), 3, {"axis": -1}, 1),
            ((2,), 3, {}, 2),
            ((5,), [1, 3], {}, 1),
            ((0, 2), 2, {}, 1),
        ]
    ],
    *[
        Case(
            "meshgrid",
            normal(*shapes),
            np.meshgrid,
            {"indexing": indexing},
            function=all_parts,
            note=f"{shapes} {indexing}",
        )
        for indexing in ("xy", "ij")
        for shapes in [[(2,), (3,)], [(2,), (3,), (4,)], [(3,)], [(), (2,)], [(0,), (2,)]]
    ],
    # Differences
    *[
        Case("diff", normal(shape), np.diff, options, note=f"{shape} {options}")
        for shape, options in [
            ((4,), {}),
            ((2, 4), {"n": 2}),
            ((3, 2), {"axis": 0}),
            ((3, 2), {"n": 3, "axis": 0}),
            ((3, 2), {"n": 5, "axis": 0}),
            ((3,), {"n": 0}),
            ((1,), {}),
            ((0, 2), {}),
            ((3,), {"prepend": 0.5, "append": 2.0}),
            ((3,), {"n": 0, "prepend": 0.5}),
        ]
    ],
    Case(
        "diff",
        normal((2, 3), (2, 1), (2, 2)),
        np.diff,
        function=lambda f, x, *ends: f(x, 2, 1, *ends),
        note="with arrays at the ends",
    ),
    Case("diff", below(9, (4,)), np.diff, order=0, note="integers"),
    # Repeated and padded
    *[
        Case("tile", normal(shape), np.tile, {"reps": reps}, note=f"{shape} {reps}")
        for shape, reps in [
            ((2, 3), 2),
            ((2, 3), (2,)),
            ((2, 3), (3, 2)),
            ((2, 3), [1, 2]),
            ((2, 3), np.array([2, 1])),
            ((3,), (2, 1, 2)),
            ((3,), (2, 0)),
            ((3,), ()),
            ((), 3),
            ((), (2, 2)),
            ((0, 2), (2, 2)),
        ]
    ],
    *[
        Case("repeat", normal(shape), np.repeat, options, note=f"{shape} {options}")
        for shape, options in [
            ((2, 3), {"repeats": 2}),
            ((2, 3), {"repeats": 2, "axis": 0}),
            ((2, 3), {"repeats": 3, "axis": -1}),
            ((2, 3), {"repeats": [2, 0, 1], "axis": 1}),
            ((3,), {"repeats": (1, 2, 3)}),
            ((3,), {"repeats": np.array([0, 2, 1])}),
            ((2, 3), {"repeats": 0, "axis": 1}),
            ((), {"repeats": 3}),
            ((0, 2), {"repeats": 2, "axis": 0}),
        ]
    ],
    *[
        Case("pad", normal(shape), np.pad, {"pad_width": width, "mode": mode})
        for mode, shape, width in [
            ("constant", (3,), 2),
            ("constant", (2, 3), ((1, 0), (2, 1))),
            ("constant", (2, 3), (1, 2)),
            ("constant", (0, 2), 1),
            ("edge", (3,), 2),
            ("edge", (2, 3), ((1, 0), (2, 1))),
            ("edge", (0, 3), ((0, 0), (2, 1))),
            ("reflect", (3,), 2),
            ("reflect", (3,), 5),
            ("reflect", (2, 3), ((1, 0), (2, 1))),
            ("symmetric", (3,), 2),
            ("symmetric", (3,), 7),
            ("symmetric", (2, 3), ((1, 0), (2, 1))),
            ("wrap", (3,), 2),
            ("wrap", (3,), 7),
            ("wrap", (2, 3), ((1, 0), (2, 1))),
        ]
    ],
    Case("pad", normal((2, 3)), np.pad, {"pad_width": 1}, note="default"),
    Case("pad", normal((2, 3)), np.pad, {"pad_width": 0}, note="by nothing"),
    Case("pad", normal((2, 3)), np.pad, {"pad_width": [[0, 1], [2, 0]], "constant_values": -1.5}),
    Case("pad", below(9, (3,)), np.pad, {"pad_width": 1, "constant_values": 7}, order=0),
    Case("pad", normal(()), lambda x, pad_width: x, {"pad_width": 1}, note="0-d"),
    # Triangles
    *[
        Case(name, normal(shape), getattr(np, name), {"k": k}, note=f"{shape} {k}")
        for name in ("tril", "triu")
        for shape, k in [
            ((3, 3), 0),
            ((3, 3), 1),
            ((3, 3), -1),
            ((3, 3), 5),
            ((3, 3), -5),
            ((2, 4), 1),
            ((2, 3, 2), 0),
            ((0, 2), 0),
        ]
    ],
    # Copies
    Case("clone", normal((2, 3)), np.copy),
    Case("astype", normal((2, 3)), lambda x, dtype: x.astype(dtype), {"dtype": np.float64}),
    Case(
        "astype",
        normal((2, 3)),
        lambda x, dtype: x.astype(dtype),
        {"dtype": np.float32},
        note="float32",
        derivative=lambda g, x: g,
    ),
    Case(
        "astype",
        normal((2, 3)),
        lambda x, dtype: x.astype(dtype),
        {"dtype": np.int64},
        note="integers",
        order=0,
    ),
]
