"""Dropout: one pass decides which elements stay and applies that, forward and backward alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange, types
from numpy.typing import NDArray

from minigrad.kernels.fused import piece
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.kernel import NUMBERS, Array, Kernel, read, written

SECONDS = 2e-10  # that an element takes, about


def drop(x: Array, words: NDArray[np.uint16], threshold: int, scale: float) -> Array:
    """Return x times `scale` where the word is `threshold` at least, else x times 0.

    Args:
        x: floats of any shape.
        words: one for each element, in the order of rows.
        threshold: from 0 to 2^16.
        scale: the factor that makes up for the elements that are dropped.
    """
    kernel = _KERNELS.get(x.dtype) if JIT_ENABLED and x.__class__ is np.ndarray else None
    if kernel is None:
        return drop_reference(x, words, threshold, scale)
    out = np.empty(x.shape, x.dtype)
    kernel(out.size * SECONDS, x.ravel(), words, threshold, scale, out.ravel())
    return out


def drop_reference(x: Array, words: NDArray[np.uint16], threshold: int, scale: float) -> Array:
    """Compute `drop` in numpy."""
    factors = np.where(words >= threshold, scale, 0.0).astype(x.dtype)
    return np.asarray(x * factors.reshape(x.shape))


def _loop(pieces: int, x: Any, words: Any, threshold: int, scale: float, out: Any) -> None:
    factor, zero = x.dtype.type(scale), x.dtype.type(0)
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        drawn = piece(number, pieces, words)
        for i in range(xs.size):
            outs[i] = xs[i] * (factor if drawn[i] >= threshold else zero)


_KERNELS = {
    dtype: Kernel(
        _loop,
        (
            *(read(number, 1), read(types.uint16, 1), types.uint32, types.float64),
            written(number, 1),
        ),
    )
    for dtype, number in NUMBERS.items()
}
