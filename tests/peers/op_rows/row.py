"""What a row is, and what many of them use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RENAMED = {"dim": "axis", "keepdim": "keepdims"}


@dataclass(frozen=True)
class Row:
    """How to call ours, and two functions that are applied in both libraries.

    Attributes:
        call: ours.
        outputs: what to compare of the outputs, if not all of them.
        operand: what to take instead of the first operand.
    """

    call: Callable[..., Any]
    outputs: Callable[..., Any] = lambda out: out
    operand: Callable[..., Any] = lambda x: x


class SkippedError(Exception):
    """A sample is out of scope."""


def same(name):
    """The function of this name here, with PyTorch's arguments."""

    def call(m, *xs, **options):
        return getattr(m, name)(*xs, **{RENAMED.get(key, key): v for key, v in options.items()})

    return call


def with_dtype(row):
    """A function with PyTorch's argument `dtype`, which converts the first operand."""

    def call(m, x, *args, dtype=None, **options):
        return row(m, x if dtype is None else m.astype(x, dtype), *args, **options)

    return call


def at(axis, index):
    """The index that takes `index` along an axis counted from the front."""
    return (*[slice(None)] * axis, index)


def axis_of(x, dim):
    """A dim counted from the front; a number has one dim in PyTorch."""
    return dim % max(x.ndim, 1)


def first(out):
    """The first of several outputs."""
    return out[0] if isinstance(out, (tuple, list)) else out


def symmetric(x):
    """A symmetric matrix, of which PyTorch reads one triangle, and ours both."""
    return x + x.swapaxes(-1, -2)


def vector(m, x):
    """A number as a vector of one element, as PyTorch takes it where there must be an axis."""
    return x if x.ndim else m.reshape(x, (1,))


def as_row(row):
    """A Row of what the tables have: a name, a function, or a Row."""
    if isinstance(row, str):
        row = same(row)
    return row if isinstance(row, Row) else Row(row)
