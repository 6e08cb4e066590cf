"""The function that a gradcheck is about: its operands, its values and its gradients.

All methods take the operands as a list of float arrays, so that any of them can be perturbed. They
return all results as one vector, whatever f returns, and a gradient as one array per operand.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from minigrad.core.backward import grad
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import Node, reachable
from minigrad.core.tensor import Tensor, as_array
from minigrad.diagnostics.gradient_check import tolerances
from minigrad.diagnostics.gradient_check.tolerances import FLOAT64
from minigrad.diagnostics.restored import assigned
from minigrad.errors import op_error
from minigrad.nn.module import Module, Parameter

Array = NDArray[Any]
Vector = NDArray[np.float64]
Gradients = list[Vector]
ArraysAt = Callable[[Sequence[Array]], Gradients]  # computes arrays at some operands

RECORDING = "and recorded its gradient for order 2; order=1 checks the first derivative only"


def gradcheck_error(message: str, kind: type[Exception] = TypeError) -> Exception:
    """Return an exception whose message names gradcheck."""
    return op_error(kind, "gradcheck", message)


class CheckedFunction:
    """A function of float arrays, which can be called with Tensors that depend on others.

    Inputs of integers and booleans are constants. The trainable parameters of a Module are
    operands, behind the inputs. A Module is copied, and so are the inputs, with their strides.
    """

    def __init__(self, f: Callable[..., Any], inputs: Any) -> None:
        if not callable(f):
            raise gradcheck_error(f"f must be a function or a Module, not {f!r:.60}")
        if isinstance(f, type):
            raise gradcheck_error(f"f is the class {f.__name__}; pass an instance of it")
        self.name: str = getattr(f, "__name__", type(f).__name__)
        self._inputs: list[Array] = []
        if isinstance(inputs, (Tensor, np.ndarray, np.generic, int, float)):
            inputs = [inputs]
        if not isinstance(inputs, (list, tuple)):
            what = "one tensor, array or number, or a list or tuple of them"
            raise gradcheck_error(f"inputs are {what}, not {type(inputs).__name__}")
        for i, x in enumerate(inputs):
            try:
                self._inputs.append(copied(as_array(x)))
            except (TypeError, ValueError) as error:
                raise gradcheck_error(f"input {i} must be made of numbers; {error}") from error
        self._parameters: list[Parameter] = []
        self._arrays = dict(zip(_names_of_inputs(f, len(self._inputs)), self._inputs, strict=True))
        if isinstance(f, Module):
            try:
                f = copy.deepcopy(f)
            except Exception as error:
                raise gradcheck_error(
                    f"{self.name} cannot be copied ({error}), and it is left as it is; check a "
                    f"function that calls it with tensors instead of its parameters"
                ) from error
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
            dtypes = [str(x.dtype) for x in self._inputs]
            raise gradcheck_error(
                f"no input is of floats, so there is nothing to differentiate by; they are {dtypes}"
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
                f"f must return a Tensor of floats, or a tuple, list or dict of Tensors, not {what}"
            )
        shapes = [x.shape for x in results]
        if self.shapes and shapes != self.shapes:
            message = f"{self.name} gives results of shapes {shapes}, and {self.shapes} before; a "
            message += "function that has a gradient gives as many numbers for any values"
            raise gradcheck_error(message, ValueError)
        return results

    def values(self, operands: Sequence[Array]) -> Vector:
        """Compute all results as one vector, with no graph."""
        with grad_mode(False):
            return flat(x._data for x in self([Tensor(x) for x in operands]))

    def called(self, operands: Sequence[Array]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the operands as Tensors that require a gradient, and the results."""
        leaves = [Tensor(x, requires_grad=True) for x in operands]
        return leaves, self(leaves)

    def gradients(
        self, operands: Sequence[Array], cotangents: Sequence[Array], recorded: bool = False
    ) -> Gradients:
        """Compute the gradient of sum(cotangents * results) by each operand.

        `recorded` says whether it is computed as for a derivative of higher order.
        """
        with grad_mode(True):
            leaves, results = self.called(operands)
            return gradients_of(results, leaves, cotangents, create_graph=recorded)

    def second_gradients(
        self, operands: Sequence[Array], cotangents: Sequence[Array], weights: Sequence[Array]
    ) -> Gradients:
        """Compute the gradient of sum(weights * gradient) by each operand and each cotangent."""
        with grad_mode(True), self.explained(RECORDING):
            leaves, results = self.called(operands)
            pairs = zip(cotangents, results, strict=True)
            seeds = [Tensor(v.astype(x.dtype), requires_grad=True) for v, x in pairs]
            first = grad(results, leaves, seeds, create_graph=True, allow_unused=True)
            parts = [(g * w).sum() for g, w in zip(first, weights, strict=True)]
            total: Tensor = functools.reduce(operator.add, parts)
            second = grad(total, [*leaves, *seeds], allow_unused=True)
            return [np.array(g._data, FLOAT64) for g in second]

    def cotangents(
        self, operands: Sequence[Array], results: Sequence[Tensor], rng: np.random.Generator
    ) -> list[Array]:
        """Draw a cotangent for each result, so large that the gradients of all are of like size.

        They have as many digits as float32, so that they are the same numbers in both dtypes.
        """
        seeds = [rng.standard_normal(x.shape, np.float32).astype(FLOAT64) for x in results]
        if len(seeds) == 1:
            return seeds
        sizes = []
        for k in range(len(seeds)):
            one = [v if at == k else np.zeros(v.shape) for at, v in enumerate(seeds)]
            sizes.append(largest_of(self.gradients(operands, one)))
        largest = max(sizes)
        return [
            v * 2.0 ** round(math.log2(largest / size)) if 0 < size < largest else v
            for v, size in zip(seeds, sizes, strict=True)
        ]

    def gradients_by_path(
        self, operands: Sequence[Array], cotangents: Sequence[Array], recorded: bool
    ) -> tuple[Gradients, dict[str, Gradients]]:
        """Compute the gradients by `grad`, and by each other path; all must be the same.

        If `recorded`, one is a pass that is recorded for a derivative of higher order.
        """
        paths: dict[str, Gradients] = {}
        with grad_mode(True):
            leaves, results = self.called(operands)

            def pulled_back(seeds: Sequence[Array] = cotangents, **options: bool) -> Gradients:
                return gradients_of(results, leaves, seeds, **options)

            gradients = pulled_back(retain_graph=True)
            paths["a second pass"] = pulled_back(retain_graph=True)
            if recorded:
                with self.explained(RECORDING):
                    paths["a recorded pass"] = pulled_back(create_graph=True)
            backwards = [np.flip(np.flip(v).copy()) for v in cotangents]
            paths["cotangents in reversed memory"] = pulled_back(backwards, retain_graph=True)
            with suppress(Exception):  # f may not be defined there
                self.called(elsewhere(operands))
                paths["a pass behind another call of f"] = pulled_back(retain_graph=True)
            for _ in range(2):
                _backward(results, [v.copy() for v in cotangents], leaves)
            paths["backward, twice"] = [
                np.zeros(x.shape) if x.grad is None else x.grad._data.astype(FLOAT64) / 2
                for x in leaves
            ]
            if len(operands) > 1:
                alone = paths["a pass for it alone"] = []
                for i in range(len(operands)):  # where the others are constants
                    inputs = [Tensor(x, requires_grad=at == i) for at, x in enumerate(operands)]
                    alone += gradients_of(self(inputs), [inputs[i]], cotangents)
        return gradients, paths

    def flaws(self, cotangents: Sequence[Array]) -> list[tuple[str, str]]:
        """Find what is wrong with gradients as arrays, with the name of the operand or cotangent.

        A write to one must not change another, or a cotangent, or an operand. And a cotangent of
        ones must give the same where it is one number that is broadcast, as behind a sum.
        """
        with grad_mode(True):
            leaves, results = self.called(self.operands)
            seeds = [np.array(v, x.dtype) for v, x in zip(cotangents, results, strict=True)]
            _backward(results, seeds, leaves)
        written = "a VJP writes to the gradient that it is given, which others have too"
        flaws = [
            (f"cotangent {k}", written)
            for k, (seed, v) in enumerate(zip(seeds, cotangents, strict=True))
            if not np.array_equal(seed, v.astype(seed.dtype))
        ]
        named = list(zip(self.names, leaves, strict=True))
        gradients = {name: leaf.grad._data for name, leaf in named if leaf.grad is not None}
        arrays = {f"the gradient of {name}": gradient for name, gradient in gradients.items()}
        arrays |= {name: leaf._data for name, leaf in named}
        arrays |= {f"cotangent {k}": seed for k, seed in enumerate(seeds)}
        for name, gradient in gradients.items():
            for other, array in arrays.items():
                if other != f"the gradient of {name}" and np.shares_memory(gradient, array):
                    flaws.append((name, f"its gradient shares memory with {other}"))
        for name, gradient in gradients.items():
            if gradient.dtype != (dtype := arrays[name].dtype):
                flaws.append((name, f"its gradient is {gradient.dtype}, the operand {dtype}"))
        flaws += [(name, _broadcast_flaw(results, leaf)) for name, leaf in named]
        return [(name, reason) for name, reason in flaws if reason]

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
                message = (
                    f"{self.name} writes to {name}{when}; a gradient is that of a function "
                    f"that leaves its inputs alone, so compute a new tensor instead"
                )
                raise gradcheck_error(message, ValueError)


