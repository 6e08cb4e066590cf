"""Dropout: which numbers stay is decided and applied in one pass, forth and back alike."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.elementwise import piece
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.kernel import Kernel

prange: Any = numba.prange

Array = NDArray[Any]

SECONDS = 2e-10  # what a number takes, about


def drop(x: Array, words: NDArray[np.uint16], threshold: int, scale: float) -> Array:
    """x times `scale` where the word is `threshold` at least, else x times 0.

    Args:
        x: floats of any shape.
        words: one for each of them, in the order of rows.
        threshold: from 0 to 2^16.
        scale: what makes up for those that are dropped.
    """
    kernel = _KERNELS.get(x.dtype) if JIT_ENABLED and x.__class__ is np.ndarray else None
    if kernel is None:
        return drop_twin(x, words, threshold, scale)
    out = np.empty(x.shape, x.dtype)
    kernel(out.size * SECONDS, x.ravel(), words, threshold, scale, out.ravel())
    return out


def drop_twin(x: Array, words: NDArray[np.uint16], threshold: int, scale: float) -> Array:
    """`drop` in numpy."""
    factors = np.where(words >= threshold, scale, 0.0).astype(x.dtype)
    return np.asarray(x * factors.reshape(x.shape))


def _loop(pieces: int, x: Any, words: Any, threshold: int, scale: float, out: Any) -> None:
    kept, dropped = x.dtype.type(scale), x.dtype.type(0)
    for number in prange(pieces):
        xs, outs = piece(number, pieces, x), piece(number, pieces, out)
        drawn = piece(number, pieces, words)
        for i in range(xs.size):
            outs[i] = xs[i] * (kept if drawn[i] >= threshold else dropped)


def _kernel(number: Any) -> Kernel:
    numbers = types.Array(number, 1, "C", readonly=True)
    words = types.Array(types.uint16, 1, "C", readonly=True)
    out = types.Array(number, 1, "C")
    return Kernel(_loop, (numbers, words, types.uint32, types.float64, out))


_KERNELS = {np.dtype(str(number)): _kernel(number) for number in (types.float32, types.float64)}
