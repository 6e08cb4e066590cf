"""The exercises of "LoRA"."""

from __future__ import annotations

from examples.walkthroughs.checking import Checker, Exercise


def largest_rank(d_out: int, d_in: int) -> int:
    """Return the largest rank whose factors have fewer entries than the matrix."""
    return (d_out * d_in - 1) // (d_out + d_in)


check = Checker(
    {
        1: Exercise(
            largest_rank,
            trials=[(24, 32), (4096, 4096), (3, 100), (1, 1)],
            slips={
                "A and B together have r (d_in + d_out) entries: both sizes count.": (
                    lambda d_out, d_in: (d_out * d_in - 1) // d_in
                ),
                "This is the first rank that trains as many parameters or more; the last one "
                "that trains fewer is one less.": (
                    lambda d_out, d_in: (d_out * d_in - 1) // (d_out + d_in) + 1
                ),
                "With this rank, LoRA can train exactly as many parameters as the matrix has; "
                "the question is for fewer.": lambda d_out, d_in: d_out * d_in // (d_out + d_in),
                "A product of this rank can be any matrix of this shape, but it has more "
                "parameters.": min,
                "A rank is a whole number.": lambda d_out, d_in: d_out * d_in / (d_out + d_in),
            },
        ),
    }
)
