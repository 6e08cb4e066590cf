"""Reductions over axes, and cumulative sums and products along one axis.

`axis` is an int, a tuple of ints, or None for all axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from minigrad import kernels
from minigrad.core.blocked_sum import sum_over
from minigrad.core.op import op
from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.ops.comparison import all, any, isfinite, logical_and, logical_or
from minigrad.ops.of_numpy import reducer
from minigrad.ops.shape import (
    as_tuple,
    astype,
    broadcast_to,
    concatenate,
    flag,
    flip,
    getitem,
    is_last,
    normalize_axes,
    reduced,
    reshape,
    transpose,
)


@op(linear=("x",))
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum over `axis`: an int, a tuple of ints, or None for all; 0 for an empty axis.

    Raises:
        ValueError: if an axis does not exist or is repeated.
        TypeError: if an axis is not an integer, or `keepdims` is not True or False.
    """
    return sum_over(x, as_tuple(axis), flag(keepdims))


def _spread(g: Array, shape: Sequence[int], axis: Axis) -> Array:
    """Broadcast the gradient of a sum over `axis` to the shape of the summed array."""
    if axis is None:  # most losses end with this; skip the calls of ops
        return (broadcast_to if isinstance(g, Tensor) else broadcast_to.forward)(g, shape)
    return broadcast_to(reshape(g, reduced(shape, axis, keepdims=True)), shape)


sum.vjp("x", lambda g, x_shape, axis: _spread(g, x_shape, axis))


def count_along(shape: Sequence[int], axis: Axis) -> int:
    """Return how many elements a reduction over `axis` combines into one; an error if it is 0."""
    axes = None if axis is None else normalize_axes(axis, len(shape))
    count = math.prod(shape if axes is None else (shape[i] for i in axes))
    if count == 0:
        raise ValueError(f"shape {tuple(shape)} has no elements along axis {axis}")
    return count


