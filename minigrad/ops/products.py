"""Matrix products, computed by minigrad's kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.ops.shape import reshape, transpose


def shape_of_product(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the matrix product of arrays of these shapes."""
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), *rows, *columns)


def swap_last(x: Array) -> Array:
    """Return the transpose of each matrix in a stack."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@op(
    linear=("a", "b"),
    cost=lambda a, out: 2 * out.size * a.shape[-1],
    shape=lambda a, b: shape_of_product(a.shape, b.shape),
    product=True,
)
def matmul(a: Array, b: Array) -> Array:
    """The matrix product `(..., m, k) @ (..., k, n) -> (..., m, n)`, leading axes broadcast.

    As in numpy, a vector is a row on the left and a column on the right, and the extra axis is
    removed from the result: `(k,) @ (k,)` is a number.

    Raises:
        ValueError: if an operand is a number, the sizes k differ, or the leading axes cannot be
            broadcast.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]:  # the usual case takes the least time
        return kernels.gemm.matmul(a, b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("takes vectors, matrices or stacks of them; for a number use *")
    row, column = a.ndim == 1, b.ndim == 1
    rows, columns = a[None] if row else a, b[:, None] if column else b
    if rows.shape[-1] != columns.shape[-2]:
        hint = "; did you mean b.T?" if b.ndim == 2 and a.shape[-1] == b.shape[-1] else ""
        sizes = f"{rows.shape[-1]} != {columns.shape[-2]}"
        raise ValueError(f"shapes {a.shape} and {b.shape} do not align: {sizes}{hint}")
    out = kernels.gemm.matmul(rows, columns)
    if row or column:
        out = out.reshape(out.shape[:-2] + out.shape[-2:][row : 2 - column])
    return out


@matmul.vjp("a")
def _matmul_a(g: Array, a_shape: tuple[int, ...], b: Array) -> Array:
    if len(a_shape) == 2 and b.ndim > 2:
        order = (b.ndim - 2, *range(b.ndim - 2), b.ndim - 1)  # join the matrices along their rows
        columns = math.prod(g.shape[:-2]) * g.shape[-1]  # reshape cannot infer -1 if g is empty
        wide = reshape(transpose(g, order), (a_shape[0], columns))
        return matmul(wide, as_rows(swap_last(b)))
    g = _with_axes(g, len(a_shape) == 1, b.ndim == 1)
    return matmul(g, swap_last(reshape(b, (-1, 1)) if b.ndim == 1 else b))


@matmul.vjp("b")
def _matmul_b(g: Array, a: Array, b_shape: tuple[int, ...]) -> Array:
    if a.ndim > 2 and len(b_shape) <= 2:
        # One product, because a gradient for each matrix of the stack would need much memory.
        if len(b_shape) == 1:
            return matmul(reshape(g, -1), as_rows(a))
        return matmul(transpose(as_rows(a)), as_rows(g))
    g = _with_axes(g, a.ndim == 1, len(b_shape) == 1)
    product = matmul(swap_last(reshape(a, (1, -1)) if a.ndim == 1 else a), g)
    return reshape(product, product.shape[:-1]) if len(b_shape) == 1 else product


def _with_axes(g: Array, row: bool, column: bool) -> Array:
    """Return the gradient of a product with an axis of size 1 for each operand that is a vector."""
    if not (row or column):
        return g
    size = g.ndim - (not column)
    return reshape(g, (*g.shape[:size], *([1] * row), *g.shape[size:], *([1] * column)))


def _linear(x: Array, weight: Array, bias: Array = None) -> Array:
    product = reshape(matmul(as_rows(x), transpose(weight)), (*x.shape[:-1], weight.shape[0]))
    return product if bias is None else product + bias


def as_rows(x: Array) -> Array:
    """Reshape a stack of vectors to one matrix, with a vector in each row."""
    if x.ndim == 2:
        return x
    shape = math.prod(x.shape[:-1]), x.shape[-1]
    return x.reshape(shape) if x.__class__ is np.ndarray else reshape(x, shape)


@op(linear=("x", "weight"), composition=_linear, product=True)
def linear(x: Array, weight: Array, bias: Array = None) -> Array:
    """x W^T + b: `(..., d_in)`, `(d_out, d_in)`, `(d_out,)` -> `(..., d_out)`.

    Raises:
        ValueError: if the sizes do not match.
    """
    x, weight = np.asarray(x), np.asarray(weight)
    check_linear(x, weight, bias)
    out = kernels.gemm.matmul(as_rows(x), weight.T, bias=bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])


