"""When memory was last written: how a graph learns that an array it saved is no longer what it was.

A backward pass multiplies with arrays that the forward pass saved. If an optimiser has written to
one in the meantime, the result would be a wrong number without a word. So writes are noted here, by
block of memory: all views of a block, and all tensors on it, see the same. Nodes of the graph are
numbered by the same clock, and "was this written after that node was made?" is one comparison.

Raw writes through `tensor.data[...] = ` are not seen: numpy does not tell.

Where something is derived from an array and kept, such as a packed copy of a frozen weight, that
would not do. There the memory is held: made read-only, until `release` or `writable` tells the
holder that it is about to change.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple, Protocol

from numpy import ndarray

Array = ndarray[Any, Any]

# `next` on a count is atomic, so the order holds across threads too.
clock = itertools.count(1)

# The time of the last write of all, in a list so that others can hold on to it. Where it is older
# than a node, as in any plain training loop, nothing that the node saved needs a look.
last_write = [0]

# The time of the last write by the id of the array that owns the memory, for as long as it lives.
_writes: dict[int, tuple[int, weakref.ref[Array]]] = {}


def mark_written(*arrays: Array) -> None:
    """Note that the memory of these arrays is written now."""
    now = last_write[0] = next(clock)
    for array in arrays:
        owner = array if array.base is None else _owner(array)
        known = _writes.get(id(owner))
        _writes[id(owner)] = (now, known[1] if known else _until_gone(owner))


def _until_gone(owner: Array) -> weakref.ref[Array]:
    key = id(owner)
    return weakref.ref(owner, lambda _: _writes.pop(key, None))


def last_written(array: Array) -> int:
    """When the memory of `array` was last written; 0 if it never was."""
    known = _writes.get(id(_owner(array)))
    return known[0] if known else 0


def _owner(array: Array) -> Array:
    while isinstance(array.base, ndarray):
        array = array.base
    return array


class Holder(Protocol):
    """Who keeps what is derived from an array."""

    def let_go(self) -> None:
        """Is called when the memory is about to be writable again."""


class _Hold(NamedTuple):
    arrays: list[Array]  # that were made read-only: views before what they are views of
    holders: weakref.WeakSet[Any]
    owner: weakref.ref[Array]


# By the id of the array that owns the memory, for as long as it lives.
_holds: dict[int, _Hold] = {}


def hold(array: Array, holder: Holder) -> bool:
    """Make the memory of `array` read-only, until `release`: then `holder.let_go()` is called.

    A view that was taken before stays writable, and a write through it is not seen. Returns False
    where it cannot be, since numpy would not let it be undone: on the memory of a bytes object, as
    arrays have it that were unpickled.
    """
    owner = _owner(array)
    if owner.base is not None and not _is_writable_buffer(owner.base):
        return False
    key = id(owner)
    known = _holds.get(key)
    if known is None:
        reference = weakref.ref(owner, lambda _: _holds.pop(key, None))
        known = _holds[key] = _Hold([], weakref.WeakSet(), reference)
    known.holders.add(holder)
    view: Any = array
    while isinstance(view, ndarray):
        if view.flags.writeable:
            view.flags.writeable = False
            if view is not owner:
                known.arrays.insert(0, view)
        view = view.base
    return True


def _is_writable_buffer(base: object) -> bool:
    try:
        return not memoryview(base).readonly  # type: ignore[arg-type]  # that is the question
    except (BufferError, TypeError):
        return False


def release(array: Array) -> bool:
    """End what `hold` began, so that the memory can be written to; returns whether it was held."""
    owner = _owner(array)
    known = _holds.pop(id(owner), None)
    if known is None:
        return False
    owner.flags.writeable = True
    for view in known.arrays:
        view.flags.writeable = True
    for holder in list(known.holders):
        holder.let_go()
    return True


def writable(array: Array) -> Array:
    """`array` itself, released if it was held; a copy if it is read-only for another reason."""
    if array.flags.writeable:
        return array
    if not release(array):
        return array.copy()
    array.flags.writeable = True
    return array