@op(linear=("x",), floats=True)
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The mean over `axis`: an int, a tuple of ints, or None for all.

    Raises:
        ValueError: if there are no elements to average, or an axis does not exist or is repeated.
        TypeError: if an axis is not an integer, or `keepdims` is not True or False.
    """
    return sum_over(x, as_tuple(axis), flag(keepdims)) / count_along(x.shape, axis)


@mean.vjp("x")
def _mean_x(g: Array, x_shape: Sequence[int], axis: Axis) -> Array:
    count = count_along(x_shape, axis)
    # In float16, a count above 65504 is infinite, but its reciprocal is not 0.
    share = g * (1 / count) if g.dtype == np.float16 and count else g / count
    return _spread(share, x_shape, axis)


_EXTREME = (
    "The {} element over `axis`, or nan if there is one; equal elements share the gradient. Raises "
    "a ValueError if there are no elements, or an axis does not exist, and a TypeError if "
    "`keepdims` is not True or False."
)
max = reducer("max", _EXTREME.format("largest"), "maximum")
min = reducer("min", _EXTREME.format("smallest"), "minimum")


@max.vjp("x")
@min.vjp("x")
def _to_the_chosen(g: Array, x: Array, axis: Axis, out: Array) -> Array:
    shape = reduced(x.shape, axis, keepdims=True)
    chosen = x == reshape(out, shape)
    if any(out != out):  # a nan was chosen, and is not equal to itself
        chosen = logical_or(chosen, x != x)
    # In float16, a count above 65504 would be infinite.
    chosen = astype(chosen, np.float32 if g.dtype == np.float16 else g.dtype)
    return chosen * (reshape(g, shape) / sum(chosen, axis, keepdims=True))


@op(
    linear=("x",),
    cost=lambda x: x.size,
    shape=lambda x, axis: (x.size,) if axis is None else x.shape,
)
def cumsum(x: Array, axis: int | None = None) -> Array:
    """The cumulative sums x[0] + ... + x[i] along `axis`; with None, of the flattened array.

    Sums of float16 and float32 are added up in float32 and float64, and rounded then.

    Raises:
        ValueError: if the axis does not exist.
    """
    x = np.asarray(x)
    if is_last(axis, x) and x.dtype == np.float32:
        return kernels.reduction.cumsum(x)
    wider = {2: np.float32, 4: np.float64}.get(x.itemsize) if x.dtype.kind == "f" else None
    sums = np.cumsum(x, axis, wider)
    return sums.astype(x.dtype) if wider else sums


cumsum.vjp("x", lambda g, x_shape, axis: reshape(_sums_from_the_end(g, axis), x_shape))


def _sums_from_the_end(g: Array, axis: int | None) -> Array:
    return flip(cumsum(flip(g, axis), axis), axis)


prod = reducer(
    "prod",
    "The product over `axis`; 1 for an empty axis. The derivative is the product of the other "
    "elements, also if some are 0. Raises a ValueError if an axis does not exist, and a "
    "TypeError if `keepdims` is not True or False.",
    "multiply",
)


@prod.vjp("x")
def _prod_x(g: Array, x: Array, axis: Axis, out: Array) -> Array:
    g = reshape(g, reduced(x.shape, axis, keepdims=True))
    if _divisible(out):
        return g * (reshape(out, g.shape) / x)
    rows, arranged_as_x = _rows(x, axis)
    before = cumprod(_shifted(rows, 1, 1.0), -1)
    after = flip(cumprod(flip(_shifted(rows, -1, 1.0), -1), -1), -1)
    return g * arranged_as_x(before * after)


@op
def cumprod(x: Array, axis: int | None = None) -> Array:
    """The cumulative products x[0] ... x[i] along `axis`; with None, of the flattened array.

    The derivative is correct even if some elements are 0.

    Raises:
        ValueError: if the axis does not exist.
    """
    return np.cumprod(x, axis)


@cumprod.vjp("x")
def _cumprod_x(g: Array, x: Array, axis: int | None, out: Array) -> Array:
    if _divisible(out):
        return reshape(_sums_from_the_end(g * out, axis), x.shape) / x
    # Without a division: the product of all x before x[i], times s[i] = g[i] + x[i+1] s[i+1].
    # Segments of this recurrence are joined in pairs until a segment is a complete row.
    rows, arranged_as_x = _rows(x, axis)
    before = cumprod(_shifted(rows, 1, 1.0), -1)
    s, _ = _rows(reshape(g, x.shape), axis)
    factor = _shifted(rows, -1, 0.0)
    length = 1
    while length < rows.shape[-1]:
        s = s + factor * _shifted(s, -length, 0.0)
        factor = factor * _shifted(factor, -length, 0.0)
        length *= 2
    return arranged_as_x(before * s)


def _divisible(products: Array) -> bool:
    """Return whether products can be divided by a factor: none is out of range or too small."""
    # A subnormal number has lost digits, and so would the quotient.
    is_normal = abs(products) >= np.finfo(products.dtype).tiny
    return bool(all(logical_and(isfinite(products), is_normal)))


def _rows(x: Array, axis: Axis) -> tuple[Array, Callable[[Array], Array]]:
    """Join the reduced axes to one last axis; return also a function that undoes this."""
    axes = normalize_axes(axis, x.ndim)
    others = [i for i in range(x.ndim) if i not in axes]
    order = [*others, *axes]
    moved = transpose(x, order)
    sizes = moved.shape[: len(others)]
    rows = reshape(moved, (*sizes, math.prod(moved.shape[len(others) :])))
    back = [order.index(i) for i in range(x.ndim)]
    return rows, lambda result: transpose(reshape(result, moved.shape), back)


def _shifted(x: Array, steps: int, filling: float) -> Array:
    """Shift along the last axis by `steps` (negative: to the front), and fill the gap."""
    filler = np.full((*x.shape[:-1], abs(steps)), filling, x.dtype)
    if steps > 0:
        return concatenate([filler, getitem(x, (..., slice(None, -steps)))], -1)
    return concatenate([getitem(x, (..., slice(-steps, None))), filler], -1)