def _names_of_inputs(f: Callable[..., Any], count: int) -> list[str]:
    """Return what f calls its inputs; "input 0" where it has no name, or that of a parameter."""
    names = [f"input {i}" for i in range(count)]
    with suppress(TypeError, ValueError):  # a function that is not written in Python may not say
        signature = inspect.signature(f.forward if isinstance(f, Module) else f)
        taken = dict(f.named_parameters()) if isinstance(f, Module) else {}
        for i, parameter in enumerate(list(signature.parameters.values())[:count]):
            by_position = parameter.kind in (
                parameter.POSITIONAL_ONLY,
                parameter.POSITIONAL_OR_KEYWORD,
            )
            if by_position and parameter.name not in taken:
                names[i] = parameter.name
    return names


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


def elsewhere(operands: Sequence[Array]) -> list[Array]:
    """Return another point, near this one and on the same side of 0."""
    moved = [copied(x) for x in operands]
    for x in moved:
        x *= x.dtype.type(1 + tolerances.ANOTHER_POINT)
    return moved


def _backward(results: Sequence[Tensor], seeds: Sequence[Array], leaves: Sequence[Tensor]) -> None:
    """Add to `.grad` of the leaves, and restore that of all other tensors."""
    before = [(node, node.grad) for node in other_leaves(results, leaves)]
    try:
        for result, seed in zip(results, seeds, strict=True):
            if result.requires_grad:
                result.backward(seed, retain_graph=True)
    finally:
        for node, gradient in before:
            node.grad = gradient


