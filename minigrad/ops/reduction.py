"""Reductions over axes: `axis` is an int, a tuple of ints, or None for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minigrad.op import op
from minigrad.ops.elementwise import exp
from minigrad.ops.shape import astype, broadcast_to, reshape
from minigrad.tensor import Array, Axis

# What np.sum and np.max end in, without the way there, which takes longer than a small array does.
# Any, for numpy's stubs know `keepdims` as a literal only.
_sum: Any = np.add.reduce
_max: Any = np.maximum.reduce


def kept(shape: Sequence[int], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with keepdims."""
    axes = range(len(shape)) if axis is None else normalize_axis_tuple(axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def axes_of(axis: Axis) -> Any:
    """The axes as numpy takes them, which is not in a list."""
    return tuple(axis) if isinstance(axis, list) else axis


@op
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum over `axis`."""
    return _sum(x, axis=axes_of(axis), keepdims=keepdims)


sum.rule("x", lambda g, x_shape, axis: broadcast_to(reshape(g, kept(x_shape, axis)), x_shape))


@op
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The largest element over `axis`; where several are the largest, they share the gradient.

    Raises:
        ValueError: if there is nothing to choose from.
    """
    return _max(x, axis=axes_of(axis), keepdims=keepdims)


@max.rule("x")
def _max_x(g: Array, x: Array, axis: Axis, out: Array) -> Array:
    shape = kept(x.shape, axis)
    largest = astype(x == reshape(out, shape), g.dtype)
    return largest * (reshape(g, shape) / sum(largest, axis, keepdims=True))


@op
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """log(sum(e^x)) over `axis`, without overflow.

    Raises:
        ValueError: if there is nothing to sum.
    """
    axis = axes_of(axis)
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0).astype(top.dtype)
    with np.errstate(divide="ignore"):  # the logarithm of an empty sum is -inf
        out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keepdims else out.reshape(np.squeeze(out, axis=axis).shape)


@logsumexp.rule("x")
def _logsumexp_x(g: Array, x: Array, axis: Axis, out: Array) -> Array:
    shape = kept(x.shape, axis)
    return reshape(g, shape) * exp(x - reshape(out, shape))
