"""Make fused kernels: a function of one element, or of one row, becomes a function of arrays.

A function is written once, with its reference in numpy beside it:

    @elementwise(LINE, reference=lambda x, slope: np.where(x > 0, x, slope * x))
    def leaky_relu(x: Any, slope: float) -> Any:
        return x if x > 0 else slope * x

For float32, the function is copied into a loop over the arrays, which LLVM turns into vector code
(see `vector_math`). float64 is computed by the reference, with numpy and the C library, because
gradient checks need their last digits more than speed. A function has a loop for float64 too if the
loop is as exact.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np

from minigrad.kernels.jit import DOUBLE, SINGLE, Array, Number, Read, Written, jit
from minigrad.kernels.launch import Kernel, for_each_dtype, function_from, part, span

LINE, CURVE = 1e-10, 5e-10  # approximate seconds of an element: of a copy, and of an exponential

Function = Callable[..., Any]

_ravel = operator.methodcaller("ravel")


class Fused:
    """A function of one or two arrays, and of options that are numbers, in one pass over memory.

    One of two arrays may also be a number, which only the reference takes.

    `elementwise` and `rowwise` make one, and describe its arguments.
    """

    def __init__(
        self,
        function: Function,
        seconds: float,
        reference: Function,
        double: Function | bool = False,
        by_rows: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self._reference = reference
        self._seconds = seconds
        options = list(get_type_hints(function).values()).count(float)
        self._operands = function.__code__.co_argcount - options - by_rows
        self._flat = rows_of if by_rows else _ravel
        self._kernels: dict[np.dtype[Any], Kernel] = {}
        for dtype, f in (SINGLE, function), (DOUBLE, function if double is True else double):
            if f:
                loop = _loop_over(function.__name__, f, self._operands, options, by_rows)
                self._kernels |= for_each_dtype(dtype)(loop)

    def reference(self, *arguments: Any) -> Array:
        """Apply the function in numpy, which is also done if there is no kernel."""
        return np.asarray(self._reference(*arguments))

    def __call__(self, *arguments: Any) -> Array:
        """Apply the function, and return a new array."""
        operands, options = arguments[: self._operands], arguments[self._operands :]
        first, x = operands[0], operands[-1]
        if first is not x and (
            getattr(first, "shape", None) != getattr(x, "shape", None)  # None: a number
            or first.dtype != x.dtype
        ):
            return self.reference(*arguments)
        kernel = self._kernels.get(x.dtype)
        if kernel is None or not x.size:
            return self.reference(*arguments)
        out = np.empty(x.shape, x.dtype)
        kernel(x.size * self._seconds, *map(self._flat, operands), *options, self._flat(out))
        return out


def elementwise(
    seconds: float, *, reference: Function, double: Function | bool = False
) -> Callable[[Function], Fused]:
    """Make a function of arrays from a function of an element: first operands, then options.

    It has one or two operands, of the same shape and dtype. Options are annotated as `float`.

    Args:
        seconds: the approximate time of an element.
        reference: the function of arrays in numpy, which may return a scalar for 0 axes.
        double: whether there is a kernel for float64 too, or the function of a float64 for it.
    """
    return lambda function: Fused(function, seconds, reference, double)


def rowwise(seconds: float, *, reference: Function) -> Callable[[Function], Fused]:
    """Make a function of arrays from a function of a row, which writes to a row of the result.

    Rows run along the last axis. The arguments are those of `elementwise`; the function has no
    options, and no kernel for float64.
    """
    return lambda function: Fused(function, seconds, reference, by_rows=True)


def _loop_over(
    name: str, function: Function, operands: int, options: int, by_rows: bool
) -> Callable[..., None]:
    """Return the loop that applies a function with this name to each element or row."""
    arrays, numbers = ([f"{x}{i}" for i in range(n)] for x, n in (("x", operands), ("c", options)))
    elements = ", ".join(f"{x}[i]" for x in arrays)
    if by_rows:
        body = f"""
            for i in span(piece, pieces, len(x0)):
                f({elements}, out[i])
        """
    else:
        pieces = ", ".join(f"part(piece, pieces, {x})" for x in arrays)
        body = f"""
            {", ".join(arrays)}, out = {pieces}, part(piece, pieces, out)
            for i in range(x0.size):
                out[i] = f({", ".join([elements, *numbers])})
        """
    read, written = (Read.D2, Written.D2) if by_rows else (Read.D1, Written.D1)
    operands_and_options = {**dict.fromkeys(arrays, read), **dict.fromkeys(numbers, Number)}
    parameters = {"piece": int, "pieces": int, **operands_and_options, "out": written}
    f = jit(inline="always")(function)
    return function_from(f"{name}_loop", parameters, body, __name__, f=f, part=part, span=span)


def rows_of(x: Array, size: int | None = None) -> Array:
    """Return x as a contiguous matrix with rows of this size; by default, that of the last axis."""
    if size is None:
        if x.ndim == 2 and x.flags.c_contiguous:
            return x
        size = x.shape[-1] if x.ndim else 1
    return x.ravel().reshape(-1, size)
