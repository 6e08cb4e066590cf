"""Batch norm and group norm: moments of channels, the result, and the gradients.

x is seen as (N, C, inner): a row for each channel of each element of the batch. The backward pass
reads memory twice. First a loop sums each row; from these sums, numpy computes the means that rows
share, in float64. With m the number of elements that share a mean and a variance,

    standard = (x - mean) rstd,   rstd = 1 / sqrt(variance + eps),   d = g weight
    dx = rstd (d - sum(d) / m - standard sum(d standard) / m)
    dweight = sum over all rows of the channel of g standard,   dbias = sum of g
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.kernels.jit import Array, Read, Written, jit, nothing
from minigrad.kernels.launch import for_each_dtype, kernel_for, span
from minigrad.kernels.normalization import STRETCH, about_pivot

SECONDS = 1.5e-10  # approximate seconds of an element in one pass
SHORT = 16  # elements; if rows are shorter, all rows of a channel become one row

Doubles = Annotated[Read.D2, types.float64]
WrittenDoubles = Annotated[Written.D2, types.float64]


def moments(x: Array, num_groups: int | None) -> Array:
    """Compute the mean and variance of each channel, or of each group in each batch element.

    x is `(N, C, ...)`, not of size 0. The result is `(2, N, num_groups)`, or else `(2, 1, C)`.
    """
    rows = _rows(x, num_groups is None)
    if num_groups is not None:  # the channels of a group are one row
        rows = rows.reshape(len(x), num_groups, x.shape[1] // num_groups * rows.shape[2])
    kernel = kernel_for(_moments_loop, rows)
    if kernel is not None:
        of_rows = np.empty((2, *rows.shape[:2]))
        kernel(x.size * SECONDS, _flat(rows), of_rows.reshape(2, -1))
    else:
        of_rows = np.stack([np.mean(rows, 2, np.float64), np.var(rows, 2, np.float64)])
    if num_groups is not None:
        return of_rows
    mean, variance = of_rows
    common = np.mean(mean, 0, keepdims=True)
    variance = np.mean(variance + np.square(mean - common), 0, keepdims=True)
    return np.stack([common, variance])


def norm(
    x: Array, moments: Array, weight: Array | None, bias: Array | None, eps: float,
    num_groups: int | None,
) -> Array:  # fmt: skip
    """Compute `weight` standard + `bias`; these have shape `(C,)`, or are None for 1 and 0."""
    rows = _rows(x, num_groups is None)
    xs, out = _flat(rows), np.empty_like(rows)
    of_rows = _of_rows(x, moments, weight, eps, num_groups)
    kernel = kernel_for(_scaled_loop, x, weight, bias)
    if kernel is not None:
        summands = nothing(x.dtype) if bias is None else bias.ravel()
        kernel(2 * x.size * SECONDS, xs, *of_rows, summands, _flat(out))
    else:
        mean, _, scale = _in_columns(rows, *of_rows)
        summands = np.zeros(1) if bias is None else np.tile(bias, len(rows))
        _flat(out)[...] = (xs - mean) * scale + summands[:, None]
    return _from_rows(out, x.shape)


def norm_gradients(
    g: Array, x: Array, moments: Array, weight: Array | None, eps: float, num_groups: int | None,
    is_fixed: bool, needs_input_grad: Sequence[bool],
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Compute those gradients of `norm` by x, weight and bias that are needed.

    Unless the moments are fixed, they are functions of x, computed with this `num_groups`.
    """
    if is_fixed and not any(needs_input_grad[1:]):
        without_mean = moments * np.array([0, 1])[:, None, None]
        return norm(g, without_mean, weight, None, eps, num_groups), None, None
    rows = _rows(x, num_groups is None)
    xs, gs = _flat(rows), _flat(_rows(g, num_groups is None))
    of_rows = _of_rows(x, moments, weight, eps, num_groups)
    sums = np.empty((2, *rows.shape[:2]))
    dx = np.empty_like(rows) if needs_input_grad[0] else None
    scaled = _flat(dx) if dx is not None and is_fixed else nothing(x.dtype, 2)
    kernel = kernel_for(_row_sums_loop, x, g, weight)
    if kernel is not None:
        kernel(2 * x.size * SECONDS, gs, xs, *of_rows, scaled, sums.reshape(2, -1))
    else:
        mean, rstd, scale = _in_columns(rows, *of_rows)
        gs = gs.astype(np.float64)
        sums.reshape(2, -1)[:] = gs.sum(1), (gs * ((xs - mean) * rstd)).sum(1)
        if scaled.size:
            scaled[...] = gs * scale
    if dx is not None and not is_fixed:
        weighted = sums if weight is None else sums * weight
        if num_groups is None:
            shared = weighted.sum(1)
        else:
            shared = weighted.reshape(2, moments[0].size, x.shape[1] // num_groups).sum(2)
        shared /= x.size / max(1, moments[0].size)
        if kernel is not None:
            kernel = _input_gradient_loop[x.dtype]
            kernel(3 * x.size * SECONDS, gs, xs, *of_rows, shared, _flat(dx))
        else:
            of_d, of_products, _ = _in_columns(rows, shared, *of_rows[1:])
            _flat(dx)[...] = gs * scale - rstd * (of_d + (xs - mean) * rstd * of_products)
    dweight, dbias = (
        each.sum(0).astype(x.dtype) if is_needed else None
        for each, is_needed in zip(sums[::-1], needs_input_grad[1:], strict=True)
    )
    return None if dx is None else _from_rows(dx, x.shape), dweight, dbias


def _rows(x: Array, by_channel: bool) -> Array:
    """Return x as (N, C, inner), contiguous; or (1, C, N inner) for short rows if `by_channel`."""
    count, channels, inner = *x.shape[:2], math.prod(x.shape[2:])
    if by_channel and inner < SHORT:
        joined = x.reshape(count, channels, inner).swapaxes(0, 1)
        return np.ascontiguousarray(joined).reshape(1, channels, count * inner)
    return np.ascontiguousarray(x).reshape(count, channels, inner)


def _from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """Return rows from `_rows` in the original shape; not as a view, which a leaf would copy."""
    if len(rows) != shape[0]:
        apart = rows.reshape(shape[1], shape[0], math.prod(shape[2:]))
        rows = np.ascontiguousarray(apart.swapaxes(0, 1))
    rows.resize(shape)
    return rows


def _of_rows(
    x: Array, moments: Array, weight: Array | None, eps: float, num_groups: int | None
) -> tuple[Array, Array, int]:
    """Return what the loops need to find the numbers of a row (see `_numbers`).

    These are means and rstds, weights, and the number of adjacent rows that have the same moments,
    or 0 if rows of the same channel have.
    """
    mean, variance = moments
    mean_and_rstd = np.array([mean, 1 / np.sqrt(variance + eps)]).reshape(2, -1)
    factors = np.ones(x.shape[1], x.dtype) if weight is None else weight.ravel()
    return mean_and_rstd, factors, 0 if num_groups is None else x.shape[1] // num_groups


def _in_columns(rows: Array, pair: Array, weight: Array, together: int) -> tuple[Any, ...]:
    """Return two numbers of each row, and the second times the weight, for numpy: `(rows, 1)`."""
    first, second = np.repeat(pair, together, 1) if together else np.tile(pair, len(rows))
    return first[:, None], second[:, None], (second * np.tile(weight, len(rows)))[:, None]


def _flat(rows: Array) -> Array:
    return rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2])


