"""Ways to move operands: one element, some operands as a whole, and all of them a little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minigrad.diagnostics.gradcheck.subject import Array, copied, largest_of

Move = Callable[[Sequence[Array], float], list[Array]]


def of_element(i: int, index: tuple[int, ...]) -> Move:
    """Moves one element of the i-th operand."""

    def move(operands: Sequence[Array], t: float) -> list[Array]:
        moved = list(operands)
        moved[i] = copied(operands[i])
        moved[i][index] += moved[i].dtype.type(t)
        return moved

    return move


def along(directions: Mapping[int, Array]) -> Move:
    """Moves operands as a whole, each in its direction."""

    def move(operands: Sequence[Array], t: float) -> list[Array]:
        moved = list(operands)
        for i, direction in directions.items():
            moved[i] = copied(operands[i])
            moved[i] += (t * direction).astype(moved[i].dtype)
        return moved

    return move


def nearby(
    operands: Sequence[Array], moved: Sequence[int], reach: float, rng: np.random.Generator
) -> list[Array]:
    """A point at random in which no element of some operands is further away than `reach`.

    That is relative to the largest element of each, or to 1.
    """
    near = list(operands)
    for i in moved:
        noise = rng.uniform(-reach, reach, near[i].shape) * max(1.0, largest_of([near[i]]))
        near[i] = copied(near[i])
        near[i] += noise.astype(near[i].dtype)
    return near
