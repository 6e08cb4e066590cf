"""Batch norm and group norm: moments of channels, the result, and the gradients.

x is seen as (N, C, inner): a row for each channel of each element of the batch. The loops over
memory compute one number for each row. From these, numpy computes what rows share, in float64. With
m the number of elements that share a mean and a variance,

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

Doubles = Annotated[Written.D2, types.float64]


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
    rows = _rows(x, num_groups is None)
    mean, rstd = _of_rows(rows, moments, eps)
    scale = rstd if weight is None else rstd * weight
    pivot = mean.astype(x.dtype)
    shift = (pivot - mean) * scale  # the digits that the mean loses when it is rounded to pivot
    shift = shift if bias is None else shift + bias
    return _from_rows(_scaled(rows, pivot, scale, shift), x.shape)


def norm_gradients(
    g: Array, x: Array, moments: Array, weight: Array | None, eps: float, num_groups: int | None,
    is_fixed: bool, needs_input_grad: Sequence[bool],
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Compute those gradients of `norm` by x, weight and bias that are needed.

    Unless the moments are fixed, they are functions of x, computed with this `num_groups`.
    """
    rows, gs = _rows(x, num_groups is None), _rows(g, num_groups is None)
    mean, rstd = _of_rows(rows, moments, eps)
    scale = rstd if weight is None else rstd * weight
    pivot = mean.astype(x.dtype)
    if is_fixed and not any(needs_input_grad[1:]):
        zero = np.zeros_like(pivot)
        return _from_rows(_scaled(gs, zero, scale, zero), x.shape), None, None
    total, products, dx = _row_sums(
        gs, rows, pivot, scale if is_fixed and needs_input_grad[0] else None
    )
    products = (products + (pivot - mean) * total) * rstd
    if dx is not None:
        dx = _from_rows(dx, x.shape)
    elif needs_input_grad[0]:
        factor = 1.0 if weight is None else weight
        x_factor = rstd * rstd * _shared(products * factor, rows, num_groups)
        constant = rstd * _shared(total * factor, rows, num_groups) + (pivot - mean) * x_factor
        dx = _from_rows(_input_gradient_rows(gs, rows, pivot, scale, x_factor, constant), x.shape)
    dweight, dbias = (
        sums.sum(0).astype(x.dtype) if is_needed else None
        for sums, is_needed in zip((products, total), needs_input_grad[1:], strict=True)
    )
    return dx, dweight, dbias


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


