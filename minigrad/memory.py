"""When memory was last written: how a graph learns that an array it saved is no longer what it was.

A backward pass multiplies with arrays that the forward pass saved. If an optimiser has written to
one in the meantime, the result would be a wrong number without a word. So every block of memory has
a cell that holds the time of its last write, shared by all tensors on that memory (views,
`detach`); nodes of the graph are numbered by the same clock, and "was this written after that node
was made?" is one comparison.

Raw writes through `tensor.data[...] = ` are not seen: numpy does not tell.
"""

from __future__ import annotations

import itertools

WriteCell = list[int]

# `next` on a count is atomic, so the order holds across threads too.
clock = itertools.count(1)

last_write: WriteCell = [0]


def mark_written(cell: WriteCell) -> None:
    """Note that the memory of `cell` is written now."""
    cell[0] = last_write[0] = next(clock)
