"""DoRA: a low-rank update of the directions of a weight's rows, and a magnitude for each row.

    W' = diag(m / n) (W + s B A)          n_j = |row j of W + s B A|

(Liu et al., 2024, equation 5, with a magnitude for each output.) At first m = n, so the output
equals the output of the base. In backpropagation the paper treats n as a constant (section 4.3).

In general W + s B A is not formed, because |w_j|^2 is known and the formula

    n_j^2 = |w_j|^2 + 2 s b_j (A w_j) + s^2 b_j (A A^T) b_j

needs only one thin product with W. If the sum is much smaller than its terms, it would consist
mostly of rounding errors. Such rows are formed, together with the other rows of their strip.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora.frozen import Array, FrozenMatrix
from minigrad import kernels, ops
from minigrad.core.tensor import Tensor
from minigrad.ops.products import stored_linear

# A row is formed if n_j^2 is less than this share of its terms; by bytes of an element.
_LEFT = {2: 1e-1, 4: 1e-2, 8: 1e-4}


def least(dtype: np.dtype[Any]) -> float:
    """Return the smallest norm to divide by, so that m / n is finite for a row of zeros."""
    return max(1e-30, float(np.finfo(dtype).tiny))


def norms(weight: FrozenMatrix, a: Array, b: Array, scale: float) -> Array:
    """Compute n: `(d_out,)`, in the dtype of A."""
    square = weight.cached_squares()
    wide, wide_a = b.astype(np.float64), a.astype(np.float64)
    projected = weight.project(a.astype(np.promote_types(a.dtype, np.float32), copy=False))
    crossed = np.einsum("jk,jk->j", wide, projected.astype(np.float64))
    gram = kernels.gemm.matmul(wide_a, wide_a.T)  # in float64, because squares may overflow float32
    update = np.einsum("jk,jk->j", wide @ gram, wide)
    update *= scale * scale
    total = square + 2 * scale * crossed + update
    terms = square + np.square(scale * (np.abs(wide) @ np.sqrt(np.diagonal(gram))))
    cancelled = total < _LEFT[a.itemsize] * terms
    for strip in weight.strips() if cancelled.any() else ():
        if cancelled[strip].any():
            formed = weight.rows(strip) + scale * (wide[strip] @ wide_a)
            total[strip] = np.einsum("ij,ij->i", formed, formed)
    found: Array = np.maximum(np.sqrt(total), least(a.dtype)).astype(a.dtype)
    return found


def norms_with_gradient(matrix: Any, a: Tensor, b: Tensor, scale: float, n: Array) -> Tensor:
    """Return n, whose values are known, as a tensor with derivatives with respect to A and B.

    `matrix` is W, an array or in few bits; no gradient reaches it.

    d(n_j^2) = 2 s (w_j + s b_j A) d(b_j A), which needs only A w_j and A A^T. Terms are divided by
    n as early as possible, because the square of a norm may overflow its dtype.
    """
    unit = b / ops.reshape(n, (-1, 1))
    crossed = (ops.transpose(stored_linear(a, matrix)) * unit).sum(axis=1) * (2 * scale) / n
    update = (ops.matmul(unit, ops.matmul(a, ops.transpose(a))) * unit).sum(axis=1)
    change = crossed + update * (scale * scale)
    # change - change is 0, so the values are exactly n; the derivatives are those of `change`.
    return ops.sqrt(change - change.detach() + 1.0) * n
