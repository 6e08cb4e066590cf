"""A model as it was, to be put back after a run that may have changed it.

A forward pass writes things down (running means, a count of calls), and a loss function may do what
belongs to a step of training: switch modes, drop gradients, let an optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import Node
from minigrad.core.tensor import Tensor
from minigrad.nn.module import Module
from minigrad.readonly import release
from minigrad.versions import mark_written


class Snapshot:
    """The attributes of all modules of a model, with the values of arrays, tensors and generators.

    Lists, dicts and other objects in a module are looked through for parameters, as by the module
    itself; what else they hold is not kept.
    """

    def __init__(self, model: Module) -> None:
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        values = [value for _, own in self._attributes for value in own.values()]
        tensors = [*model.parameters(), *(v for v in values if isinstance(v, Tensor))]
        self._tensors = [_Kept.of(tensor) for tensor in {id(t): t for t in tensors}.values()]
        arrays = [v for v in values if isinstance(v, np.ndarray) and v.dtype.kind in "biufc"]
        self._arrays = [(array, array.copy()) for array in arrays]
        generators = [v for v in values if isinstance(v, np.random.Generator)]
        self._generators = [(g, g.bit_generator.state) for g in generators]

    def hide_gradients(self) -> None:
        """Take all gradients away until `restore`: an optimiser steps what has one."""
        for kept in self._tensors:
            kept.tensor.zero_grad()

    def restore(self) -> None:
        """Make everything what it was; what has not changed is not written to."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for kept in self._tensors:
            kept.restore()
        for array, values in self._arrays:
            _write_back(array, values)
        for generator, state in self._generators:
            generator.bit_generator.state = state


@dataclass(frozen=True)
class _Kept:
    """A tensor with its memory, what was in there, its place in the graph, and its gradient."""

    tensor: Tensor
    array: NDArray[Any]
    values: NDArray[Any]
    node: Node | None
    grad: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        return cls(tensor, tensor._data, tensor._data.copy(), tensor.node, tensor.grad)

    def restore(self) -> None:
        self.tensor._data = self.array
        self.tensor.node = self.node
        self.tensor.grad = self.grad
        _write_back(self.array, self.values)


def _write_back(array: NDArray[Any], values: NDArray[Any]) -> None:
    if np.array_equal(array, values, equal_nan=True):
        return
    if not array.flags.writeable:
        release(array)
    array[...] = values
    mark_written(array)
