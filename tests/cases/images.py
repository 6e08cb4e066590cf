"""Pooling, and normalisation of channels."""

import itertools

import numpy as np

from tests.cases.case import INF, NAN, Case, distinct, fixed, narrow, normal


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """The places of each window of an axis, with those in the padding, but not beyond it."""
    found, start, last = [], -padding, size + padding - dilation * (kernel - 1) - 1
    while start <= last or (ceil_mode and start < min(last + stride, size)):
        places = [start + dilation * i for i in range(kernel)]
        found.append([place for place in places if place < size + padding])
        start += stride
    return found


def pooled(x, axes, reduce):
    """`reduce(elements, count)` of each window, which is an iterable of places along each axis."""
    sizes = x.shape[-len(axes) :]
    out = np.empty((*x.shape[: -len(axes)], *map(len, axes)), x.dtype)
    for at in np.ndindex(x.shape[: -len(axes)]):
        for window in np.ndindex(*map(len, axes)):
            places = [*itertools.product(*(axes[i][k] for i, k in enumerate(window)))]
            inside = [p for p in places if all(0 <= i < n for i, n in zip(p, sizes, strict=True))]
            out[(*at, *window)] = reduce(np.array([x[(*at, *p)] for p in inside]), len(places))
    return out


def options_of(dims, *options):
    """Each option for each axis."""
    return zip(*(np.broadcast_to(option, dims) for option in options), strict=True)


def max_pool(dims):
    def pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        stride = kernel_size if stride is None else stride
        given = options_of(dims, x.shape[-dims:], kernel_size, stride, padding, dilation, ceil_mode)
        return pooled(x, [windows(*each) for each in given], lambda elements, _: elements.max())

    return pool


def avg_pool(dims):
    def pool(
        x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None,
    ):  # fmt: skip
        def mean(elements, count):
            count = count if count_include_pad else elements.size
            return elements.sum() / (divisor_override or count)

        stride = kernel_size if stride is None else stride
        given = options_of(dims, x.shape[-dims:], kernel_size, stride, padding, 1, ceil_mode)
        return pooled(x, [windows(*each) for each in given], mean)

    return pool


def adaptive_avg_pool(dims):
    def pool(x, output_size):
        counts = output_size if isinstance(output_size, tuple) else (output_size,) * dims
        axes = []
        for size, count in zip(x.shape[-dims:], counts, strict=True):
            count = size if count is None else count
            bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
            axes.append([range(*each) for each in bounds])
        return pooled(x, axes, lambda elements, _: elements.mean())

    return pool


def standardised(x, axes, eps):
    centred = x - np.mean(x, axes, keepdims=True)
    return centred / np.sqrt(np.var(x, axes, keepdims=True) + eps)


def affine(x, weight, bias):
    shape = (-1, *[1] * (x.ndim - 2))
    return x * np.reshape(weight, shape) + np.reshape(bias, shape)


def batch_norm(
    x, running_mean, running_var, weight=1.0, bias=0.0, training=False, momentum=0.1, eps=1e-5
):
    if training:
        return affine(standardised(x, (0, *range(2, x.ndim)), eps), weight, bias)
    scale = 1 / np.sqrt(running_var + eps)
    return affine(affine(x, scale, -running_mean * scale), weight, bias)


