"""The states of the random generators that a run draws from, to restore them after the run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe


class Draws(Observer):
    """Remembers the state that each generator had before the first draw from it."""

    def __init__(self) -> None:
        self._states: list[tuple[np.random.Generator, Any]] = []

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
