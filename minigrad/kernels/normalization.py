"""Layer norm and rms norm over rows, forward and backward, each in one pass over memory.

A row is short enough to stay in the level-1 cache. So it comes from memory once, and is read for
its mean, its scale and its result. The backward pass computes mean and scale again, because this
costs less than to save them.

    standard = (x - mean) scale,   scale = 1 / sqrt(mean((x - mean)^2) + eps),   d = g weight
    dx = scale (d - mean(d) - standard mean(d standard))
    dweight = sum over rows of g standard,   dbias = sum over rows of g

Without `centred` the mean is replaced by 0 everywhere: that is rms norm. Where there is no kernel,
numpy computes in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.kernels.fused import rows_of
from minigrad.kernels.jit import Array, Read, Written, external, jit, nothing
from minigrad.kernels.launch import for_each_dtype, kernel_for, share, span

SECONDS = 3e-10  # approximate seconds of an element in the forward pass
STRETCH = 1024  # elements that are summed in their own dtype; their sums are added up in float64
ROWS = 32  # rows of which the parts of dweight and dbias are summed at a time


def norm(
    x: Array, shape: tuple[int, ...], weight: Array | None, bias: Array | None, eps: float,
    centred: bool,
) -> Array:  # fmt: skip
    """Compute `weight` standard + `bias` over the last axes, whose sizes are `shape`, all above 0.

    Weight and bias have this shape, or are None for 1 and 0. The mean is subtracted if `centred`.
    """
    kernel = kernel_for(_norm_loop, x, weight, bias)
    if kernel is not None:
        out, size = np.empty(x.shape, x.dtype), math.prod(shape)
        factors = np.ones(size, x.dtype) if weight is None else weight.ravel()
        summands = nothing(x.dtype) if bias is None else bias.ravel()
        operands = rows_of(x, size), factors, summands, eps, centred
        kernel(out.size * SECONDS, *operands, out.reshape(-1, size))
        return out
    standard, _ = _standardised(rows_of(x, math.prod(shape)), eps, centred)
    out = standard.reshape(x.shape)
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out.astype(np.result_type(*(y for y in (x, weight, bias) if y is not None)))


def norm_gradients(
    g: Array, x: Array, shape: tuple[int, ...], weight: Array | None, eps: float, centred: bool,
    needs_input_grad: Sequence[bool],
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Compute those gradients of `norm` by x, weight and bias that are needed."""
    kernel = kernel_for(_gradients_loop, x, g, weight)
    if kernel is not None:
        size, none = math.prod(shape), nothing(x.dtype)
        dx = np.empty(x.shape, x.dtype) if needs_input_grad[0] else None
        dweight = np.empty(shape, x.dtype) if needs_input_grad[1] else None
        dbias = np.empty(shape, x.dtype) if needs_input_grad[2] else None
        factors = np.ones(size, x.dtype) if weight is None else weight.ravel()
        kernel(
            2 * x.size * SECONDS, rows_of(g, size), rows_of(x, size), factors, eps, centred,
            nothing(x.dtype, 2) if dx is None else dx.reshape(-1, size),
            none if dweight is None else dweight.reshape(-1),
            none if dbias is None else dbias.reshape(-1),
        )  # fmt: skip
        return dx, dweight, dbias
    rows = rows_of(x, math.prod(shape))
    gs = rows_of(g, rows.shape[1]).astype(np.float64)
    standard, scale = _standardised(rows, eps, centred)
    d = gs if weight is None else gs * weight.ravel()
    flow = d - standard * np.mean(d * standard, 1, keepdims=True)
    if centred:
        flow -= np.mean(d, 1, keepdims=True)
    found = flow * scale, np.sum(gs * standard, 0), np.sum(gs, 0)
    dx, dweight, dbias = (
        y.astype(x.dtype).reshape(sizes) if need else None
        for y, sizes, need in zip(found, (x.shape, shape, shape), needs_input_grad, strict=True)
    )
    return dx, dweight, dbias


def _standardised(rows: Array, eps: float, centred: bool) -> tuple[Array, Array]:
    """Return (x - mean) scale, and scale, in float64."""
    rest = rows.astype(np.float64)
    if centred:
        rest -= np.mean(rest, 1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(rest * rest, 1, keepdims=True) + eps)
    return rest * scale, scale


# --------------------------------------------------------------------------------------------------
# Sums of a row. They are separate functions, because the compiler chooses the order of the sums:
# "reassoc" lets it compute a sum in each lane of several vectors at once
# --------------------------------------------------------------------------------------------------


@jit(inline="always")
def _pivot(x: Any, centred: bool) -> Any:
    """Return a number near the mean: the mean of eight elements, if there are as many."""
    if not centred:
        return x.dtype.type(0)
    if x.size < 8:
        return x[0]
    few = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))
    return few * x.dtype.type(0.125)


# One pass over the row gives mean and variance, from sums of x - pivot and its square. With
# off = mean - pivot, the variance is mean((x - pivot)^2) - off^2. If the pivot is so far from the
# mean that this loses digits, the sums are computed again with the mean as pivot.


