"""Convolution of images, and its two gradients: three ops that are the VJPs of one another.

A convolution is linear in x and in the weight. So the sum of its result times an array y is a sum
of products of an element of each of x, weight and y, and the three ops here are its derivatives by
y, by x and by the weight. Derivatives of any order follow from that.

`stride`, `padding` and `dilation` are a number, or a pair of one for rows and one for columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigrad import kernels
from minigrad.checks import check_positive, for_each_axis
from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.kernels.geometry import Geometry
from minigrad.ops.reduction import sum
from minigrad.ops.shape import reshape

Sizes = int | Sequence[int]
Shape = tuple[int, ...]


def _convolution(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    out = convolution(x, weight, None, stride, padding, dilation, groups)
    return out if bias is None else out + reshape(bias, (-1, 1, 1))


def _result_shape(
    x: Array, weight: Array, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> tuple[int, ...]:
    """Return the shape of a convolution, or raise an error if its operands do not go together."""
    rows, cols = _checked(x.shape, weight.shape, stride, padding, dilation, groups)[1]
    return x.shape[0], weight.shape[0], rows, cols


@op(
    linear=("x", "weight"),
    composition=_convolution,
    floats=True,
    cost=lambda weight, bias, out: (
        (2 * math.prod(weight.shape[1:]) + (bias is not None)) * out.size
    ),
    shape=_result_shape,
    product=True,
)
def convolution(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """The convolution of images with filters, of each group of channels with its own, and a bias.

    out[n, o, y, z] = bias[o] + sum over c, i, j of weight[o, c, i, j] times
        x[n, c, stride y + dilation i - padding, stride z + dilation j - padding]

    where x is 0 outside of an image (LeCun et al., 1998; in the field's use of the word, which in
    mathematics is a correlation). The size of an axis of the result is
    floor((size + 2 padding - dilation (kernel size - 1) - 1) / stride) + 1.

    Args:
        x: images `(N, C, H, W)`.
        weight: filters `(O, C / groups, h, w)`.
        bias: `(O,)`, or None.
        stride: elements of x from an element of the result to the next.
        padding: zeros at each end of the axes of x.
        dilation: elements of x from an element of the kernel to the next.
        groups: into how many groups channels and filters are cut, each with filters of its own.

    Raises:
        ValueError: if the shapes do not go together, groups do not divide the channels and the
            filters, an option is out of range, or the kernel is larger than the padded image.
    """
    how, _ = _checked(np.shape(x), np.shape(weight), stride, padding, dilation, groups)
    if bias is not None and np.shape(bias) != weight.shape[:1]:
        raise ValueError(f"a bias of shape {np.shape(bias)}, but it must be {weight.shape[:1]}")
    return kernels.convolution.convolve(x, weight, bias, how)


@convolution.vjp("x")
def _convolution_x(
    g: Array, x_shape: Shape, weight: Array, stride: Sizes, padding: Sizes, dilation: Sizes,
    groups: int,
) -> Array:  # fmt: skip
    return convolution_input(g, weight, x_shape[2:], stride, padding, dilation, groups)


@convolution.vjp("weight")
def _convolution_weight(
    g: Array, x: Array, weight_shape: Shape, stride: Sizes, padding: Sizes, dilation: Sizes,
    groups: int,
) -> Array:  # fmt: skip
    return convolution_weight(g, x, weight_shape[2:], stride, padding, dilation, groups)


convolution.vjp("bias", lambda g: sum(g, (0, 2, 3)))


@op(
    linear=("y", "weight"),
    floats=True,
    cost=lambda weight, y: 2 * math.prod(weight.shape[1:]) * math.prod(y.shape),
    shape=lambda y, weight, size, groups: (y.shape[0], weight.shape[1] * groups, *size),
    product=True,
)
def convolution_input(
    y: Array, weight: Array, size: Sequence[int], stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """The gradient of a convolution by its images, whose height and width are `size`.

    `y`, of the shape of the result `(N, O, H', W')`, is the gradient that arrives; the gradient is
    `(N, C, *size)`. For the other arguments see `convolution`.

    Raises:
        ValueError: if y is not of the shape that the convolution has.
    """
    how = _checked_result(y, weight, size, stride, padding, dilation, groups)
    return kernels.convolution.input_gradient(y, weight, (size[0], size[1]), how)


@convolution_input.vjp("y")
def _convolution_input_y(
    g: Array, weight: Array, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Array:
    return convolution(g, weight, None, stride, padding, dilation, groups)


@convolution_input.vjp("weight")
def _convolution_input_weight(
    g: Array, y: Array, weight_shape: Shape, stride: Sizes, padding: Sizes, dilation: Sizes,
    groups: int,
) -> Array:  # fmt: skip
    return convolution_weight(y, g, weight_shape[2:], stride, padding, dilation, groups)


@op(
    linear=("y", "x"),
    floats=True,
    cost=lambda y, x, size, groups: (
        2 * math.prod(y.shape) * (x.shape[1] // groups) * math.prod(size)
    ),
    shape=lambda y, x, size, groups: (y.shape[1], x.shape[1] // groups, *size),
    product=True,
)
def convolution_weight(
    y: Array, x: Array, size: Sequence[int], stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """The gradient of a convolution by its weight, whose kernels have height and width `size`.

    `y`, of the shape of the result `(N, O, H', W')`, is the gradient that arrives; the gradient is
    `(O, C / groups, *size)`. For the other arguments see `convolution`.

    Raises:
        ValueError: if y is not of the shape that the convolution has.
    """
    filters = np.broadcast_to(y.dtype.type(0), (y.shape[1], x.shape[1] // max(groups, 1), *size))
    how = _checked_result(y, filters, x.shape[2:], stride, padding, dilation, groups)
    return kernels.convolution.weight_gradient(y, x, (size[0], size[1]), how)


@convolution_weight.vjp("y")
def _convolution_weight_y(
    g: Array, x: Array, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Array:
    return convolution(x, g, None, stride, padding, dilation, groups)


@convolution_weight.vjp("x")
def _convolution_weight_x(
    g: Array, y: Array, x_shape: Shape, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Array:
    return convolution_input(y, g, x_shape[2:], stride, padding, dilation, groups)


def _checked(
    x: Shape, weight: Shape, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> tuple[Geometry, tuple[int, ...]]:
    """Return the options by axis and the size of the result; raise an error if they do not go."""
    check_positive("groups", groups)
    how = Geometry(
        for_each_axis("stride", stride, 2), for_each_axis("padding", padding, 2, least=0),
        for_each_axis("dilation", dilation, 2), groups,
    )  # fmt: skip
    if len(x) != 4 or len(weight) != 4 or 0 in weight:
        raise ValueError(
            f"takes images (N, C, H, W) and a weight (O, C / groups, h, w), not shapes {x} and "
            f"{weight}"
        )
    if x[1] != weight[1] * groups or weight[0] % groups:
        raise ValueError(
            f"{x[1]} channels and {weight[0]} filters of {weight[1]} channels do not go with "
            f"groups={groups}: groups must divide the filters, and images have groups times as "
            f"many channels as a filter"
        )
    size = how.result_size((x[2], x[3]), (weight[2], weight[3]))
    if min(size) < 1:
        padded = tuple(n + 2 * p for n, p in zip(x[2:], how.padding, strict=True))
        reach = tuple(d * (n - 1) + 1 for n, d in zip(weight[2:], how.dilation, strict=True))
        raise ValueError(f"a kernel that covers {reach} is larger than the padded image {padded}")
    return how, size


def _checked_result(
    y: Array, weight: Array, size: Sequence[int], stride: Sizes, padding: Sizes, dilation: Sizes,
    groups: int,
) -> Geometry:  # fmt: skip
    """Return the options by axis; raise an error if y is not of the shape of the result."""
    x = y.shape[0], weight.shape[1] * groups, *size
    how, result = _checked(x, weight.shape, stride, padding, dilation, groups)
    if y.shape != (y.shape[0], weight.shape[0], *result):
        raise ValueError(
            f"y has shape {y.shape}, but images {x} and a weight {weight.shape} give "
            f"{(y.shape[0], weight.shape[0], *result)}"
        )
    return how
