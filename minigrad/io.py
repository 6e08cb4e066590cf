"""State files: named arrays and a few facts, as safetensors, written whole or not at all.

safetensors is the field's format: a header of JSON, then raw arrays. It can be read without running
code from the file, which pickle cannot.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def save_state(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and facts to a file. An existing file is replaced only by a complete one.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
        TypeError: if an array is not of numbers.
    """
    from safetensors.numpy import save

    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} has the dtype {array.dtype}; only numbers can be saved")
    write_atomically(path, save(plain, dict(metadata) if metadata else None))


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the facts in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or is cut short.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            return arrays, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)!r} is no complete safetensors file: {error}") from error


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the target, and take its place when all bytes are on disk."""
    target = Path(path).resolve()  # a link stays a link, to the new content
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's own is for secrets
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
