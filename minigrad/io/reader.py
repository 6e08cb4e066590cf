"""TensorFile: a safetensors file, of which no more is read than what is asked for.

A file is the length of its header in 8 bytes, a header of JSON with the dtype, shape and place of
each tensor, and then the bytes of all tensors, without gaps. The safetensors library checks the
header: against the length of the file, and tensors against their sizes and each other. Its reader
for numpy refuses bfloat16, so bytes are read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.io.tensor_info import NAMES, TensorInfo, from_stored, stored_dtype
from minigrad.io.tensors import Tensors

_LENGTH = 8  # bytes, of the length of the header
_PART = 1 << 22  # bytes, that are copied at a time
_FACTS = "__metadata__"


class TensorFile(Tensors):
    """The tensors and facts of a file. `with TensorFile(path) as file:` closes it at the end.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        tensors: what the header says of each tensor, by name, in the order of the file.
        metadata: the facts in the header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, is cut short, or its header lies.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
        self._file = open(self.path, "rb")  # noqa: SIM115  # close() does
        try:
            header, self._data = self._header()
            self.metadata: dict[str, str] = header.pop(_FACTS, None) or {}
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
        """The header, and where the bytes of tensors begin."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{os.fspath(self.path)!r} is no complete safetensors file: {error}; fetch or save "
                f"it again"
            ) from error
        length = int.from_bytes(self._file.read(_LENGTH), "little")
        header = json.loads(self._file.read(length), object_pairs_hook=self._without_repeats)
        return header, _LENGTH + length

    def _without_repeats(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(
                f"{os.fspath(self.path)!r} has a header that says the same name twice, of "
                f"{', '.join(sorted(found))[:200]}; save it again"
            )
        return found

    @property
    def place(self) -> str:
        """The path, in quotes."""
        return repr(os.fspath(self.path))

    def read(
        self, name: str, dtype: DTypeLike | None = None, rows: slice = slice(None)
    ) -> NDArray[Any]:
        """A tensor, or some of its rows: a new array, the only one that is made.

        Args:
            name: of the tensor.
            dtype: to convert to; None for that of the file, float32 for bfloat16.
            rows: of the first axis, without steps.

        Raises:
            KeyError: if there is no such tensor.
            ValueError: if it is of a dtype that numpy cannot widen, or the file has been cut short
                meanwhile.
        """
        info = self.info(name)
        if info.dtype not in NAMES.values():
            raise ValueError(
                f"{name} in {os.fspath(self.path)!r} is of dtype {info.dtype}, which cannot be "
                f"read here; there are {', '.join(NAMES.values())}"
            )
        shape, before = _part(info, rows)
        stored = np.empty(shape, stored_dtype(info.dtype))
        self._file.seek(self._data + self._starts[name] + before * stored.itemsize)
        if (
            stored.size
            and self._file.readinto(stored.reshape(-1).view(np.uint8).data) < stored.nbytes
        ):
            raise self._cut(name)
        if info.dtype == "bool":
            stored = stored.view(np.uint8) != 0  # a byte of another value is no bool of numpy's
        array = from_stored(stored, info.dtype)
        return array if dtype is None else array.astype(dtype, copy=False)

    def raw(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor of any dtype, as they are in the file, in parts of some megabytes.

        Raises:
            KeyError: if there is no such tensor.
            ValueError: if the file has been cut short meanwhile.
        """
        left = self.info(name).nbytes
        place = self._data + self._starts[name]
        while left:
            self._file.seek(place)
            part = self._file.read(min(left, _PART))
            if not part:
                raise self._cut(name)
            yield part
            place, left = place + len(part), left - len(part)

    def _cut(self, name: str) -> ValueError:
        return ValueError(f"{os.fspath(self.path)!r} ends inside of {name}; it has been changed")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _part(info: TensorInfo, rows: slice) -> tuple[tuple[int, ...], int]:
    """The shape of some rows, and how many numbers come before them."""
    if not info.shape or rows == slice(None):
        return info.shape, 0
    start, stop, step = rows.indices(info.shape[0])
    if step != 1:
        raise ValueError(f"rows are read without steps, not as {rows}")
    count = max(0, stop - start)
    each = info.size // info.shape[0] if info.shape[0] else 0
    return (count, *info.shape[1:]), start * each
