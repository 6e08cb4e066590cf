"""Memory that must not change while something that was derived from it is in use.

A packed copy of a frozen weight is an example: a write to the weight would make the copy out of
date, and products with it wrong without an error. So the memory is made read-only by `hold`, until
`release` or `writable` notifies the holder that it is about to change.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol

from numpy import ndarray

Array = ndarray[Any, Any]


def owner_of(array: Array) -> Array:
    """Return the array whose memory this one is a view of; itself if it owns its memory."""
    while isinstance(array.base, ndarray):
        array = array.base
    return array


class Holder(Protocol):
    """The owner of something that is derived from an array."""

    def let_go(self) -> None:
        """Drop what was derived; it is called when the memory is about to be writable again."""


class _Hold(NamedTuple):
    views: list[weakref.ref[Array]]  # that were made read-only
    holders: weakref.WeakSet[Any]
    owner: weakref.ref[Array]


# By the id of the array that owns the memory, as long as it lives.
_holds: dict[int, _Hold] = {}


def count_holds() -> int:
    """Return how many blocks of memory are held."""
    return len(_holds)


def hold(array: Array, holder: Holder) -> bool:
    """Make the memory of `array` read-only, until `release`: then `holder.let_go()` is called.

    A view that was taken before stays writable: a write through it is noticed if a Tensor makes it,
    and not if numpy does. Returns False if the memory cannot be held: if it is read-only already,
    or if numpy would not let it be undone (on a bytes object, as after unpickling).
    """
    owner = owner_of(array)
    if owner.base is not None and not _is_writable_buffer(owner.base):
        return False
    key = id(owner)
    known = _holds.get(key)
    if known is None and not owner.flags.writeable:
        return False  # for a reason of its own, that stays
    if known is None:
        reference = weakref.ref(owner, lambda _: _holds.pop(key, None))
        known = _holds[key] = _Hold([], weakref.WeakSet(), reference)
    known.holders.add(holder)
    view: Any = array
    while view is not owner:
        if view.flags.writeable:
            view.flags.writeable = False
            known.views.append(weakref.ref(view))
        view = view.base
    owner.flags.writeable = False
    return True


def _is_writable_buffer(base: object) -> bool:
    try:
        return not memoryview(base).readonly  # type: ignore[arg-type]  # that is the question
    except (BufferError, TypeError):
        return False


def release(array: Array) -> bool:
    """End what `hold` began, so that the memory can be written to; return whether it was held."""
    if not _holds:  # each step of an optimiser asks
        return False
    owner = owner_of(array)
    known = _holds.pop(id(owner), None)
    if known is None:
        return False
    owner.flags.writeable = True
    for reference in reversed(known.views):  # what a view is a view of comes before it
        view = reference()
        if view is not None:
            view.flags.writeable = True
    for holder in list(known.holders):
        holder.let_go()
    return True


def writable(array: Array) -> Array:
    """Return the array, released if it was held; a copy if it is read-only for another reason."""
    if not array.flags.writeable:
        release(array)
    return array if array.flags.writeable else array.copy()
