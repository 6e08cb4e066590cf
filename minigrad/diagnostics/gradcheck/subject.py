"""What a gradcheck is about: a function or a module, its operands, and its values and gradients.

All functions here take the operands as a list of arrays, so that any of them can be moved, and give
results as one vector, whatever f returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import reachable
from minigrad.core.tensor import Tensor, as_array
from minigrad.errors import op_error
from minigrad.nn.module import Module, Parameter

Array = NDArray[Any]
Vector = NDArray[np.float64]

FLOAT64 = np.dtype(np.float64)


class Subject:
    """A function of arrays that can be called with Tensors at any place of a graph.

    Args:
        f: a function of Tensors, or a Module, of which a copy is made.
        inputs: one tensor, array or number, or a sequence of them. They are copied, with the order
            that they have in memory.

    Attributes:
        name: of the function.
        operands: the inputs, and then the trainable parameters of a module.
        names: of the operands.
        floats: the positions of those operands that are of floats.
        shapes: of the results, once they are known.

    Raises:
        TypeError: if f cannot be called or copied, an input is none, or none is of floats.
    """

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        if not callable(f):
            raise op_error(
                TypeError, "gradcheck", f"f must be a function or a Module, not {f!r:.60}"
            )
        if isinstance(f, type):
            raise op_error(
                TypeError, "gradcheck", f"f is the class {f.__name__}; pass an instance of it"
            )
        self.name: str = getattr(f, "__name__", type(f).__name__)
        self.operands = [_operand(i, x) for i, x in enumerate(_sequence(inputs))]
        self.names = [f"input {i}" for i in range(len(self.operands))]
        self._inputs = len(self.operands)
        self._parameters: list[Parameter] = []
        if isinstance(f, Module):
            f = _copy_of(f)
            for name, parameter in f.named_parameters():
                if parameter.requires_grad:
                    self.names.append(name)
                    self.operands.append(parameter.data.copy())
                    self._parameters.append(parameter)
        self._f = f
        self.shapes: list[tuple[int, ...]] = []
        self.floats = [i for i, x in enumerate(self.operands) if x.dtype.kind == "f"]
        if not self.floats:
            raise op_error(
                TypeError,
                "gradcheck",
                "no input is of floats, so there is nothing to differentiate by; the "
                f"inputs are {[str(x.dtype) for x in self.operands]}",
            )

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The results of f that are of floats."""
        with _standing_for(self._parameters, tensors[self._inputs :]):
            result = self._f(*tensors[: self._inputs])
        found = list(_leaves(result))
        floats = [x for x in found if isinstance(x, Tensor) and x.dtype.kind == "f"]
        if not floats or not all(isinstance(x, Tensor) for x in found):
            what = result.describe() if isinstance(result, Tensor) else type(result).__name__
            raise op_error(
                TypeError,
                "gradcheck",
                f"the function must return a Tensor of floats, or a tuple, list or dict "
                f"of Tensors, not {what}",
            )
        shapes = [x.shape for x in floats]
        if self.shapes and shapes != self.shapes:
            raise op_error(
                ValueError,
                "gradcheck",
                f"{self.name} gives results of shapes {shapes}, and {self.shapes} "
                f"before; a function that has a gradient gives as many numbers for any values",
            )
        return floats

    def values(self, operands: Sequence[Array]) -> Vector:
        """All results as one vector, with no graph."""
        with grad_mode(False):
            return flat(x._data for x in self([Tensor(x) for x in operands]))

    def leaves(self, operands: Sequence[Array]) -> list[Tensor]:
        """The operands as Tensors, of which those of floats require a gradient."""
        return [Tensor(x, requires_grad=x.dtype.kind == "f") for x in operands]

    def gradient(
        self, operands: Sequence[Array], cotangents: Sequence[Array], recorded: bool = False
    ) -> Vector:
        """The gradient by all float operands, one behind the other.

        `recorded` says whether it is computed as for a derivative of higher order.
        """
        seeds = [v.copy() for v in cotangents]  # for a rule might write to them
        with grad_mode(True):
            leaves = self.leaves(operands)
            results = self(leaves)
            floats = self.of_floats(leaves)
            gradients = grad(results, floats, seeds, create_graph=recorded, allow_unused=True)
        return flat(g._data for g in gradients)

    @contextmanager
    def explained(self, how: str) -> Iterator[None]:
        """Errors raised here get a note that says how f was called."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised while gradcheck called {self.name} {how}")
            raise

    def check_unwritten(self, before: Sequence[Array], what: str) -> None:
        """Raise a ValueError if an operand is not what it was."""
        for name, old, new in zip(self.names, before, self.operands, strict=True):
            if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
                raise op_error(
                    ValueError,
                    "gradcheck",
                    f"{self.name} writes to its {name}{what}; a gradient is that of a "
                    f"function that leaves its inputs alone, so compute a new tensor instead",
                )

    def of_floats(self, values: Sequence[Any]) -> list[Any]:
        """Those of some values that belong to float operands."""
        return [values[i] for i in self.floats]


def computes_in(results: Sequence[Tensor]) -> np.dtype[Any]:
    """The least exact of the float dtypes that results and what they depend on were computed in."""
    dtypes = [x.dtype for x in results]
    nodes = reachable([x.node for x in results if x.node is not None])
    dtypes += [node.dtype for node in nodes if node.op is not None]
    return max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))


def copied(x: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """A copy with the strides of x, which may be negative or leave gaps."""
    dtype = x.dtype if dtype is None or x.dtype.kind != "f" else dtype
    reach = [stride * (n - 1) // x.itemsize for stride, n in zip(x.strides, x.shape, strict=True)]
    span = sum(map(abs, reach)) + 1
    whole = all(stride % x.itemsize == 0 for stride in x.strides)
    if x.flags.c_contiguous or not whole or not x.size or not x.size <= span <= 8 * x.size:
        return np.array(x, dtype, order="C")
    start = -sum(min(n, 0) for n in reach)
    strides = [stride // x.itemsize * dtype.itemsize for stride in x.strides]
    out = as_strided(np.zeros(span, dtype)[start:], x.shape, strides)
    out[...] = x
    # Where elements overlap in memory, as in a broadcast array, they cannot be moved one by one.
    return (
        out if np.array_equal(out, x, equal_nan=True) and 0 not in strides else np.array(x, dtype)
    )


def _sequence(inputs: Any) -> Sequence[Any]:
    """The inputs, if it was one alone."""
    if isinstance(inputs, (Tensor, np.ndarray, np.generic, int, float)):
        return [inputs]
    if isinstance(inputs, (list, tuple)):
        return inputs
    raise op_error(
        TypeError,
        "gradcheck",
        f"inputs are one tensor, array or number, or a list or tuple of them, not "
        f"{type(inputs).__name__}",
    )


def _operand(i: int, x: Any) -> Array:
    """A copy of an input."""
    try:
        return copied(as_array(x))
    except (TypeError, ValueError) as error:
        raise op_error(
            TypeError, "gradcheck", f"input {i} must be made of numbers; {error}"
        ) from error


def _copy_of(module: Module) -> Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise op_error(
            TypeError,
            "gradcheck",
            f"{type(module).__name__} cannot be copied ({error}), and it is left as it "
            f"is; check a function that calls it with tensors in the place of its parameters",
        ) from error


@contextmanager
def _standing_for(parameters: Sequence[Parameter], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Here the parameters have the values, and the places in the graph, of these tensors."""
    before = [(parameter._data, parameter.node) for parameter in parameters]
    try:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter._data, parameter.node = tensor._data, tensor.node
        yield
    finally:
        for parameter, (data, node) in zip(parameters, before, strict=True):
            parameter._data, parameter.node = data, node


def _leaves(result: Any) -> Iterator[Any]:
    """What is in tuples, lists and dicts."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _leaves(part)
    else:
        yield result


def flat(arrays: Iterable[Any]) -> Vector:
    """All elements of some arrays, one behind the other, in float64."""
    return np.concatenate([x.ravel().astype(np.float64) for x in arrays] or [np.zeros(0)])


def largest_of(arrays: Iterable[Array]) -> float:
    """The largest finite absolute value."""
    return max(float(np.max(np.abs(g), initial=0.0, where=np.isfinite(g))) for g in arrays)
