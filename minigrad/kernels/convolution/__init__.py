"""Convolution and its two gradients, without a matrix of patches.

A row of the result is a sum over taps, one for each channel c and element (i, j) of the kernel:

    out[o, y, :] = sum over taps of weight[o, c, i, j] x[c, stride y + dilation i, shifted by j]

So a tile of the result is a tile of a matrix product in which the rows of B are at irregular
distances. A table has the position of each row, and the micro-kernel reads the rows in place. For
this, the numbers of a row must be adjacent. With padding or a stride, the lines (rows of x) for
some rows of the result are copied first: zeros are put around them, and their columns are sorted by
the remainder after division by the stride.

    plan        which lines a result reads, and the positions of its taps; found once for a shape
    lines       copying lines, and the loop of the forward pass; it also computes the gradient of x,
                with other taps for each remainder of an index after division by the stride
    row_sums    the gradient of the weight: products of rows of g with lines of x
    reference   the same in numpy
"""

from __future__ import annotations

import numpy as np

from minigrad.kernels.convolution import reference
from minigrad.kernels.convolution.lines import correlate
from minigrad.kernels.convolution.plan import LoopPlan, forward_plan, input_plans
from minigrad.kernels.convolution.row_sums import weight_sums
from minigrad.kernels.geometry import Geometry, Shape
from minigrad.kernels.jit import Array, nothing
from minigrad.kernels.launch import Kernel, kernel_for

SECONDS = 2e-11  # of a multiply-add on one thread, approximately


def convolve(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Compute a convolution: `(N, C, H, W)`, `(O, C / groups, h, w)` -> `(N, O, H', W')`."""
    kernel, taps = kernel_for(correlate, x, weight, bias), weight.shape[2:]
    size = geometry.result_size(x.shape[2:], taps)
    if kernel is None:
        return reference.convolve(x, weight, bias, size, geometry)
    out = np.empty((x.shape[0], weight.shape[0], *size), x.dtype)
    _run(kernel, x, weight, bias, forward_plan(x.shape, x.itemsize, taps, geometry), out)
    return out


def input_gradient(g: Array, weight: Array, size: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of a convolution by x, whose last axes have these sizes."""
    kernel = kernel_for(correlate, g, weight)
    if kernel is None:
        return reference.input_gradient(g, weight, size, geometry)
    (down, right), channels = geometry.stride, weight.shape[1] * geometry.groups
    every = down == right == 1  # one part is enough, because all taps reach each element of x
    dx = (np.empty if every else np.zeros)((g.shape[0], channels, *size), g.dtype)
    swapped = np.swapaxes(reference.grouped(weight, geometry.groups), 1, 2)  # (groups, C, O, h, w)
    for rows, cols, plan in input_plans(g.shape, g.itemsize, weight.shape[2:], size, geometry):
        target = dx[..., rows.first :: down, cols.first :: right]
        part = swapped[..., rows.taps, :][..., cols.taps].reshape(channels, -1)
        out = dx if every else np.empty(target.shape, g.dtype)
        _run(kernel, g, part, None, plan, out)
        if not every:
            target[...] = out
    return dx


def weight_gradient(g: Array, x: Array, size: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of a convolution by its weight, whose last axes have these sizes."""
    kernel = kernel_for(weight_sums, g, x)
    if kernel is None:
        return reference.weight_gradient(g, x, size, geometry)
    dw = np.zeros((g.shape[1], x.shape[1] // geometry.groups, *size), g.dtype)
    sums = dw.reshape(g.shape[1], -1)
    plan = forward_plan(x.shape, x.itemsize, size, geometry, blocks=1)
    kernel(g.size * sums.shape[1] * SECONDS, _planes(x), _planes(g), *plan, sums)
    return dw


def _run(
    kernel: Kernel, x: Array, weight: Array, bias: Array | None, plan: LoopPlan, out: Array
) -> None:
    """Run the loop of the forward pass, which also computes the gradient of x."""
    weight = np.ascontiguousarray(weight).reshape(weight.shape[0], -1)
    bias = nothing(x.dtype) if bias is None else np.ascontiguousarray(bias)
    kernel(out.size * weight.shape[1] * SECONDS, _planes(x), weight, bias, *plan, _planes(out))


def _planes(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(x.shape[0] * x.shape[1], -1)
