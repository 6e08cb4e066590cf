"""Safetensors files: named tensors and metadata, read lazily, written completely or not at all.

A file begins with the length of its header, in 8 bytes. Then come the header, in JSON, with the
dtype, shape and offset of each tensor, and the bytes of all tensors, without gaps. It is the usual
format for weights. Reading it never runs code from the file; reading a pickle can.

The safetensors library checks the header: the length of the file, the sizes of the tensors, and
that tensors do not overlap. Its reader for numpy raises an error for bfloat16, so this module reads
the bytes itself.

The header with names, dtypes and shapes is written first. Then tensors are written in any order,
each at its offset. The offsets are sorted by element size, largest first, so that each tensor is
aligned when the file is memory-mapped. The metadata begin with two checksums: that of the tensors
replaces zeros when all of them have been written; the other one is of the header, so of the rest of
the metadata, and the dtypes, shapes and offsets.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import file_digest, sha256
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.checks import can_store, check_integer, nearest, shown
from minigrad.core.tensor import Tensor, as_array
from minigrad.errors import named_errors
from minigrad.io.atomic import replacing
from minigrad.io.tensor_info import (
    CODES,
    NAMES,
    TensorInfo,
    bits_of,
    from_stored,
    stored_dtype,
    to_stored,
)
from minigrad.tables import counted

PART = 1 << 22  # the number of bytes that are copied at a time
_LARGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no longer one
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # with this, a pointer of Git LFS begins
_ALIGNED = 8  # the offset of the first tensor is a multiple of this number of bytes

CHECKSUM = "minigrad.sha256"
"""The name of the checksum in the metadata: a sha256 of the bytes of all tensors."""

CHECKSUM_OF_HEADER = "minigrad.header.sha256"
"""The name of the checksum of the header; files of earlier versions have none."""

_BEFORE_CHECKSUM = 8 + len(f'{{"__metadata__":{{"{CHECKSUM}":"')  # bytes of a file that has one


class Closing:
    """Base class of objects that are closed at the end of a `with` block."""

    _stack: ExitStack  # what has to be closed

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close()


class Tensors(Closing, ABC):
    """Tensors by name, in one or several files, read on demand."""

    tensors: dict[str, TensorInfo]  # the dtype and shape of each tensor, by name
    location: str  # the path or paths, in quotes, for messages

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location}, {counted(len(self), 'tensor')})"

    def info(self, name: str) -> TensorInfo:
        """Return the dtype and shape of a tensor.

        Raises:
            KeyError: if the tensor does not exist; the message has the most similar name.
        """
        if name not in self.tensors:
            hint, count = nearest(name, self.tensors), len(self.tensors)
            raise KeyError(
                f"there is no tensor {name!r}{hint} among the {count} of {self.location}"
            )
        return self.tensors[name]

    def read(
        self, name: str, dtype: DTypeLike | None = None, rows: slice = slice(None)
    ) -> NDArray[Any]:
        """Read a tensor, or some of its rows, into a new array, without a second copy in memory.

        Args:
            name: the name of the tensor.
            dtype: the dtype to convert to; None for the dtype in the file (float32 for bfloat16).
            rows: a slice of rows along the first axis, without a step.

        Raises:
            KeyError: if the tensor does not exist.
            ValueError: if numpy cannot represent its dtype, `rows` has a step, or the file has
                become shorter.
        """
        array = self._read(self.info(name), rows)
        return array if dtype is None else array.astype(dtype, copy=False)

    @abstractmethod
    def _read(self, info: TensorInfo, rows: slice) -> NDArray[Any]:
        """Read some rows in the dtype in the file (float32 for bfloat16)."""

    @abstractmethod
    def raw(self, name: str) -> Iterator[bytes]:
        """Read the bytes of a tensor of any dtype, unconverted, in parts of at most 4 MiB.

        Raises:
            KeyError: if the tensor does not exist.
            ValueError: if the file has become shorter.
        """


def bounds(rows: slice, count: int) -> tuple[int, int]:
    """Return the first of some rows, of `count`, and the one after the last; refuse a step."""
    start, stop, step = rows.indices(count)
    if step != 1:
        raise ValueError(f"rows are read without steps, not as {rows}")
    return start, max(start, stop)


def digest_of_header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Return a sha256 of the entries of all tensors, and of the metadata without checksums.

    Their order does not matter, because the safetensors library writes metadata in any order.
    """
    return sha256(json.dumps([entries, metadata], sort_keys=True).encode()).hexdigest()


