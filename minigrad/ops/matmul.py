"""Matrix products, on our own kernels."""

from __future__ import annotations

import math

import numpy as np

from minigrad import kernels
from minigrad.op import op
from minigrad.ops.shape import reshape, transpose
from minigrad.tensor import Array


def swap_last(x: Array) -> Array:
    """The transpose of each matrix in a stack of them."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@op
def matmul(x: Array, y: Array) -> Array:
    """The matrix product `(..., m, k) @ (..., k, n) -> (..., m, n)`, leading axes broadcast.

    Raises:
        ValueError: if an operand is not a matrix, or the sizes do not match.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(
            f"matmul: takes matrices or stacks of them, not shapes {x.shape} and {y.shape}; "
            f"x.reshape(1, -1) makes a row of a vector"
        )
    if x.shape[-1] != y.shape[-2]:
        hint = "; did you mean y.T?" if x.shape[-1] == y.shape[-1] else ""
        raise ValueError(
            f"matmul: shapes {x.shape} and {y.shape} do not align: "
            f"{x.shape[-1]} != {y.shape[-2]}{hint}"
        )
    return kernels.gemm.matmul(x, y)


matmul.rule("x", lambda g, y: matmul(g, swap_last(y)))
matmul.rule("y", lambda g, x: matmul(swap_last(x), g))


def _linear(x: Array, weight: Array, bias: Array = None) -> Array:
    product = reshape(matmul(_rows(x), transpose(weight)), (*x.shape[:-1], weight.shape[0]))
    return product if bias is None else product + bias


def _rows(x: Array) -> Array:
    """A stack of vectors as one matrix."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


@op(composition=_linear)
def linear(x: Array, weight: Array, bias: Array = None) -> Array:
    """x W^T + b: `(..., d_in)`, `(d_out, d_in)`, `(d_out,)` -> `(..., d_out)`.

    Raises:
        ValueError: if the sizes do not match.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x of shape {x.shape} does not go with a weight of shape {weight.shape}; "
            f"shapes are (..., d_in) and (d_out, d_in)"
        )
    out = kernels.gemm.matmul(_rows(x), weight.T)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


linear.rule("x", lambda g, weight: linear(g, transpose(weight)))
linear.rule("weight", lambda g, x: matmul(transpose(_rows(g)), _rows(x)))
linear.rule("bias", lambda g: g)
