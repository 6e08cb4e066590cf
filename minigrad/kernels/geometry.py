"""The options of a convolution: ops check them before they import any kernel."""

from __future__ import annotations

from typing import NamedTuple

Shape = tuple[int, ...]


class Geometry(NamedTuple):
    """The options of a convolution; all but `groups` have one number for each axis."""

    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    def result_size(self, size: Shape, kernel: Shape) -> Shape:
        """Return the sizes of the result: floor((size + 2 padding - reach) / stride) + 1."""
        options = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in options)