def check_is_no_pointer(file: BinaryIO) -> None:
    """Raise a ValueError if a file has only the name of a content that Git LFS fetches."""
    if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
        raise ValueError(
            f"{file.name!r} is a pointer of Git LFS, without the content; fetch it by git lfs pull"
        )
    file.seek(0)


def parse_json(text: str | bytes, source: str) -> Any:
    """Parse JSON; a ValueError, which names the source, if an object has a name twice."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = ", ".join(sorted(found))[:200]
            raise ValueError(f"{source} has the same name twice, of {names}; save it again")
        return found

    return json.loads(text, object_pairs_hook=without_repeats)


class TensorFile(Tensors):
    """The tensors and metadata of a file. `with TensorFile(path) as file:` closes it at the end.

    Threads may read from it at the same time, and on POSIX so may forked processes.

    Attributes:
        path: the path of the file.
        tensors: the dtype and shape of each tensor, by name, in the order of the file.
        metadata: the metadata in the header, without the checksums.
        has_checksum: whether the header has a checksum of the tensors. Only minigrad writes one.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a safetensors file, is incomplete, or its header is invalid.
        OSError: if it cannot be opened, for example because too many files are open.
        MemoryError: if the limit of the address space is smaller than the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.location = repr(os.fspath(self.path))
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
        self._lock = Lock()  # of the position of the file, where the system has no preadv
        with ExitStack() as stack:  # closes the file if there is an error
            self._file = stack.enter_context(open(self.path, "rb"))
            check_is_no_pointer(self._file)
            header, self._data = self._header()
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self._checksum = self.metadata.pop(CHECKSUM, None)
            self.has_checksum = self._checksum is not None
            of_header = self.metadata.pop(CHECKSUM_OF_HEADER, None)
            self._has_right_header = of_header is None or (
                of_header == digest_of_header(header, self.metadata)
            )
            self.tensors, self._offsets = {}, {}
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                self._offsets[name] = self._data + entry["data_offsets"][0]
                dtype = NAMES.get(entry["dtype"], entry["dtype"])
                self.tensors[name] = TensorInfo(name, dtype, tuple(entry["shape"]))
            self._stack = stack.pop_all()

    def _header(self) -> tuple[dict[str, Any], int]:
        """Read the header; return it, and the offset at which the bytes of the tensors begin."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np"):
                pass
        except FileNotFoundError:  # safetensors says this of any error that `open` has
            with open(self.path, "rb"):  # raises the true one
                raise
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and "os error 12" not in str(error):  # of safetensors 0.7
                raise
            raise MemoryError(
                f"{self.location} cannot be mapped into memory ({error}); raise the limit of the "
                f"address space (ulimit -v)"
            ) from None
        except SafetensorError as error:
            raise ValueError(
                f"{self.location} is not a complete safetensors file: {error}; fetch or save it "
                f"again"
            ) from error

        length = int.from_bytes(self._file.read(8), "little")
        return parse_json(self._file.read(length), f"the header of {self.location}"), 8 + length

    def _read(self, info: TensorInfo, rows: slice) -> NDArray[Any]:
        if info.dtype not in NAMES.values():
            raise ValueError(
                f"{info.name} in {self.location} has dtype {info.dtype}, which cannot be "
                f"read here; there are {', '.join(NAMES.values())}"
            )
        shape, before = info.shape, 0  # the number of elements before the first row to read
        if shape:
            start, stop = bounds(rows, shape[0])
            before = start * math.prod(shape[1:])
            shape = (stop - start, *shape[1:])
        stored = np.empty(shape, stored_dtype(info.dtype))
        offset = self._offsets[info.name] + before * stored.itemsize
        content = stored.reshape(-1).view(np.uint8).data
        if self._read_at(offset, content) < stored.nbytes:
            raise ValueError(f"{self.location} ends inside of {info.name}; it has been changed")
        if info.dtype == "bool":
            stored = stored.view(np.uint8).astype(np.bool_)  # numpy requires bytes of 0 or 1
        return from_stored(stored, info.dtype)

    def raw(self, name: str) -> Iterator[bytes]:
        """Read the bytes of a tensor, in parts; see `Tensors.raw`."""
        left = self.info(name).nbytes
        offset, part = self._offsets[name], memoryview(bytearray(min(left, PART)))
        while left:
            count = self._read_at(offset, part[:left])
            if not count:
                raise ValueError(f"{self.location} ends inside of {name}; it has been changed")
            yield bytes(part[:count])
            offset, left = offset + count, left - count

    def _read_at(self, offset: int, content: memoryview) -> int:
        """Read into `content` from an offset on; return the number of bytes.

        At the end of the file there may be fewer than asked for. The position of the open
        file is not used, because threads and forked processes share it.
        """
        if not hasattr(os, "preadv"):  # as on Windows, which does not fork either
            with self._lock:
                self._file.seek(offset)
                return self._file.readinto(content)
        done = 0
        while count := os.preadv(self._file.fileno(), [content[done:]], offset + done):
            done += count
        return done

    def check(self) -> None:
        """Compare the header and the tensors with their checksums, if there are any.

        Raises:
            ValueError: if they do not match: the file is damaged, or another program changed it.
        """
        changed = f"{self.location} is damaged, or another program has changed it: "
        advice = "fetch or save it again, or, if the change is meant, take"
        if not self._has_right_header:
            raise ValueError(
                f"{changed}its metadata, or the dtypes, shapes or offsets of its tensors, do not "
                f"have the sha256 in its header; {advice} {CHECKSUM_OF_HEADER!r} out of its "
                f"metadata"
            )
        if not self.has_checksum:
            return
        found, offset, part = sha256(), self._data, memoryview(bytearray(PART))
        while count := self._read_at(offset, part):
            found.update(part[:count])
            offset += count
        if found.hexdigest() != self._checksum:
            raise ValueError(
                f"{changed}its tensors do not have the sha256 in its header; {advice} "
                f"{CHECKSUM!r} out of its metadata"
            )

    def digest(self) -> str:
        """Return a sha256 by which the file is known again.

        It is that of the file; or if the header has a checksum, that of the header, and the tensors
        are compared with their checksum.

        Raises:
            ValueError: if they do not match it.
        """
        with open(self.path, "rb") as file:
            if not self.has_checksum:
                return file_digest(file, "sha256").hexdigest()
            self.check()
            return sha256(file.read(int.from_bytes(file.read(8), "little"))).hexdigest()


def is_complete(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a safetensors file of the size that its header says."""
    try:
        with TensorFile(path):
            return True
    except (FileNotFoundError, ValueError):
        return False


