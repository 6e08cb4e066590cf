"""Softmax along rows, each in one pass over memory.

A row is short enough to stay in the nearest cache, so that its three readings (for the highest
number, for the sum of exponentials, for the result) fetch it once. With h the highest number of a
row and z = sum(e^(x - h)):

    softmax = e^(x - h) / z         dx = out (g - sum(g out))
    log_softmax = x - h - log z     dx = g - e^out sum(g)

float32 has loops; float64 has the twins, which are numpy. A nan or inf in a row, or nothing but
-inf, makes a row of nan, as it does there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from minigrad.kernels import maths
from minigrad.kernels.jit import JIT_ENABLED, intrinsic, jit
from minigrad.kernels.kernel import Kernel

prange: Any = numba.prange

Array = NDArray[Any]

SECONDS = 4e-10  # what a number takes, about
STRETCH = 2048  # numbers that are added up in float32; the sums of stretches are, in float64

SINGLE = np.dtype(np.float32)


def softmax(x: Array) -> Array:
    """e^x / sum(e^x) along the last axis."""
    return _run(_SOFTMAX, softmax_twin, x)


def softmax_gradient(g: Array, out: Array) -> Array:
    """out (g - sum(g out)) along the last axis."""
    return _run(_SOFTMAX_GRADIENT, softmax_gradient_twin, g, out)


def log_softmax(x: Array) -> Array:
    """x - log(sum(e^x)) along the last axis."""
    return _run(_LOG_SOFTMAX, log_softmax_twin, x)


def log_softmax_gradient(g: Array, out: Array) -> Array:
    """g - e^out sum(g) along the last axis."""
    return _run(_LOG_SOFTMAX_GRADIENT, log_softmax_gradient_twin, g, out)


def served(*arrays: Array) -> bool:
    """Whether the loops take these arrays."""
    if not JIT_ENABLED:
        return False
    for x in arrays:  # all() takes longer
        if x.dtype != SINGLE or not x.ndim:
            return False
    return bool(arrays[0].size)


def rows(x: Array) -> Array:
    """Rows that lie one behind the other."""
    if x.ndim == 2 and x.flags.c_contiguous:
        return x
    return x.ravel().reshape(-1, x.shape[-1])


def _run(kernel: Kernel, twin: Callable[..., Array], *arrays: Array) -> Array:
    """What the kernel makes of arrays that it takes, else what the twin does."""
    if not served(*arrays):
        return twin(*arrays)
    out = np.empty(arrays[0].shape, SINGLE)
    kernel(out.size * SECONDS, *map(rows, arrays), out if out.ndim == 2 else rows(out))
    return out


# The twins: the references, and what runs for float64 and where nothing is compiled


def softmax_twin(x: Array, axis: Any = -1) -> Array:
    """`softmax` in numpy, along any axes."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    e /= np.sum(e, axis=axis, keepdims=True)
    return np.asarray(e)


def softmax_gradient_twin(g: Array, out: Array) -> Array:
    """`softmax_gradient` in numpy."""
    return np.asarray(out * (g - np.sum(g * out, axis=-1, keepdims=True)))


