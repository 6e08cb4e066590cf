"""Messages between ranks: values as bytes. They never contain code, as pickles can."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import python_number

Array = NDArray[Any]

_ALIGNMENT = 64  # bytes, as in memory that numpy allocates

_SEND = (
    "cannot go from rank to rank; send a plain array of numpy's numbers or texts alone, or numbers "
    "and texts, also in lists and in dicts with texts as keys"
)


def encoded(value: Any) -> Array:
    """Return an array, or a value that JSON can represent, as bytes; a TypeError for others."""
    if not isinstance(value, np.ndarray):
        return np.frombuffer(json.dumps(_plain(value)).encode(), np.uint8)
    check_array(value)
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return np.frombuffer(file.getbuffer(), np.uint8)


def check_array(array: Array) -> None:
    """Raise a TypeError for an array that a file of numpy cannot have, or has without its mask."""
    if isinstance(array, np.ma.MaskedArray) or array.dtype.hasobject:
        raise TypeError(f"a {type(array).__name__} of {array.dtype.name} {_SEND}")
    if array.dtype.isbuiltin == 2:  # of another package, such as bfloat16
        raise TypeError(f"an array of {array.dtype.name} {_SEND}: array.astype(numpy.float32)")


def _plain(value: Any) -> Any:
    """Convert numpy numbers to Python numbers; an error for values that JSON does not have."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    number = python_number(value)
    if number is None or isinstance(number, (bool, int, float, str)):
        return number
    raise TypeError(f"{value!r:.60}, a {type(value).__name__}, {_SEND}")


def decoded(content: Array) -> Any:
    """Return the value from the bytes that `encoded` made."""
    text = content.tobytes()
    if text.startswith(np.lib.format.MAGIC_PREFIX):
        return np.load(io.BytesIO(text), allow_pickle=False)
    return json.loads(text)


def as_builtin(error: Exception) -> tuple[str, list[Any]]:
    """Return the class and the arguments of a built-in error with the same message.

    It is the nearest base class that can be made from numbers and texts.
    """
    text, own = str(error), list(error.args)
    if isinstance(error, OSError) and error.filename is not None:
        own = [error.errno, error.strerror, error.filename, None, error.filename2]
    for kind in type(error).__mro__:
        if getattr(builtins, kind.__name__, None) is kind:
            for arguments in (own, [text]):
                with suppress(Exception):  # a UnicodeDecodeError, for example, needs bytes
                    sent = decoded(encoded(arguments))
                    if str(kind(*sent)) == text:
                        return kind.__name__, sent
    return "Exception", [text]


class Message:
    """The format of a list of arrays as bytes; shapes and dtypes are known, arrays may be None.

    Args:
        like: arrays or Tensors with the same shapes and dtypes.

    Attributes:
        size: the number of bytes.
    """

    def __init__(self, like: Sequence[Any]) -> None:
        self._parts = []  # the shape, the dtype and the offset of each array
        self.size = len(like)  # at first, a byte for each array: 0 if it is None
        for each in like:
            self.size += -self.size % _ALIGNMENT
            self._parts.append((each.shape, each.dtype, self.size))
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
        return [self._part(content, i) if content[i] else None for i in range(len(self._parts))]

    def _part(self, content: Array, i: int) -> Array:
        shape, dtype, first = self._parts[i]
        return np.ndarray(shape, dtype, content, first)