# --------------------------------------------------------------------------------------------------
# Passes over memory
# --------------------------------------------------------------------------------------------------


@for_each_dtype()
def _moments_loop(piece: int, pieces: int, x: Read.D2, out: WrittenDoubles) -> None:
    for row in span(piece, pieces, len(x)):
        pivot, off, variance, _, _ = about_pivot(x[row], True, x[row], x[row])
        out[0, row] = pivot + off
        out[1, row] = 0.0 if variance < 0 else variance  # negative only by rounding


@jit(inline="always")
def _numbers(
    row: int, before: int, moments: Any, weight: Any, together: int
) -> tuple[int, int, Any, Any, Any]:
    """Return a row's channel, the index of its moments, its mean, and rstd without and with weight.

    `before` is the channel of the row before: to count channels is faster than to divide.
    """
    channel = before + 1 if before + 1 < weight.size else 0
    index = row // together if together else channel
    rstd = moments[1, index]
    return channel, index, moments[0, index], rstd, rstd * weight[channel]


@for_each_dtype()
def _scaled_loop(
    piece: int, pieces: int, x: Read.D2, moments: Doubles, weight: Read.D1,
    together: int, bias: Read.D1, out: Written.D2,
) -> None:  # fmt: skip
    number, rows = x.dtype.type, span(piece, pieces, len(x))
    channel = rows.start % weight.size - 1
    for row in rows:
        xs, outs = x[row], out[row]
        channel, _, mean, _, scale = _numbers(row, channel, moments, weight, together)
        pivot = number(mean)
        shift = (pivot - mean) * scale  # the digits that the mean loses when it is rounded to pivot
        if bias.size:
            shift += bias[channel]
        factor, summand = number(scale), number(shift)
        for i in range(xs.size):
            outs[i] = (xs[i] - pivot) * factor + summand


