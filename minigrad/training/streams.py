"""Random numbers that depend on the step and the micro-batch, and not on what was drawn before.

With one sequence of random numbers, the dropout of a micro-batch would depend on all draws before
it, and so on which process computes which micro-batches. So each generator gives one number in a
step, the key of that step, and begins each micro-batch from a state that follows from the key and
the number of the micro-batch. What the generator gives afterwards does not depend on the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from minigrad import random


class Streams:
    """The random numbers of one step, as a context; `begin` starts those of a micro-batch.

    Attributes:
        generators: those that a step may draw from. The default generator begins anew when it is
            drawn from, since most steps do not draw, and the others at once, since a module may
            draw from its own without telling.
        keys: the keys of the step.
    """

    def __init__(self) -> None:
        self.generators: Sequence[np.random.Generator] = ()
        self.keys: list[int] = []

    def __enter__(self) -> Streams:
        self._bits: list[Any] = [generator.bit_generator for generator in self.generators]
        self.keys = [int(bits.random_raw()) for bits in self._bits]
        self._states: list[Any] = [bits.state for bits in self._bits]
        return self

    def begin(self, micro_batch: int) -> None:
        """Begin the random numbers of a micro-batch of this step."""
        for bits, key in zip(self._bits, self.keys, strict=True):
            if bits is random.generator().bit_generator:
                random.before_next_draw(partial(_restart, bits, key, micro_batch))
            else:
                _restart(bits, key, micro_batch)

    def __exit__(self, *_: object) -> None:
        random.before_next_draw(None)
        for bits, state in zip(self._bits, self._states, strict=True):
            bits.state = state


def _restart(bits: Any, key: int, micro_batch: int) -> None:
    """Let a generator begin from the state of a key and a micro-batch."""
    bits.state = type(bits)(np.random.SeedSequence([key, micro_batch])).state
