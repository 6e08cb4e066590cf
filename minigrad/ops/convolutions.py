"""Convolution of images, and its two gradients: three ops that are the VJPs of one another.

A convolution is linear in x and in the weight. Multiply its result by an array y and sum: each term
is a product of one element of x, one of the weight and one of y. The three ops in this file are the
derivatives of this sum with respect to y, to x and to the weight. So each op's VJPs are the other
two, and derivatives of any order exist.

`stride`, `padding` and `dilation` are one number, or a pair for rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigrad import kernels
from minigrad.checks import check_positive, for_each_axis
from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.kernels.geometry import Geometry, Shape
from minigrad.ops.reduction import sum
from minigrad.ops.shape import check_shape, reshape

Sizes = int | Sequence[int]


def _convolution(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    out = convolution(x, weight, None, stride, padding, dilation, groups)
    return out if bias is None else out + reshape(bias, (-1, 1, 1))


@op(
    linear=("x", "weight"),
    composition=_convolution,
    floats=True,
    cost=lambda weight, bias, out: (
        (2 * math.prod(weight.shape[1:]) + (bias is not None)) * out.size
    ),
    shape=lambda x, weight, stride, padding, dilation, groups: _checked(
        x.shape, weight.shape, stride, padding, dilation, groups
    )[1],
    product=True,
)
def convolution(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """The convolution of images with filters, plus a bias; each group of channels has its filters.

    out[n, o, y, z] = bias[o] + sum over c, i, j of weight[o, c, i, j] times
        x[n, c, stride y + dilation i - padding, stride z + dilation j - padding]

    where x is 0 outside of an image (LeCun et al., 1998). In mathematics, this function is called a
    cross-correlation. The size of an axis of the result is
    floor((size + 2 padding - dilation (kernel size - 1) - 1) / stride) + 1.

    Arguments are as in `conv2d`, which accepts also a single image, and a padding by name.

    Raises:
        ValueError: as in `conv2d`.
    """
    geometry, _ = _checked(np.shape(x), np.shape(weight), stride, padding, dilation, groups)
    check_shape("bias", bias, weight.shape[:1], ", one number for each filter")
    return kernels.convolution.convolve(x, weight, bias, geometry)


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
    """The gradient of a convolution with respect to its images, of height and width `size`.

    `y` is the arriving gradient, with the shape of the result, `(N, O, H', W')`. The returned
    gradient has the shape `(N, C, *size)`. For the other arguments see `convolution`.

    Raises:
        ValueError: if y does not have the shape of the result of the convolution, or as in
            `convolution`.
    """
    sizes = for_each_axis("size", size, 2, least=0)
    check_positive("groups", groups)
    _check_axes(y=np.shape(y), weight=np.shape(weight))
    x = y.shape[0], weight.shape[1] * groups, *sizes
    geometry, _ = _checked(x, weight.shape, stride, padding, dilation, groups, y.shape)
    return kernels.convolution.input_gradient(y, weight, sizes, geometry)


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
    """The gradient of a convolution with respect to its weight, of height and width `size`.

    `y` is the arriving gradient, with the shape of the result, `(N, O, H', W')`. The returned
    gradient has the shape `(O, C / groups, *size)`. For the other arguments see `convolution`.

    Raises:
        ValueError: if y does not have the shape of the result of the convolution, or as in
            `convolution`.
    """
    sizes = for_each_axis("size", size, 2)
    check_positive("groups", groups)
    _check_axes(y=np.shape(y), x=np.shape(x))
    weight = y.shape[1], x.shape[1] // groups, *sizes
    geometry, _ = _checked(x.shape, weight, stride, padding, dilation, groups, y.shape)
    return kernels.convolution.weight_gradient(y, x, sizes, geometry)


# The VJPs are here, after all three ops, because each op is a VJP of the other two.
convolution.vjp(
    "x",
    lambda g, x_shape, weight, stride, padding, dilation, groups: convolution_input(
        g, weight, x_shape[2:], stride, padding, dilation, groups
    ),
)
convolution.vjp(
    "weight",
    lambda g, x, weight_shape, stride, padding, dilation, groups: convolution_weight(
        g, x, weight_shape[2:], stride, padding, dilation, groups
    ),
)
convolution.vjp("bias", lambda g: sum(g, (0, 2, 3)))
convolution_input.vjp(
    "y",
    lambda g, weight, stride, padding, dilation, groups: convolution(
        g, weight, None, stride, padding, dilation, groups
    ),
)
convolution_input.vjp(
    "weight",
    lambda g, y, weight_shape, stride, padding, dilation, groups: convolution_weight(
        y, g, weight_shape[2:], stride, padding, dilation, groups
    ),
)
convolution_weight.vjp(
    "y",
    lambda g, x, stride, padding, dilation, groups: convolution(
        x, g, None, stride, padding, dilation, groups
    ),
)
convolution_weight.vjp(
    "x",
    lambda g, y, x_shape, stride, padding, dilation, groups: convolution_input(
        y, g, x_shape[2:], stride, padding, dilation, groups
    ),
)


def _checked(
    x: Shape, weight: Shape, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int,
    y: Shape | None = None,
) -> tuple[Geometry, Shape]:  # fmt: skip
    """Return the options by axis, and the shape of the result, after checking them.

    `y` is the shape of an array that must have the shape of the result.
    """
    check_positive("groups", groups)
    geometry = Geometry(
        for_each_axis("stride", stride, 2), for_each_axis("padding", padding, 2, least=0),
        for_each_axis("dilation", dilation, 2), groups,
    )  # fmt: skip
    _check_axes(x=x, weight=weight)
    if 0 in weight:
        raise ValueError("weight must not be empty")
    if groups == 1 and x[1] != weight[1]:
        raise ValueError(f"x has {x[1]} channels, and the filters take {weight[1]}")
    if x[1] != weight[1] * groups or weight[0] % groups:
        found = f"{x[1]} channels and {weight[0]} filters of {weight[1]} channels"
        raise ValueError(
            f"{found} do not fit groups={groups}: groups must divide the filters, and x must "
            f"have groups times as many channels as a filter"
        )
    size = geometry.result_size(x[2:], weight[2:])
    if min(size) < 1:
        axis = size.index(min(size))
        length = x[2 + axis] + 2 * geometry.padding[axis]
        reach = geometry.dilation[axis] * (weight[2 + axis] - 1) + 1
        raise ValueError(
            f"a kernel that covers {reach} elements along axis {axis - 2} is larger than the "
            f"padded x, which has {length} there; pad more, or choose a smaller kernel or dilation"
        )
    shape = x[0], weight[0], *size
    if y is not None and y != shape:
        raise ValueError(
            f"y must have the shape of the result for images {x} and a weight {weight}, which is "
            f"{shape}; it has shape {y}"
        )
    return geometry, shape


def _check_axes(**shapes: Shape) -> None:
    """Raise an error unless all shapes have four axes, as images and filters do."""
    for name, shape in shapes.items():
        if len(shape) != 4:
            wanted = "those of images (N, C, H, W) or of filters (O, C / groups, h, w)"
            raise ValueError(f"{name} must have 4 axes, {wanted}; it has shape {shape}")
