"""The products of a linear map with an update of low rank, forward and backward.

    h = scale x A^T          y = x W^T + b + h B^T
    d = scale g B            dx = g W + d A       dA = d^T x       dB = g^T h

Three products forward, and up to five backward, all but two of them thin. In a small layer the
calls would take longer than the products, so there one compiled function does them all. In a large
one each is a call of `gemm.matmul`, the second adding to what the first has written. Where W is
frozen its panels can be kept (`minigrad.kernels.panels`), and the bias and what is thin are added
while a strip of the result is near.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels import gemm
from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.kernel import Kernel
from minigrad.kernels.panels import Panels, no_row
from minigrad.kernels.products import multiply_run_alone

Array = NDArray[Any]

SMALL = 1_000_000  # multiply-adds of all rows with W, below which calls are what takes the time


def forward(
    x: Array,
    weight: Array,
    lora_a: Array,
    lora_b: Array,
    bias: Array | None,
    scale: float,
    panels: Panels | None = None,
) -> tuple[Array, Array]:
    """y and h: `(n, d_in)`, `(d_out, d_in)`, `(rank, d_in)`, `(d_out, rank)`."""
    dtype = x.dtype
    # Thin loops add in another order, and where B is 0 the bits are to be those of the base.
    thin = dtype in gemm.PRODUCTS and gemm.PRODUCTS[dtype].is_thin(len(x), *weight.shape)
    small = not thin and _is_small(x, weight, lora_a, lora_b)
    if small and (bias is None or _is_row(bias, weight)):
        h = np.empty((len(x), len(lora_a)), dtype)
        y = np.empty((len(x), len(weight)), dtype)
        operands = x, weight, lora_a, lora_b, no_row(dtype) if bias is None else bias, scale
        _FORWARD[dtype].alone(1, *operands, h, h, y, *gemm.PRODUCTS[dtype].plans)
        return y, h
    h = gemm.matmul(x, lora_a.T)
    h *= scale
    kept = panels is not None and panels.matrix is weight and not thin
    if kept and _alike(weight, lora_a, lora_b, bias):
        assert panels is not None
        out = panels.matmul(x, True, h, lora_b.T, bias)
        if out is not None:
            return out, h
    y = gemm.matmul(x, weight.T)
    if bias is not None:
        y += bias
    return gemm.matmul(h, lora_b.T, out=y, add=True), h


def backward(
    g: Array,
    x: Array,
    weight: Array,
    lora_a: Array,
    lora_b: Array,
    h: Array,
    scale: float,
    wants_x: bool,
    wants_a: bool,
    wants_b: bool,
    panels: Panels | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dA and dB, where they are wanted."""
    if _is_small(x, weight, lora_a, lora_b, g, h):
        dtype = x.dtype
        d = np.empty(h.shape, dtype)
        to_x = np.empty(x.shape if wants_x else (0, 0), dtype)
        to_a = np.empty(lora_a.shape if wants_a else (0, 0), dtype)
        to_b = np.empty(lora_b.shape if wants_b else (0, 0), dtype)
        operands = g, x, weight, lora_a, lora_b, h, scale
        plans = gemm.PRODUCTS[dtype].plans
        _BACKWARD[dtype].alone(1, *operands, d, d, to_x, to_a, to_b, *plans)
        return to_x if wants_x else None, to_a if wants_a else None, to_b if wants_b else None
    dx: Array | None = None
    da: Array | None = None
    if wants_x or wants_a:
        d = gemm.matmul(g, lora_b)
        d *= scale
        if wants_x:
            if panels is not None and panels.matrix is weight and _alike(weight, d, lora_a):
                dx = panels.matmul(g, False, d, lora_a)
            if dx is None:
                dx = gemm.matmul(d, lora_a, out=gemm.matmul(g, weight), add=True)
        if wants_a:
            da = gemm.matmul(d.T, x)
    return dx, da, gemm.matmul(g.T, h) if wants_b else None


def _is_small(x: Array, weight: Array, *others: Array) -> bool:
    """Whether the compiled functions take these: little work, but some, in one of their dtypes."""
    dtype = x.dtype
    if not JIT_ENABLED or dtype not in gemm.PRODUCTS or not 0 < len(x) * weight.size < SMALL:
        return False
    if weight.dtype != dtype or not x.__class__ is weight.__class__ is np.ndarray:
        return False
    for other in others:  # all() takes longer, and small layers count
        if other.dtype != dtype or other.__class__ is not np.ndarray or not other.size:
            return False
    return True


def _is_row(bias: Array, weight: Array) -> bool:
    return bias.__class__ is np.ndarray and bias.dtype == weight.dtype


def _alike(weight: Array, *others: Array | None) -> bool:
    """Whether all are arrays of the dtype of W."""
    return all(x is None or _is_row(x, weight) for x in others)


def _forward_loop(
    _pieces: int, x: Any, weight: Any, lora_a: Any, lora_b: Any, bias: Any, scale: float,
    h: Any, same_h: Any, y: Any, write: Any, add: Any,
) -> None:  # fmt: skip
    """`h` comes twice, as what is written and as an operand: types that numba tells apart."""
    multiply_run_alone(x, lora_a.T, h, write, 0, 1)
    _multiply_by(h, scale)
    multiply_run_alone(x, weight.T, y, write, 0, 1)
    if bias.size:
        for i in range(y.shape[0]):
            for j in range(y.shape[1]):
                y[i, j] += bias[j]
    multiply_run_alone(same_h, lora_b.T, y, add, 0, 1)


def _backward_loop(
    _pieces: int, g: Any, x: Any, weight: Any, lora_a: Any, lora_b: Any, h: Any, scale: float,
    d: Any, same_d: Any, dx: Any, da: Any, db: Any, write: Any, add: Any,
) -> None:  # fmt: skip
    if dx.size or da.size:
        multiply_run_alone(g, lora_b, d, write, 0, 1)
        _multiply_by(d, scale)
    if dx.size:
        multiply_run_alone(g, weight, dx, write, 0, 1)
        multiply_run_alone(same_d, lora_a, dx, add, 0, 1)
    if da.size:
        multiply_run_alone(same_d.T, x, da, write, 0, 1)
    if db.size:
        multiply_run_alone(g.T, h, db, write, 0, 1)


@jit(inline="always")
def _multiply_by(x: Any, scale: float) -> None:
    factor = x.dtype.type(scale)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] *= factor


def _kernels() -> tuple[dict[np.dtype[Any], Kernel], dict[np.dtype[Any], Kernel]]:
    """The two loops for each dtype. They are for little work, which threads do not share."""
    forward, backward = {}, {}
    for number in (types.float32, types.float64):
        operand = types.Array(number, 2, "A", readonly=True, aligned=False)
        row = types.Array(number, 1, "A", readonly=True, aligned=False)
        out = types.Array(number, 2, "C")
        plans = (types.Array(types.int64, 1, "C"),) * 2
        f64, dtype = types.float64, np.dtype(str(number))
        operands = (*[operand] * 4, row, f64, out, operand, out, *plans)
        forward[dtype] = Kernel(_forward_loop, operands, threads=False)
        operands = (*[operand] * 6, f64, out, operand, out, out, out, *plans)
        backward[dtype] = Kernel(_backward_loop, operands, threads=False)
    return forward, backward


_FORWARD, _BACKWARD = _kernels()
