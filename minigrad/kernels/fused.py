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
from typing import Any, get_type_hints

import numpy as np

from minigrad.kernels.jit import (
    DOUBLE,
    SINGLE,
    Array,
    Number,
    Read1,
    Read2,
    Written1,
    Written2,
    jit,
)
from minigrad.kernels.launch import for_each_dtype, function_from, part, span

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
        double: Function | bool = False,
        by_rows: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self.reference = reference
        self._seconds = seconds
        kinds = get_type_hints(function)
        kinds.pop("return")
        operands = len([kind for kind in kinds.values() if kind is not float]) - by_rows
        self._operands = operands
        self._flat = rows_of if by_rows else _ravel
        self._kernels = for_each_dtype(SINGLE)(_loop_over(function, operands, by_rows))
        if double:
            f = double if callable(double) else function
            self._kernels |= for_each_dtype(DOUBLE)(_loop_over(f, operands, by_rows))

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
    double: Function | bool = False,
) -> Callable[[Function], Fused]:
    """Make a function of arrays from one of an element: its operands come first, then options.

    It takes one or two operands, of one shape and dtype; options are annotated as `float`.

    Args:
        seconds: the time that an element takes, about.
        reference: the function of arrays in numpy.
        double: whether there is a kernel for float64 too, or the function of its elements.
    """
    return lambda function: Fused(function, seconds, reference, double)


def rowwise(seconds: float, *, reference: Callable[..., Array]) -> Callable[[Function], Fused]:
    """Make a function of arrays from one of a row along the last axis, which writes to a result.

    The arguments are those of `elementwise`; there are no options, and no float64.
    """
    return lambda function: Fused(function, seconds, reference, by_rows=True)


def _loop_over(function: Function, operands: int, by_rows: bool) -> Callable[..., None]:
    """Return the loop that applies a function to each element or row, named after it."""
    arrays = [*(f"x{i}" for i in range(operands)), "out"]
    count = function.__code__.co_argcount - operands - by_rows
    options = [f"option{i}" for i in range(count)]
    elements = [f"{x}[i]" for x in arrays]
    if by_rows:
        body = f"""
            for i in span(piece, pieces, len(x0)):
                f({", ".join(elements)})
        """
    else:
        body = f"""
            {", ".join(arrays)} = {", ".join(f"part(piece, pieces, {x})" for x in arrays)}
            for i in range(x0.size):
                out[i] = f({", ".join(elements[:-1] + options)})
        """
    parameters = {
        **dict.fromkeys(["piece", "pieces"], int),
        **dict.fromkeys(arrays[:-1], Read2 if by_rows else Read1),
        **dict.fromkeys(options, Number),
        "out": Written2 if by_rows else Written1,
    }
    f = jit(inline="always")(function)
    name = f"{function.__name__}_loop"
    return function_from(name, parameters, body, f=f, part=part, span=span)


def rows_of(x: Array, size: int | None = None) -> Array:
    """Return x as a contiguous matrix, with rows of this size, or along its last axis."""
    if size is None:
        if x.ndim == 2 and x.flags.c_contiguous:
            return x
        size = x.shape[-1] if x.ndim else 1
    return x.ravel().reshape(-1, size)
