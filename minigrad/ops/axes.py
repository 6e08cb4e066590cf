"""How functions name axes: an int, a tuple or list of ints, or None for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.exceptions import AxisError
from numpy.lib.array_utils import normalize_axis_tuple

from minigrad.tensor import Axis


def axes_from_zero(name: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes counted from the front, of an array of `ndim`.

    Raises:
        ValueError: if one is not there or is repeated; `name` is that of the function.
    """
    try:
        return normalize_axis_tuple(range(ndim) if axis is None else axis, ndim)
    except TypeError:
        raise TypeError(f"{name}: axis is an int or several of them, not {axis!r}") from None
    except AxisError:
        wrong = f"out of bounds for an array of {ndim} axes"
    except ValueError:
        wrong = "repeated"
    raise ValueError(f"{name}: axis {axis} is {wrong}")


def axis_from_zero(name: str, axis: int, ndim: int) -> int:
    """One axis counted from the front.

    Raises:
        ValueError: if it is not there; `name` is that of the function.
    """
    return axes_from_zero(name, axis, ndim)[0]


def kept(shape: Sequence[int], axis: Axis, name: str = "a reduction") -> tuple[int, ...]:
    """The shape of a reduction over `axis` with keepdims."""
    if axis is None:
        return (1,) * len(shape)
    axes = axes_from_zero(name, axis, len(shape))
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def axes_of(axis: Axis) -> Any:
    """The axes as numpy takes them, which is not in a list."""
    return tuple(axis) if isinstance(axis, list) else axis