def _of_rows(rows: Array, moments: Array, eps: float) -> tuple[Array, Array]:
    """Return the mean and 1 / sqrt(variance + eps) of each row, `(N or 1, C)`."""
    mean, variance = np.repeat(moments, rows.shape[1] // moments.shape[2], 2)
    return mean, 1 / np.sqrt(variance + eps)


def _shared(values: Array, rows: Array, num_groups: int | None) -> Array:
    """Return, for rows that share a mean, the sum of their values divided by their elements."""
    if num_groups is None:
        shared: Array = values.sum(0, keepdims=True) / (rows.shape[0] * rows.shape[2])
        return shared
    count = values.shape[1] // num_groups
    groups = values.reshape(len(values), num_groups, count)
    return np.repeat(groups.sum(2) / (count * rows.shape[2]), count, 1)


# --------------------------------------------------------------------------------------------------
# Passes over memory, with numbers for each row
# --------------------------------------------------------------------------------------------------


def _scaled(x: Array, pivot: Array, scale: Array, shift: Array) -> Array:
    """Return (x - pivot) scale + shift."""
    kernel, out = kernel_for(_scaled_loop, x), np.empty_like(x)
    if kernel is None:
        pivot, scale, shift = (y[..., None] for y in (pivot, scale, shift))
        np.copyto(out, (x - pivot) * scale + shift, "same_kind")
        return out
    kernel(2 * x.size * SECONDS, _flat(x), _numbers(x, pivot, scale, shift), _flat(out))
    return out


def _row_sums(
    g: Array, x: Array, pivot: Array, scale: Array | None
) -> tuple[Array, Array, Array | None]:
    """Return the sums of g and of g (x - pivot) in each row; and g scale, if there is a scale."""
    kernel = kernel_for(_row_sums_loop, x, g)
    if kernel is None:
        products = (g * (x - pivot[..., None])).sum(2, np.float64)
        scaled = None if scale is None else (g * scale[..., None]).astype(x.dtype)
        return g.sum(2, np.float64), products, scaled
    out = np.empty((2, x.shape[0] * x.shape[1]))
    scaled = None if scale is None else np.empty_like(x)
    numbers = _numbers(x, pivot, pivot if scale is None else scale)
    written = nothing(x.dtype, 2) if scaled is None else _flat(scaled)
    kernel(2 * x.size * SECONDS, _flat(g), _flat(x), numbers, written, out)
    total, products = out.reshape(2, *x.shape[:2])
    return total, products, scaled


def _input_gradient_rows(
    g: Array, x: Array, pivot: Array, scale: Array, x_factor: Array, constant: Array
) -> Array:
    """Return g scale - (x - pivot) x_factor - constant."""
    kernel, out = kernel_for(_input_gradient_loop, x, g), np.empty_like(x)
    if kernel is None:
        pivot, scale, x_factor, constant = (
            y[..., None] for y in (pivot, scale, x_factor, constant)
        )
        np.copyto(out, g * scale - (x - pivot) * x_factor - constant, "same_kind")
        return out
    numbers = _numbers(x, pivot, scale, x_factor, constant)
    kernel(3 * x.size * SECONDS, _flat(g), _flat(x), numbers, _flat(out))
    return out


def _flat(rows: Array) -> Array:
    return rows.reshape(-1, rows.shape[2])


def _numbers(x: Array, *values: Array) -> Array:
    """Return values for each row of x: `(rows, len(values))`."""
    out = np.empty((*x.shape[:2], len(values)), x.dtype)
    for i, value in enumerate(values):
        out[..., i] = value
    return out.reshape(-1, len(values))


@for_each_dtype()
def _moments_loop(piece: int, pieces: int, x: Read.D2, out: Doubles) -> None:
    for row in span(piece, pieces, len(x)):
        pivot, off, variance, _, _ = about_pivot(x[row], True, x[row], x[row])
        out[0, row] = pivot + off
        out[1, row] = 0.0 if variance < 0 else variance  # negative only by rounding


@for_each_dtype()
def _scaled_loop(piece: int, pieces: int, x: Read.D2, numbers: Read.D2, out: Written.D2) -> None:
    for row in span(piece, pieces, len(x)):
        xs, outs = x[row], out[row]
        pivot, scale, shift = numbers[row, 0], numbers[row, 1], numbers[row, 2]
        for i in range(xs.size):
            outs[i] = (xs[i] - pivot) * scale + shift


@for_each_dtype()
def _input_gradient_loop(
    piece: int, pieces: int, g: Read.D2, x: Read.D2, numbers: Read.D2, out: Written.D2
) -> None:
    for row in span(piece, pieces, len(x)):
        gs, xs, outs, of_row = g[row], x[row], out[row], numbers[row]
        pivot, scale, x_factor, constant = of_row[0], of_row[1], of_row[2], of_row[3]
        for i in range(xs.size):
            outs[i] = gs[i] * scale - (xs[i] - pivot) * x_factor - constant


@jit(fastmath={"reassoc", "contract"})
def _sums_of_stretch(g: Any, x: Any, pivot: Any) -> Any:
    total = products = x.dtype.type(0)
    for i in range(x.size):
        total += g[i]
        products += g[i] * (x[i] - pivot)
    return total, products


@for_each_dtype()
def _row_sums_loop(
    piece: int, pieces: int, g: Read.D2, x: Read.D2, numbers: Read.D2, scaled: Written.D2,
    out: Doubles,
) -> None:  # fmt: skip
    for row in span(piece, pieces, len(x)):
        total, products, scale = 0.0, 0.0, numbers[row, 1]
        for start in range(0, x.shape[1], STRETCH):
            gs, xs = g[row, start : start + STRETCH], x[row, start : start + STRETCH]
            sums = _sums_of_stretch(gs, xs, numbers[row, 0])
            total += sums[0]
            products += sums[1]
            if scaled.size:  # here, because g is still in the level-1 cache
                outs = scaled[row, start : start + STRETCH]
                for i in range(outs.size):
                    outs[i] = gs[i] * scale
        out[0, row] = total
        out[1, row] = products
