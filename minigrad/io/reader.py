"""TensorFile: a safetensors file, of which only the tensors that are asked for are read.

A file is the length of its header in 8 bytes, a header of JSON with the dtype, shape and offset of
each tensor, and then the bytes of all tensors, without gaps. The safetensors library checks the
header: against the length of the file, and tensors against their sizes and each other. Its reader
for numpy raises an error for bfloat16, so bytes are read here.
"""

from __future__ import annotations

import difflib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.io.tensor_info import NAMES, TensorInfo, from_stored, stored_dtype

PART = 1 << 22  # the number of bytes that are copied at a time
_LENGTH = 8  # the number of bytes of the header's length


class Closing(ABC):
    """Something that is closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tensors(Closing):
    """Tensors by name, whose dtypes and shapes are known before they are read.

    Attributes:
        tensors: the dtype and shape of each tensor, by name.
    """

    tensors: Mapping[str, TensorInfo]

    @property
    @abstractmethod
    def location(self) -> str:
        """The path or paths, in quotes, for messages."""

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor.

        Raises:
            KeyError: if there is none of that name, with the nearest name.
        """
        if name not in self.tensors:
            close = difflib.get_close_matches(name, self.tensors, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            count = len(self.tensors)
            raise KeyError(
                f"there is no tensor {name!r}{hint} among the {count} of {self.location}"
            )
        return self.tensors[name]


class TensorFile(Tensors):
    """The tensors and facts of a file. `with TensorFile(path) as file:` closes it at the end.

    Args:
        path: the path of the file.

    Attributes:
        path: the path of the file.
        tensors: the dtype and shape of each tensor, by name, in the order of the file.
        metadata: the facts in the header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, is cut short, or its header is wrong.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
        self._file = open(self.path, "rb")  # noqa: SIM115  # close() does
        try:
            header, self._data = self._header()
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self._starts: dict[str, int] = {}
            self.tensors: dict[str, TensorInfo] = {}
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                self._starts[name] = entry["data_offsets"][0]
                dtype = NAMES.get(entry["dtype"], entry["dtype"])
                self.tensors[name] = TensorInfo(name, dtype, tuple(entry["shape"]))
        except BaseException:
            self._file.close()
            raise

    def _header(self) -> tuple[dict[str, Any], int]:
        """Read the header, and return it with the offset at which the bytes of tensors begin."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{os.fspath(self.path)!r} is no complete safetensors file: {error}; fetch or save "
                f"it again"
            ) from error

        def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                raise ValueError(
                    f"{os.fspath(self.path)!r} has a header that says the same name twice, of "
                    f"{', '.join(sorted(found))[:200]}; save it again"
                )
            return found

        length = int.from_bytes(self._file.read(_LENGTH), "little")
        header = json.loads(self._file.read(length), object_pairs_hook=without_repeats)
        return header, _LENGTH + length

    @property
    def location(self) -> str:
        """The path, in quotes."""
        return repr(os.fspath(self.path))

    def read(
        self, name: str, dtype: DTypeLike | None = None, rows: slice = slice(None)
    ) -> NDArray[Any]:
        """Read a tensor, or some of its rows, into a new array, the only one that is made.

        Args:
            name: the name of the tensor.
            dtype: the dtype to convert to; None for that of the file, float32 for bfloat16.
            rows: the rows of the first axis, without steps.

        Raises:
            KeyError: if there is no such tensor.
            ValueError: if it has a dtype that numpy cannot widen, or the file has been cut short
                meanwhile.
        """
        info = self.info(name)
        if info.dtype not in NAMES.values():
            raise ValueError(
                f"{name} in {os.fspath(self.path)!r} is of dtype {info.dtype}, which cannot be "
                f"read here; there are {', '.join(NAMES.values())}"
            )
        shape, before = info.shape, 0  # the number of elements before the rows
        if shape and rows != slice(None):
            start, stop, step = rows.indices(shape[0])
            if step != 1:
                raise ValueError(f"rows are read without steps, not as {rows}")
            before = start * (info.size // shape[0]) if shape[0] else 0
            shape = (max(0, stop - start), *shape[1:])
        stored = np.empty(shape, stored_dtype(info.dtype))
        self._file.seek(self._data + self._starts[name] + before * stored.itemsize)
        if (
            stored.size
            and self._file.readinto(stored.reshape(-1).view(np.uint8).data) < stored.nbytes
        ):
            raise self._cut(name)
        if info.dtype == "bool":
            stored = stored.view(np.uint8) != 0  # in numpy, a byte of another value is no bool
        array = from_stored(stored, info.dtype)
        return array if dtype is None else array.astype(dtype, copy=False)

    def raw(self, name: str) -> Iterator[bytes]:
        """Read the bytes of a tensor of any dtype, as they are in the file, in parts of 4 MiB.

        Raises:
            KeyError: if there is no such tensor.
            ValueError: if the file has been cut short meanwhile.
        """
        left = self.info(name).nbytes
        offset = self._data + self._starts[name]
        while left:
            self._file.seek(offset)
            part = self._file.read(min(left, PART))
            if not part:
                raise self._cut(name)
            yield part
            offset, left = offset + len(part), left - len(part)

    def _cut(self, name: str) -> ValueError:
        return ValueError(f"{os.fspath(self.path)!r} ends inside of {name}; it has been changed")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
