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


class Share:
    """A share of the numbers of a list of arrays, and its format as bytes.

    It consists of segments: consecutive numbers of an array. An array may be None; then its
    segments are None, too.

    Args:
        segments: for each segment, the index of the array, the numbers in it, and their dtype.

    Attributes:
        size: the number of bytes.
    """

    def __init__(self, segments: Sequence[tuple[int, slice, np.dtype[Any]]]) -> None:
        self.segments = segments
        self._first = []  # offsets of the segments, after a byte for each: 0 if it is None
        self.size = len(segments)
        for _, numbers, dtype in segments:
            self._first.append(_aligned(self.size))
            self.size = self._first[-1] + (numbers.stop - numbers.start) * dtype.itemsize
        self.size = _aligned(self.size)

    def cut(self, arrays: Sequence[Array | None]) -> list[Array | None]:
        """Return the segments of arrays of one axis."""
        found = ((arrays[i], numbers) for i, numbers, _ in self.segments)
        return [None if array is None else array[numbers] for array, numbers in found]

    def packed(self, segments: Sequence[Array | None]) -> Array:
        """Return the bytes of segments."""
        content = np.zeros(self.size, np.uint8)
        for i, segment in enumerate(segments):
            if segment is not None:
                content[i] = 1
                self._segment(content, i)[:] = segment
        return content

    def unpacked(self, content: Array) -> list[Array | None]:
        """Return segments that share the memory of their bytes."""
        every = range(len(self.segments))
        return [self._segment(content, i) if content[i] else None for i in every]

    def _segment(self, content: Array, i: int) -> Array:
        _, numbers, dtype = self.segments[i]
        return np.ndarray(numbers.stop - numbers.start, dtype, content, self._first[i])


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


def shares_of(like: Sequence[Any], count: int) -> list[Share]:
    """Divide the numbers of arrays or Tensors, one after the other, into `count` equal shares."""
    total, before, number = sum(each.size for each in like), 0, 0
    shares: list[list[tuple[int, slice, np.dtype[Any]]]] = [[] for _ in range(count)]
    for i, each in enumerate(like):
        start, stop = 0, -1
        while stop < each.size:
            stop = min(total * (number + 1) // count - before, each.size)
            if start < stop or not each.size:
                shares[number].append((i, slice(start, stop), each.dtype))
            start, number = stop, number + (stop < each.size)
        before += each.size
    return [Share(segments) for segments in shares]


def joined(
    like: Sequence[Any], shares: Sequence[Share], contents: Sequence[Array]
) -> list[Array | None]:
    """Return arrays with the shapes and dtypes of `like` from the bytes of their shares."""
    arrays: list[Array | None] = [np.empty(each.shape, each.dtype) for each in like]
    for share, content in zip(shares, contents, strict=True):
        for (i, numbers, _), segment in zip(share.segments, share.unpacked(content), strict=True):
            array = arrays[i]
            if segment is None or array is None:
                arrays[i] = None
            else:
                array.reshape(-1)[numbers] = segment
    return arrays
