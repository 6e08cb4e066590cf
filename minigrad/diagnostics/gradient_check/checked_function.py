"""The function that a gradcheck is about: its operands, its values and its gradients.

All methods take the operands as a list of float arrays, so that any of them can be perturbed. They
return all results as one vector, whatever f returns, and a gradient as one array per operand.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.tensor import Tensor, as_array
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64
from minigrad.diagnostics.restored import assigned
from minigrad.errors import op_error
from minigrad.nn.module import Module, Parameter

Array = NDArray[Any]
Vector = NDArray[np.float64]
Gradients = list[Vector]
ArraysAt = Callable[[Sequence[Array]], Gradients]  # computes arrays at some operands
E = TypeVar("E", bound=Exception)

RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"


def gradcheck_error(kind: type[E], message: str) -> E:
    """Return an exception whose message names gradcheck."""
    return op_error(kind, "gradcheck", message)


class CheckedFunction:
    """A function of float arrays, which can be called with Tensors that depend on others.

    Inputs of integers and booleans are passed on as constants. The trainable parameters of a Module
    are operands, behind the inputs.

    A Module is copied, and so are the inputs, with the order that they have in memory.

    Raises:
        TypeError: if f cannot be called or copied, an input is none, or none is of floats.
    """

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        if not callable(f):
            raise gradcheck_error(TypeError, f"f must be a function or a Module, not {f!r:.60}")
        if isinstance(f, type):
            raise gradcheck_error(TypeError, f"f is the class {f.__name__}; pass an instance of it")
        self.name: str = getattr(f, "__name__", type(f).__name__)
        self._inputs: list[Array] = []
        if isinstance(inputs, (Tensor, np.ndarray, np.generic, int, float)):
            inputs = [inputs]
        if not isinstance(inputs, (list, tuple)):
            raise gradcheck_error(
                TypeError,
                f"inputs are one tensor, array or number, or a list or tuple of them, not "
                f"{type(inputs).__name__}",
            )
        for i, x in enumerate(inputs):
            try:
                self._inputs.append(copied(as_array(x)))
            except (TypeError, ValueError) as error:
                message = f"input {i} must be made of numbers; {error}"
                raise gradcheck_error(TypeError, message) from error
        self._parameters: list[Parameter] = []
        self._arrays = {f"input {i}": x for i, x in enumerate(self._inputs)}
        if isinstance(f, Module):
            try:
                f = copy.deepcopy(f)
            except Exception as error:
                message = (
                    f"{self.name} cannot be copied ({error}), and it is left as it is; check a "
                    f"function that calls it with tensors instead of its parameters"
                )
                raise gradcheck_error(TypeError, message) from error
            for name, parameter in f.named_parameters():
                if parameter.requires_grad:
                    self._parameters.append(parameter)
                    self._arrays[name] = parameter.data.copy()
        self._f = f
        self._before = {name: x.copy() for name, x in self._arrays.items()}
        # The operands are the inputs and parameters of floats, in the dtypes that they came in.
        self.names = [name for name, x in self._arrays.items() if x.dtype.kind == "f"]
        self.operands = [self._arrays[name] for name in self.names]
        self.shapes: list[tuple[int, ...]] = []  # of the results, once they are known
        if not self.operands:
            raise gradcheck_error(
                TypeError,
                "no input is of floats, so there is nothing to differentiate by; the "
                f"inputs are {[str(x.dtype) for x in self._inputs]}",
            )

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the results of f that are of floats."""
        floats = iter(tensors)
        inputs = [next(floats) if x.dtype.kind == "f" else Tensor(x) for x in self._inputs]
        pairs = zip(self._parameters, floats, strict=True)
        with assigned([(p, {"_data": x._data, "node": x.node}) for p, x in pairs]):
            result = self._f(*inputs)
        found = list(_leaves(result))
        results = [x for x in found if isinstance(x, Tensor) and x.dtype.kind == "f"]
        if not results or not all(isinstance(x, Tensor) for x in found):
            what = result.describe() if isinstance(result, Tensor) else type(result).__name__
            raise gradcheck_error(
                TypeError,
                f"the function must return a Tensor of floats, or a tuple, list or dict "
                f"of Tensors, not {what}",
            )
        shapes = [x.shape for x in results]
        if self.shapes and shapes != self.shapes:
            raise gradcheck_error(
                ValueError,
                f"{self.name} gives results of shapes {shapes}, and {self.shapes} "
                f"before; a function that has a gradient gives as many numbers for any values",
            )
        return results

    def values(self, operands: Sequence[Array]) -> Vector:
        """Compute all results as one vector, with no graph."""
        with grad_mode(False):
            return flat(x._data for x in self([Tensor(x) for x in operands]))

    def leaves(self, operands: Sequence[Array]) -> list[Tensor]:
        """Return the operands as Tensors that require a gradient."""
        return [Tensor(x, requires_grad=True) for x in operands]

    def gradients(
        self, operands: Sequence[Array], cotangents: Sequence[Array], recorded: bool = False
    ) -> Gradients:
        """Compute the gradient of sum(cotangents * results) by each operand.

        `recorded` says whether it is computed as for a derivative of higher order.
        """
        with grad_mode(True):
            leaves = self.leaves(operands)
            return gradients_of(self(leaves), leaves, cotangents, create_graph=recorded)

    def second_gradients(
        self, operands: Sequence[Array], cotangents: Sequence[Array], weights: Sequence[Array]
    ) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with grad_mode(True), self.explained(RECORDING):
            leaves = self.leaves(operands)
            results = self(leaves)
            seeds = [
                Tensor(v.astype(x.dtype), requires_grad=True)
                for v, x in zip(cotangents, results, strict=True)
            ]
            first = grad(results, leaves, seeds, create_graph=True, allow_unused=True)
            parts = [(g * w).sum() for g, w in zip(first, weights, strict=True)]
            total: Tensor = functools.reduce(operator.add, parts)
            second = grad(total, [*leaves, *seeds], allow_unused=True)
            return [np.array(g._data, FLOAT64) for g in second]

    @contextmanager
    def explained(self, how: str) -> Iterator[None]:
        """Add a note to errors that are raised here, which says how f was called."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised while gradcheck called {self.name} {how}")
            raise

    def check_unwritten(self, when: str) -> None:
        """Raise a ValueError if an input or a parameter is not as it was."""
        for name, x in self._arrays.items():
            if not np.array_equal(self._before[name], x, equal_nan=x.dtype.kind == "f"):
                raise gradcheck_error(
                    ValueError,
                    f"{self.name} writes to its {name}{when}; a gradient is that of a "
                    f"function that leaves its inputs alone, so compute a new tensor instead",
                )


def gradients_of(
    results: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Array],
    **options: bool,
) -> Gradients:
    """Compute the gradient of sum(cotangents * results) by each leaf, in float64."""
    seeds = [copied(v) for v in cotangents]  # because a VJP might write to them
    found = grad(results, leaves, seeds, allow_unused=True, **options)
    return [np.array(g._data, FLOAT64, order="C") for g in found]


def copied(x: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return a copy with the strides of x, which may be negative or leave gaps."""
    dtype = x.dtype if dtype is None else dtype
    reach = [stride * (n - 1) // x.itemsize for stride, n in zip(x.strides, x.shape, strict=True)]
    span = sum(map(abs, reach)) + 1
    aligned = all(stride % x.itemsize == 0 for stride in x.strides)
    if x.flags.c_contiguous or not aligned or not x.size or not x.size <= span <= 8 * x.size:
        return np.array(x, dtype, order="C")
    start = -sum(min(n, 0) for n in reach)
    strides = [stride // x.itemsize * dtype.itemsize for stride in x.strides]
    out = as_strided(np.zeros(span, dtype)[start:], x.shape, strides)
    out[...] = x
    # Where elements overlap in memory, as in a broadcast array, they cannot be moved one by one.
    return (
        out if np.array_equal(out, x, equal_nan=True) and 0 not in strides else np.array(x, dtype)
    )


def _leaves(result: Any) -> Iterator[Any]:
    """Yield what is in tuples, lists and dicts."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _leaves(part)
    else:
        yield result


def flat(arrays: Iterable[Array]) -> Vector:
    """Return all elements of some arrays, one array behind the other, in float64."""
    return np.concatenate([x.ravel().astype(np.float64) for x in arrays] or [np.zeros(0)])


def largest_of(arrays: Iterable[Array]) -> float:
    """Return the largest finite absolute value."""
    return max(float(np.max(np.abs(g), initial=0.0, where=np.isfinite(g))) for g in arrays)
