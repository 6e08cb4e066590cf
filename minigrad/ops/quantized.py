"""Products with a frozen weight that is stored in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.errors import op_error
from minigrad.ops import hints
from minigrad.ops.products import as_rows, check_linear

if TYPE_CHECKING:
    from minigrad.kernels.nf4 import NF4Matrix

__all__ = ["nf4_linear"]


def _nf4_linear_cost(weight: NF4Matrix, bias: Array, out: Array) -> int:
    """The FLOPs of the product, and one for each element of W: its level times an absmax."""
    d_out, d_in = weight.shape
    return (2 * d_in + (bias is not None)) * int(out.size) + d_out * d_in


@op(
    cost=_nf4_linear_cost,
    shape=lambda x, weight: (*x.shape[:-1], weight.shape[0]),
    product=True,
    nonfinite_hint=hints.of_product,
    gradient_hint=hints.of_product_gradient,
)
def nf4_linear(x: Array, weight: NF4Matrix, bias: Array = None) -> Array:
    """x W^T + b with W in four bits per element: `(..., d_in)`, `(d_out,)` -> `(..., d_out)`.

    W is frozen. It is read strip by strip, forward and backward (dx = g W), and its codes are what
    is saved for the backward pass (QLoRA, Dettmers et al., 2023, section 3, equation 5).

    Args:
        x: `(..., d_in)`; the result has its dtype.
        weight: W, `(d_out, d_in)`; `kernels.nf4.NF4Matrix.of(array)` makes one.
        bias: b, `(d_out,)`, or None.

    Raises:
        TypeError: if the weight is no NF4Matrix.
        ValueError: if the sizes do not match.
    """
    if not isinstance(weight, kernels.nf4.NF4Matrix):
        raise op_error(
            TypeError,
            "nf4_linear",
            f"the weight is an NF4Matrix, not {type(weight).__name__}; "
            f"NF4Matrix.of(array) makes one, and for a weight of floats there is linear",
        )
    x = np.asarray(x)
    check_linear("nf4_linear", x, weight, bias)
    out = weight.T.matmul(as_rows(x))
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


nf4_linear.vjp("x", lambda g, weight: nf4_linear(g, weight.T))
nf4_linear.vjp("bias", lambda g: g)
