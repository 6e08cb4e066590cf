"""How reductions name axes: an int, a tuple or list of ints, or None for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.lib.array_utils import normalize_axis_tuple

from minigrad.tensor import Axis


def kept(shape: Sequence[int], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with keepdims."""
    axes = range(len(shape)) if axis is None else normalize_axis_tuple(axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def axes_of(axis: Axis) -> Any:
    """The axes as numpy takes them, which is not in a list."""
    return tuple(axis) if isinstance(axis, list) else axis
