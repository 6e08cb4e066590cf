"""A call of a function: its checked arguments, and the leaves to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.checks import shown
from minigrad.containers import Leaf, Structure, flatten, flatten_as, rebuild
from minigrad.core.tensor import Tensor, assigned

Function = Callable[..., Any]
Argnums = int | Sequence[int]


class Call:
    """A call of f: its arguments, and the leaves in them to differentiate."""

    def __init__(
        self,
        name: str,
        f: Function,
        argnums: Argnums,
        args: Sequence[Any],
        kwargs: Any = None,
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
        if self._of_modules:
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


def checked_argnums(name: str, argnums: Any) -> Sequence[int]:
    """Return `argnums` as a sequence of ints.

    A Tensor here is usually meant as an argument of f; the error message shows the right call.
    """
    numbers = argnums if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers):
        raise TypeError(
            f"{name}: argnums is an int or a tuple of ints, not {shown(argnums)}; the result is a "
            f"function, as in {name}(f)(x)"
        )
    return numbers


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
    tensor = value if isinstance(value, Tensor) else Tensor(value)
    if like is None:
        if tensor.dtype.kind != "f":
            how = f"write {value}.0" if type(value) is int else "convert it, .astype('float32')"
            raise TypeError(
                f"{role} has dtype {tensor.dtype}, and only floats can be differentiated by; {how}"
                f", or differentiate by others only"
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
