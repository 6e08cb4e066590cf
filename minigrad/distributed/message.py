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


def encoded(value: Any) -> Array:
    """Return an array, or a value that JSON can represent, as bytes; a TypeError for others."""
    file = io.BytesIO()
    if isinstance(value, np.ndarray):
        check_array(value)
        np.save(file, value, allow_pickle=False)
    else:
        file.write(json.dumps(_plain(value)).encode())
    return np.frombuffer(file.getvalue(), np.uint8)


def check_array(array: Array) -> None:
    """Raise a TypeError for masked arrays, and for arrays of objects or dtypes that numpy lacks."""
    is_masked = isinstance(array, np.ma.MaskedArray)
    fields = [kind for kind, *_ in (array.dtype.fields or {}).values()]
    if is_masked or array.dtype.hasobject or any(x.isbuiltin == 2 for x in (array.dtype, *fields)):
        name = "objects" if array.dtype.hasobject else array.dtype.name  # bfloat16, for example
        what = "a masked array" if is_masked else f"an array of {name}"
        raise TypeError(
            f"{what} cannot go from rank to rank; send plain arrays of numpy's numbers or texts"
        )


def _plain(value: Any) -> Any:
    """Convert numpy numbers to Python numbers; an error for values that JSON does not have."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"the key {key!r:.60} of a dict cannot go from rank to rank; keys are texts"
                )
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    number = python_number(value)
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
    """Return the value from the bytes that `encoded` made."""
    text = content.tobytes()
    if text.startswith(np.lib.format.MAGIC_PREFIX):
        return np.load(io.BytesIO(text), allow_pickle=False)
    return json.loads(text)


def serialized_error(error: Exception) -> tuple[str, list[Any]]:
    """Return the class and the arguments of a built-in error with the same message.

    It is the nearest base class that can be made from numbers and texts.
    """
    text = str(error)
    for kind in type(error).__mro__:
        for arguments in (_arguments(error), [text]):
            if getattr(builtins, kind.__name__, None) is kind:
                with suppress(Exception):  # a UnicodeDecodeError, for example, needs bytes
                    sent = decoded(encoded(arguments))
                    if str(kind(*sent)) == text:
                        return kind.__name__, sent
    return "Exception", [text]


def _arguments(error: Exception) -> list[Any]:
    if isinstance(error, OSError) and error.filename is not None:
        return [error.errno, error.strerror, error.filename, None, error.filename2]
    return list(error.args)


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
