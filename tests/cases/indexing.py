"""Elements by their places: by index, along an axis, in order of size, or by class."""

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
    normal,
)


def take(x, index):
    return x[index]


def scatter(values, index, shape):
    out = np.zeros(shape, values.dtype)
    np.add.at(out, index, values)
    return out


def ordered(x, axis=-1, descending=False):
    """The places in order: equals as they stand, a nan as more than infinity."""

    def of_row(row):
        keys = [(np.isnan(v), 0 if np.isnan(v) else v) for v in row]
        if descending:
            keys = [(not is_nan, -v) for is_nan, v in keys]
        return np.array(sorted(range(len(row)), key=keys.__getitem__), dtype=np.int64)

    if axis is None:
        return of_row(np.ravel(x))
    return np.apply_along_axis(of_row, axis, x)


def sort(x, axis=-1, descending=False):
    values = np.sort(x, axis)
    return np.flip(values, -1 if axis is None else axis) if descending else values


def sorted_back(g, x, axis, descending):
    """The derivative of `sort`: each gradient goes to where its element came from."""
    order = ordered(x, axis, descending)
    out = np.zeros(x.size if axis is None else x.shape)
    np.put_along_axis(out, order, g, 0 if axis is None else axis)
    return out.reshape(x.shape)


def topk(x, k, axis=-1, largest=True):
    return tuple(
        np.moveaxis(np.moveaxis(f(x, axis, largest), axis, 0)[:k], 0, axis) for f in (sort, ordered)
    )


def one_hot(labels, num_classes=None):
    count = np.max(labels) + 1 if num_classes is None else num_classes
    return np.eye(count, dtype=np.int64)[labels]


def embedding(indices, weight, padding_idx=None):
    return weight[indices]


def embedding_derivative(without):
    def derivative(g, indices, weight):
        out = scatter(g, indices, weight.shape)
        out[without] = 0
        return out

    return derivative


def gather(x, axis, indices):
    """Element by element."""
    out = np.zeros(indices.shape, x.dtype)
    for place in np.ndindex(*indices.shape):
        source = list(place)
        source[axis] = indices[place]
        out[place] = x[tuple(source)]
    return out


def overwritten(x, axis, indices, src):
    """Element by element, and where in `src` each element of the result is from."""
    out, source = x.copy(), {}
    for place in np.ndindex(*indices.shape):
        target = list(place)
        target[axis] = indices[place] % x.shape[axis]
        out[tuple(target)] = src if np.ndim(src) == 0 else src[place]
        source[tuple(target)] = place
    return out, source


def at(axis, indices):
    indices = np.array(indices)
    return lambda f, x, src: f(x, axis, indices, src)


def scatter_back(axis, indices):
    def derivative(g, x, src):
        _, source = overwritten(x, axis, np.array(indices), src)
        of_x, of_src = g.copy(), np.zeros(src.shape)
        for target, place in source.items():
            of_x[target] = 0
            of_src[place] = g[target]
        return of_x, of_src

    return derivative


def extreme_with_indices(name):
    def call(x, axis=-1, keepdims=False):
        indices = getattr(np, f"arg{name}")(x, axis, keepdims=True)
        out = np.take_along_axis(x, indices, axis), indices
        return out if keepdims else tuple(np.squeeze(part, axis) for part in out)

    return call


def running(better):
    """Row by row; a nan stays."""

    def of_row(row, k):
        best, found = 0, []
        for i, v in enumerate(row):
            if np.isnan(v) or (not np.isnan(row[best]) and better(v, row[best])):
                best = i
            found.append(best)
        return row[found] if k == 0 else np.array(found, np.int64)

    return lambda x, axis=-1: tuple(np.apply_along_axis(of_row, axis, x, k) for k in (0, 1))


def part(k):
    return lambda f, x, **options: f(x, **options)[k]


TWICE = [[1.0, 2.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]]

