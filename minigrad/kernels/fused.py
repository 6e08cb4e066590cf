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
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import prange, types

from minigrad.kernels.jit import JIT_ENABLED, jit
from minigrad.kernels.kernel import DOUBLE, NUMBERS, SINGLE, Array, Kernel, read, written

LINE, CURVE = 1e-10, 5e-10  # seconds that an element takes, about, in a copy or an exponential

Function = Callable[..., Any]

_ravel = operator.methodcaller("ravel")


class Fused:
    """A function of one or two arrays, and of options that are numbers, in one pass over memory.

    Attributes:
        reference: the same function in numpy, which also serves if there is no kernel.
    """

    def __init__(
        self,
        function: Function,
        reference: Callable[..., Array],
        seconds: float,
        operands: int,
        kernels: Mapping[np.dtype[Any], Kernel],
        flat: Callable[[Array], Array],
    ) -> None:
        functools.update_wrapper(self, function)
        self.reference = reference
        self._seconds = seconds
        self._operands = operands
        self._kernels = kernels
        self._flat = flat

    def __call__(self, *arguments: Any) -> Array:
        """Apply the function, and return a new array."""
        operands, options = arguments[: self._operands], arguments[self._operands :]
        g, x = operands[0], operands[-1]
        kernel = self._kernels.get(x.dtype) if JIT_ENABLED and x.size else None
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

    def decorate(function: Function) -> Fused:
        functions: dict[np.dtype[Any], Function] = {SINGLE: function}
        if double:
            functions[DOUBLE] = double if callable(double) else function
        options = function.__code__.co_argcount - operands
        kernels = {}
        for dtype, f in functions.items():
            number = NUMBERS[dtype]
            arrays = [read(number, 1)] * operands
            signature = (*arrays, *[number] * options, written(number, 1))
            kernels[dtype] = Kernel(_loop_over_elements(f, operands, options), signature)
        return Fused(function, reference, seconds, operands, kernels, _ravel)

    return decorate


def _loop_over_elements(function: Function, operands: int, options: int) -> Any:
    """Return the loop that applies a function to each element, named after it."""
    f = jit(inline="always")(function)

    def of_one(pieces: int, x: Any, out: Any) -> None:
        for number in prange(pieces):
            xs, outs = piece(number, pieces, x), piece(number, pieces, out)
            for i in range(xs.size):
                outs[i] = f(xs[i])

    def of_one_with_option(pieces: int, x: Any, option: Any, out: Any) -> None:
        for number in prange(pieces):
            xs, outs = piece(number, pieces, x), piece(number, pieces, out)
            for i in range(xs.size):
                outs[i] = f(xs[i], option)

    def of_two(pieces: int, g: Any, x: Any, out: Any) -> None:
        for number in prange(pieces):
            gs, xs = piece(number, pieces, g), piece(number, pieces, x)
            outs = piece(number, pieces, out)
            for i in range(gs.size):
                outs[i] = f(gs[i], xs[i])

    def of_two_with_option(pieces: int, g: Any, x: Any, option: Any, out: Any) -> None:
        for number in prange(pieces):
            gs, xs = piece(number, pieces, g), piece(number, pieces, x)
            outs = piece(number, pieces, out)
            for i in range(gs.size):
                outs[i] = f(gs[i], xs[i], option)

    loops: list[list[Any]] = [[of_one, of_one_with_option], [of_two, of_two_with_option]]
    loop = loops[operands - 1][options]
    loop.__name__ = f"{function.__name__}_loop"
    return loop


def rowwise(
    seconds: float, *, reference: Callable[..., Array], operands: int = 1
) -> Callable[[Function], Fused]:
    """Make a function of arrays from one of a row along the last axis, which writes to a result.

    Args:
        seconds: the time that an element takes, about.
        reference: the function of arrays in numpy.
        operands: how many arrays it takes: 1, or 2 of one shape and dtype.
    """

    def decorate(function: Function) -> Fused:
        f = jit(inline="always")(function)

        def of_one(pieces: int, x: Any, out: Any) -> None:
            n = len(x)
            for number in prange(pieces):
                for i in range(number * n // pieces, (number + 1) * n // pieces):
                    f(x[i], out[i])

        def of_two(pieces: int, g: Any, x: Any, out: Any) -> None:
            n = len(x)
            for number in prange(pieces):
                for i in range(number * n // pieces, (number + 1) * n // pieces):
                    f(g[i], x[i], out[i])

        loop: Any = of_one if operands == 1 else of_two
        loop.__name__ = f"{function.__name__}_loop"
        signature = (*[read(types.float32, 2)] * operands, written(types.float32, 2))
        kernels = {SINGLE: Kernel(loop, signature)}
        return Fused(function, reference, seconds, operands, kernels, rows)

    return decorate


def rows(x: Array) -> Array:
    """Return x as a matrix whose rows, along its last axis, lie one behind another."""
    if x.ndim == 2 and x.flags.c_contiguous:
        return x
    return x.ravel().reshape(-1, x.shape[-1] if x.ndim else 1)


@jit(inline="always")
def piece(number: int, pieces: int, x: Any) -> Any:
    """Return piece `number` of a row, as a slice.

    LLVM knows the indices of a slice to be counted from 0, and makes vector code only where none
    can be negative.
    """
    return x[number * x.size // pieces : (number + 1) * x.size // pieces]
