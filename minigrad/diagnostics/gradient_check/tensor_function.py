"""A function of Tensors, or a Module, in the form that a gradient check needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from minigrad.containers import Leaf, flatten
from minigrad.core.backward import grad
from minigrad.core.forward_mode import ForwardMode
from minigrad.core.grad_mode import grad_mode, unobserved
from minigrad.core.node import Node, reachable
from minigrad.core.observers import observe
from minigrad.core.tensor import Tensor, as_array, assigned
from minigrad.diagnostics.gradient_check.checked_function import (
    Array,
    Arrays,
    CheckedFunction,
    Foreign,
    Gradients,
    Inputs,
    copied,
    copied_module,
    flat,
)
from minigrad.diagnostics.gradient_check.tolerances import least_exact
from minigrad.nn.module import Module, Parameter


class TensorFunction(CheckedFunction):
    """A function of float arrays, which can be called with Tensors that depend on others.

    Inputs of integers and booleans are constants. The trainable parameters of a Module are operands
    too, after the inputs. A Module is copied, and so are the inputs, with their strides.
    """

    framework = "minigrad"
    layout = "cotangents in reversed memory", lambda v: np.flip(np.flip(v).copy())
    selects = True
    given_as = ", as minigrad Tensors; a function of PyTorch or JAX is given arrays of theirs"

    def __init__(self, f: Callable[..., Any], inputs: Inputs) -> None:
        super().__init__(f)
        self._inputs, self._leaves = inputs, []
        for x, name in zip(inputs.leaves, inputs.names, strict=True):
            try:
                self._leaves.append(copied(as_array(x)))
            except (TypeError, ValueError) as error:
                raise self.error(f"{name} must be made of numbers; {error}") from error
        self._parameters: list[Parameter] = []
        arrays = dict(zip(inputs.names, self._leaves, strict=True))
        if isinstance(f, Module):
            f = module = copied_module(f)
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self._parameters.append(parameter)
                    arrays[name] = parameter.data.copy()
        self._f = f
        self.take(arrays)

    def _call(self, arrays: Foreign) -> list[Tensor]:
        floats = iter(arrays)
        leaves = [next(floats) if x.dtype.kind == "f" else Tensor(x) for x in self._leaves]
        pairs = zip(self._parameters, floats, strict=True)
        with assigned([(p, {"_data": x._data, "node": x.node}) for p, x in pairs]):
            result = self._f(*self._inputs.rebuilt(leaves))
        found: list[Leaf] = []
        flatten(result, f"{self.checker}: the result of f", found)
        results = [x for x, *_ in found if isinstance(x, Tensor) and x.dtype.kind == "f"]
        if not results or not all(isinstance(x, Tensor) for x, *_ in found):
            what = result.describe() if isinstance(result, Tensor) else type(result).__name__
            raise self.error(
                f"f must return a Tensor of floats, or a tuple, list or dict of Tensors, not {what}"
            )
        return self.same_shapes(results)

    def _to_numpy(self, x: Tensor) -> Array:
        return x._data

    def _from_numpy(self, x: Array, like: Any) -> Tensor:
        return Tensor.at(x, None)

    def _recording(self, enabled: bool) -> grad_mode:
        return grad_mode(enabled)

    def _grad(self, results: Foreign, leaves: Foreign, seeds: Foreign, recorded: bool) -> Foreign:
        """Return a gradient by each leaf that requires one; it may be zeros."""
        by = [leaf for leaf in leaves if leaf.requires_grad]
        options = {"create_graph": recorded, "retain_graph": True, "allow_unused": True}
        with grad_mode(True):
            found = iter(grad(results, by, seeds, **options))
        return [next(found) if leaf.requires_grad else None for leaf in leaves]

    def outline(self, operands: Arrays) -> np.dtype[Any]:
        """Call f where a gradient is required, and find the dtypes and leaves of its graph."""
        leaves, results = self._required(operands)
        nodes = reachable([x.node for x in results if x.node is not None])
        dtypes = [node.dtype for node in nodes if node.op is not None]
        self.others = len(_other_leaves(results, leaves))
        self.shapes = [x.shape for x in results]
        return least_exact([*(x.dtype for x in results), *dtypes])

    def slope(self, operands: Arrays, directions: Arrays, cotangents: Arrays) -> float | None:
        """Compute sum(cotangents * J directions) in forward mode.

        The result is None if f cannot run in forward mode because it differentiates by its inputs
        itself. No observer watches, because only then an op uses its own rule for tangents.
        """
        with unobserved(False), suppress(RuntimeError):
            forward = ForwardMode(1)
            pairs = zip(operands, directions, strict=True)
            inputs = [forward.start(Tensor(x), [Tensor(v.astype(x.dtype))]) for x, v in pairs]
            with observe(forward):
                results = self._call(inputs)
            tangents = [forward.tangents(x)[0]._data for x in results]
            return float(np.dot(flat(cotangents), flat(tangents)))
        return None

    def gradients_by_path(
        self, operands: Arrays, cotangents: Arrays, recorded: bool
    ) -> tuple[Gradients, dict[str, Gradients]]:
        """Compute the gradients by `grad`, and by each other path, including `backward`."""
        gradients, paths = super().gradients_by_path(operands, cotangents, recorded)
        leaves, results = self._required(operands)
        for _ in range(2):
            _backward(results, [v.copy() for v in cotangents], leaves)
        twice = self._as_gradients([x.grad for x in leaves], operands)
        paths["backward, twice"] = [g / 2 for g in twice]
        return gradients, paths

    def flaws(self, cotangents: Arrays) -> list[tuple[str, str]]:
        """Find faults of gradients as arrays: pairs of an operand or cotangent, and a reason.

        A write to a gradient must not change another gradient, a cotangent, or an operand. And a
        cotangent of ones must give the same gradients if it is a broadcast 1, as from a sum's VJP.
        """
        leaves, results = self._required(self.operands)
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
            if gradient.dtype != (dtype := arrays[name].dtype):
                flaws.append((name, f"its gradient is {gradient.dtype}, the operand {dtype}"))
        return flaws + self.broadcast_flaws()


def _backward(results: Sequence[Tensor], seeds: Arrays, leaves: Sequence[Tensor]) -> None:
    """Add to `.grad` of the leaves, and restore that of all other tensors."""
    before = [(node, node.grad) for node in _other_leaves(results, leaves)]
    try:
        for result, seed in zip(results, seeds, strict=True):
            if result.requires_grad:
                result.backward(seed, retain_graph=True)
    finally:
        for node, gradient in before:
            node.grad = gradient


def _other_leaves(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Node]:
    """Find other leaves that results depend on and that would get a gradient."""
    own = {x.node for x in leaves}
    nodes = reachable([x.node for x in results if x.node is not None])
    return [n for n in nodes if (n.op is None or n.retains_grad) and n not in own]
