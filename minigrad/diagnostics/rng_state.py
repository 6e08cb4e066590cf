"""The random generators that a run draws from, to leave them as they were, or to run again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad.core.observers import Observer, observe


class Draws(Observer):
    """Remembers where generators were before they were first drawn from."""

    def __init__(self) -> None:
        self._states: list[tuple[np.random.Generator, Any]] = []

    def on_random(self, generator: np.random.Generator) -> None:
        """Note the state of a generator that is not known yet."""
        if all(generator is not known for known, _ in self._states):
            self._states.append((generator, generator.bit_generator.state))

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """After the block all generators are where they were before it, those of Python too."""
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's
        try:
            with observe(self):
                yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            for generator, state in self._states:
                generator.bit_generator.state = state
