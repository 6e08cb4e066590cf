"""The options of a convolution, which ops check before any kernel is imported."""

from __future__ import annotations

from typing import NamedTuple

Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """The options of a convolution, by axis."""

    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int

    def result_size(self, size: Sizes, kernel: Sizes) -> Sizes:
        """Return the sizes of the result: floor((size + 2 padding - reach) / stride) + 1."""
        options = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in options)
