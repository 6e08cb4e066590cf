"""A call of a function: its arguments, a run on inputs in their place, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.checks import shown
from minigrad.containers import Leaf, Structure, flatten, flatten_as, rebuild
from minigrad.core.backward import announce, propagate, take
from minigrad.core.grad_mode import grad_mode, is_grad_enabled, mode, observed
from minigrad.core.node import Node, reachable
from minigrad.core.observers import has_tangent, observe
from minigrad.core.op import identity
from minigrad.core.tensor import Tensor, assigned
from minigrad.ops import clone, concatenate, reshape
from minigrad.transforms.forward_mode import ForwardMode, Tangents, running
from minigrad.versions import clock

Function = Callable[..., Any]
Argnums = int | Sequence[int]


class Call:
    """A call of f: its arguments, and the leaves in them to differentiate."""

    def __init__(
        self, name: str, f: Function, argnums: Argnums, args: Sequence[Any], kwargs: Any = None
    ) -> None:
        if not callable(f):
            raise TypeError(
                f"{name}: f must be a function of tensors, not {described(f)}; "
                f"minigrad.grad(output, input) differentiates a result"
            )
        numbers: Sequence[int] = argnums if isinstance(argnums, Sequence) else (argnums,)
        count = len(args)
        if not numbers or min(numbers) < -count or max(numbers) >= count:
            raise ValueError(
                f"{name}: argnums is {argnums}, and there are {count} positional arguments; name "
                f"at least one of these (an argument passed by keyword is not one)"
            )
        positions = [n % count for n in numbers]
        if len(set(positions)) < len(positions):
            raise ValueError(f"{name}: argnums {argnums} names an argument twice")
        self.name, self._f, self._kwargs = name, f, kwargs or {}
        self._several = numbers is argnums
        self._args = list(args)
        for i, x in enumerate(args):
            if i not in positions and isinstance(x, np.ndarray) and x.dtype.kind == "f":
                self._args[i] = Tensor(x)
        self._structures: dict[int, Structure] = {}
        leaves: list[Leaf] = []
        for i in positions:
            known, role = len(leaves), f"{name}: argument {i}"
            self._structures[i] = flatten(args[i], role, leaves)
            if len(leaves) == known:
                raise TypeError(
                    f"{role} must be a Tensor, an array or a number, or a container of these, not "
                    f"{described(args[i])} without any; a Module's are its parameters that "
                    f"require a gradient"
                )
        self.leaves = [as_tensor(leaf.value, leaf.path) for leaf in leaves]
        self._of_modules = {n: leaf.value for n, leaf in enumerate(leaves) if leaf.stays}
        self._check_not_shared(leaves)

    def _check_not_shared(self, leaves: Sequence[Leaf]) -> None:
        """Check that no two Modules share a parameter: a parameter can be at only one node."""
        paths: dict[int, str] = {}
        for n, parameter in self._of_modules.items():
            path = leaves[n].path
            if (known := paths.setdefault(id(parameter), path)) != path:
                raise ValueError(
                    f"{known} and {path.removeprefix(self.name)[2:]} are the same parameter; "
                    f"differentiate by one Module that contains both, for their sum, or by tensors"
                )

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Call f with `inputs` in place of the leaves."""
        args = self._args.copy()
        for i, structure in self._structures.items():
            args[i] = rebuild(structure, inputs, owners=True)
        if not self._of_modules:
            return self._f(*args, **self._kwargs)
        with assigned((p, {"node": inputs[n].node}) for n, p in self._of_modules.items()):
            return self._f(*args, **self._kwargs)

    def arranged(self, results: Sequence[Any]) -> Any:
        """Put results, one for each leaf, into the structure of the arguments.

        For several argnums, this is a tuple.
        """
        found = [rebuild(structure, results) for structure in self._structures.values()]
        return tuple(found) if self._several else found[0]

    def tangents(self, given: Sequence[Any]) -> list[Tensor]:
        """Return the leaves of the tangents, one tangent per argument, after checking them."""
        leaves = []
        for (i, structure), v in zip(self._structures.items(), given, strict=True):
            leaves += flatten_as(structure, v, f"{self.name}: tangent {i}")
        return as_like(self.leaves, leaves)


