"""LoRAScaling: the scale of the update B A; and checks of ranks, alphas and layer sizes."""

from __future__ import annotations

import enum
import math
from typing import Any

from minigrad.checks import check_integer, check_number, check_positive


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
    return check_positive(name, check_integer(name, value))


def largest_rank(shape: tuple[int, ...]) -> int:
    """Return the largest rank that an update of a weight of this shape can have."""
    return min(shape[0], math.prod(shape[1:]))


def limit_of_rank(d_out: int, d_in: int, groups: int = 1) -> tuple[int, str]:
    """Return the largest rank that is of use, and its formula, for messages.

    In groups, the update B_g A_g of each group is `(d_out / groups, d_in)`.
    """
    most = min(d_out, groups * d_in)
    return most, f"min(d_out, {'groups ' if groups > 1 else ''}d_in) = {most}"


def check_rank_fits(rank: int, d_out: int, d_in: int, groups: int = 1) -> None:
    """Raise a ValueError if the rank is larger than the one that B A can have."""
    most, formula = limit_of_rank(d_out, d_in, groups)
    if rank > most:
        raise ValueError(
            f"rank {rank} is larger than {formula}; B A has no more rank than that, so a larger "
            f"one only costs"
        )


def check_rank_divides(rank: int, d_out: int, d_in: int, groups: int) -> None:
    """Raise a ValueError that names ranks that work, if the groups do not divide the rank."""
    if rank % groups:
        works = list(map(str, range(groups, limit_of_rank(d_out, d_in, groups)[0] + 1, groups)))
        works = works if len(works) <= 4 else [*works[:3], "...", works[-1]]
        raise ValueError(
            f"rank {rank} is not divisible by groups={groups}, and each group of the convolution "
            f"gets rank / groups rows of A; ranks that work are {', '.join(works)}"
        )
