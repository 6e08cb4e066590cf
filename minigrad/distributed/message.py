"""Values as bytes, for the way from rank to rank; nothing of them is code, as in a pickle."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ALIGNMENT = 64  # bytes, as numpy's own memory


def encoded(value: Any) -> Array:
    """Return an array, or what JSON can have, as bytes."""
    file = io.BytesIO()
    if isinstance(value, np.ndarray):
        np.save(file, value, allow_pickle=False)
    else:
        file.write(json.dumps(value, default=_plain).encode())
    return np.frombuffer(file.getvalue(), np.uint8)


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"a {type(value).__name__} cannot go from rank to rank; send an array, or numbers, texts, "
        f"lists and dicts of them"
    )


def decoded(content: Array) -> Any:
    """Return the value of which `encoded` has made these bytes."""
    text = content.tobytes()
    if text.startswith(np.lib.format.MAGIC_PREFIX):
        return np.load(io.BytesIO(text), allow_pickle=False)
    return json.loads(text)


class Message:
    """A list of arrays of known shapes and dtypes, some of which may be None, as bytes.

    Args:
        like: arrays or Tensors of these shapes and dtypes.

    Attributes:
        size: the number of bytes.
    """

    def __init__(self, like: Sequence[Any]) -> None:
        self._like = [(each.shape, each.dtype) for each in like]
        self._first = []  # byte of each array, after a byte each that says whether there is one
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