def _sums_of_row(with_slopes: bool) -> Any:
    """Return a function that adds up x - pivot and its square over a row, and finds a good pivot.

    With slopes it also adds up d = g weight and d (x - pivot).
    """

    @jit(fastmath={"reassoc", "contract"})
    def sums_of_stretch(x: Any, pivot: Any, g: Any, weight: Any) -> Any:
        zero = x.dtype.type(0)
        total, squares, slopes, products = zero, zero, zero, zero
        for i in range(x.size):
            rest = x[i] - pivot
            total += rest
            squares += rest * rest
            if with_slopes:
                d = g[i] * weight[i]
                slopes += d
                products += d * rest
        return total, squares, slopes, products

    @jit(inline="always")
    def sums_of_row(x: Any, centred: bool, g: Any, weight: Any) -> Any:
        pivot, again, share = _pivot(x, centred), centred, 1 / x.size
        while True:
            total, squares, slopes, products = 0.0, 0.0, 0.0, 0.0
            for start in range(0, x.size, STRETCH):
                end = start + STRETCH
                sums = sums_of_stretch(x[start:end], pivot, g[start:end], weight[start:end])
                total += sums[0]
                squares += sums[1]
                slopes += sums[2]
                products += sums[3]
            off = total * share if centred else 0.0
            variance = squares * share - off * off
            if not (again and off * off > variance):
                break
            pivot, again = x.dtype.type(pivot + off), False
        return pivot, off, variance, slopes, products

    return sums_of_row


about_pivot, _about_pivot_with_slopes = _sums_of_row(False), _sums_of_row(True)


@external(fastmath={"contract"})
def _moments(x: Any, eps: float, centred: bool) -> Any:
    """Return the numbers that standardise a row as (x - pivot) scale - shift, in its dtype."""
    pivot, off, variance, _, _ = about_pivot(x, centred, x, x)
    scale = _scale(variance, eps)
    return pivot, x.dtype.type(scale), x.dtype.type(off * scale)


@external(fastmath={"contract"})
def _slopes(x: Any, eps: float, centred: bool, g: Any, weight: Any) -> Any:
    """Return the moments of a row, and the numbers in dx = scale d - (x - pivot) bend - level."""
    pivot, off, variance, slopes, products = _about_pivot_with_slopes(x, centred, g, weight)
    scale, share, number = _scale(variance, eps), 1 / x.size, x.dtype.type
    bend = scale * scale * scale * (products - off * slopes) * share
    level = (scale * slopes * share if centred else 0.0) - off * bend
    return pivot, number(scale), number(off * scale), number(bend), number(level)


@jit(inline="always")
def _scale(variance: float, eps: float) -> float:
    if variance < 0:  # possible by rounding, if all elements are equal
        variance = 0.0
    return 1 / math.sqrt(variance + eps)


@for_each_dtype()
def _norm_loop(
    piece: int, pieces: int, x: Read.D2, weight: Read.D1, bias: Read.D1, eps: float, centred: bool,
    out: Written.D2,
) -> None:  # fmt: skip
    for row in span(piece, pieces, len(x)):
        xs, outs = x[row], out[row]
        pivot, scale, shift = _moments(xs, eps, centred)
        if bias.size:
            for i in range(xs.size):
                outs[i] = ((xs[i] - pivot) * scale - shift) * weight[i] + bias[i]
        else:
            for i in range(xs.size):
                outs[i] = ((xs[i] - pivot) * scale - shift) * weight[i]


@for_each_dtype(shares=True)
def _gradients_loop(
    launcher: int, pieces: int, g: Read.D2, x: Read.D2, weight: Read.D1, eps: float, centred: bool,
    dx: Written.D2, dweight: Written.D1, dbias: Written.D1,
) -> None:  # fmt: skip
    # Blocks of rows are summed, and then the blocks: no piece of work cuts a block.
    blocks = (len(x) + ROWS - 1) // ROWS
    of_weight = np.zeros((blocks, dweight.size), x.dtype)
    of_bias = np.zeros((blocks, dbias.size), x.dtype)
    arguments = g, x, weight, eps, centred, dx, of_weight, of_bias
    share(launcher, pieces, _gradients_of_blocks, arguments)
    _add_up(of_weight, dweight)
    _add_up(of_bias, dbias)


@external(fastmath={"contract"})
def _gradients_of_blocks(
    piece: int, pieces: int, g: Any, x: Any, weight: Any, eps: float, centred: bool, dx: Any,
    parts_of_weight: Any, parts_of_bias: Any,
) -> None:  # fmt: skip
    """Write rows of dx, and add to the parts of dweight and dbias; skip arrays of size 0."""
    for block in span(piece, pieces, len(parts_of_weight)):
        of_weight, of_bias = parts_of_weight[block], parts_of_bias[block]
        for row in range(block * ROWS, min(len(x), (block + 1) * ROWS)):
            gs, xs = g[row], x[row]
            if not dx.size:
                pivot, scale, shift = _moments(xs, eps, centred)
            else:
                pivot, scale, shift, bend, level = _slopes(xs, eps, centred, gs, weight)
                dxs = dx[row]
                for i in range(xs.size):
                    dxs[i] = scale * (gs[i] * weight[i]) - (xs[i] - pivot) * bend - level
            for i in range(of_weight.size):
                of_weight[i] += gs[i] * ((xs[i] - pivot) * scale - shift)
            for i in range(of_bias.size):
                of_bias[i] += gs[i]


@external()
def _add_up(parts: Any, out: Any) -> None:
    """Write the sum of the rows of `parts` to `out`, a stretch of columns at a time."""
    sums = np.empty(STRETCH, np.float64)
    for start in range(0, out.size, STRETCH):
        outs = out[start : start + STRETCH]
        sums[: outs.size] = 0.0
        for row in range(parts.shape[0]):
            part = parts[row, start : start + STRETCH]
            for i in range(outs.size):
                sums[i] += part[i]
        for i in range(outs.size):
            outs[i] = sums[i]
