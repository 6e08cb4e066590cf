"""The products of a linear map with a low-rank update, forward and backward.

    h = scale x A^T          y = x W^T + b + h B^T
    d = scale g B            dx = g W + d A       dA = d^T x       dB = g^T h

The forward pass has three products and the backward pass up to five. All but two of them have few
rows or columns. In a small layer, separate calls would take longer than the products, so one
compiled function computes all. In a large layer, each product is a call of `gemm.matmul`; the
second adds to the result of the first. If W is frozen, the layer may have packed panels of W
(`minigrad.kernels.gemm.prepacked`). Then, and on a matrix unit, the bias and the update are added
while a strip of the result is in a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.kernels import gemm
from minigrad.kernels.gemm.macrokernel import NO_BIAS
from minigrad.kernels.gemm.prepacked import multiply_and_update
from minigrad.kernels.gemm.products import bias_of, multiply_run
from minigrad.kernels.jit import Array, Integers, Strided, Written, jit, nothing
from minigrad.kernels.launch import for_each_dtype, kernel_for

SMALL = 1_000_000  # multiply-adds of x W^T; below this, most of the time would be for calls


def forward(
    x: Array, weight: Array, lora_a: Array, lora_b: Array, bias: Array | None, scale: float
) -> tuple[Array, Array]:
    """Compute y and h from `(n, d_in)`, `(d_out, d_in)`, `(rank, d_in)` and `(d_out, rank)`."""
    dtype, rows = x.dtype, len(x)
    product = gemm.PRODUCTS.get(dtype)
    # Loops for few rows add in another order, but if B is 0, the bits must be those of x W^T + b.
    few = product is not None and product.skinny_loop(x, weight.T) != ""
    small = not few and rows * weight.size < SMALL
    kernel = kernel_for(_forward_loop, x, weight, lora_a, lora_b, bias) if small else None
    if kernel is not None:
        h = np.empty((rows, len(lora_a)), dtype)
        y = np.empty((rows, len(weight)), dtype)
        row = nothing(dtype) if bias is None else bias
        kernel.alone(x, weight, lora_a, lora_b, row, scale, h, h, y, *gemm.PRODUCTS[dtype].plans)
        return y, h
    h = gemm.matmul(x, lora_a.T)
    h = np.multiply(h, scale, out=h if h.dtype.kind == "f" else None)
    out = None if few else multiply_and_update(x, weight, True, h, lora_b.T, bias)
    if out is not None:
        return out, h
    y = gemm.matmul(x, weight.T, bias=bias)
    if y.dtype != np.result_type(h, lora_b):  # because of the bias
        return y + gemm.matmul(h, lora_b.T), h
    return gemm.matmul(h, lora_b.T, out=y, add=True), h


def backward(
    g: Array, x: Array, weight: Array, lora_a: Array, lora_b: Array, h: Array, scale: float,
    wants_x: bool, wants_a: bool, wants_b: bool,
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """Compute dx, dA and dB, or only those of them that are wanted."""
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
            dx = multiply_and_update(g, weight, False, d, lora_a)
            if dx is None:
                dx = gemm.matmul(d, lora_a, out=gemm.matmul(g, weight), add=True)
        if wants_a:
            da = gemm.matmul(d.T, x)
    return dx, da, gemm.matmul(g.T, h) if wants_b else None


# These loops are for little work, so threads do not share it.


@for_each_dtype(threads=False)
def _forward_loop(
    _piece: int, _pieces: int, x: Strided.D2, weight: Strided.D2, lora_a: Strided.D2,
    lora_b: Strided.D2, bias: Strided.D1, scale: float, h: Written.D2, same_h: Strided.D2,
    y: Written.D2, write: Integers, add: Integers,
) -> None:  # fmt: skip
    """Compute y and h; `h` is passed twice, because numba has two types for writing and reading."""
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
    """Compute the gradients that have a size other than 0; `d` is passed twice, as `h` above."""
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
