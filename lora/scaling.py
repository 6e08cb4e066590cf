"""LoRAScaling: the scale of the update B A; and checks of ranks, alphas and layer sizes."""

from __future__ import annotations

import enum
import math
from typing import Any

from minigrad.checks import check_integer, check_number


class LoRAScaling(enum.Enum):
    """The formula of the scale, the factor of B A, by alpha and the rank.

    `LoRAScaling("standard")` is alpha / rank, and `LoRAScaling("rslora")` alpha / sqrt(rank). A
    ValueError is raised for other values.
    """

    STANDARD = "standard"
    """alpha / rank (Hu et al., 2021, section 4.1)."""

    RSLORA = "rslora"
    """alpha / sqrt(rank), which keeps the update's size at any rank (Kalajdzievski, 2023)."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        known = ", ".join(each.value for each in cls)
        raise ValueError(f"scaling is one of {known}, not {value!r}")

    def __repr__(self) -> str:
        return str(self)

    def scale(self, alpha: float, rank: int) -> float:
        """Return the scale for an alpha and a rank."""
        return alpha / self._divisor(rank)

    def alpha(self, scale: float, rank: int) -> float:
        """Return the alpha that gives a scale at a rank, up to rounding."""
        return scale * self._divisor(rank)

    def _divisor(self, rank: int) -> float:
        return rank if self is LoRAScaling.STANDARD else math.sqrt(rank)


def check_alpha(name: str, value: Any) -> None:
    """Check that a value is a positive finite number."""
    if not 0 < check_number(name, value) < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")


def check_finite(name: str, value: Any) -> float:
    """Return `value` as a float; a TypeError if it is not a number, a ValueError if not finite."""
    number = check_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return number


def check_size(name: str, value: Any) -> int:
    """Return `value` as an int; a TypeError if it is not an integer, a ValueError below 1."""
    check_integer(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return int(value)


def largest_rank(shape: tuple[int, ...]) -> int:
    """Return the largest rank that an update of a weight of this shape can have."""
    return min(shape[0], math.prod(shape[1:]))


def check_rank_fits(rank: int, d_out: int, d_in: int) -> None:
    """Raise a ValueError if the rank is larger than d_out or d_in, which B A cannot have."""
    if rank > min(d_out, d_in):
        raise ValueError(
            f"rank {rank} is larger than min(d_out, d_in) = {min(d_out, d_in)}; B A has no "
            f"more rank than that, so a larger one only costs"
        )
