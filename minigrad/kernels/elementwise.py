"""Functions of each element for which numpy has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.kernels.jit import jit


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    """All elements in a row, as float32 where they are, else as float64."""
    dtype = np.float32 if x.dtype == np.float32 else np.float64
    return np.asarray(x).astype(dtype, copy=False).ravel()


def _like(out: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    return out.reshape(np.shape(x)).astype(
        x.dtype if x.dtype.kind == "f" else out.dtype, copy=False
    )


@jit()
def _erf(x: NDArray[np.floating], out: NDArray[np.floating]) -> None:
    for i in range(x.size):
        out[i] = math.erf(x[i])


def erf(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """The error function of each element."""
    flat = _flat(x)
    out = np.empty_like(flat)
    _erf(flat, out)
    return _like(out, x)


@jit()
def _normal_cdf(x: NDArray[np.floating], out: NDArray[np.floating]) -> None:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would round to 0
    for i in range(x.size):
        out[i] = 0.5 * math.erfc(-x[i] * 0.7071067811865476)


def normal_cdf(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """The distribution function of the standard normal, of each element."""
    flat = _flat(x)
    out = np.empty_like(flat)
    _normal_cdf(flat, out)
    return _like(out, x)
