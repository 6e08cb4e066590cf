"""Sums over micro-batches in a fixed order, for any number of ranks.

A sum of floats depends on the order of its additions. So items are added in the order of a binary
tree, which depends only on the number of items: `((0 + 1) + (2 + 3))` for four items, and halves
for any other number. Each rank gets a block of consecutive items, computes the sums of the tree
inside its block, and sends them. The sums above have operands from different ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
Part = tuple[int, int]
"""A part of the tree: its first item, and the one after its last."""


def block(count: int, rank: int, size: int) -> range:
    """Return the block of the items `0 ... count - 1` for a rank, of `size` ranks."""
    return range(count * rank // size, count * (rank + 1) // size)


def owner(item: int, count: int, size: int) -> int:
    """Return the rank whose block has an item."""
    return ((item + 1) * size - 1) // count


def parts(first: int, stop: int, own: range) -> Iterator[Part]:
    """Yield the largest parts of the tree over `first ... stop - 1` that are inside a block."""
    if own.start <= first and stop <= own.stop:
        yield first, stop
    elif own.start < stop and first < own.stop:
        middle = (first + stop) // 2
        yield from parts(first, middle, own)
        yield from parts(middle, stop, own)


def sum_of(sums: Mapping[Part, T], first: int, stop: int, add: Callable[[T, T], T]) -> T:
    """Return the sum of the items `first ... stop - 1` from sums of parts of the tree."""
    if (first, stop) in sums:
        return sums[first, stop]
    middle = (first + stop) // 2
    return add(sum_of(sums, first, middle, add), sum_of(sums, middle, stop, add))


def pairwise(first: int, stop: int, leaf: Callable[..., T], add: Callable[[T, T], T]) -> T:
    """Return the sum of the items `first ... stop - 1`.

    `leaf` is called with one item, or with two consecutive items, and returns their sum.
    """
    if stop - first <= 2:
        return leaf(*range(first, stop))
    middle = (first + stop) // 2
    return add(pairwise(first, middle, leaf, add), pairwise(middle, stop, leaf, add))