def log_softmax_twin(x: Array, axis: Any = -1) -> Array:
    """`log_softmax` in numpy, along any axes."""
    shifted = x - np.max(x, axis=axis, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return np.asarray(shifted)


def log_softmax_gradient_twin(g: Array, out: Array) -> Array:
    """`log_softmax_gradient` in numpy."""
    return np.asarray(g - np.exp(out) * np.sum(g, axis=-1, keepdims=True))


# --------------------------------------------------------------------------------------------------
# Over a row
# --------------------------------------------------------------------------------------------------

_I32, _F32 = ir.IntType(32), ir.FloatType()


def _swap_order(builder: Any, bits: Any) -> Any:
    """The bits of a float32 as an integer in the order of the floats, or back again."""
    rest = builder.and_(builder.ashr(bits, _I32(31)), _I32(0x7FFFFFFF))
    return builder.xor(bits, rest)


@intrinsic
def _larger(_typing: Any, found: Any, x: Any) -> Any:
    """The larger of two, the first of which is an integer as `_swap_order` gives it.

    Of integers LLVM looks for the largest in vector code. With floats it may not: a nan would be
    dropped in one order and not in another. Here it is above inf, or below -inf.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        found, x = args
        key = _swap_order(builder, builder.bitcast(x, _I32))
        return builder.select(builder.icmp_signed(">", key, found), key, found)

    return types.int32(types.int32, types.float32), emit


@intrinsic
def _as_float(_typing: Any, found: Any) -> Any:
    """The number that `_larger` has found."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(_swap_order(builder, args[0]), _F32)

    return types.float32(types.int32), emit


_LEAST = np.int32(-(2**31))


@jit(inline="always")
def highest_of(row: Any) -> Any:
    """The largest number of a row; whether a nan counts depends on its sign."""
    found = _LEAST
    for j in range(row.size):
        found = _larger(found, row[j])
    return _as_float(found)


# A sum may be taken apart into as many as a vector has room for, and these are added up at the end:
# in an order that depends on the length of the row alone.


@jit(fastmath={"contract", "reassoc"})
def _exponentials(row: Any, highest: Any, out: Any) -> Any:
    """The sum of e^(x - highest), which are written to `out`."""
    total = np.float32(0)
    for j in range(row.size):
        e = maths.exp_below(row[j] - highest)
        out[j] = e
        total += e
    return total


@jit(fastmath={"contract", "reassoc"})
def _sum_of_stretch(row: Any, highest: Any) -> Any:
    """The same without writing."""
    total = np.float32(0)
    for j in range(row.size):
        total += maths.exp_below(row[j] - highest)
    return total


@jit(fastmath={"contract", "reassoc"})
def _sum(row: Any) -> Any:
    total = np.float32(0)
    for j in range(row.size):
        total += row[j]
    return total


@jit(fastmath={"contract", "reassoc"})
def _sum_products(row: Any, other: Any) -> Any:
    total = np.float32(0)
    for j in range(row.size):
        total += row[j] * other[j]
    return total


@jit(inline="always")
def sum_of_exponentials(row: Any, highest: Any) -> Any:
    """The sum of e^(x - highest) over a row of any length."""
    total = 0.0
    for start in range(0, row.size, STRETCH):
        total += _sum_of_stretch(row[start : start + STRETCH], highest)
    return np.float32(total)


def _softmax_loop(pieces: int, x: Any, out: Any) -> None:
    n = len(x)
    for number in prange(pieces):
        for i in range(number * n // pieces, (number + 1) * n // pieces):
            row, result = x[i], out[i]
            highest = highest_of(row)
            total = 0.0
            for start in range(0, row.size, STRETCH):
                stretch = slice(start, start + STRETCH)
                total += _exponentials(row[stretch], highest, result[stretch])
            factor = np.float32(1.0 / total)
            for j in range(row.size):
                result[j] *= factor


def _softmax_gradient_loop(pieces: int, g: Any, out: Any, dx: Any) -> None:
    n = len(out)
    for number in prange(pieces):
        for i in range(number * n // pieces, (number + 1) * n // pieces):
            row, flow, result = out[i], g[i], dx[i]
            total = 0.0
            for start in range(0, row.size, STRETCH):
                stretch = slice(start, start + STRETCH)
                total += _sum_products(flow[stretch], row[stretch])
            mean = np.float32(total)
            for j in range(row.size):
                result[j] = row[j] * (flow[j] - mean)


def _log_softmax_loop(pieces: int, x: Any, out: Any) -> None:
    n = len(x)
    for number in prange(pieces):
        for i in range(number * n // pieces, (number + 1) * n // pieces):
            row, result = x[i], out[i]
            highest = highest_of(row)
            log = maths.log(sum_of_exponentials(row, highest))
            for j in range(row.size):
                result[j] = (row[j] - highest) - log


def _log_softmax_gradient_loop(pieces: int, g: Any, out: Any, dx: Any) -> None:
    n = len(out)
    for number in prange(pieces):
        for i in range(number * n // pieces, (number + 1) * n // pieces):
            row, flow, result = out[i], g[i], dx[i]
            sums = 0.0
            for start in range(0, row.size, STRETCH):
                sums += _sum(flow[start : start + STRETCH])
            total = np.float32(sums)
            for j in range(row.size):
                result[j] = flow[j] - maths.exp_below(row[j]) * total


READ = types.Array(types.float32, 2, "C", readonly=True)
WRITTEN = types.Array(types.float32, 2, "C")

_SOFTMAX = Kernel(_softmax_loop, (READ, WRITTEN))
_SOFTMAX_GRADIENT = Kernel(_softmax_gradient_loop, (READ, READ, WRITTEN))
_LOG_SOFTMAX = Kernel(_log_softmax_loop, (READ, WRITTEN))
_LOG_SOFTMAX_GRADIENT = Kernel(_log_softmax_gradient_loop, (READ, READ, WRITTEN))
