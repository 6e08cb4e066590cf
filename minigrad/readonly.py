"""Read-only memory: protect an array while something derived from it is in use.

An example is the packed copy of a frozen weight. After a write to the weight, the copy would be out
of date, and products with it would be wrong without an error. So `hold` makes the memory read-only.
`release` and `writable` make it writable again, and tell the holder to drop the copy.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from numpy import ndarray

Array = ndarray[Any, Any]
T = TypeVar("T")


class WeakIdMap(Generic[T]):
    """A mapping from arrays and Tensors by identity. An entry ends when its key is deleted."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], T]] = {}

    def __setitem__(self, key: Any, value: T) -> None:
        index, entries = id(key), self._entries
        entries[index] = weakref.ref(key, lambda _: entries.pop(index, None)), value

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Any) -> T | None:
        """Return the value for `key`, or None."""
        return self._entries.get(id(key), (None, None))[1]

    def pop(self, key: Any) -> T | None:
        """Remove `key`, and return its value, or None."""
        return self._entries.pop(id(key), (None, None))[1]


def owner_of(array: Array) -> Array:
    """Return the array that owns the memory of `array`: itself, if it is not a view.

    Arrays that were made one by one on the memory of something else than an array, such as a
    bytearray, are all owners.
    """
    while (base := array.base) is not None:
        if not isinstance(base, ndarray) and (base := _array_behind(base)) is None:
            break
        array = base
    return array


def _array_behind(base: Any) -> Array | None:
    """Return the array that a memoryview shows, or the helper of numpy's `as_strided`, or None."""
    array = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return array if isinstance(array, ndarray) else None


class Holder(Protocol):
    """The owner of something that is derived from an array."""

    def on_release(self) -> None:
        """Drop the derived data, because the memory is about to become writable."""


class _Hold(NamedTuple):
    views: list[weakref.ref[Array]]  # the views that were made read-only
    holders: weakref.WeakSet[Any]


_holds = WeakIdMap[_Hold]()  # by the array that owns the memory


def count_holds() -> int:
    """Return the number of blocks of memory that are held."""
    return len(_holds)


def hold(array: Array, holder: Holder) -> bool:
    """Make the memory of `array` read-only until `release`, which calls `holder.on_release()`.

    Views that were made before stay writable. Writes to them through a Tensor are noticed; writes
    through numpy are not. Returns False if the memory cannot be held: it is read-only already, or
    numpy could not make it writable again (memory of a bytes object, as after unpickling, or a view
    by `as_strided`).
    """
    owner = owner_of(array)
    views: list[Array] = []
    view: Any = array
    while view is not owner:
        views.append(view)
        view = view.base if isinstance(view.base, ndarray) else _array_behind(view.base)
    if not all(_is_writable_again(each.base) for each in (*views, owner)):
        return False
    known = _holds.get(owner)
    if known is None:
        if not owner.flags.writeable:
            return False  # it is read-only for another reason
        known = _holds[owner] = _Hold([], weakref.WeakSet())
    known.holders.add(holder)
    for view in views:
        if view.flags.writeable:
            view.flags.writeable = False
            known.views.append(weakref.ref(view))
    owner.flags.writeable = False
    return True


def _is_writable_again(base: Any) -> bool:
    """Return whether numpy would make an array with this base writable again."""
    if base is None or isinstance(base, ndarray):
        return True
    try:
        return not memoryview(base).readonly  # a TypeError if it is no buffer
    except (BufferError, TypeError):
        return False


def release(array: Array) -> bool:
    """Undo `hold`: make the memory writable again; return whether it was held."""
    if not _holds:  # a fast exit, because each step of an optimiser calls this
        return False
    owner = owner_of(array)
    known = _holds.pop(owner)
    if known is None:
        return False
    owner.flags.writeable = True
    for reference in reversed(known.views):  # the base of a view must become writable first
        if (view := reference()) is not None:
            view.flags.writeable = True
    for holder in list(known.holders):
        holder.on_release()
    return True


def writable(array: Array) -> Array:
    """Return the array, after `release` if it is held; a copy if it is otherwise read-only."""
    if not array.flags.writeable:
        release(array)
    return array if array.flags.writeable else array.copy()
