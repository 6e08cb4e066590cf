"""The options of a convolution, which ops check before any kernel is imported."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, ...]


class Geometry(NamedTuple):
    """The options of a convolution, by axis."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def result_size(self, size: Pair, kernel: Pair) -> Pair:
        """Return the sizes of the result: floor((size + 2 padding - reach) / stride) + 1."""
        rows, cols = (
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )
        return rows, cols
