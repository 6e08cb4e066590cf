"""The factories of fused kernels: a function of one element, or of one row, becomes one of arrays.

A function is written once, with its reference in numpy beside it:

    @elementwise(LINE, reference=lambda x, slope: np.where(x > 0, x, slope * x))
    def leaky_relu(x, slope):
        return x if x > 0 else slope * x

It is pasted into a loop over the arrays, which LLVM makes vector code of (see `vector_math`). That
is for float32. float64 goes through the reference, that is numpy and the C library, whose last
digits gradient checks need more than speed; only functions without curves have a loop for it too.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.kernels.jit import (
    DOUBLE,
    JIT_ENABLED,
    NUMBERS,
    SINGLE,
    Array,
    jit,
    read,
    written,
)
from minigrad.kernels.launch import Kernel, part, span

LINE, CURVE = 1e-10, 5e-10  # seconds that an element takes, about, in a copy or an exponential

Function = Callable[..., Any]

_ravel = operator.methodcaller("ravel")


class Fused:
    """A function of one or two arrays, and of options that are numbers, in one pass over memory.

    `elementwise` and `rowwise` make it, and describe the arguments.

    Attributes:
        reference: the same function in numpy, which also serves if there is no kernel.
    """

    def __init__(
        self,
        function: Function,
        seconds: float,
        reference: Callable[..., Array],
        operands: int,
        double: Function | bool = False,
        by_rows: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self.reference = reference
        self._seconds = seconds
        self._operands = operands
        self._flat = rows_of if by_rows else _ravel
        functions: dict[np.dtype[Any], Function] = {SINGLE: function}
        if double:
            functions[DOUBLE] = double if callable(double) else function
        options = 0 if by_rows else function.__code__.co_argcount - operands
        self._kernels: dict[np.dtype[Any], Kernel] = {}
        for dtype, f in functions.items() if JIT_ENABLED else ():
            number, ndim = NUMBERS[dtype], 2 if by_rows else 1
            arrays = [read(number, ndim)] * operands
            signature = (*arrays, *[number] * options, written(number, ndim))
            self._kernels[dtype] = Kernel(_loop_over(f, operands, options, by_rows), signature)

    def __call__(self, *arguments: Any) -> Array:
        """Apply the function, and return a new array."""
        operands, options = arguments[: self._operands], arguments[self._operands :]
        g, x = operands[0], operands[-1]
        kernel = self._kernels.get(x.dtype) if x.size else None
        if kernel is None or (g is not x and (g.dtype != x.dtype or g.shape != x.shape)):
            return self.reference(*arguments)
        out, flat = np.empty(x.shape, x.dtype), self._flat
        kernel(x.size * self._seconds, *map(flat, operands), *options, flat(out))
        return out


def elementwise(
    seconds: float,
    *,
    reference: Callable[..., Array],
    operands: int = 1,
    double: Function | bool = False,
) -> Callable[[Function], Fused]:
    """Make a function of arrays from one of an element: its operands come first, then options.

    Args:
        seconds: the time that an element takes, about.
        reference: the function of arrays in numpy.
        operands: how many arrays it takes: 1, or 2 of one shape and dtype.
        double: whether there is a kernel for float64 too, or the function of its elements.
    """
    return lambda function: Fused(function, seconds, reference, operands, double)


def rowwise(
    seconds: float, *, reference: Callable[..., Array], operands: int = 1
) -> Callable[[Function], Fused]:
    """Make a function of arrays from one of a row along the last axis, which writes to a result.

    The arguments are those of `elementwise`; there are no options, and no float64.
    """
    return lambda function: Fused(function, seconds, reference, operands, by_rows=True)


def _loop_over(function: Function, operands: int, options: int, by_rows: bool) -> Any:
    """Return the loop that applies a function to each element or row, named after it."""
    f = jit(inline="always")(function)

    def of_one(piece: int, pieces: int, x: Any, out: Any) -> None:
        xs, outs = part(piece, pieces, x), part(piece, pieces, out)
        for i in range(xs.size):
            outs[i] = f(xs[i])

    def of_one_with_option(piece: int, pieces: int, x: Any, option: Any, out: Any) -> None:
        xs, outs = part(piece, pieces, x), part(piece, pieces, out)
        for i in range(xs.size):
            outs[i] = f(xs[i], option)

    def of_two(piece: int, pieces: int, g: Any, x: Any, out: Any) -> None:
        gs, xs, outs = part(piece, pieces, g), part(piece, pieces, x), part(piece, pieces, out)
        for i in range(gs.size):
            outs[i] = f(gs[i], xs[i])

    def of_two_with_option(piece: int, pieces: int, g: Any, x: Any, option: Any, out: Any) -> None:
        gs, xs, outs = part(piece, pieces, g), part(piece, pieces, x), part(piece, pieces, out)
        for i in range(gs.size):
            outs[i] = f(gs[i], xs[i], option)

    def of_rows(piece: int, pieces: int, x: Any, out: Any) -> None:
        for i in span(piece, pieces, len(x)):
            f(x[i], out[i])

    def of_two_rows(piece: int, pieces: int, g: Any, x: Any, out: Any) -> None:
        for i in span(piece, pieces, len(x)):
            f(g[i], x[i], out[i])

    loops: list[list[Any]] = [[of_one, of_one_with_option], [of_two, of_two_with_option]]
    loop = (of_rows, of_two_rows)[operands - 1] if by_rows else loops[operands - 1][options]
    loop.__name__ = f"{function.__name__}_loop"
    return loop


def rows_of(x: Array, size: int | None = None) -> Array:
    """Return x as a contiguous matrix, with rows of this size, or along its last axis."""
    if size is None:
        if x.ndim == 2 and x.flags.c_contiguous:
            return x
        size = x.shape[-1] if x.ndim else 1
    return x.ravel().reshape(-1, size)
