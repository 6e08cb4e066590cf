"""Positional encodings of the vectors in a sequence."""

from __future__ import annotations

import numpy as np

from minigrad import kernels
from minigrad.core.op import op
from minigrad.core.tensor import Array
from minigrad.ops.arithmetic import negative


@op(linear=("x",), floats=True, cost=3, shape=lambda x: x.shape)
def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary position embedding: rotate pairs of numbers of x (RoFormer, Su et al., 2021).

        out[i] = x[i] cos_i - x[i + d/2] sin_i,    out[i + d/2] = x[i + d/2] cos_i + x[i] sin_i

    for i < d/2, as in section 3.4.2, but i is paired with i + d/2, as in Llama. The product of a
    rotated query and a rotated key depends only on the distance of their positions.

    Args:
        x: `(..., L, d)`, for example the queries or keys of attention.
        cos: the cosines of the angles, an array that can be broadcast to `(..., L, d/2)`. `cos` and
            `sin` get no gradient.
        sin: the sines of the angles.

    Raises:
        ValueError: if d is odd, or the shapes do not match.
        TypeError: if `cos` or `sin` requires a gradient.
    """
    x = np.asarray(x)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"x has shape (..., L, d) with an even d, not {x.shape}")
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    a, b = np.asarray(cos, x.dtype), np.asarray(sin, x.dtype)
    if not a.shape == b.shape == shape[-a.ndim :]:
        try:
            a, b = np.broadcast_to(a, shape), np.broadcast_to(b, shape)
        except ValueError:
            raise ValueError(
                f"cos and sin of shapes {a.shape} and {b.shape} cannot be broadcast to {shape}, "
                f"the shape of half of x, which has {x.shape}"
            ) from None
    return kernels.rope.rope(x, a, b)


rope.vjp("x", lambda g, cos, sin: rope(g, cos, negative(sin)))  # the rotation back
