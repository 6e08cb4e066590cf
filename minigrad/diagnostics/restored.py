"""What is restored after a run: random generators, and the values and nodes of parameters."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.nn.module import Parameter


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
def assigned(values: Iterable[tuple[Parameter, Mapping[str, Any]]]) -> Iterator[None]:
    """Give parameters other values or nodes, by attribute, for a while; no memory is written to.

    Without a node a parameter is frozen; `requires_grad_(False)` would drop its gradient.
    """
    given = list(values)
    before = [(p, {name: getattr(p, name) for name in new}) for p, new in given]
    try:
        assign(given)
        yield
    finally:
        assign(before)


def assign(values: Iterable[tuple[Tensor, Mapping[str, Any]]]) -> None:
    """Give tensors these attributes."""
    for tensor, attributes in values:
        for name, value in attributes.items():
            setattr(tensor, name, value)
