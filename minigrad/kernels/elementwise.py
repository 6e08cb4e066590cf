"""Functions of each element for which numpy has none, or only in several passes.

float32 has loops of its own. They call no library, for that is done element by element: all is
additions, products and choices, which LLVM turns into vector code. float64 goes through the C
library, whose last digits gradient checks need more than speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.kernel import Kernel
from minigrad.kernels.vector import leading_half, power_of_two

prange: Any = numba.prange

Array = NDArray[Any]

SECONDS = 1e-9  # what an element takes, about


def _loop(function: Callable[..., None], *operands: Any) -> Kernel:
    """A kernel over arrays of these elements; the output comes last and is of the last's type."""
    arrays = (types.Array(operand, 1, "C", readonly=True) for operand in operands)
    return Kernel(function, (*arrays, types.Array(operands[-1], 1, "C")))


def _fill(kernel: Kernel, shape: tuple[int, ...], dtype: Any, *operands: Array) -> Array:
    """A new array with what the kernel makes of the operands."""
    out = np.empty(shape, dtype)
    arrays = [np.ascontiguousarray(x).reshape(-1) for x in operands]
    kernel(out.size * SECONDS, *arrays, out.reshape(-1))
    return out


def _run(name: str, twin: Callable[..., Array], *inputs: Array) -> Array:
    """What the loop of this name for their dtype makes of arrays of one shape, else the twin."""
    x = inputs[0]
    loop = _LOOPS.get((name, x.dtype)) if JIT_ENABLED else None
    if loop is None or any(y.shape != x.shape or y.dtype != x.dtype for y in inputs):
        return twin(*inputs)
    return _fill(loop, x.shape, x.dtype, *inputs)


def where(condition: Array, x: Any, y: Any) -> Array:
    """`np.where`, which for a mask without a pattern takes ten times as long."""
    dtypes = {v.dtype for v in (x, y) if isinstance(v, np.ndarray)}
    shapes = {v.shape for v in (x, y, condition) if isinstance(v, np.ndarray)}
    numbers = [v.__class__ for v in (x, y) if not isinstance(v, np.ndarray)]
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    simple = len(shapes) == 1 and condition.dtype == np.bool_ and set(numbers) <= {float}
    name = ("where", isinstance(x, np.ndarray), isinstance(y, np.ndarray))
    loop = _LOOPS.get((name, dtype)) if JIT_ENABLED and simple and dtype is not None else None
    if loop is None:
        return np.asarray(np.where(condition, x, y))
    operands = (np.asarray(v, dtype) if v.__class__ is float else v for v in (x, y))
    return _fill(loop, condition.shape, dtype, condition, *operands)


def erf(x: Array) -> Array:
    """The error function of each element."""
    return _run("erf", erf_twin, x)


def normal_cdf(x: Array) -> Array:
    """The distribution function of the standard normal, of each element."""
    return _run("normal_cdf", normal_cdf_twin, x)


def gelu(x: Array) -> Array:
    """x Phi(x), of each element."""
    return _run("gelu", gelu_twin, x)


def gelu_gradient(g: Array, x: Array) -> Array:
    """g (Phi(x) + x phi(x)), of each element."""
    return _run("gelu_gradient", gelu_gradient_twin, g, x)


# The twins: the references, and what runs where nothing is compiled. They compute in float64.

_erf: Any = np.vectorize(math.erf, otypes=[np.float64])
_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])


def erf_twin(x: Array) -> Array:
    """`erf` in Python."""
    return np.asarray(_erf(x)).astype(x.dtype)


def normal_cdf_twin(x: Array) -> Array:
    """`normal_cdf` in Python."""
    return np.asarray(0.5 * _erfc(x.astype(np.float64) * -math.sqrt(0.5))).astype(x.dtype)


def gelu_twin(x: Array) -> Array:
    """`gelu` in Python."""
    wide = x.astype(np.float64)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def gelu_gradient_twin(g: Array, x: Array) -> Array:
    """`gelu_gradient` in Python."""
    wide = x.astype(np.float64)
    bell = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return (g * (normal_cdf(wide) + wide * bell)).astype(x.dtype)


# --------------------------------------------------------------------------------------------------
# Loops. A piece is a slice of its own, whose indices LLVM knows to be counted from 0: only where no
# index can be negative does it make vector code
# --------------------------------------------------------------------------------------------------