CASES = [
    *[
        Case("getitem", normal((3, 4)), take, {"index": index}, note=note)
        for note, index in {
            "int": 1,
            "negative int": -1,
            "numpy int": np.int64(2),
            "two ints": (1, 2),
            "slice": slice(1, None),
            "step": (slice(None), slice(None, None, 2)),
            "negative step": (slice(None, None, -1), slice(3, None, -2)),
            "empty slice": slice(2, 2),
            "None": (None, slice(None), None, 1),
            "Ellipsis": (..., 1),
            "only Ellipsis": ...,
            "boolean": np.array([[True, False, True, False]] * 3),
            "boolean rows": np.array([True, False, True]),
            "no row": np.zeros(3, bool),
            "integers": np.array([2, 0]),
            "list": [2, 0],
            "repeated": np.array([1, 1, 2, 1]),
            "repeated negative": np.array([1, -2, 1]),
            "2-d integers": np.array([[0, 1], [1, 1]]),
            "pairs": (np.array([0, 0, 2]), np.array([1, 1, 3])),
            "slice and integers": (slice(1, None), np.array([3, 3, 0])),
            "integers around a slice": (np.array([0, 0]), None, slice(None, 2)),
            "no integers": np.array([], np.int64),
            "index is a tensor": minigrad.tensor([1, 1, 0]),
            "small integers": np.array([2, 2], np.uint8),
        }.items()
    ],
    Case("getitem", normal((2, 3)), take, {"index": MASK}, note="mask of the whole shape"),
    Case("getitem", normal(()), take, {"index": ()}, note="0-d"),
    Case("getitem", normal(()), take, {"index": None}, note="0-d, new axis"),
    Case(
        "getitem",
        normal((2, 3, 2)),
        take,
        {"index": (np.array([1, 0, 1]), slice(None), np.array([0, 0, 0]))},
        note="integers apart",
    ),
    Case(
        "getitem",
        normal((2, 3)),
        take,
        {"index": (np.array([True, True]), np.array([2, 2]))},
        note="mask and integers",
    ),
    Case("getitem", below(9, (3,)), take, {"index": [2, 2]}, order=0, note="of integers"),
    *[
        Case(
            "scatter_add",
            normal(values_shape),
            scatter,
            {"index": index, "shape": (3, 4)},
            note=note,
        )
        for note, values_shape, index in [
            ("slice", (2, 4), slice(1, None)),
            ("repeated", (4, 4), np.array([1, 1, 2, 1])),
            ("repeated negative", (3, 4), np.array([1, -2, 1])),
            ("pairs", (3,), (np.array([0, 0, 2]), np.array([1, 1, 3]))),
            ("boolean", (2, 4), np.array([True, False, True])),
            ("int", (4,), 1),
            ("list", (2, 4), [2, 2]),
            ("slice and integers", (2, 3), (slice(1, None), np.array([3, 3, 0]))),
            ("nothing", (0, 4), np.array([], np.int64)),
            ("broadcast values", (4,), np.array([1, 1, 2])),
        ]
    ],
    Case(
        "scatter_add",
        below(9, (3,)),
        scatter,
        {"index": [1, 1, 0], "shape": (3,)},
        order=0,
        note="of integers",
    ),
    # Along an axis
    *[
        Case(
            "take_along_axis",
            joined(normal(shape), fixed(np.array(indices))),
            np.take_along_axis,
            {"axis": axis},
            note=note,
        )
        for note, shape, indices, axis in [
            ("last", (2, 3), [[2, 0], [1, 1]], -1),
            ("first", (2, 3), [[1, 0, 1]], 0),
            ("middle", (2, 3, 2), [[[0, 2]], [[1, 1]]], 1),
            ("negative", (3,), [-1, 0, -1, -3], 0),
            ("broadcast", (2, 3), [[2, 0]], 1),
            ("broadcast x", (1, 3), [[2, 0], [1, 1]], 1),
            ("None", (2, 3), [5, 0, 5], None),
            ("no places", (2, 3), np.zeros((2, 0), int), 1),
            ("bytes", (2, 3), np.array([[2, 0]], np.uint8), 1),
        ]
    ],
    *[
        Case(
            "gather", normal(shape), gather, {"axis": axis, "indices": np.array(indices)}, note=note
        )
        for note, shape, axis, indices in [
            ("last", (2, 3), 1, [[2, 0], [1, 1]]),
            ("first", (3, 2), 0, [[2, 0], [1, 1], [0, 0], [2, 1]]),
            ("smaller", (3, 4), 1, [[3, 0, 3, 3, 1]]),
            ("smaller in both", (2, 3, 4), -2, [[[2, 1], [0, 0]]]),
            ("row", (3,), 0, [1, 1, 2]),
            ("negative", (3,), 0, [-1, 0, -3]),
            ("nowhere", (2, 3), 1, np.zeros((0, 2), int)),
            ("of one", (1,), 0, [0]),
        ]
    ],
    Case("gather", below(9, (3,)), gather, {"axis": 0, "indices": np.array([2, 0])}, order=0),
    *[
        Case(
            "scatter",
            normal(shape, source),
            lambda *args: overwritten(*args)[0],
            function=at(axis, indices),
            note=note,
            derivative=scatter_back(axis, indices) if note in ("repeated", "negative") else None,
        )
        for note, shape, source, axis, indices in [
            ("last", (2, 3), (2, 2), 1, [[2, 0], [1, 2]]),
            ("first", (3, 2), (2, 2), 0, [[2, 0], [1, 1]]),
            ("smaller", (3, 4), (3, 3), 1, [[3, 0]]),
            ("smaller in both", (2, 3, 4), (2, 2, 3), -2, [[[2, 1], [0, 0]]]),
            ("repeated", (2, 3), (2, 3), 1, [[1, 1, 0], [2, 2, 2]]),
            ("negative", (3,), (2,), 0, [-1, 0]),
            ("number", (2, 3), (), 1, [[2, 0], [1, 0]]),
            ("nothing", (2, 3), (1, 2), 1, np.zeros((0, 2), int)),
            ("of none", (0, 3), (0, 3), 1, np.zeros((0, 2), int)),
        ]
    ],
    Case(
        "scatter",
        below(9, (3,), (2,)),
        lambda *args: overwritten(*args)[0],
        function=at(0, [2, 0]),
        order=0,
        note="of integers",
    ),
    *[
        Case("nonzero", fixed(values), np.nonzero, order=0, function=part(k), note=f"{note} {k}")
        for note, values, axes in [
            ("floats", [[0.0, 2.0, NAN], [-1.0, 0.0, 0.0]], 2),
            ("booleans", MASK, 2),
            ("one", [3], 1),
            ("empty", np.zeros((2, 0)), 2),
        ]
        for k in range(axes)
    ],
    # By size
    *[
        Case(name, distinct((2, 3, 2)), reference, options, order=order)
        for name, reference, order in [("sort", sort, 2), ("argsort", ordered, 0)]
        for options in [
            {},
            {"axis": 0},
            {"axis": 1, "descending": True},
            {"axis": None},
            {"axis": None, "descending": True},
        ]
    ],
    *[
        Case("argsort", fixed(values), ordered, {"descending": d}, order=0, note=f"{note}, {d}")
        for d in (False, True)
        for note, values in {
            "ties": TWICE,
            "nan": [2.0, NAN, INF, NAN, -INF],
            "one": [1.0],
            "none": np.zeros((2, 0)),
            "integers": [3, 1, 2, 1],
        }.items()
    ],
    *[
        Case(
            "sort",
            fixed(TWICE),
            sort,
            {"axis": axis, "descending": descending},
            note=f"ties along {axis}, {descending}",
            derivative=lambda g, x, axis=axis, descending=descending: sorted_back(
                g, x, axis, descending
            ),
        )
        for axis in (-1, 0, None)
        for descending in (False, True)
    ],
    *[
        Case(
            "sort", fixed([2.0, NAN, INF, -INF]), sort, {"descending": d}, order=0, note=f"nan {d}"
        )
        for d in (False, True)
    ],
    Case("sort", distinct((0, 2)), sort, {"axis": 0}, note="empty"),
    Case("sort", below(9, (2, 3)), sort, order=0, note="integers"),
    *[
        Case(
            "topk",
            distinct((2, 4)),
            topk,
            options,
            function=lambda f, x, **options: f(x, **options)[0],
        )
        for options in [
            {"k": 1},
            {"k": 3},
            {"k": 4},
            {"k": 0},
            {"k": 2, "axis": 0},
            {"k": 2, "axis": 1, "largest": False},
        ]
    ],
    Case(
        "topk",
        fixed(TWICE),
        topk,
        {"k": 3},
        function=lambda f, x, k: f(x, k)[0],
        note="ties: the first",
        derivative=lambda g, x: np.array(
            [[g[0, 2], g[0, 0], 0, g[0, 1]], [g[1, 0], g[1, 1], g[1, 2], 0]]
        ),
    ),
    *[
        Case(
            "topk",
            fixed(TWICE),
            topk,
            {"k": 3, "largest": biggest},
            function=lambda f, x, **options: f(x, **options)[1],
            note=f"places, {biggest}",
            order=0,
        )
        for biggest in (True, False)
    ],
    *[
        Case(
            f"{name}_with_indices",
            make,
            extreme_with_indices(name),
            options,
            order=order,
            function=part(k),
            note=f"{note}, part {k}",
            derivative=derivative if order else None,
        )
        for name in ("max", "min")
        for note, make, options, derivative in [
            ("", distinct((2, 3)), {}, None),
            ("axis 0, kept", distinct((2, 3)), {"axis": 0, "keepdims": True}, None),
            ("axis 1", distinct((2, 3, 2)), {"axis": 1}, None),
            ("one", distinct((1,)), {}, None),
            ("of none along a full axis", distinct((0, 3)), {}, None),
            (
                "tie: the first",
                fixed([[2.0, 2.0], [1.0, 1.0]]),
                {},
                lambda g, x: g[:, None] * [[1, 0], [1, 0]],
            ),
            (
                "nan: the first",
                fixed([1.0, NAN, 3.0, NAN]),
                {},
                lambda g, x: g * [0, 1, 0, 0],
            ),
        ]
        for k, order in ((0, 2), (1, 0))
    ],
    *[
        Case(
            name,
            make,
            running(better),
            options,
            order=order,
            function=part(k),
            note=f"{note}, part {k}",
            derivative=derivative if order else None,
        )
        for name, better in [("cummax", np.greater_equal), ("cummin", np.less_equal)]
        for note, make, options, derivative in [
            ("", distinct((2, 3)), {}, None),
            ("axis 0", distinct((4, 3)), {"axis": 0}, None),
            ("axis 1", distinct((2, 4, 2)), {"axis": 1}, None),
            ("one", distinct((1,)), {}, None),
            ("empty", distinct((2, 0)), {}, None),
            (
                "tie: the last",
                fixed([2.0, 2.0, 2.0]),
                {},
                lambda g, x: g,
            ),
            (
                "nan stays",
                fixed([1.0, NAN, 3.0, NAN, 0.0]),
                {},
                lambda g, x: np.array([g[0], g[1] + g[2], 0, g[3] + g[4], 0]),
            ),
        ]
        for k, order in ((0, 2), (1, 0))
    ],
    *[
        Case(name, below(9, (2, 3)), running(better), order=0, function=part(0), note="integers")
        for name, better in [("cummax", np.greater_equal), ("cummin", np.less_equal)]
    ],
    # By class
    *[
        Case("one_hot", fixed(labels), one_hot, options, order=0, note=note)
        for note, labels, options in [
            ("", [0, 2, 1], {}),
            ("more classes", [0, 2, 1], {"num_classes": 5}),
            ("2-d", [[0, 2], [1, 1]], {"num_classes": 3}),
            ("0-d", 1, {}),
            ("bytes", np.array([0, 3], np.uint8), {}),
            ("empty", np.zeros((0,), int), {"num_classes": 2}),
        ]
    ],
    *[
        Case("embedding", joined(fixed(indices), normal((4, 3))), embedding, note=note)
        for note, indices in {
            "row": [1, 0, 3],
            "repeated": [[1, 1], [3, 1]],
            "0-d": 2,
            "none": np.zeros((0,), int),
            "bytes": np.array([1, 1], np.uint8),
        }.items()
    ],
    *[
        Case(
            "embedding",
            joined(fixed([1, 0, 1, 3]), normal((4, 3))),
            embedding,
            {"padding_idx": padding_idx},
            note=f"padding {padding_idx}",
            derivative=embedding_derivative(padding_idx),
        )
        for padding_idx in (0, 1, 2, -1)
    ],
]