class Run:
    """A run of f on inputs at new nodes; in forward mode, if tangents are given."""

    def __init__(self, call: Call, tangents: Sequence[Tangents] | None = None) -> None:
        self.call = call
        self.enabled = is_grad_enabled()
        self.start = next(clock)  # no older node depends on the inputs; walks end here
        if tangents is not None:
            self.forward = ForwardMode(len(tangents[0]))
            pairs = zip(call.leaves, tangents, strict=True)
            self.inputs: list[Tensor] = [self.forward.start(x, vs) for x, vs in pairs]
            with observe(self.forward):
                self.out: Any = call.run(self.inputs)
            return
        self.inputs = []
        with grad_mode(True):
            for x in call.leaves:
                # As the result of an op, f can neither write to it nor freeze it.
                inner = identity(x)
                inner.node = inner.node or Node.of(identity, (), x._data)
                inner.node.forward_only = False  # also if only an outer run sees x
                self.inputs.append(inner)
            self.out = call.run(self.inputs)

    def results(self) -> tuple[list[Tensor], Structure]:
        """Return the leaves of f's result, which must be Tensors, and its structure."""
        leaves: list[Leaf] = []
        role = f"{self.call.name}: the result of f"
        structure = flatten(self.out, role, leaves)
        if not leaves:
            self.checked(self.out)
        return [self.checked(x.value, x.path.removeprefix(role)) for x in leaves], structure

    def checked(self, out: Any, path: str = "") -> Tensor:
        """Return a result of f, after checking that it is a Tensor of floats."""
        if isinstance(out, Tensor) and out.dtype.kind == "f":
            return out
        raise TypeError(
            f"{self.call.name}: f must return a Tensor of floats{path and f' at {path}'}, not "
            f"{described(out)}; compute it from the arguments with minigrad's functions, without "
            f"float(), .item() or numpy, and write a constant as minigrad.tensor(0.0); add several "
            f"values up, or return (value, aux) with has_aux"
        )

    def can_be_differentiated(self, *results: Tensor) -> bool:
        """Return whether something outside may need the derivative of one of `results`."""
        return self._is_in_graph(*results) or has_tangent(*results)

    def _is_in_graph(self, *results: Tensor) -> bool:
        """Return whether one of `results` depends on an older node that requires a gradient."""
        roots = [result.node for result in results if result.node is not None]
        found = reachable(roots, oldest=self.start) if self.enabled else []
        return any(node.order < self.start and not node.forward_only for node in found)

    def detached(self, value: Any) -> Any:
        """Detach the Tensors in `value`, except those that something outside may differentiate."""
        if isinstance(value, Tensor):
            return value if self.can_be_differentiated(value) else value.detach()
        leaves: list[Leaf] = []
        structure = flatten(value, f"{self.call.name}: aux", leaves)
        found = [self.detached(x) if isinstance(x, Tensor) else x for x, *_ in leaves]
        return rebuild(structure, found, owners=True)

    def pull(
        self,
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        record: bool,
        retain: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return v^T J for each input, summed over `outputs`; with `record`, record the pass."""
        pending: dict[Node, Any] = {}
        for output, cotangent in zip(outputs, cotangents, strict=True):
            if (node := output.node) is not None and node.order > self.start:
                v = cotangent if record else cotangent._data
                for observer in mode.observers:
                    observer.on_backward(output, v)
                pending[node] = pending[node] + v if node in pending else v
        ends: list[Any] = [x.node for x in self.inputs]
        arrived = propagate(
            pending,
            wanted=set(ends),
            oldest=self.start,
            retain_graph=retain or record,
            create_graph=record,
            recorded=is_grad_enabled() and self._is_to_be_recorded(outputs, cotangents),
        )
        announce(arrived, adding=False)
        return tuple(
            take(arrived, end)
            if end in arrived
            else Tensor(observed(np.zeros, end.shape, end.dtype))
            for end in ends
        )

    def _is_to_be_recorded(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
        """Return whether a pass on Tensors must record a graph, or only needs tangents."""
        around = running()
        return (
            not around
            or any(forward.is_in_no_grad_of_f() for forward in around)
            or any(v.node is not None and not v.node.forward_only for v in cotangents)
            or self._is_in_graph(*outputs)
        )

    def pushed(self, out: Tensor) -> list[Tensor]:
        """Return copies of the tangents of `out`, one per direction."""
        return [clone(self.detached(v)) for v in self.forward.tangents(out)]

    def rows(self, out: Tensor, record: bool) -> list[Tensor]:
        """Return the Jacobian of `out` with respect to each input, computed row by row."""
        pulled = [self.pull([out], [unit(out, i)], record, retain=True) for i in range(out.size)]
        jacobians = []
        for k, x in enumerate(self.inputs):
            none = Tensor(np.zeros(0, x.dtype))  # for an output without elements
            row_after_row = concatenate([none, *(reshape(row[k], x.size) for row in pulled)])
            jacobians.append(reshape(row_after_row, out.shape + x.shape))
        return jacobians


def unit(x: Tensor, i: int) -> Tensor:
    """Return the unit vector of element i, with the shape and dtype of x."""
    v = np.zeros_like(x._data)
    v.flat[i] = 1
    return Tensor(v)


def check_argnums(name: str, argnums: Any) -> None:
    """Raise a TypeError unless `argnums` is an int or a sequence of ints.

    A Tensor here is usually meant as an argument of f; the error message shows the right call.
    """
    numbers = argnums if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers):
        raise TypeError(
            f"{name}: argnums is an int or a tuple of ints, not {shown(argnums)}; the result is a "
            f"function, as in {name}(f)(x)"
        )


def as_like(tensors: Sequence[Tensor], leaves: Sequence[Leaf]) -> list[Tensor]:
    """Return leaves as Tensors with the dtypes of `tensors`, after checking their shapes."""
    pairs = zip(tensors, leaves, strict=True)
    return [as_tensor(leaf.value, leaf.path, like=tensor) for tensor, leaf in pairs]


def as_tensor(value: Any, role: str, like: Tensor | None = None) -> Tensor:
    """Return `value` as a Tensor of floats; with `like`, check its shape, and use its dtype."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        raise TypeError(
            f"{role} must be a Tensor, an array or a number, not {described(value)}; containers of "
            f"these are dicts, lists, tuples, named tuples, dataclasses and Modules, and "
            f"minigrad.from_dlpack(x) makes a Tensor of another library's array"
        )
    if isinstance(value, Tensor):
        tensor = value
    else:  # a number is not rounded to float32 first
        tensor = Tensor(value, dtype=None if like is None else like.dtype)
    if like is None:
        if tensor.dtype.kind != "f":
            how = f"write {value}.0" if type(value) is int else "convert it, .astype('float32')"
            raise TypeError(
                f"{role} has dtype {tensor.dtype}, and gradients are with respect to floats only; "
                f"{how}, or differentiate by others only"
            )
    elif tensor.shape != like.shape:
        raise ValueError(f"{role} must have shape {like.shape}, not {tensor.shape}")
    elif tensor.dtype != like.dtype:
        return tensor.astype(like.dtype)
    return tensor


def described(value: Any) -> str:
    """Describe a value in a few words, for a message."""
    if isinstance(value, Tensor):
        return value.describe()
    library = type(value).__module__.partition(".")[0]
    of = f" of {library}" if hasattr(value, "__dlpack__") and library != "numpy" else ""
    return f"a {type(value).__name__}{of}"
