"""TensorWriter: a safetensors file that is written one tensor, or some rows of one, at a time.

The names, dtypes and shapes come first, because they are the header. Tensors may then be written in
any order, each at its offset. They are sorted by the size of their elements, largest first, so that
each is aligned in memory when the file is mapped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minigrad.io.atomic import replacing
from minigrad.io.tensor_info import CODES, TensorInfo, bits_of, to_stored

_ALIGNED = 8  # tensors begin at a multiple of so many bytes


class TensorWriter:
    """Writes tensors to an open file; `writing` makes one for a path.

    Args:
        file: an empty file, open for writing bytes.
        tensors: the dtype and shape of all tensors that will be written.
        metadata: facts for the header.

    Raises:
        ValueError: if there are two of one name, or a dtype is unknown.
        TypeError: if a fact is no string.
    """

    def __init__(
        self,
        file: BinaryIO,
        tensors: Iterable[TensorInfo],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._file = file
        listed = list(tensors)
        self._tensors = {tensor.name: tensor for tensor in listed}
        if len(self._tensors) < len(listed):
            names = [tensor.name for tensor in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"a name stands for one tensor; twice there are {', '.join(twice)}")
        if "__metadata__" in self._tensors:
            raise ValueError("no tensor can be called '__metadata__', which is where facts are")
        for key, value in (metadata or {}).items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"metadata are strings by strings, unlike {key!r}: {value!r:.60}")
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._left = {name: tensor.size for name, tensor in self._tensors.items()}
        self._starts: dict[str, int] = {}
        end = 0
        for tensor in sorted(listed, key=lambda t: (-bits_of(t.dtype), t.name)):
            begin, end = end, end + tensor.nbytes
            self._starts[tensor.name] = begin
            header[tensor.name] = {
                "dtype": CODES.get(tensor.dtype, tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNED)
        self._data = 8 + len(text)
        self._end = self._data + end
        file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, array: NDArray[Any], first_row: int = 0) -> None:
        """Write a tensor, or some of its rows, rounded to the dtype it was announced with.

        Each element is written once; rows may come in any order.

        Raises:
            KeyError: if no tensor of that name was announced.
            ValueError: if its shape is another one, or a part of it has been written already.
        """
        tensor = self._announced(name)
        array = np.asarray(array)
        complete = array.shape == tensor.shape and not first_row
        fits = bool(tensor.shape) and array.shape[1:] == tensor.shape[1:] and array.ndim > 0
        if not complete and not (fits and 0 <= first_row <= tensor.shape[0] - len(array)):
            raise ValueError(
                f"{name} was announced with shape {tensor.shape}, which {array.shape} from row "
                f"{first_row} on is no part of"
            )
        if array.size > self._left[name]:
            raise ValueError(f"{name} has been written already, in part or completely")
        stored = to_stored(array, tensor.dtype)
        before = first_row * (tensor.size // tensor.shape[0]) if first_row else 0
        self._file.seek(self._data + self._starts[name] + before * stored.itemsize)
        self._file.write(stored.reshape(-1).view(np.uint8).data)
        self._left[name] -= array.size

    def copy(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a tensor of any dtype, as the bytes that it has in another file.

        Raises:
            KeyError: if no tensor of that name was announced.
            ValueError: if there are more bytes or fewer than it has, or a part of it has been
                written already.
        """
        tensor = self._announced(name)
        if self._left[name] < tensor.size:
            raise ValueError(f"{name} has been written already, in part or completely")
        self._file.seek(self._data + self._starts[name])
        left = tensor.nbytes
        for part in parts:
            left -= len(part)
            if left < 0:
                break
            self._file.write(part)
        if left:
            raise ValueError(f"{name} was announced with {tensor.nbytes} bytes, not with others")
        self._left[name] = 0

    def _announced(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise KeyError(f"no tensor {name!r} was announced; there are {list(self._tensors)}")
        return self._tensors[name]

    def finish(self) -> None:
        """Check that all is written.

        Raises:
            ValueError: if not, with the names of the missing tensors.
        """
        missing = [name for name, size in self._left.items() if size]
        if missing:
            raise ValueError(f"announced, but not written: {', '.join(missing)}")
        self._file.seek(0, os.SEEK_END)
        assert self._file.tell() == self._end


@contextmanager
def writing(
    path: str | os.PathLike[str],
    tensors: Iterable[TensorInfo],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[TensorWriter]:
    """Open a writer, whose file replaces `path` when the block ends without an error.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
        ValueError: if the block ends before all is written, or as `TensorWriter` does.
    """
    with replacing(path) as file:
        writer = TensorWriter(file, tensors, metadata)
        yield writer
        writer.finish()
