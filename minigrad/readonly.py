"""Memory that must not change while something that was derived from it is in use.

A packed copy of a frozen weight is an example: a write to the weight would make the copy out of
date, and products with it wrong without an error. So the memory is made read-only by `hold`, until
`release` or `writable` notifies the holder that it is about to change.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from numpy import ndarray

Array = ndarray[Any, Any]
T = TypeVar("T")


class WeakIdMap(Generic[T]):
    """A mapping by identity from arrays and Tensors, which have no hash, while they live."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], T]] = {}

    def __setitem__(self, key: Any, value: T) -> None:
        index, entries = id(key), self._entries
        entries[index] = weakref.ref(key, lambda _: entries.pop(index, None)), value

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Any) -> T | None:
        """Return what belongs to `key`, or None."""
        entry = self._entries.get(id(key))
        return None if entry is None else entry[1]

    def pop(self, key: Any) -> T | None:
        """Remove `key`, and return what belonged to it, or None."""
        entry = self._entries.pop(id(key), None)
        return None if entry is None else entry[1]


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


_holds = WeakIdMap[_Hold]()  # by the array that owns the memory


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
    known = _holds.get(owner)
    if known is None:
        if not owner.flags.writeable:
            return False  # for a reason of its own, that stays
        known = _holds[owner] = _Hold([], weakref.WeakSet())
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
    known = _holds.pop(owner)
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
