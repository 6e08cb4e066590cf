"""Functions of each element for which numpy has none, or only in several passes.

float32 has loops of its own, which LLVM makes vector code of (see `maths`). float64 goes through
numpy and the C library, whose last digits gradient checks need more than speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.kernel import Kernel

prange: Any = numba.prange

Array = NDArray[Any]

LINE, CURVE = 1e-10, 5e-10  # seconds that an element takes, about, in a copy or an exponential
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


Kernels = dict[np.dtype[Any], Kernel]


def loops(
    single: Callable[..., None],
    double: Callable[..., None] | None = None,
    *,
    operands: int = 1,
    options: int = 0,
) -> Kernels:
    """The kernels over so many arrays and numbers of one dtype; the output comes last."""
    kernels: Kernels = {}
    for dtype, number, function in (SINGLE, types.float32, single), (DOUBLE, types.float64, double):
        if function is not None:
            array = types.Array(number, 1, "C", readonly=True)
            signature = (*[array] * operands, *[number] * options, types.Array(number, 1, "C"))
            kernels[dtype] = Kernel(function, signature)
    return kernels


def run(
    kernels: Kernels, seconds: float, twin: Callable[..., Array], x: Array, *options: float
) -> Array:
    """What the kernel for the dtype of x makes of it; if there is none, what the twin does.

    `seconds` is what an element takes.
    """
    kernel = kernels.get(x.dtype) if JIT_ENABLED else None
    if kernel is None:
        return twin(x, *options)
    out = np.empty(x.shape, x.dtype)
    kernel(x.size * seconds, x.ravel(), *options, out.ravel())
    return out


def run_gradient(
    kernels: Kernels,
    seconds: float,
    twin: Callable[..., Array],
    g: Array,
    x: Array,
    *options: float,
) -> Array:
    """The same for two arrays; they are of one shape and dtype, or else it is the twin."""
    kernel = kernels.get(x.dtype) if JIT_ENABLED else None
    if kernel is None or g.dtype != x.dtype or g.shape != x.shape:
        return twin(g, x, *options)
    out = np.empty(x.shape, x.dtype)
    kernel(x.size * seconds, g.ravel(), x.ravel(), *options, out.ravel())
    return out


@jit(inline="always")
def piece(number: int, pieces: int, x: Any) -> Any:
    """Piece `number` of a row, as a slice.

    LLVM knows the indices of a slice to be counted from 0, and makes vector code only where none
    can be negative.
    """
    return x[number * x.size // pieces : (number + 1) * x.size // pieces]


# --------------------------------------------------------------------------------------------------
# Choices
# --------------------------------------------------------------------------------------------------


def where(condition: Array, x: Any, y: Any) -> Array:
    """`np.where`, which for a mask without a pattern takes ten times as long."""
    dtypes = {v.dtype for v in (x, y) if isinstance(v, np.ndarray)}
    shapes = {v.shape for v in (x, y, condition) if isinstance(v, np.ndarray)}
    numbers = [v.__class__ for v in (x, y) if not isinstance(v, np.ndarray)]
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    simple = len(shapes) == 1 and condition.dtype == np.bool_ and set(numbers) <= {float}
    kinds = (isinstance(x, np.ndarray), isinstance(y, np.ndarray))
    kernel = _WHERE.get((*kinds, dtype)) if JIT_ENABLED and simple else None
    if kernel is None:
        return np.asarray(np.where(condition, x, y))
    out = np.empty(condition.shape, dtype)
    rows = (np.asarray(v, dtype).ravel() for v in (x, y))
    kernel(out.size * LINE, condition.ravel(), *rows, out.ravel())
    return out


def _where_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    for number in prange(pieces):
        chosen, outs = piece(number, pieces, condition), piece(number, pieces, out)
        xs, ys = piece(number, pieces, x), piece(number, pieces, y)
        for i in range(chosen.size):
            outs[i] = xs[i] if chosen[i] else ys[i]


def _where_else_number_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    filling = y[0]
    for number in prange(pieces):
        chosen, outs = piece(number, pieces, condition), piece(number, pieces, out)
        xs = piece(number, pieces, x)
        for i in range(chosen.size):
            outs[i] = xs[i] if chosen[i] else filling


def _where_number_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    filling = x[0]
    for number in prange(pieces):
        chosen, outs = piece(number, pieces, condition), piece(number, pieces, out)
        ys = piece(number, pieces, y)
        for i in range(chosen.size):
            outs[i] = filling if chosen[i] else ys[i]


def _where_kernel(function: Callable[..., None], dtype: np.dtype[Any]) -> Kernel:
    row = types.Array(types.float32 if dtype == SINGLE else types.float64, 1, "C", readonly=True)
    mask = types.Array(types.boolean, 1, "C", readonly=True)
    return Kernel(function, (mask, row, row, row.copy(readonly=False)))


_WHERE: dict[tuple[Any, ...], Kernel] = {
    (*kinds, dtype): _where_kernel(function, dtype)
    for kinds, function in {
        (True, True): _where_loop,
        (True, False): _where_else_number_loop,
        (False, True): _where_number_loop,
    }.items()
    for dtype in (SINGLE, DOUBLE)
}
