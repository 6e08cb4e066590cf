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

    x is `(N, C, ...)`, not of size 0. The result is `(2, N, num_groups)`; or `(2, 1, C)`, without
    groups.
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
    kernel = kernel_for(_scaled_loop, x, weight, bias)
    if kernel is None:
        out, _ = _standardised(x, moments, eps)
        out = out if weight is None else out * weight[:, None]
        out = out if bias is None else out + bias[:, None]
        return _from_rows(out.astype(x.dtype), x.shape)
    rows = _rows(x, num_groups is None)
    out, summands = np.empty_like(rows), nothing(x.dtype) if bias is None else bias.ravel()
    of_rows = _of_rows(x, moments, weight, eps, num_groups)
    kernel(2 * x.size * SECONDS, _flat(rows), *of_rows, summands, _flat(out))
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
    sums_kernel = kernel_for(_row_sums_loop, x, g, weight)
    if sums_kernel is None:
        found = _gradients_in_numpy(g, x, moments, weight, eps, num_groups, is_fixed)
        dx, dweight, dbias = (
            each if is_needed else None
            for each, is_needed in zip(found, needs_input_grad, strict=True)
        )
        return dx, dweight, dbias
    rows, gs = _rows(x, num_groups is None), _rows(g, num_groups is None)
    of_rows = _of_rows(x, moments, weight, eps, num_groups)
    sums = np.empty((2, rows.shape[0] * rows.shape[1]))
    dx = np.empty_like(rows) if needs_input_grad[0] else None
    scaled = _flat(dx) if dx is not None and is_fixed else nothing(x.dtype, 2)
    sums_kernel(2 * x.size * SECONDS, _flat(gs), _flat(rows), *of_rows, scaled, sums)
    sums = sums.reshape(2, *rows.shape[:2])
    if dx is not None and not is_fixed:
        weighted = sums if weight is None else sums * weight
        if num_groups is None:
            shared = weighted.sum(1)
        else:
            shared = weighted.reshape(2, moments[0].size, -1).sum(2)
        shared /= x.size / moments[0].size
        kernel = _input_gradient_loop[x.dtype]
        kernel(3 * x.size * SECONDS, _flat(gs), _flat(rows), *of_rows, shared, _flat(dx))
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
) -> tuple[Any, ...]:
    """Return what the loops need to find the numbers of a row (see `_numbers`).

    These are means and rstds, weights, and the number of adjacent rows that have the same moments,
    or 0 if rows of the same channel have.
    """
    mean, variance = moments
    mean_and_rstd = np.array([mean, 1 / np.sqrt(variance + eps)]).reshape(2, -1)
    factors = np.ones(x.shape[1], x.dtype) if weight is None else weight.ravel()
    return mean_and_rstd, factors, 0 if num_groups is None else x.shape[1] // num_groups


def _flat(rows: Array) -> Array:
    return rows.reshape(-1, rows.shape[2])


# --------------------------------------------------------------------------------------------------
# In numpy
# --------------------------------------------------------------------------------------------------


def _standardised(x: Array, moments: Array, eps: float) -> tuple[Array, Array]:
    """Return (x - mean) rstd, `(N, C, inner)`, and rstd, `(N or 1, C, 1)`, in float64."""
    mean, variance = np.repeat(moments, x.shape[1] // moments.shape[2], 2)[..., None]
    rstd = 1 / np.sqrt(variance + eps)
    return (_rows(x, False) - mean) * rstd, rstd


def _gradients_in_numpy(
    g: Array, x: Array, moments: Array, weight: Array | None, eps: float, num_groups: int | None,
    is_fixed: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Compute all gradients of `norm`."""
    standard, rstd = _standardised(x, moments, eps)
    gs = g.reshape(standard.shape).astype(np.float64)
    d = gs if weight is None else gs * weight[:, None]

    def average(values: Array) -> Array:
        """Return the mean over all elements that share their moments."""
        if num_groups is None:
            return np.mean(values, (0, 2), keepdims=True)
        groups = values.reshape(len(x), num_groups, math.prod(x.shape[1:]) // num_groups).mean(2)
        return np.repeat(groups, x.shape[1] // num_groups, 1)[..., None]

    dx = d * rstd if is_fixed else rstd * (d - average(d) - standard * average(d * standard))
    of_channels = (gs * standard).sum((0, 2)), gs.sum((0, 2))
    dweight, dbias = (sums.astype(x.dtype) for sums in of_channels)
    return _from_rows(dx.astype(x.dtype), x.shape), dweight, dbias


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
    row: int, channel: int, moments: Any, weight: Any, together: int
) -> tuple[int, Any, Any, Any]:
    """Return the index of a row's moments, its mean, and its rstd without and with the weight."""
    index = row // together if together else channel
    rstd = moments[1, index]
    return index, moments[0, index], rstd, rstd * weight[channel]


@for_each_dtype()
def _scaled_loop(
    piece: int, pieces: int, x: Read.D2, moments: Doubles, weight: Read.D1,
    together: int, bias: Read.D1, out: Written.D2,
) -> None:  # fmt: skip
    number, rows = x.dtype.type, span(piece, pieces, len(x))
    channel = rows.start % weight.size - 1
    for row in rows:
        channel = channel + 1 if channel + 1 < weight.size else 0  # faster than a division
        xs, outs = x[row], out[row]
        _, mean, _, scale = _numbers(row, channel, moments, weight, together)
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
        channel = channel + 1 if channel + 1 < weight.size else 0  # faster than a division
        gs, xs, outs = g[row], x[row], out[row]
        index, mean, rstd, scale = _numbers(row, channel, moments, weight, together)
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
        channel = channel + 1 if channel + 1 < weight.size else 0  # faster than a division
        _, mean, rstd, scale = _numbers(row, channel, moments, weight, together)
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
