"""Convolution and its two gradients, without a matrix of patches.

A row of the result is a sum over taps, one for each channel c and element (i, j) of the kernel:

    out[o, y, :] = sum over taps of weight[o, c, i, j] x[c, stride y + dilation i, shifted by j]

So a tile of the result is a tile of a matrix product in which the rows of B are at irregular
distances. A table has the position of each row, and the micro-kernel reads the rows in place. For
this, the numbers of a row must be adjacent. With padding or a stride, the lines (rows of x) for
some rows of the result are copied first: zeros are put around them, and their columns are sorted by
the remainder after division by the stride. With many filters, these are the columns of the product
instead, and the numbers of an image are read one by one, at any distance.

    plan        which lines a result reads, and the positions of its taps; found once for a shape
    lines       copying lines, and the loop of the forward pass; it also computes the gradient of x,
                with other taps for each remainder of an index after division by the stride
    filter_sums the same for many filters, and the gradient of the weight: products whose columns
                are filters
    row_sums    the gradient of the weight for few filters: products of rows of g with lines of x

A 1x1 kernel has one tap for each channel. With many channels and pixels, each image is multiplied
by the matrix of filters, in the forward pass and for the gradient of x.

If there is no kernel, numpy computes with windows of x.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.kernels.convolution.filter_sums import sums_of_pixels, sums_of_taps
from minigrad.kernels.convolution.lines import correlate
from minigrad.kernels.convolution.plan import BLOCKS, LoopPlan, forward_plan, input_plans
from minigrad.kernels.convolution.row_sums import weight_sums
from minigrad.kernels.gemm import matmul
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.geometry import Geometry, Shape
from minigrad.kernels.jit import Array, nothing
from minigrad.kernels.launch import Kernel, kernel_for
from minigrad.kernels.vector import VECTOR

PARTS = 4  # of the images, for threads to share; each has sums of its own
LEAST_SECONDS = 2e-4  # of work; with less, parts do not pay
SMALL = 16 * 1024  # numbers of a weight; a larger one has enough tiles for threads to share
DEEP = 64  # taps of a sum; with fewer, transposing the sums takes too much of the time
LEAST_CHANNELS, LEAST_PIXELS = 32, 256  # from which a product is faster for a 1x1 kernel
SECONDS = 2e-11  # of a multiply-add on one thread, approximately


def convolve(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Compute a convolution: `(N, C, H, W)`, `(O, C / groups, h, w)` -> `(N, O, H', W')`."""
    if _is_product(weight, x, geometry):
        out = _multiply_images(weight[:, :, 0, 0], x)
        if bias is not None:
            out += bias[:, None, None]
        return out
    depth = math.prod(weight.shape[1:])
    many = _fill_vectors(weight.shape[0] // geometry.groups, depth, x.itemsize)
    kernel = kernel_for(sums_of_pixels if many else correlate, x, weight, bias)
    taps = weight.shape[2:]
    size = geometry.result_size(x.shape[2:], taps)
    shape = x.shape[0], weight.shape[0], *size
    if kernel is None:
        windows, filters = _windows(x, taps, size, geometry), _grouped(weight, geometry.groups)
        sums: Array = np.einsum("ngcyxij,gocij->ngoyx", windows, filters).reshape(shape)
        return sums if bias is None else sums + bias[:, None, None]
    out = np.empty(shape, x.dtype)
    plan = forward_plan(x.shape, x.itemsize, taps, geometry, 1 if many else BLOCKS, not many)
    _run(kernel, x, weight, bias, plan, out)
    return out


def input_gradient(g: Array, weight: Array, size: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of a convolution by x, whose last axes have these sizes."""
    if _is_product(weight, g, geometry):
        return _multiply_images(weight[:, :, 0, 0].T, g)
    (down, right), channels = geometry.stride, weight.shape[1] * geometry.groups
    depth = weight.size // max(1, channels * down * right)  # of a part, on average
    many = _fill_vectors(weight.shape[1], depth, g.itemsize)
    kernel = kernel_for(sums_of_pixels if many else correlate, g, weight)
    if kernel is None:
        return _add_to_windows(g, weight, size, geometry)
    is_whole = down == right == 1  # one part, because all taps reach each element of x
    dx = (np.empty if is_whole else np.zeros)((g.shape[0], channels, *size), g.dtype)
    swapped = np.swapaxes(_grouped(weight, geometry.groups), 1, 2)  # (groups, C, O, h, w)
    taps, blocks = weight.shape[2:], 1 if many else BLOCKS
    for rows, cols, plan in input_plans(g.shape, g.itemsize, taps, size, geometry, blocks):
        target = dx[..., rows.first :: down, cols.first :: right]
        part = swapped[..., rows.taps, cols.taps].reshape(channels, -1)
        out = dx if is_whole else np.empty(target.shape, g.dtype)
        _run(kernel, g, part, None, plan, out)
        if not is_whole:
            target[...] = out
    # The loop multiplies the zeros around g as well, and zero times infinity is nan. A weight that
    # is not finite shows in all sums of its channel that have the same remainders.
    if not np.isfinite(dx[0, :, :down, :right]).all() and not np.isfinite(weight).all():
        return _add_to_windows(g, weight, size, geometry)
    return dx


def weight_gradient(g: Array, x: Array, size: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of a convolution by its weight, whose last axes have these sizes."""
    filters, (MR, _, lanes, _) = g.shape[1] // geometry.groups, tile_shape(g.itemsize)
    # A tile with one vector for the filters is fast if most lanes are used, and if its MR sums are
    # so many that none waits for its last addition.
    is_fast = filters > lanes or (MR >= 8 and 4 * filters >= 3 * lanes)
    kernel = kernel_for(sums_of_taps if is_fast else weight_sums, g, x)
    shape = g.shape[1], x.shape[1] // geometry.groups, *size
    if kernel is None:
        windows, gs = _windows(x, size, g.shape[2:], geometry), _grouped(g, geometry.groups, 1)
        products: Array = np.einsum("ngcyxij,ngoyx->gocij", windows, gs)
        return products.reshape(shape)
    depth = math.prod(shape[1:])
    seconds = g.size * depth * SECONDS
    few_tiles = is_fast and shape[0] * depth <= SMALL
    parts = min(x.shape[0], PARTS) if few_tiles and seconds >= LEAST_SECONDS else 1
    sums = np.zeros((parts, *shape), g.dtype)
    plan = forward_plan(x.shape, x.itemsize, size, geometry, 1, not is_fast)
    kernel(seconds, _planes(x), _planes(g), *plan, sums.reshape(-1, depth))
    return sums[0] if parts == 1 else sums.sum(axis=0)


def _is_product(weight: Array, images: Array, geometry: Geometry) -> bool:
    """Return whether each element of the result depends on one pixel, and a product is faster."""
    kernel, (stride, padding, _, groups) = weight.shape[2:], geometry
    is_pointwise = kernel == stride == (1, 1) and padding == (0, 0) and groups == 1
    pixels = math.prod(images.shape[2:])
    return is_pointwise and min(weight.shape[:2]) >= LEAST_CHANNELS and pixels >= LEAST_PIXELS


def _multiply_images(matrix: Array, x: Array) -> Array:
    """Multiply the channels of each image by a matrix: `(O, C)`, `(N, C, ...)` -> `(N, O, ...)`."""
    products = matmul(matrix, x.reshape(*x.shape[:2], math.prod(x.shape[2:])))
    return products.reshape(x.shape[0], len(matrix), *x.shape[2:])


def _fill_vectors(filters: int, depth: int, itemsize: int) -> bool:
    """Return whether tiles with vectors of filters are fast: these are full, and taps are many."""
    return filters * itemsize > VECTOR and depth >= DEEP


def _run(
    kernel: Kernel, x: Array, weight: Array, bias: Array | None, plan: LoopPlan, out: Array
) -> None:
    """Run the loop of the forward pass, which also computes the gradient of x."""
    weight = np.ascontiguousarray(weight).reshape(weight.shape[0], -1)
    bias = nothing(x.dtype) if bias is None else np.ascontiguousarray(bias)
    kernel(out.size * weight.shape[1] * SECONDS, _planes(x), weight, bias, *plan, _planes(out))


def _planes(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(x.shape[0] * x.shape[1], -1)


# --------------------------------------------------------------------------------------------------
# In numpy
# --------------------------------------------------------------------------------------------------


def _add_to_windows(g: Array, weight: Array, size: Shape, geometry: Geometry) -> Array:
    """Add each element of g, times the kernel, to the window of x that it was computed from."""
    (top, left), (down, right), (tall, wide) = geometry.padding, geometry.stride, geometry.dilation
    images, (rows, cols), channels = g.shape[0], g.shape[2:], weight.shape[1] * geometry.groups
    shape = images, channels, size[0] + 2 * top, size[1] + 2 * left
    padded = np.zeros(shape, np.result_type(g, weight))
    filters, of_group = _grouped(weight, geometry.groups), _grouped(g, geometry.groups, 1)
    for i, j in np.ndindex(*weight.shape[2:]):
        seen = np.einsum("ngoyx,goc->ngcyx", of_group, filters[..., i, j])
        y, x = i * tall, j * wide
        window = padded[..., y : y + rows * down : down, x : x + cols * right : right]
        window += seen.reshape(images, channels, rows, cols)
    return padded[..., top : top + size[0], left : left + size[1]]


def _grouped(x: Array, groups: int, axis: int = 0) -> Array:
    """Cut an axis into groups: axis 0 of a weight, or axis 1 of images."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _windows(x: Array, kernel: Shape, size: Shape, geometry: Geometry) -> Array:
    """Return the window for each element of the result, `(N, groups, C, H', W', h, w)`."""
    (top, left), (down, right), (tall, wide) = geometry.padding, geometry.stride, geometry.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    reach = (tall * (kernel[0] - 1) + 1, wide * (kernel[1] - 1) + 1)
    seen = sliding_window_view(padded, reach, (2, 3))[:, :, ::down, ::right, ::tall, ::wide]
    return _grouped(seen[:, :, : size[0], : size[1]], geometry.groups, 1)
