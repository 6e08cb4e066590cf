"""Contexts that restore random generators or a model after a trial run."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor, assign
from minigrad.nn.module import Module
from minigrad.readonly import release
from minigrad.versions import mark_written


class Draws(Observer):
    """Remembers the state that each generator had before the first draw from it.

    Those in `generators` may also be drawn from without the library: it is their present state.
    """

    def __init__(self, generators: Iterable[np.random.Generator] = ()) -> None:
        self._states: list[tuple[np.random.Generator, Any]] = []
        for generator in generators:
            self.on_random(generator)

    def on_random(self, generator: np.random.Generator) -> None:
        """Save the state of a generator that was not seen before."""
        if all(generator is not known for known, _ in self._states):
            self._states.append((generator, generator.bit_generator.state))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Restore all generators after the block, those of Python and numpy included."""
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's
        try:
            with observe(self):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            for generator, state in self._states:
                generator.bit_generator.state = state


@contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Make everything what it was after the block: attributes of modules, values, and generators.

    Lists, dicts and other objects in a module are searched for parameters, as by the module itself;
    whatever else they contain is not saved. What has not changed is not written to. In the block
    nothing has a gradient, because an optimiser steps what has one.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    values = [value for _, own in attributes for value in own.values()]
    tensors = [*model.parameters(), *(v for v in values if isinstance(v, Tensor))]
    before = [(t, {"_data": t._data, "node": t.node, "grad": t.grad}) for t in tensors]
    arrays = [v for v in values if isinstance(v, np.ndarray) and v.dtype.kind in "biufc"]
    arrays += (tensor._data for tensor in tensors)
    copies = [(array, array.copy()) for array in {id(array): array for array in arrays}.values()]
    generators = [v for v in values if isinstance(v, np.random.Generator)]
    for tensor in tensors:
        tensor.zero_grad()
    try:
        with Draws(generators).put_back():
            yield
    finally:
        for module, own in attributes:
            vars(module).clear()
            vars(module).update(own)
        assign(before)
        for array, copy in copies:
            if np.array_equal(array, copy, equal_nan=True):
                continue
            if not array.flags.writeable:
                release(array)
            array[...] = copy
            mark_written(array)