@jit(inline="always")
def _piece(number: int, pieces: int, x: Any) -> Any:
    return x[number * x.size // pieces : (number + 1) * x.size // pieces]


def _where_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    for number in prange(pieces):
        chosen, outs = _piece(number, pieces, condition), _piece(number, pieces, out)
        xs, ys = _piece(number, pieces, x), _piece(number, pieces, y)
        for i in range(chosen.size):
            outs[i] = xs[i] if chosen[i] else ys[i]


def _where_else_number_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    filling = y[0]
    for number in prange(pieces):
        chosen, outs = _piece(number, pieces, condition), _piece(number, pieces, out)
        xs = _piece(number, pieces, x)
        for i in range(chosen.size):
            outs[i] = xs[i] if chosen[i] else filling


def _where_number_loop(pieces: int, condition: Any, x: Any, y: Any, out: Any) -> None:
    filling = x[0]
    for number in prange(pieces):
        chosen, outs = _piece(number, pieces, condition), _piece(number, pieces, out)
        ys = _piece(number, pieces, y)
        for i in range(chosen.size):
            outs[i] = filling if chosen[i] else ys[i]


# --------------------------------------------------------------------------------------------------
# The normal distribution
# --------------------------------------------------------------------------------------------------

_ONE, _HALF = np.float32(1), np.float32(0.5)
_FAR = np.float32(13.1)  # where e^(-x^2 / 2) leaves the range of float32; beyond it is 0
_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH = np.float32(355 / 512)  # 9 digits, which times a whole number is exact
_LN_2_LOW = np.float32(math.log(2) - 355 / 512)
_ROOT = np.float32(1 / math.sqrt(2 * math.pi))

# (1 - Phi(z)) e^(z^2 / 2) for z >= 0 is t times a polynomial of t = 1 / (1 + 0.3 z): the ninth
# degree is right to 4e-9 of it, fitted by least squares, reweighted until all errors are alike.
_SLOPE = np.float32(0.3)
_C0, _C1, _C2, _C3, _C4 = map(
    np.float32, (0.11968663, 0.119572916, 0.110226734, 0.0784281947, 0.0960506304)
)
_C5, _C6, _C7, _C8, _C9 = map(
    np.float32, (-0.0792345417, 0.191566969, -0.228056915, 0.11237144, -0.0206120584)
)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))


@jit(inline="always")
def _bell(x: Any) -> Any:
    """e^(-x^2 / 2), for float32."""
    z = min(abs(x), _FAR)
    # x^2 has twice the digits of x, and all of them count: high^2 is exact, the rest is small.
    high = leading_half(z)
    power, rest = -_HALF * high * high, -_HALF * (z - high) * (z + high)
    k = np.floor(power * _LOG2_E + _HALF)
    r = (power - k * _LN_2_HIGH) - k * _LN_2_LOW + rest
    series = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7))))
    e = (_ONE + r * (_ONE + r * series)) * power_of_two(k)
    return e if abs(x) < _FAR else np.float32(0)


@jit(inline="always")
def _below(x: Any, bell: Any) -> Any:
    """Phi(x), given e^(-x^2 / 2), for float32; exact in the left tail, where 1 - ... is not."""
    t = _ONE / (_ONE + _SLOPE * abs(x))
    p = _C4 + t * (_C5 + t * (_C6 + t * (_C7 + t * (_C8 + t * _C9))))
    tail = bell * (t * (_C0 + t * (_C1 + t * (_C2 + t * (_C3 + t * p)))))
    return tail if x < 0 else _ONE - tail


def _normal_cdf_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = _piece(number, pieces, x), _piece(number, pieces, out)
        for i in range(xs.size):
            value = xs[i]
            below = _below(value, _bell(value))
            outs[i] = below if value == value else value


def _gelu_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = _piece(number, pieces, x), _piece(number, pieces, out)
        for i in range(xs.size):
            value = xs[i]
            outs[i] = value * _below(value, _bell(value))


def _gelu_gradient_loop(pieces: int, g: Any, x: Any, out: Any) -> None:
    for number in prange(pieces):
        gs, xs = _piece(number, pieces, g), _piece(number, pieces, x)
        outs = _piece(number, pieces, out)
        for i in range(xs.size):
            value = xs[i]
            bell = _bell(value)
            outs[i] = gs[i] * (_below(value, bell) + value * (_ROOT * bell))


def _erf_loop(pieces: int, x: Any, out: Any) -> None:
    for number in prange(pieces):
        xs, outs = _piece(number, pieces, x), _piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = math.erf(xs[i])


def _wide_cdf_loop(pieces: int, x: Any, out: Any) -> None:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf would round to 0
    for number in prange(pieces):
        xs, outs = _piece(number, pieces, x), _piece(number, pieces, out)
        for i in range(xs.size):
            outs[i] = 0.5 * math.erfc(-xs[i] * 0.7071067811865476)


def _loops() -> dict[tuple[Any, np.dtype[Any]], Kernel]:
    """Every loop, by its name and the dtype of its result."""
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    loops: dict[tuple[Any, np.dtype[Any]], Kernel] = {
        ("erf", single): _loop(_erf_loop, types.float32),
        ("erf", double): _loop(_erf_loop, types.float64),
        ("normal_cdf", single): _loop(_normal_cdf_loop, types.float32),
        ("normal_cdf", double): _loop(_wide_cdf_loop, types.float64),
        ("gelu", single): _loop(_gelu_loop, types.float32),
        ("gelu_gradient", single): _loop(_gelu_gradient_loop, *[types.float32] * 2),
    }
    for dtype, number in ((single, types.float32), (double, types.float64)):
        operands = types.boolean, number, number
        loops[("where", True, True), dtype] = _loop(_where_loop, *operands)
        loops[("where", True, False), dtype] = _loop(_where_else_number_loop, *operands)
        loops[("where", False, True), dtype] = _loop(_where_number_loop, *operands)
    return loops


_LOOPS = _loops()
