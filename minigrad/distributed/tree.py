"""Sums over micro-batches in a fixed order, whoever computes which of them.

A sum of floats depends on the order of its additions. So the order is that of a tree which only the
number of items decides: `((0 + 1) + (2 + 3))` for four, and the halves of any other number in the
same manner. Each rank gets a block of neighbours, sums the parts of the tree that lie inside it,
and sends these; the sums above them have operands of different ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
Part = tuple[int, int]
"""A part of the tree: its first item, and the one after its last."""


def block(count: int, rank: int, size: int) -> range:
    """Return the items of `0 ... count - 1` that a rank of `size` ranks gets."""
    return range(count * rank // size, count * (rank + 1) // size)


def owner(item: int, count: int, size: int) -> int:
    """Return the rank that gets an item."""
    return ((item + 1) * size - 1) // count


def parts(first: int, stop: int, own: range) -> Iterator[Part]:
    """Yield the largest parts of the tree over `first ... stop - 1` that lie inside a block."""
    if own.start <= first and stop <= own.stop:
        yield first, stop
    elif own.start < stop and first < own.stop:
        middle = (first + stop) // 2
        yield from parts(first, middle, own)
        yield from parts(middle, stop, own)


def pairwise(first: int, stop: int, leaf: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """Return the sum of `leaf(first) ... leaf(stop - 1)`, which are called in this order."""
    if stop - first == 1:
        return leaf(first)
    middle = (first + stop) // 2
    return add(pairwise(first, middle, leaf, add), pairwise(middle, stop, leaf, add))
