"""Convolution of images and sequences, and the two gradients of it."""

import numpy as np

from tests.cases.case import INF, Case, fixed, normal


def pair(value):
    return (value, value) if isinstance(value, int) else value


def result_size(x, weight, stride, padding, dilation):
    (down, right), (top, left), (tall, wide) = map(pair, (stride, padding, dilation))
    rows = (x[2] + 2 * top - tall * (weight[2] - 1) - 1) // down + 1
    cols = (x[3] + 2 * left - wide * (weight[3] - 1) - 1) // right + 1
    return rows, cols


def windows(x, weight, stride, padding, dilation, groups):
    """For each filter and element of the result: its index, and the window of x that it sees."""
    (down, right), (top, left), (tall, wide) = map(pair, (stride, padding, dilation))
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    channels, (height, width) = weight.shape[1], weight.shape[2:]
    size = result_size(x.shape, weight.shape, stride, padding, dilation)
    for n, o, y, z in np.ndindex(len(x), len(weight), *size):
        first = o // (len(weight) // groups) * channels
        window = (
            n,
            slice(first, first + channels),
            slice(y * down, y * down + tall * (height - 1) + 1, tall),
            slice(z * right, z * right + wide * (width - 1) + 1, wide),
        )
        yield (n, o, y, z), window, padded


def convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """One element after the other."""
    size = result_size(x.shape, weight.shape, stride, padding, dilation)
    out = np.zeros((len(x), len(weight), *size))
    for i, window, padded in windows(x, weight, stride, padding, dilation, groups):
        out[i] = np.sum(weight[i[1]] * padded[window]) + (0 if bias is None else bias[i[1]])
    return out


def convolution_input(y, weight, size, stride=1, padding=0, dilation=1, groups=1):
    x = np.zeros((len(y), weight.shape[1] * groups, *size))
    (top, left), spread = pair(padding), None
    for i, window, padded in windows(x, weight, stride, padding, dilation, groups):
        spread = np.zeros_like(padded) if spread is None else spread
        spread[window] += y[i] * weight[i[1]]
    return spread[:, :, top : top + size[0], left : left + size[1]]


def convolution_weight(y, x, size, stride=1, padding=0, dilation=1, groups=1):
    weight = np.zeros((y.shape[1], x.shape[1] // groups, *size))
    for i, window, padded in windows(x, weight, stride, padding, dilation, groups):
        weight[i[1]] += y[i] * padded[window]
    return weight


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if x.ndim == 3:
        return conv2d(x[None], weight, bias, stride, padding, dilation, groups)[0]
    if padding == "same":
        zeros = [d * (n - 1) for d, n in zip(pair(dilation), weight.shape[2:], strict=True)]
        x = np.pad(x, ((0, 0), (0, 0), *((n // 2, n - n // 2) for n in zeros)))
    padding = 0 if isinstance(padding, str) else padding
    return convolution(x, weight, bias, stride, padding, dilation, groups)


def conv1d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x, weight = np.expand_dims(x, -2), np.expand_dims(weight, -2)
    padding = padding if isinstance(padding, str) else (0, padding)
    return conv2d(x, weight, bias, (1, stride), padding, (1, dilation), groups)[..., 0, :]


OPTIONS = {
    "": ((2, 2, 4, 3), (3, 2, 3, 2), {}),
    "padded": ((1, 1, 4, 4), (2, 1, 3, 3), {"padding": 1}),
    "far padding": ((1, 1, 2, 3), (1, 1, 2, 2), {"padding": (3, 2)}),
    "stride 2": ((1, 2, 7, 6), (2, 2, 3, 3), {"stride": 2, "padding": 1}),
    "strides longer than the kernel": ((1, 1, 7, 8), (1, 1, 2, 1), {"stride": (3, 2)}),
    "dilated": ((1, 1, 6, 7), (2, 1, 2, 3), {"dilation": (3, 2)}),
    "stride and dilation": (
        (1, 1, 9, 9),
        (1, 1, 3, 2),
        {"stride": (2, 3), "dilation": (2, 3), "padding": (1, 2)},
    ),
    "groups": ((2, 4, 3, 3), (6, 2, 2, 2), {"groups": 2}),
    "each channel by itself": ((1, 3, 4, 3), (3, 1, 2, 2), {"groups": 3, "padding": 1}),
    "1 x 1": ((2, 3, 2, 4), (4, 3, 1, 1), {}),
    "as large as the image": ((2, 2, 3, 3), (2, 2, 3, 3), {}),
    "more filters than a vector has lanes": ((1, 1, 3, 3), (17, 1, 2, 2), {"padding": 1}),
    "no images": ((0, 2, 3, 3), (2, 2, 2, 2), {}),
}


def shape_of_result(x, weight, options):
    steps = (options.get(name, i) for name, i in (("stride", 1), ("padding", 0), ("dilation", 1)))
    return x[0], weight[0], *result_size(x, weight, *steps)


CASES = [
    *[
        Case("convolution", normal(x, weight, weight[:1]), convolution, options, note=note)
        for note, (x, weight, options) in OPTIONS.items()
    ],
    *[
        Case(
            "convolution_input",
            normal(shape_of_result(x, weight, options), weight),
            convolution_input,
            {"size": x[2:], **options},
            note=note,
        )
        for note, (x, weight, options) in OPTIONS.items()
        if x[0]
    ],
    *[
        Case(
            "convolution_weight",
            normal(shape_of_result(x, weight, options), x),
            convolution_weight,
            {"size": weight[2:], **options},
            note=note,
        )
        for note, (x, weight, options) in OPTIONS.items()
        if x[0]
    ],
    Case("conv2d", normal((1, 2, 2, 3), (2, 2, 3, 3), (2,)), conv2d, {"padding": 1}),
    Case("conv2d", normal((2, 4, 5), (3, 2, 3, 3)), conv2d, {"padding": 1}, note="one image"),
    *[
        Case(
            "conv2d",
            normal((1, 2, 4, 5), (1, 2, 2, 3)),
            conv2d,
            {"padding": padding, "dilation": (1, 2)},
            note=padding,
        )
        for padding in ("same", "valid")
    ],
    Case(
        "conv2d",
        fixed(np.full((1, 1, 2, 3), INF), np.ones((1, 1, 2, 2))),
        conv2d,
        note="an infinite image",
        order=0,
    ),
    Case("conv1d", normal((2, 2, 5), (3, 2, 3), (3,)), conv1d, {"stride": 2, "padding": 1}),
    Case("conv1d", normal((4, 6), (2, 2, 2)), conv1d, {"groups": 2}, note="one sequence"),
    Case("conv1d", normal((1, 1, 5), (1, 1, 2)), conv1d, {"padding": "same"}),
]
