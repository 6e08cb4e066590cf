"""A pair of functions of arrays, forward and backward, in the form that a gradient check needs."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.checked_function import (
    Array,
    Arrays,
    CheckedFunction,
    Foreign,
    NoGradient,
    Pull,
    copied,
    flat,
    largest_of,
    names_of_inputs,
)
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64, finfo, is_float, least_exact


class ArrayPair(CheckedFunction):
    """`forward` and `backward`, in any language; the check cannot see inside them."""

    checker = "check_vjp"
    framework = "numpy"

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Sequence[Any]
    ) -> None:
        super().__init__(forward)
        if not callable(backward):
            raise self.error(f"backward must be a function, not {backward!r:.60}")
        self._forward, self._backward = forward, backward
        self._takes_out = False
        with suppress(TypeError, ValueError):  # a function in C may not have a signature
            self._takes_out = "out" in inspect.signature(backward).parameters
        self._inputs: list[Array] = []
        for i, x in enumerate(inputs):
            must = f"input {i} must be an array of real numbers, not"
            try:
                array = copied(np.asarray(x))
            except (TypeError, ValueError) as error:
                raise self.error(f"{must} {type(x).__name__}: {error}") from error
            if array.dtype.kind not in "biuf" and not is_float(array.dtype):
                raise self.error(f"{must} {type(x).__name__} of dtype {array.dtype}")
            self._inputs.append(array)
        self._names = names_of_inputs(forward, len(self._inputs))
        self.take(dict(zip(self._names, self._inputs, strict=True)), self._inputs)

    def _call(self, arrays: Foreign) -> list[Array]:
        return self._pulled_back(arrays)[0]

    def _pulled_back(
        self, operands: Arrays, needed: Sequence[int] = ()
    ) -> tuple[list[Array], Pull]:
        """Call forward and copy its results, because it may use the same memory each time."""
        left = iter(operands)
        arguments = [next(left) if is_float(x.dtype) else x for x in self._inputs]
        result = self._forward(*arguments)
        several = isinstance(result, (tuple, list))
        found = [np.array(x) for x in (result if several else [result])]
        floats = [x for x in found if is_float(x.dtype)]
        if not floats or not all(is_float(x.dtype) or x.dtype.kind in "biu" for x in found):
            given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in found) or "nothing"
            raise self.error(
                f"forward must return an array of floats, or a tuple with one, not "
                f"{type(result).__name__} ({given})"
            )
        pull = functools.partial(self._gradients, arguments, found, several)
        return self.same_shapes(floats), pull

    def _gradients(
        self, arguments: Arrays, outs: Arrays, several: bool, seeds: Foreign, recorded: bool
    ) -> list[Array]:
        """Call backward for this call of forward, and return the gradients by the operands.

        `several` says whether forward returned its results, `outs`, as a tuple.
        """
        left = iter(seeds)
        given = [next(left) if is_float(x.dtype) else None for x in outs]
        options = {"out": tuple(outs) if several else outs[0]} if self._takes_out else {}
        name = getattr(self._backward, "__name__", "backward")
        try:
            found = self._backward(tuple(given) if several else given[0], *arguments, **options)
        except Exception as error:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arguments)
            error.add_note(f"raised in {name}(g, *inputs), with inputs {shapes}")
            raise
        gradients = list(found) if isinstance(found, (tuple, list)) else [found]
        if len(gradients) != len(arguments):
            many = f" of {len(gradients)}" if isinstance(found, (tuple, list)) else ""
            raise self.error(
                f"{name} must return a gradient for each of the {len(arguments)} inputs, in a "
                f"tuple if there are several, and None for integers; it returned a "
                f"{type(found).__name__}{many}"
            )
        checked = []
        for i, (x, g) in enumerate(zip(arguments, gradients, strict=True)):
            if not is_float(x.dtype):
                continue
            array = np.asarray(g)
            if g is None:
                reason = f"{name} returned None for an input of floats; zeros say that nothing "
                raise NoGradient(self._names[i], reason + "depends on it")
            if array.dtype.kind not in "biuf" and not is_float(array.dtype):
                what = f"{type(g).__name__} of dtype {array.dtype} for {self._names[i]}"
                raise self.error(f"{name} must return arrays of floats, not {what}")
            if array.shape != x.shape:
                reason = f"{name} returned a gradient of shape {array.shape} for an input of "
                raise NoGradient(self._names[i], f"{reason}{x.shape}")
            checked.append(array)
        return checked

    def _keeps_digits(self, results: Foreign, gradients: Foreign) -> bool:
        """Return whether all arrays are float64, and the values near those for narrow operands.

        A kernel that reads any memory as float32, for example, gives wrong numbers.
        """
        narrow = self.values(self.operands)
        given = least_exact(x.dtype for x in self.operands)
        near = tolerances.TOLERANCE_ROOTS * math.sqrt(float(finfo(given).eps))
        return all(x.dtype == FLOAT64 for x in (*results, *gradients)) and np.allclose(
            flat(results), narrow, rtol=near, atol=near * largest_of([narrow]), equal_nan=True
        )

    def _others_memory(self, gradients: Mapping[str, Array], seeds: Arrays) -> dict[str, Array]:
        """Return the operands: a gradient may be g itself, or that of another input too."""
        return dict(zip(self.names, self.operands, strict=True))

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find faults of gradients as arrays, also of those in memory that backward uses again."""
        results, pull = self._pulled_back(self.operands)
        gradients = pull(self._seeds(cotangents, results), False)
        before = [g.copy() for g in gradients]
        pull(self._seeds([-2 * v for v in cotangents], results), False)
        reason = "its gradient is kept in memory that the next call of backward writes to"
        kept = zip(self.names, gradients, before, strict=True)
        used_again = [
            (name, reason)
            for name, g, same in kept
            if not np.array_equal(g, same, equal_nan=is_float(g.dtype))
        ]
        return super().flaws(cotangents) + used_again
