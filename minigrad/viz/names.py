"""Names of the tensors in a graph: those of the caller's variables, and of a model's parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad.core.node import Node
from minigrad.core.tensor import Tensor
from minigrad.nn import Module


class Names:
    """Names of tensors, found by their nodes in the graph or by their memory.

    Args:
        variables: the caller's variables, of which Tensors and modules count; names that begin
            with an underscore do not.
        model: a model whose parameters have their names without a prefix.
        roots: further modules, which a tape has seen.
    """

    def __init__(
        self, variables: Mapping[str, Any], model: Module | None, roots: Iterable[Module] = ()
    ) -> None:
        self._of_node: dict[Node, str] = {}
        self._of_memory: dict[Any, tuple[str, Tensor]] = {}
        self._of_module: dict[int, str] = {}
        known = {name: v for name, v in variables.items() if not name.startswith("_")}
        for name, value in known.items():
            if isinstance(value, Tensor):
                self._add(name, value)
        modules = {name: v for name, v in known.items() if isinstance(v, Module)}
        for name, value in modules.items():
            self._of_module.setdefault(id(value), name)
        if model is not None:
            self._add_parameters(model, "")
        roots = list(roots)
        for root in roots:
            prefix = "" if len(roots) == 1 else self._of_module.get(id(root), type(root).__name__)
            self._add_parameters(root, prefix)
        for name, value in modules.items():
            self._add_parameters(value, name)

    def _add(self, name: str, tensor: Tensor) -> None:
        if tensor.node is not None:
            self._of_node.setdefault(tensor.node, name)
        self._of_memory.setdefault(_memory(tensor._data), (name, tensor))

    def _add_parameters(self, module: Module, prefix: str) -> None:
        for name, parameter in module.named_parameters(prefix):
            self._add(name, parameter)

    def of_node(self, node: Node) -> str:
        """Return the name of the tensor at a node of the graph; empty if it has none."""
        return self._of_node.get(node, "")

    def of_module(self, module: Module) -> str:
        """Return the name of the variable of a module; empty if there is none."""
        return self._of_module.get(id(module), "")

    def of_memory(self, value: Any) -> tuple[str, Tensor] | None:
        """Return the name of a tensor in the same memory and of the same shape, and that tensor."""
        array = value._data if isinstance(value, Tensor) else value
        return self._of_memory.get(_memory(array)) if isinstance(array, np.ndarray) else None


def _memory(array: np.ndarray[Any, Any]) -> Any:
    return array.__array_interface__["data"][0], array.shape, array.strides


def numbered(names: Iterable[str]) -> list[str]:
    """Return the names, with a number behind those that occur more than once."""
    names = list(names)
    total, seen = Counter(names), Counter[str]()
    shown = []
    for name in names:
        seen[name] += 1
        shown.append(f"{name} #{seen[name]}" if total[name] > 1 else name)
    return shown