def other_leaves(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
    """Find what results depend on and what would be given a gradient, besides these leaves."""
    own = {x.node for x in leaves}
    nodes = reachable([x.node for x in results if x.node is not None])
    return [n for n in nodes if (n.op is None or n.retains_grad) and n not in own]


def _broadcast_flaw(results: Sequence[Tensor], leaf: Tensor) -> str:
    """Say what is wrong with the gradient for a cotangent that is broadcast, or nothing."""
    ones = [np.ones(x.shape, x.dtype) for x in results]
    broadcast = [np.broadcast_to(np.ones((), x.dtype), x.shape) for x in results]
    try:
        plain, other = (
            grad(results, [leaf], seeds, retain_graph=True, allow_unused=True)[0]._data
            for seeds in (ones, broadcast)
        )
    except Exception as error:
        return f"a VJP fails for a cotangent that is broadcast, as behind a sum: {error!r}"
    near = tolerances.SAME_BROADCAST_EPS * float(np.finfo(plain.dtype).eps) * largest_of([plain])
    if np.allclose(plain, other, rtol=0.0, atol=near, equal_nan=True):
        return ""
    return "its gradient is another one for a cotangent that is broadcast, as behind a sum"


def copied(x: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return a copy with the strides of x, which may be negative or leave gaps."""
    dtype = x.dtype if dtype is None else dtype
    if x.flags.c_contiguous:
        return np.array(x, dtype, order="C")
    reach = [stride * (n - 1) // x.itemsize for stride, n in zip(x.strides, x.shape, strict=True)]
    span = sum(map(abs, reach)) + 1
    aligned = all(stride % x.itemsize == 0 for stride in x.strides)
    if not aligned or not x.size or not x.size <= span <= 8 * x.size:
        return np.array(x, dtype, order="C")
    start = -sum(min(n, 0) for n in reach)
    strides = [stride // x.itemsize * dtype.itemsize for stride in x.strides]
    out = as_strided(np.zeros(span, dtype)[start:], x.shape, strides)
    out[...] = x
    # Where elements overlap in memory, as in a broadcast array, they cannot be moved one by one.
    is_copy = 0 not in strides and np.array_equal(out, x, equal_nan=True)
    return out if is_copy else np.array(x, dtype)


def _leaves(result: Any) -> Iterator[Any]:
    """Yield what is in tuples, lists and dicts."""
    if isinstance(result, (tuple, list, dict)):
        for part in result.values() if isinstance(result, dict) else result:
            yield from _leaves(part)
    else:
        yield result


def flat(arrays: Iterable[Array]) -> Vector:
    """Return all elements of some arrays, one array behind the other, in float64."""
    return np.concatenate([x.ravel().astype(np.float64) for x in arrays] or [np.zeros(0)])


def largest_of(arrays: Iterable[Array]) -> float:
    """Return the largest finite absolute value."""
    return max(float(np.max(np.abs(g), initial=0.0, where=np.isfinite(g))) for g in arrays)
