"""Values as bytes, for the way from rank to rank; nothing of them is code, as in a pickle."""

from __future__ import annotations

import builtins
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_ALIGNMENT = 64  # bytes, as numpy's own memory


def encoded(value: Any) -> Array:
    """Return an array, or what JSON can have, as bytes; of anything else raise a TypeError."""
    file = io.BytesIO()
    if isinstance(value, np.ndarray):
        check_array(value)
        np.save(file, value, allow_pickle=False)
    else:
        file.write(json.dumps(_plain(value)).encode())
    return np.frombuffer(file.getvalue(), np.uint8)


def check_array(array: Array) -> None:
    """Raise a TypeError for an array that is more than its numbers."""
    is_masked = isinstance(array, np.ma.MaskedArray)
    if is_masked or array.dtype.hasobject:
        what = "a masked array" if is_masked else "an array of objects"
        raise TypeError(
            f"{what} cannot go from rank to rank; send plain arrays of numbers or texts"
        )


def _plain(value: Any) -> Any:
    """Return a value with numbers of Python for those of numpy; refuse what JSON has not."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"the key {key!r:.60} of a dict cannot go from rank to rank; keys are texts"
                )
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    number = value.item() if isinstance(value, np.generic) else value
    if number is None or isinstance(number, (bool, int, float, str)):
        return number
    if isinstance(value, np.ndarray):
        raise TypeError(
            "an array goes from rank to rank alone, not in a list or a dict; send one array after "
            "the other, or numbers: array.tolist()"
        )
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


def as_told(error: Exception) -> tuple[str, list[Any]]:
    """Return the class and the arguments of an error of Python's that says the same.

    It is of the nearest class that numbers and texts can make.
    """
    text = str(error)
    for kind in type(error).__mro__:
        for arguments in (_arguments(error), [text]):
            if getattr(builtins, kind.__name__, None) is kind:
                with suppress(Exception):  # as for a UnicodeDecodeError, which has bytes
                    sent = decoded(encoded(arguments))
                    if str(kind(*sent)) == text:
                        return kind.__name__, sent
    return "Exception", [text]


def _arguments(error: Exception) -> list[Any]:
    if isinstance(error, OSError) and error.filename is not None:
        return [error.errno, error.strerror, error.filename, None, error.filename2]
    return list(error.args)


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