def group_norm(x, num_groups, weight=1.0, bias=0.0, eps=1e-5):
    groups = x.reshape(len(x), num_groups, np.prod(x.shape[1:]) // num_groups)
    return affine(standardised(groups, 2, eps).reshape(x.shape), weight, bias)


def to_places(*places):
    """The derivative of a maximum of x of shape (1, 1, n): g of each window goes to one place."""

    def derivative(g, x):
        dx = np.zeros_like(x)
        np.add.at(dx, (0, 0, list(places)), g[0, 0])
        return dx

    return derivative


IMAGE, SEQUENCE = (2, 1, 5, 4), (2, 1, 6)
WEIGHTED = ("x", "weight", "bias")
UNTRACKED = {"running_mean": None, "running_var": None, "training": True}
FIXED = {"running_mean": np.array([0.5, -1.0]), "running_var": np.array([2.0, 0.3])}

CASES = [
    *[
        Case("max_pool2d", distinct(shape), max_pool(2), options, note=note)
        for note, shape, options in [
            ("", IMAGE, {"kernel_size": 2}),
            ("overlapping", IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("two sizes", IMAGE, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
            ("dilated", IMAGE, {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": (3, 2)}),
            ("beyond the end", IMAGE, {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
            ("not beyond the padding", (1, 1, 3, 3),
             {"kernel_size": 2, "padding": 1, "ceil_mode": True}),
            ("gaps", (1, 1, 5, 5), {"kernel_size": 1, "stride": 3, "ceil_mode": True}),
            ("no batch", (2, 3, 3), {"kernel_size": [2, 2]}),
            ("all", (1, 1, 3, 2), {"kernel_size": (3, 2)}),
            ("of none", (0, 2, 3, 3), {"kernel_size": 2}),
        ]
    ],
    *[
        Case("max_pool1d", distinct(shape), max_pool(1), options, note=note)
        for note, shape, options in [
            ("", SEQUENCE, {"kernel_size": 2}),
            ("overlapping", SEQUENCE, {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("dilated", SEQUENCE, {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}),
            ("beyond the end", (2, 5), {"kernel_size": 2, "ceil_mode": True}),
        ]
    ],
    *[
        Case("max_pool1d", fixed([[values]]), max_pool(1), {"kernel_size": 2}, note=note,
             derivative=to_places(*places))
        for note, values, places in [
            ("ties: to the first", [1.0, 1.0, 2.0, 2.0], (0, 2)),
            ("nan: to the last", [NAN, 1.0, NAN, NAN], (0, 3)),
            ("all infinite: to the first", [-INF, -INF, INF, INF], (0, 2)),
        ]
    ],
    Case("max_pool1d", fixed([[1, 3, 2]]), max_pool(1), {"kernel_size": 2}, note="ints", order=0),
    *[
        Case("avg_pool2d", normal(shape), avg_pool(2), options, note=note)
        for note, shape, options in [
            ("", IMAGE, {"kernel_size": 2}),
            ("padded", IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("two sizes", IMAGE, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
            ("beyond the end", (2, 1, 4, 3),
             {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
            ("not beyond the padding", IMAGE,
             {"kernel_size": 3, "padding": 1, "ceil_mode": True}),
            ("without padding", IMAGE,
             {"kernel_size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
            ("another divisor", IMAGE, {"kernel_size": 2, "divisor_override": 3}),
            ("gaps", (1, 1, 5, 5), {"kernel_size": 1, "stride": 3}),
            ("no batch", (2, 3, 3), {"kernel_size": [2, 2]}),
            ("of none", (0, 2, 3, 3), {"kernel_size": 2}),
        ]
    ],
    *[
        Case("avg_pool1d", normal(shape), avg_pool(1), options, note=note)
        for note, shape, options in [
            ("", SEQUENCE, {"kernel_size": 2}),
            ("padded", SEQUENCE, {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("without padding", (2, 5),
             {"kernel_size": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
        ]
    ],
    Case("avg_pool1d", fixed([[1, 2, 4]]), narrow(avg_pool(1)), {"kernel_size": 2},
         note="integers give float32", order=0),
    *[
        Case("adaptive_avg_pool2d", normal(shape), adaptive_avg_pool(2), {"output_size": size},
             note=note)
        for note, shape, size in [
            ("", IMAGE, 2),
            ("one", IMAGE, (1, 1)),
            ("as it is", IMAGE, (3, None)),
            ("larger", (1, 2, 2), (3, 5)),
            ("of none", (0, 1, 3, 3), 2),
            ("to none", (1, 1, 2, 2), 0),
        ]
    ],
    *[
        Case("adaptive_avg_pool1d", normal(shape), adaptive_avg_pool(1), {"output_size": size})
        for shape, size in [(SEQUENCE, 4), ((2, 5), (2,))]
    ],
    *[
        Case("batch_norm", normal(shape, *[(2,)] * (len(names) - 1)), batch_norm, options, names,
             note=note)
        for note, shape, names, options in [
            ("", (3, 2, 2, 2), WEIGHTED, UNTRACKED),
            ("bare", (3, 2, 2), ("x",), UNTRACKED),
            ("vectors", (4, 2), WEIGHTED, {**UNTRACKED, "eps": 0.1}),
            ("weight", (1, 2, 3), ("x", "weight"), {**UNTRACKED, "eps": 0.1}),
            ("bias", (2, 2, 17), ("x", "bias"), UNTRACKED),
            ("evaluation", (2, 2, 2, 2), WEIGHTED, FIXED),
            ("evaluation, bare", (3, 2), ("x",), {**FIXED, "eps": 0.5}),
            ("evaluation of none", (0, 2, 3), WEIGHTED, FIXED),
        ]
    ],
    *[
        Case("group_norm", normal(shape, *[shape[1:2]] * (len(names) - 1)), group_norm, options,
             names, note=note)
        for note, shape, names, options in [
            ("", (2, 4, 2, 2), WEIGHTED, {"num_groups": 2}),
            ("bare", (2, 4, 3), ("x",), {"num_groups": 4}),
            ("one group", (2, 3), WEIGHTED, {"num_groups": 1, "eps": 0.1}),
            ("weight", (1, 2, 3), ("x", "weight"), {"num_groups": 2, "eps": 0.1}),
            ("long rows", (2, 2, 17), WEIGHTED, {"num_groups": 1}),
            ("of none", (0, 2, 3), WEIGHTED, {"num_groups": 2}),
        ]
    ],
    *[
        Case(name, fixed([[1, 2], [4, 3]]), narrow(reference), {**options, "eps": 0.1},
             note="integers give float32", order=0)
        for name, reference, options in [
            ("batch_norm", batch_norm, UNTRACKED),
            ("group_norm", group_norm, {"num_groups": 1}),
        ]
    ],
]  # fmt: skip
