"""Convolution and its gradients in numpy: sums over windows."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minigrad.kernels.geometry import Geometry, Shape
from minigrad.kernels.jit import Array


def convolve(x: Array, weight: Array, bias: Array | None, size: Shape, geometry: Geometry) -> Array:
    """Compute a convolution whose result has this size."""
    windows = _windows(x, weight.shape[2:], size, geometry)
    out: Array = np.einsum("ngcyxij,gocij->ngoyx", windows, grouped(weight, geometry.groups))
    out = out.reshape(x.shape[0], weight.shape[0], *size)
    return out if bias is None else out + bias[:, None, None]


def input_gradient(g: Array, weight: Array, size: Shape, geometry: Geometry) -> Array:
    """Add each element of g, times the kernel, to the window of x that it was computed from."""
    (top, left), (down, right), (tall, wide) = geometry.padding, geometry.stride, geometry.dilation
    images, (rows, cols), channels = g.shape[0], g.shape[2:], weight.shape[1] * geometry.groups
    shape = images, channels, size[0] + 2 * top, size[1] + 2 * left
    padded = np.zeros(shape, np.result_type(g, weight))
    filters, of_group = grouped(weight, geometry.groups), _groups_of_planes(g, geometry.groups)
    for i, j in np.ndindex(*weight.shape[2:]):
        seen = np.einsum("ngoyx,goc->ngcyx", of_group, filters[..., i, j])
        y, x = i * tall, j * wide
        window = padded[..., y : y + rows * down : down, x : x + cols * right : right]
        window += seen.reshape(images, channels, rows, cols)
    return padded[..., top : top + size[0], left : left + size[1]]


def weight_gradient(g: Array, x: Array, size: Shape, geometry: Geometry) -> Array:
    """Compute the gradient of a convolution by its weight, whose last axes have these sizes."""
    windows = _windows(x, size, g.shape[2:], geometry)
    out: Array = np.einsum("ngcyxij,ngoyx->gocij", windows, _groups_of_planes(g, geometry.groups))
    return out.reshape(g.shape[1], x.shape[1] // geometry.groups, *size)


def grouped(weight: Array, groups: int) -> Array:
    """Return a weight as `(groups, O / groups, C / groups, h, w)`."""
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _groups_of_planes(x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _windows(x: Array, kernel: Shape, size: Shape, geometry: Geometry) -> Array:
    """Return the window for each element of the result, `(N, groups, C, H', W', h, w)`."""
    (top, left), (down, right), (tall, wide) = geometry.padding, geometry.stride, geometry.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    reach = (tall * (kernel[0] - 1) + 1, wide * (kernel[1] - 1) + 1)
    seen = sliding_window_view(padded, reach, (2, 3))[:, :, ::down, ::right, ::tall, ::wide]
    return _groups_of_planes(seen[:, :, : size[0], : size[1]], geometry.groups)