@for_each_dtype()
def _input_gradient_loop(
    piece: int, pieces: int, g: Read.D2, x: Read.D2, moments: Doubles, weight: Read.D1,
    together: int, shared: Doubles, out: Written.D2,
) -> None:  # fmt: skip
    """Compute dx; `shared` has the means of d and of d standard."""
    number, rows = x.dtype.type, span(piece, pieces, len(x))
    channel = rows.start % weight.size - 1
    for row in rows:
        gs, xs, outs = g[row], x[row], out[row]
        channel, index, mean, rstd, scale = _numbers(row, channel, moments, weight, together)
        pivot = number(mean)
        slope = rstd * rstd * shared[1, index]
        constant = number(rstd * shared[0, index] + (pivot - mean) * slope)
        factor, x_factor = number(scale), number(slope)
        for i in range(xs.size):
            outs[i] = gs[i] * factor - (xs[i] - pivot) * x_factor - constant


@jit(fastmath={"reassoc", "contract"})
def _sums_of_stretch(g: Any, x: Any, pivot: Any) -> Any:
    total = products = x.dtype.type(0)
    for i in range(x.size):
        total += g[i]
        products += g[i] * (x[i] - pivot)
    return total, products


@for_each_dtype()
def _row_sums_loop(
    piece: int, pieces: int, g: Read.D2, x: Read.D2, moments: Doubles, weight: Read.D1,
    together: int, scaled: Written.D2, sums: WrittenDoubles,
) -> None:  # fmt: skip
    """Compute the sums of g and of g standard in each row, and g rstd weight if there is room."""
    number, rows = x.dtype.type, span(piece, pieces, len(x))
    channel = rows.start % weight.size - 1
    for row in rows:
        channel, _, mean, rstd, scale = _numbers(row, channel, moments, weight, together)
        total, products, pivot, factor = 0.0, 0.0, number(mean), number(scale)
        for start in range(0, x.shape[1], STRETCH):
            gs, xs = g[row, start : start + STRETCH], x[row, start : start + STRETCH]
            of_stretch = _sums_of_stretch(gs, xs, pivot)
            total += of_stretch[0]
            products += of_stretch[1]
            if scaled.size:  # here, because g is still in the level-1 cache
                outs = scaled[row, start : start + STRETCH]
                for i in range(outs.size):
                    outs[i] = gs[i] * factor
        sums[0, row] = total
        sums[1, row] = (products + (pivot - mean) * total) * rstd
