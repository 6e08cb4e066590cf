"""A function of arrays and one that computes its gradient, as what a gradient check needs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    Array,
    CheckedFunction,
    Gradients,
    NoGradient,
    Outline,
    Pullback,
    copied,
    flat,
    largest_of,
    names_of_inputs,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64, finfo, is_float, least_exact


class ArrayPair(CheckedFunction):
    """`forward` and `backward`, in any language; nothing inside them can be seen."""

    checker = "check_vjp"

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Any
    ) -> None:
        super().__init__(forward)
        if not callable(backward):
            raise self.error(f"backward must be a function, not {backward!r:.60}")
        self._forward, self._backward = forward, backward
        self._takes_out = False
        with suppress(TypeError, ValueError):  # a function of C may not tell its parameters
            self._takes_out = "out" in inspect.signature(backward).parameters
        inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        self._inputs = [copied(np.asarray(x)) for x in inputs]
        for i, x in enumerate(self._inputs):
            if x.dtype.kind not in "biuf" and not is_float(x.dtype):
                what = f"{type(inputs[i]).__name__} of dtype {x.dtype}"
                raise self.error(f"input {i} must be an array of real numbers, not {what}")
        self._names = names_of_inputs(forward, len(self._inputs))
        self.take(dict(zip(self._names, self._inputs, strict=True)))

    def _arguments(self, operands: Sequence[Array]) -> list[Array]:
        """Return all inputs, with these operands among them."""
        floats = iter(operands)
        return [next(floats) if is_float(x.dtype) else x for x in self._inputs]

    def _called(self, arguments: Sequence[Array]) -> tuple[list[Array], bool]:
        """Return all results, and whether there are several."""
        result = self._forward(*arguments)
        several = isinstance(result, (tuple, list))
        found = [np.asarray(x) for x in (result if several else [result])]
        if not all(is_float(x.dtype) or x.dtype.kind in "biu" for x in found) or not any(
            is_float(x.dtype) for x in found
        ):
            given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in found) or "nothing"
            what = f"{type(result).__name__} ({given})"
            raise self.error(
                f"forward must return an array of floats, or a tuple with one, not {what}"
            )
        self.same_shapes([x for x in found if is_float(x.dtype)])
        return found, several

    def results(self, operands: Sequence[Array]) -> list[Array]:
        """Compute the results of floats."""
        return [x for x in self._called(self._arguments(operands))[0] if is_float(x.dtype)]

    def vjp(
        self, operands: Sequence[Array], needed: Sequence[int] | None = None
    ) -> tuple[list[Array], Pullback]:
        """Call forward, and return its results and a function that calls backward."""
        arguments = self._arguments(operands)
        found, several = self._called(arguments)
        # A kernel may give the same memory in each call, and backward may write to it.
        outs = [x.copy() for x in found]

        def pullback(cotangents: Sequence[Array], recorded: bool = False) -> Gradients:
            seeds = self._seeds(outs, cotangents)
            given = self._pulled_back(arguments, seeds, outs, several)
            return [np.array(g, FLOAT64, order="C") for g in given]

        return [x for x in outs if is_float(x.dtype)], pullback

    def _seeds(self, outs: Sequence[Array], cotangents: Sequence[Array]) -> list[Array | None]:
        """Return what backward is given for each result, which it may write to."""
        left = iter(cotangents)
        return [np.array(next(left), x.dtype) if is_float(x.dtype) else None for x in outs]

    def _pulled_back(
        self,
        arguments: Sequence[Array],
        seeds: Sequence[Array | None],
        outs: Sequence[Array],
        several: bool,
    ) -> list[Array]:
        """Call backward, and return the gradients by the operands as it gives them."""
        options = {"out": tuple(outs) if several else outs[0]} if self._takes_out else {}
        name = getattr(self._backward, "__name__", "backward")
        try:
            found = self._backward(tuple(seeds) if several else seeds[0], *arguments, **options)
        except Exception as error:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arguments)
            error.add_note(f"raised in {name}(g, *inputs), with inputs {shapes}")
            raise
        gradients = list(found) if isinstance(found, (tuple, list)) else [found]
        if len(gradients) != len(arguments):
            what = f"a {type(found).__name__}"
            what += f" of {len(gradients)}" if isinstance(found, (tuple, list)) else ""
            raise self.error(
                f"{name} must return a gradient for each of the {len(arguments)} inputs, in a "
                f"tuple if there are several, and None for integers; it returned {what}"
            )
        operands = [i for i, x in enumerate(arguments) if is_float(x.dtype)]
        return [self._checked(name, i, gradients[i]) for i in operands]

    def _checked(self, name: str, i: int, gradient: Any) -> Array:
        """Return a gradient as an array; raise NoGradient if it is none of its input."""
        operand, x = self._names[i], self._inputs[i]
        if gradient is None:
            reason = f"{name} returned None for an input of floats; zeros say that nothing depends "
            raise NoGradient(operand, reason + "on it")
        g = np.asarray(gradient)
        if g.dtype.kind not in "biuf" and not is_float(g.dtype):
            what = f"{type(gradient).__name__} of dtype {g.dtype}"
            raise self.error(f"{name} must return arrays of floats, not {what} for {operand}")
        if g.shape != x.shape:
            reason = f"{name} returned a gradient of shape {g.shape} for an input of {x.shape}"
            raise NoGradient(operand, reason)
        return g

    def outline(self, operands: Sequence[Array]) -> Outline:
        """Call both functions, and say what the results are.

        Raises:
            TypeError: if the operands have more digits than the inputs, and the functions do not
                compute with them. A kernel that takes any memory for one of float32 gives other
                numbers then.
        """
        arguments = self._arguments(operands)
        found, several = self._called(arguments)
        outs = [x.copy() for x in found]
        floats = [x for x in outs if is_float(x.dtype)]
        ones = self._seeds(outs, [np.ones(x.shape) for x in floats])
        gradients = self._pulled_back(arguments, ones, outs, several)
        given = least_exact(x.dtype for x in self.operands)
        if any(x.dtype != y.dtype for x, y in zip(operands, self.operands, strict=True)):
            values, narrow = flat(floats), self.values(self.operands)
            near = tolerances.TOLERANCE_ROOTS * math.sqrt(float(finfo(given).eps))
            wide = all(x.dtype == FLOAT64 for x in (*floats, *gradients))
            if not wide or not np.allclose(
                values, narrow, rtol=near, atol=near * largest_of([narrow]), equal_nan=True
            ):
                raise self.error(f"{self.name} computes in {given} only")
        dtype = least_exact([x.dtype for x in (*floats, *operands)])
        return Outline([x.shape for x in floats], self.least_exact(operands, dtype))

    def flaws(self, cotangents: Sequence[Array]) -> list[tuple[str, str]]:
        """Find what is wrong with gradients as arrays, with the name of the operand or cotangent.

        A gradient may be g itself, or share memory with one by another input, as that of x + y.
        """
        arguments = self._arguments(self.operands)
        found, several = self._called(arguments)
        outs = [x.copy() for x in found]
        seeds = self._seeds(outs, cotangents)
        gradients = self._pulled_back(arguments, seeds, outs, several)
        flaws = [
            ("the cotangent", "backward writes to the g that it is given, which others may have")
            for seed, same in zip(seeds, self._seeds(outs, cotangents), strict=True)
            if seed is not None and same is not None and not np.array_equal(seed, same)
        ]
        before = [g.copy() for g in gradients]
        other = self._seeds(outs, [-2 * v for v in cotangents])
        self._pulled_back(arguments, other, outs, several)
        for name, x, g, same in zip(self.names, self.operands, gradients, before, strict=True):
            for given, array in zip(self.names, self.operands, strict=True):
                if np.shares_memory(g, array):
                    flaws.append((name, f"its gradient shares memory with {given}"))
            if not np.array_equal(g, same, equal_nan=is_float(g.dtype)):
                reason = "its gradient is kept in memory that the next call of backward writes to"
                flaws.append((name, reason))
            if g.dtype != x.dtype and g.shape:  # a number of C or Python has the dtype it can have
                flaws.append((name, f"its gradient is {g.dtype}, the input {x.dtype}"))
        return flaws
