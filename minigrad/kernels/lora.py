"""The products of a linear map with an update of low rank, forward and backward.

    h = scale x A^T          y = x W^T + b + h B^T
    d = scale g B            dx = g W + d A       dA = d^T x       dB = g^T h

There are three products forward, and up to five backward, and all but two have few rows or columns.
In a small layer the calls would take longer than the products, so one compiled function does them
all. In a large one each is a call of `gemm.matmul`, the second adding to what the first has
written. If W is frozen, its layer may have its panels (`minigrad.kernels.gemm.prepacked`), and the
bias and the update are added while a strip of the result is in a near cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels import gemm
from minigrad.kernels.gemm.macrokernel import NO_BIAS
from minigrad.kernels.gemm.prepacked import find
from minigrad.kernels.gemm.products import bias_of, multiply_run
from minigrad.kernels.jit import Array, Integers, Strided, Written, jit, nothing
from minigrad.kernels.launch import for_each_dtype, kernel_for

SMALL = 1_000_000  # multiply-adds of all rows with W, below which calls are what takes the time


def forward(
    x: Array, weight: Array, lora_a: Array, lora_b: Array, bias: Array | None, scale: float
) -> tuple[Array, Array]:
    """Compute y and h from `(n, d_in)`, `(d_out, d_in)`, `(rank, d_in)` and `(d_out, rank)`."""
    dtype, rows = x.dtype, len(x)
    product = gemm.PRODUCTS.get(dtype)
    # Loops for few rows add in another order, and where B is 0 the bits are to be the base's.
    few = product is not None and product.is_skinny(rows, *weight.shape)
    small = not few and rows * weight.size < SMALL
    kernel = kernel_for(_forward_loop, x, weight, lora_a, lora_b, bias) if small else None
    if kernel is not None:
        h = np.empty((rows, len(lora_a)), dtype)
        y = np.empty((rows, len(weight)), dtype)
        row = nothing(dtype) if bias is None else bias
        kernel.alone(x, weight, lora_a, lora_b, row, scale, h, h, y, *gemm.PRODUCTS[dtype].plans)
        return y, h
    h = gemm.matmul(x, lora_a.T)
    h *= scale
    prepacked = None if few else find(weight)
    out = None if prepacked is None else prepacked.matmul(x, True, h, lora_b.T, bias)
    if out is not None:
        return out, h
    y = gemm.matmul(x, weight.T, bias=bias)
    return gemm.matmul(h, lora_b.T, out=y, add=True), h


def backward(
    g: Array, x: Array, weight: Array, lora_a: Array, lora_b: Array, h: Array, scale: float,
    wants_x: bool, wants_a: bool, wants_b: bool,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Compute dx, dA and dB, each if it is wanted."""
    small = len(x) * weight.size < SMALL
    kernel = kernel_for(_backward_loop, x, weight, lora_a, lora_b, g, h) if small else None
    if kernel is not None:
        dtype = x.dtype
        d = np.empty(h.shape, dtype)
        to_x = np.empty(x.shape if wants_x else (0, 0), dtype)
        to_a = np.empty(lora_a.shape if wants_a else (0, 0), dtype)
        to_b = np.empty(lora_b.shape if wants_b else (0, 0), dtype)
        outs, plans = (d, d, to_x, to_a, to_b), gemm.PRODUCTS[dtype].plans
        kernel.alone(g, x, weight, lora_a, lora_b, h, scale, *outs, *plans)
        return to_x if wants_x else None, to_a if wants_a else None, to_b if wants_b else None
    dx: Array | None = None
    da: Array | None = None
    if wants_x or wants_a:
        d = gemm.matmul(g, lora_b)
        d *= scale
        if wants_x:
            prepacked = find(weight)
            if prepacked is not None:
                dx = prepacked.matmul(g, False, d, lora_a)
            if dx is None:
                dx = gemm.matmul(d, lora_a, out=gemm.matmul(g, weight), add=True)
        if wants_a:
            da = gemm.matmul(d.T, x)
    return dx, da, gemm.matmul(g.T, h) if wants_b else None


# The loops are for little work, which threads do not share.


@for_each_dtype(threads=False)
def _forward_loop(
    _piece: int, _pieces: int, x: Strided.D2, weight: Strided.D2, lora_a: Strided.D2,
    lora_b: Strided.D2, bias: Strided.D1, scale: float, h: Written.D2, same_h: Strided.D2,
    y: Written.D2, write: Integers, add: Integers,
) -> None:  # fmt: skip
    """Do the forward; `h` comes twice, to be written and to be read: two types for numba."""
    multiply_run(0, 1, x, lora_a.T, NO_BIAS, h, write, 0, 1)
    _multiply_by(h, scale)
    multiply_run(0, 1, x, weight.T, bias_of(bias), y, write, 0, 1)
    multiply_run(0, 1, same_h, lora_b.T, NO_BIAS, y, add, 0, 1)


@for_each_dtype(threads=False)
def _backward_loop(
    _piece: int, _pieces: int, g: Strided.D2, x: Strided.D2, weight: Strided.D2, lora_a: Strided.D2,
    lora_b: Strided.D2, h: Strided.D2, scale: float, d: Written.D2, same_d: Strided.D2,
    dx: Written.D2, da: Written.D2, db: Written.D2, write: Integers, add: Integers,
) -> None:  # fmt: skip
    """Do the backward, without the gradients of size 0; `d` comes twice, as `h` in the forward."""
    if dx.size or da.size:
        multiply_run(0, 1, g, lora_b, NO_BIAS, d, write, 0, 1)
        _multiply_by(d, scale)
    if dx.size:
        multiply_run(0, 1, g, weight, NO_BIAS, dx, write, 0, 1)
        multiply_run(0, 1, same_d, lora_a, NO_BIAS, dx, add, 0, 1)
    if da.size:
        multiply_run(0, 1, same_d.T, x, NO_BIAS, da, write, 0, 1)
    if db.size:
        multiply_run(0, 1, g.T, h, NO_BIAS, db, write, 0, 1)


@jit(inline="always")
def _multiply_by(x: Any, scale: float) -> None:
    factor = x.dtype.type(scale)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] *= factor