class TensorWriter:
    """Write tensors to an open file; `writing` makes a writer for a path.

    Args:
        file: an empty file, open for writing and reading bytes.
        tensors: the dtype and shape of all tensors that will be written.
        metadata: metadata for the header.

    Raises:
        ValueError: if two tensors have the same name, one is called "__metadata__", a dtype is
            unknown, UTF-8 cannot encode a name or the metadata, or they are longer than the header
            of a file can be.
        TypeError: if a name, or a key or value of the metadata, is not a string.
    """

    def __init__(
        self,
        file: BinaryIO,
        tensors: Iterable[TensorInfo],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._file: Any = file  # the annotations of BinaryIO lack a method that `file_digest` calls
        listed = list(tensors)
        for text in [*(tensor.name for tensor in listed), *chain(*(metadata or {}).items())]:
            if not isinstance(text, str):
                raise TypeError(f"names of tensors and metadata are strings, not {text!r:.60}")
        self._tensors = {tensor.name: tensor for tensor in listed}
        names = Counter(tensor.name for tensor in listed)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"names of tensors are repeated: {', '.join(twice)}")
        if "__metadata__" in self._tensors:
            raise ValueError("no tensor can be called '__metadata__', the name of the metadata")
        of_other_file = CHECKSUM, CHECKSUM_OF_HEADER
        facts = {key: v for key, v in (metadata or {}).items() if key not in of_other_file}
        self._entries = entries = dict[str, Any]()
        self._written: dict[str, list[range]] = {name: [] for name in self._tensors}  # of bytes
        end = 0
        for tensor in sorted(listed, key=lambda t: (-bits_of(t.dtype), t.name)):
            begin, end = end, end + tensor.nbytes
            entries[tensor.name] = {
                "dtype": CODES.get(tensor.dtype, tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        checksums = {CHECKSUM: "0" * 64, CHECKSUM_OF_HEADER: digest_of_header(entries, facts)}
        header = {"__metadata__": checksums | facts, **entries}
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        content += b" " * (-len(content) % _ALIGNED)
        if len(content) > _LARGEST_HEADER:
            raise ValueError(
                f"the names and metadata take {len(content):,} bytes, and no reader of safetensors "
                f"accepts more than {_LARGEST_HEADER:,}; store large metadata as tensors, or in a "
                f"file of their own"
            )
        self._data = 8 + len(content)
        self._end = self._data + end
        file.write(len(content).to_bytes(8, "little") + content)

    def write(self, name: str, array: NDArray[Any], first_row: int = 0) -> None:
        """Write a tensor, or some of its rows, rounded to the dtype that was given at the start.

        Numbers are rounded to floats only; integers and bools must be able to store them. Each
        element must be written once; rows may come in any order.

        Raises:
            KeyError: if no tensor of this name was given at the start.
            ValueError: if the shape differs, the rows are not in the tensor, the dtype cannot store
                the numbers, or a part of the tensor was written before.
            TypeError: if the array does not contain numbers, or `first_row` is not an integer.
        """
        tensor = self._announced(name)
        array = np.asarray(array)
        first_row = check_integer(f"{name}: first_row", first_row)
        if array.dtype.kind not in "biufV":  # V is the kind of bfloat16 in the package ml_dtypes
            raise TypeError(f"{name} has the dtype {array.dtype}; only numbers can be written")
        complete = array.shape == tensor.shape and not first_row
        fits = bool(tensor.shape) and array.shape[1:] == tensor.shape[1:] and array.ndim > 0
        if not complete and not (fits and 0 <= first_row <= tensor.shape[0] - len(array)):
            raise ValueError(
                f"{name} was announced with shape {tensor.shape}, which {array.shape} from row "
                f"{first_row} on is not a part of"
            )
        if tensor.dtype != "bfloat16" and not can_store(stored_dtype(tensor.dtype), array):
            raise ValueError(
                f"{name} was announced as {tensor.dtype}, and has numbers that are not "
                f"{tensor.dtype}; round them first, or announce {array.dtype}"
            )
        stored = to_stored(array, tensor.dtype)
        before = first_row * math.prod(tensor.shape[1:])
        span = range(before * stored.itemsize, before * stored.itemsize + stored.nbytes)
        self._begin(name, span)
        self._file.write(stored.reshape(-1).view(np.uint8).data)
        self._written[name].append(span)

    def copy(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a tensor of any dtype, from its bytes in another file, as `raw` reads them.

        Raises:
            KeyError: if no tensor of this name was given at the start.
            ValueError: if the number of bytes is wrong, or a part of the tensor was written before.
        """
        tensor = self._announced(name)
        span = range(tensor.nbytes)
        self._begin(name, span)
        written = 0
        for part in parts:  # bytes that are too many belong to no tensor, or to another one
            self._file.write(part[: max(tensor.nbytes - written, 0)])
            written += len(part)
        if written != tensor.nbytes:
            raise ValueError(f"{name} was announced with {tensor.nbytes} bytes, not {written}")
        self._written[name].append(span)

    def _begin(self, name: str, span: range) -> None:
        """Move to a range of bytes of a tensor, after checking that none of them was written."""
        for other in self._written[name]:
            if span.start < other.stop and other.start < span.stop:
                raise ValueError(f"{name} has been written already, in part or completely")
        self._file.seek(self._data + self._entries[name]["data_offsets"][0] + span.start)

    def _announced(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise KeyError(f"no tensor {name!r} was announced; there are {list(self._tensors)}")
        return self._tensors[name]

    def finish(self) -> None:
        """Write the checksum, when all tensors have been written.

        Raises:
            ValueError: if tensors were not written, or only in part; the message names them.
        """
        missing = [
            name
            for name, spans in self._written.items()
            if sum(map(len, spans)) < self._tensors[name].nbytes
        ]
        if missing:
            raise ValueError(f"announced, but not written: {', '.join(missing)}")
        self._file.seek(self._data)
        checksum = file_digest(self._file, "sha256").hexdigest()
        assert self._file.tell() == self._end
        self._file.seek(_BEFORE_CHECKSUM)
        self._file.write(checksum.encode())


@contextmanager
def writing(
    path: str | os.PathLike[str],
    tensors: Iterable[TensorInfo],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[TensorWriter]:
    """Open a writer; its file replaces `path` when the block ends without an error.

    Raises:
        OSError: if the file cannot be written; an old file is not changed then.
        ValueError: as in `TensorWriter`, or if the block ends before all tensors are written.
        TypeError: as in `TensorWriter`.
    """
    with replacing(path) as file:
        writer = TensorWriter(file, tensors, metadata)
        yield writer
        writer.finish()


@named_errors
def save_state(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any] | Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and metadata to a file. An existing file is replaced only by a complete one.

    Args:
        path: the safetensors file.
        arrays: arrays or Tensors by name, such as those of `model.state_dict()`.
        metadata: texts by name, for the header of the file.

    Raises:
        OSError: if the file cannot be written; an old file is not changed then.
        TypeError: if `arrays` or `metadata` is not a dict, an array does not contain numbers, or a
            name or a value in the metadata is not a string.
        ValueError: if UTF-8 cannot encode a name or the metadata, or they are longer than the
            header of a file can be, or an array is called "__metadata__".
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"save_state takes a dict of arrays, such as model.state_dict(), not {shown(arrays)}"
        )
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"the metadata are a dict of texts, not {metadata!r:.60}")
    plain: dict[str, NDArray[Any]] = {}
    for name, given in arrays.items():
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"{name} has a mask, which a file cannot have; save its .filled(value)")
        try:
            array = as_array(given) if isinstance(given, Tensor) else np.asarray(given)
        except ValueError:  # arrays of different shapes in a list
            array = np.empty(0, object)
        if isinstance(given, (Mapping, list, tuple)) and array.dtype == object:
            raise TypeError(
                f"save_state: {name} is a {type(given).__name__}, and a file has one dict "
                f"of arrays: give each array a name of its own, such as 'exp_avg.0', or let "
                f"Trainer(..., checkpoint=path) save the model with its optimiser"
            )
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} has the dtype {array.dtype}; only numbers can be saved")
        plain[name] = array
    infos = [TensorInfo(name, array.dtype.name, array.shape) for name, array in plain.items()]
    with writing(path, infos, metadata) as writer:
        for name, array in plain.items():
            writer.write(name, array)


@named_errors
def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the arrays and the metadata in a file; bfloat16 is converted to float32.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a safetensors file, its checksums show that it is damaged, or it
            has a dtype that numpy does not have (bfloat16 excepted).
    """
    with TensorFile(path) as file:
        file.check()
        return {name: file.read(name) for name in file}, file.metadata
