"""Random numbers that depend only on the step and the micro-batch, not on earlier draws.

With one sequence of random numbers, the dropout of a micro-batch would depend on all earlier draws,
and so on which process computes which micro-batches. Instead, each step draws one number from each
generator, the key of the step. At the start of each micro-batch, the generator gets a state
computed from the key and the number of the micro-batch. After the step, it continues as if only
the key had been drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from minigrad import random


class Streams:
    """The random numbers of one step, as a context manager; `begin` starts a micro-batch.

    Attributes:
        generators: the generators that a step may draw from. The default generator is restarted at
            its first draw, because most steps do not draw. The others are restarted at once,
            because the library does not see it when a module draws from them directly.
        keys: the key of each bit generator in this step; generators may share one.
        is_shared: whether several ranks share the step, so that no other generator may be used.
    """

    def __init__(self) -> None:
        self.generators: Sequence[np.random.Generator] = ()
        self.keys: dict[Any, int] = {}
        self.is_shared = False

    def __enter__(self) -> Streams:
        every = dict.fromkeys(generator.bit_generator for generator in self.generators)
        self.keys = {bits: int(bits.random_raw()) for bits in every}
        self._states: dict[Any, Any] = {}  # states of restarted generators, from before the restart
        self._default = random.generator().bit_generator
        if self.is_shared:
            random.draw_only_from(self.generators)
            self._of_global_generators = random.states_of_global_generators()
        return self

    def begin(self, micro_batch: int) -> None:
        """Begin the random numbers of a micro-batch of this step."""
        for bits in self.keys:
            if bits is self._default:
                random.before_next_draw(partial(self._restart, bits, micro_batch))
            else:
                self._restart(bits, micro_batch)

    def __exit__(self, error: object, *_: object) -> None:
        random.before_next_draw(None)
        random.draw_only_from(None)
        for bits, state in self._states.items():
            bits.state = state
        if (
            self.is_shared
            and error is None
            and self._of_global_generators != random.states_of_global_generators()
        ):
            raise ValueError(
                "a training step on several ranks draws from np.random or from Python's random, so "
                "each rank draws other numbers; draw from the default generator, as minigrad.rand "
                "and dropout do, or from a numpy.random.Generator that is an attribute of a module"
            )

    def _restart(self, bits: Any, micro_batch: int) -> None:
        """Set a generator to the state that follows from its key and a micro-batch."""
        before, key = bits.state, self.keys[bits]
        self._states.setdefault(bits, before)
        if type(bits) is np.random.PCG64:  # the usual kind; making a new object is 10 times slower
            digest = blake2b(b"%d %d" % (key, micro_batch), digest_size=16).digest()
            inner = {**before["state"], "state": int.from_bytes(digest, "little")}
            bits.state = before | {"state": inner, "has_uint32": 0, "uinteger": 0}
        else:
            bits.state = type(bits)(np.random.SeedSequence([key, micro_batch])).state
