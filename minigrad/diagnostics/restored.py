"""Contexts that restore random generators or a model after a trial run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor, assigned
from minigrad.kernels.start import interrupts_held_back
from minigrad.nn.module import Module, attributes_of, restore_attributes
from minigrad.readonly import release
from minigrad.versions import mark_written


class Draws(Observer):
    """Remembers the state that each generator had before the first draw from it."""

    def __init__(self) -> None:
        self._states: dict[np.random.Generator, Any] = {}

    def on_random(self, generator: np.random.Generator) -> None:
        """Save the state of a generator at its first draw."""
        self._states.setdefault(generator, generator.bit_generator.state)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Restore all generators after the block, including those of Python and numpy."""
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's
        try:
            with observe(self):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            for generator, state in self._states.items():
                generator.bit_generator.state = state


@contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Restore a model after the block: attributes of its modules, values, and random generators.

    Parameters in lists, dicts and other objects in a module are found as the module finds them;
    other content of these objects is not saved. Arrays that have not changed are not written to. In
    the block, every `.grad` is None, so that an optimiser changes nothing that has no new gradient.
    """
    attributes = [(module, attributes_of(module)) for module in model.modules()]
    values = [value for _, own in attributes for value in own.values()]
    tensors = [*model.parameters(), *(v for v in values if isinstance(v, Tensor))]
    present = [(t, {"_data": t._data, "node": t.node, "grad": None}) for t in tensors]
    arrays = [v for v in values if isinstance(v, np.ndarray) and v.dtype.kind in "biufc"]
    arrays += (tensor._data for tensor in tensors)
    copies = [(array, array.copy()) for array in {id(array): array for array in arrays}.values()]
    draws = Draws()
    for value in values:
        if isinstance(value, np.random.Generator):  # the user's code may draw from it directly
            draws.on_random(value)
    try:
        with draws.put_back(), assigned(present):
            yield
    finally:
        with interrupts_held_back():
            for module, own in attributes:
                restore_attributes(module, own)
            for array, copy in copies:
                if np.array_equal(array, copy, equal_nan=True):
                    continue
                if not array.flags.writeable:
                    release(array)
                array[...] = copy
                mark_written(array)
