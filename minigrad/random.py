"""Random numbers: one default generator, and `rng=` in every function that draws.

Every function that draws has a keyword `rng`. With None, it draws from the default generator, which
`manual_seed` restarts. All these functions call `generator`. So `checkpoint` can see which
generators a function has used, and run it again with the same random numbers.
"""

from __future__ import annotations

import ctypes
import random as stdlib_random
import threading
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import check_count
from minigrad.core.grad_mode import mode, observed

Rng = np.random.Generator | None
"""The type of `rng` in functions that draw."""

_default = np.random.default_rng()
_thread = threading.local()  # its attributes hold for one thread
_seed: int | None = None  # the last seed that `manual_seed` got


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the default generator from `seed`, and return it; equal seeds give equal numbers.

    Raises:
        ValueError: if the seed is not an integer of at least 0.
    """
    observed(restart, check_count("manual_seed: the seed", seed))
    return _default


def restart(seed: int) -> None:
    """Restart the default generator from `seed`."""
    global _seed
    before_next_draw(None)
    _default.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    _seed = seed


def was_seeded() -> bool:
    """Return whether `manual_seed` has restarted the default generator."""
    return _seed is not None


def seed_of(rng: Rng = None) -> int | None:
    """Return the seed of a generator (None: the default one); None if it is not one number."""
    if (rng is None or rng is _default) and _seed is not None:
        return _seed
    sequence = (_default if rng is None else rng).bit_generator.seed_seq
    entropy = getattr(sequence, "entropy", None)
    spawned = bool(getattr(sequence, "spawn_key", ()))
    return int(entropy) if isinstance(entropy, (int, np.integer)) and not spawned else None


def generator(rng: Rng = None) -> np.random.Generator:
    """Return `rng` itself, or the default generator for None.

    Raises:
        TypeError: if `rng` is not a generator. For a seed, use `np.random.default_rng(seed)`.
        ValueError: if `draw_only_from` does not allow this generator.
    """
    if rng is None:
        rng = _default
    elif not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a numpy.random.Generator or None, not {rng!r}; "
            f"numpy.random.default_rng(seed) makes one"
        )
    allowed = vars(_thread).get("allowed")
    if allowed is not None and id(rng) not in allowed:
        raise ValueError(
            "a training step on several ranks draws from a generator that the Trainer does not "
            "know, so each rank would draw other numbers; use the default generator, or make it an "
            "attribute of a module of the model"
        )
    if rng is _default and (restart_first := vars(_thread).pop("restart", None)) is not None:
        restart_first()
    for observer in mode.observers:
        observer.on_random(rng)
    return rng


def draw_only_from(generators: Iterable[np.random.Generator] | None) -> None:
    """Allow this thread to draw only from these generators; None allows all."""
    vars(_thread)["allowed"] = None if generators is None else set(map(id, generators))


def before_next_draw(function: Callable[[], None] | None) -> None:
    """Call `function` before the next draw of this thread from the default generator."""
    vars(_thread)["restart"] = function


# Generators whose raw numbers have 64 bits; MT19937's have 32, and others are unknown.
_RAW_64_BITS = (np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)


def words(rng: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """Draw `count` random numbers of 16 bits; four of them cost as much as one `rng.random()`."""
    size = -(-count // 4)
    if isinstance(rng.bit_generator, _RAW_64_BITS):
        drawn = rng.bit_generator.random_raw(size)
    else:
        drawn = rng.integers(0, 2**64 - 1, size, np.uint64, endpoint=True)
    return drawn.view(np.uint16)[:count]


def states_of_global_generators() -> tuple[bytes, int]:
    """Return the states of the global generators of numpy and of Python, which all code shares."""
    bits = np.random.get_bit_generator()
    if type(bits) is np.random.MT19937:  # the usual kind: 624 words and a position
        of_numpy = ctypes.string_at(bits.ctypes.state_address, 625 * 4)  # `state` takes 50 us
    else:
        of_numpy = repr(bits.state).encode()
    return of_numpy, hash(stdlib_random.getstate())
