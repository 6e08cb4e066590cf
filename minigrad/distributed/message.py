"""Messages between ranks: values as bytes, by pickle, and lists of arrays without it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ALIGNMENT = 64  # bytes, as in memory that numpy allocates


def encoded(value: Any) -> Array:
    """Return a value as bytes."""
    return np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)


def decoded(content: Array) -> Any:
    """Return the value from the bytes that `encoded` made."""
    return pickle.loads(content)


def sendable(error: Exception) -> Exception:
    """Return an error that other ranks can read: a RuntimeError if pickle cannot copy this one."""
    try:
        decoded(encoded(error))
    except Exception:  # the constructor of an error may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Message:
    """The format of a list of arrays as bytes; shapes and dtypes are known, arrays may be None.

    Args:
        like: arrays or Tensors with the same shapes and dtypes.

    Attributes:
        size: the number of bytes.
    """

    def __init__(self, like: Sequence[Any]) -> None:
        self._like = [(each.shape, each.dtype) for each in like]
        self._first = []  # offsets of the arrays, after a byte for each: 0 if it is None
        self.size = len(like)
        for each in like:
            self.size += -self.size % _ALIGNMENT
            self._first.append(self.size)
            self.size += each.size * each.dtype.itemsize

    def packed(self, arrays: Sequence[Array | None]) -> Array:
        """Return the bytes of arrays."""
        content = np.zeros(self.size, np.uint8)
        for i, array in enumerate(arrays):
            if array is not None:
                content[i] = 1
                self._part(content, i)[...] = array
        return content

    def unpacked(self, content: Array) -> list[Array | None]:
        """Return arrays that share the memory of their bytes."""
        return [self._part(content, i) if content[i] else None for i in range(len(self._like))]

    def _part(self, content: Array, i: int) -> Array:
        shape, dtype = self._like[i]
        return np.ndarray(shape, dtype, content, self._first[i])
