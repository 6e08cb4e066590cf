"""The time of the last write to memory, by which a graph knows whether a saved array has changed.

A backward pass multiplies with arrays that the forward pass saved. If an optimiser has written to
one in the meantime, the result would be silently wrong. So writes are noted here, by block of
memory: all views of a block, and all tensors on it, see the same. Nodes of the graph are numbered
by the same clock, and "was this written after that node was made?" is one comparison.

Raw writes through `tensor.data[...] = ` are not seen, because numpy does not report them.
"""

from __future__ import annotations

import itertools

from minigrad.readonly import Array, WeakIdMap, count_holds, owner_of, release

# `next` on a count is atomic, so the order is right across threads too.
clock = itertools.count(1)

# The time of the last write of all, in a list so that other modules can import it. A node that is
# newer, as in any plain training loop, needs no check of its saved arrays.
last_write = [0]

# The time of the last write, in a list of one, by the array that owns the memory.
_writes = WeakIdMap[list[int]]()


def mark_written(*arrays: Array) -> None:
    """Note that the memory of these arrays was written now."""
    now = last_write[0] = next(clock)
    for array in arrays:
        owner = array if array.base is None else owner_of(array)
        known = _writes.get(owner)
        if known is None:
            _writes[owner] = [now]
        else:
            known[0] = now
    if count_holds():  # the writes may have gone through views that stayed writable
        for array in arrays:
            release(array)


def last_written(array: Array) -> int:
    """Return the time at which the memory of `array` was last written; 0 if it never was."""
    known = _writes.get(owner_of(array))
    return known[0] if known else 0
