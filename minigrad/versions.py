"""The time of the last write to memory: it shows a backward pass whether saved arrays changed.

A backward pass multiplies with arrays that the forward pass saved. If an optimiser has written to
one of them since then, the result would be wrong without an error. So this module records the time
of the last write to each block of memory; all views of a block, and all tensors on it, share it.
PyTorch calls such a record a version counter.
Nodes of the graph are numbered by the same clock. So "was this array written after that node was
made?" is one comparison.

Writes such as `tensor.data[...] = ` are not recorded, because numpy does not report them.
"""

from __future__ import annotations

import itertools

from minigrad.readonly import Array, WeakIdMap, count_holds, owner_of, release

# `next` on a count is atomic, so the order is correct across threads too.
clock = itertools.count(1)

# The time of the last write to any memory, in a list so that other modules can import it. If a node
# is newer, as in most training loops, its saved arrays need no check.
last_write = [0]

# The time of the last write to each block of memory, by its owner; a list with one element.
_writes = WeakIdMap[list[int]]()


def mark_written(*arrays: Array) -> None:
    """Record that the memory of these arrays was written just now."""
    now = last_write[0] = next(clock)
    for array in arrays:
        owner = array if array.base is None else owner_of(array)
        known = _writes.get(owner)
        if known is None:
            _writes[owner] = [now]
        else:
            known[0] = now
    if count_holds():  # the write may have gone through a view that stayed writable
        for array in arrays:
            release(array)


def last_written(array: Array) -> int:
    """Return the time at which the memory of `array` was last written; 0 if it never was."""
    known = _writes.get(owner_of(array))
    return known[0] if known else 0
