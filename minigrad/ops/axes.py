"""The names of axes in calls: an int, a tuple or list of ints, or None for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError
from numpy.lib.array_utils import normalize_axis_tuple

from minigrad.core.tensor import Axis


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return axes of an array with `ndim` of them, counted from the front.

    Raises:
        TypeError: if one is no integer.
        ValueError: if one does not exist or is repeated.
    """
    try:
        return normalize_axis_tuple(range(ndim) if axis is None else axis, ndim)
    except TypeError:
        raise TypeError(f"axis is an int or several of them, not {axis!r}") from None
    except AxisError:
        wrong = f"out of bounds for an array of {ndim} axes"
    except ValueError:
        wrong = "repeated"
    raise ValueError(f"axis {axis} is {wrong}")


def normalize_axis(axis: int, ndim: int) -> int:
    """Return one axis, counted from the front.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it does not exist.
    """
    if not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis is an int, not {axis!r}")
    return normalize_axes(axis, ndim)[0]


def keepdims_shape(shape: Sequence[int], axis: Axis) -> tuple[int, ...]:
    """Return the shape of a reduction over `axis` with keepdims."""
    if axis is None:
        return (1,) * len(shape)
    axes = normalize_axes(axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def reduced(shape: Sequence[int], axis: Axis, keepdims: bool) -> tuple[int, ...]:
    """Return the shape of a reduction over `axis`."""
    axes = normalize_axes(axis, len(shape))
    if keepdims:
        return keepdims_shape(shape, axis)
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def as_tuple(axis: Axis) -> Any:
    """Return `axis` as numpy's functions take it: they want a tuple where we allow a list."""
    return tuple(axis) if isinstance(axis, list) else axis