linear.vjp("x", lambda g, weight: linear(g, transpose(weight)))
linear.vjp("weight", lambda g, x: matmul(transpose(as_rows(g)), as_rows(x)))
linear.vjp("bias", lambda g: g)


def check_linear(x: Array, weight: Array, bias: Array) -> None:
    """Raise an error if the shapes of the operands of a linear map do not match."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x of shape {x.shape} does not fit a weight of shape {weight.shape}; "
            f"shapes are (..., d_in) and (d_out, d_in)"
        )
    shape = getattr(bias, "shape", None)  # np.shape takes three times as long
    if bias is not None and (np.shape(bias) if shape is None else shape) != weight.shape[:1]:
        raise ValueError(f"a bias of shape {np.shape(bias)}, but it must be {weight.shape[:1]}")


@op(
    composition=lambda x, weight, lora_a, lora_b, bias=None, scale=1.0: (
        linear(x, weight, bias) + linear(linear(x, lora_a) * scale, lora_b)
    ),
    returns_residuals=True,
    product=True,
)
def lora_linear(
    x: Array, weight: Array, lora_a: Array, lora_b: Array, bias: Array = None, scale: float = 1.0
) -> Array:
    """x W^T + b + scale (x A^T) B^T: a linear map with an update of low rank.

    From LoRA (Hu et al., 2021, section 4.1), where `scale` is alpha / r.

    With h = scale x A^T and d = scale g B, the gradients need only thin products: dA = d^T x,
    dB = g^T h, and dx = g W + d A. No matrix of the size of W is made, except if W itself requires
    a gradient.

    Args:
        x: `(..., d_in)`.
        weight: W, `(d_out, d_in)`.
        lora_a: A, `(rank, d_in)`.
        lora_b: B, `(d_out, rank)`.
        bias: b, `(d_out,)`, or None.
        scale: the factor of the update.

    Returns:
        `(..., d_out)`.

    Raises:
        ValueError: if the sizes do not match.
    """
    if not (x.__class__ is weight.__class__ is lora_a.__class__ is lora_b.__class__ is np.ndarray):
        x, weight, lora_a, lora_b = map(np.asarray, (x, weight, lora_a, lora_b))
    check_linear(x, weight, bias)
    d_out, d_in = weight.shape
    if lora_a.shape[1:] != (d_in,) or lora_b.shape != (d_out, len(lora_a)):
        raise ValueError(
            f"A and B must have shapes (rank, {d_in}) and ({d_out}, rank) for a weight of shape "
            f"{weight.shape}, not {lora_a.shape} and {lora_b.shape}"
        )
    y, h = kernels.lora.forward(as_rows(x), weight, lora_a, lora_b, bias, float(scale))
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], weight.shape[0]), h


def _lora_linear_inputs(
    g: Array,
    needs_input_grad: Sequence[bool],
    x: Array,
    weight: Array,
    lora_a: Array,
    lora_b: Array,
    scale: float,
    residuals: Array,
) -> Sequence[Array]:
    rows, gs = as_rows(x), as_rows(g)
    need_x, need_weight, need_a, need_b, _ = needs_input_grad
    dx, da, db = kernels.lora.backward(
        gs, rows, weight, lora_a, lora_b, residuals, float(scale), need_x, need_a, need_b
    )
    dw = kernels.gemm.matmul(gs.T, rows) if need_weight else None
    dx = None if dx is None else dx.reshape(x.shape)
    return dx, dw, da, db, g


def _lora_linear_shared(needs_input_grad: set[str], lora_b: Array, out: Array) -> int:
    """The FLOPs of d = scale g B, which both gradients, of x and of A, use."""
    rows, rank = out.size // lora_b.shape[0], lora_b.shape[1]
    return 2 * out.size * rank + rows * rank if needs_input_grad & {"x", "lora_a"} else 0


lora_linear.joint_vjp(
    ("x", "weight", "lora_a", "lora_b", "bias"),
    _lora_linear_inputs,
    cost={
        "x": lambda x, weight, lora_a: (2 * (len(weight) + len(lora_a)) + 1) * x.size,
        "weight": lambda x, weight: 2 * len(weight) * x.size,
        "lora_a": lambda x, lora_a: 2 * len(lora_a) * x.size,
        "lora_b": lambda lora_b, out: 2 * out.size * lora_b.shape[1],
        "shared": _lora_linear_shared,
    },
)


# --------------------------------------------------------------------------------------------------
# The product with a frozen weight that is stored in few bits
# --------------------------------------------------------------------------------------------------


def _narrow_linear(x: Array, weight: Any, bias: Array, kind: type) -> Array:
    kernels.narrow.check_kind("", weight, kind)
    x = np.asarray(x)
    check_linear(x, weight, bias)
    out = weight.matmul(as_rows(x), transposed=True)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _narrow_linear_shape(x: Array, weight: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], weight.shape[0])


def _bfloat16_linear_cost(weight: Any, bias: Array, out: Array) -> int:
    return (2 * int(weight.shape[1]) + (bias is not None)) * int(out.size)


def _nf4_linear_cost(weight: Any, bias: Array, out: Array) -> int:
    """The FLOPs of the product, and one for each element of W: a level times an absmax."""
    return _bfloat16_linear_cost(weight, bias, out) + int(weight.size)


@op(linear=("x",), cost=_nf4_linear_cost, shape=_narrow_linear_shape, product=True)
def nf4_linear(x: Array, weight: kernels.nf4.NF4Matrix, bias: Array = None) -> Array:
    """x W^T + b with W in four bits per element: `(..., d_in)`, `(d_out,)` -> `(..., d_out)`.

    W is frozen. The kernels read it strip by strip, forward and backward (dx = g W). Only its codes
    are saved for the backward pass (QLoRA, Dettmers et al., 2023, section 3, equation 5).

    Args:
        x: `(..., d_in)`; the result has its dtype.
        weight: W, `(d_out, d_in)`; `minigrad.kernels.nf4.NF4Matrix.of(array)` makes one.
        bias: b, `(d_out,)`, or None.

    Raises:
        TypeError: if the weight is not an NF4Matrix.
        ValueError: if the sizes do not match.
    """
    return _narrow_linear(x, weight, bias, kernels.nf4.NF4Matrix)


@op(linear=("x",), cost=_bfloat16_linear_cost, shape=_narrow_linear_shape, product=True)
def bfloat16_linear(x: Array, weight: kernels.bfloat16.BFloat16Matrix, bias: Array = None) -> Array:
    """x W^T + b with a frozen W in 16 bits per element (bfloat16); otherwise as `nf4_linear`.

    `minigrad.kernels.bfloat16.BFloat16Matrix.of(array)` makes W.

    Raises:
        TypeError: if the weight is not a BFloat16Matrix.
        ValueError: if the sizes do not match.
    """
    return _narrow_linear(x, weight, bias, kernels.bfloat16.BFloat16Matrix)


nf4_linear.vjp("x", lambda g, weight: nf4_linear(g, weight.T))
nf4_linear.vjp("bias", lambda g: g)
bfloat16_linear.vjp("x", lambda g, weight: bfloat16_linear(g, weight.T))
bfloat16_linear.vjp("bias", lambda g: g)


def stored_linear(x: Array, weight: Any, bias: Array = None) -> Array:
    """x W^T + b, by the op for the storage format of W: floats, NF4 or bfloat16."""
    if isinstance(weight, (Tensor, np.ndarray)):
        return linear(x, weight, bias)
    return (nf4_linear if weight.format == "nf4" else bfloat16_linear)(x, weight, bias)
