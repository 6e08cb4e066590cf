"""State files: named arrays and a few facts, as safetensors, written completely or not at all.

safetensors is the field's format: a header of JSON, then raw arrays. It can be read without running
code from the file, which pickle cannot.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.io.reader import TensorFile
from minigrad.io.tensor_info import TensorInfo
from minigrad.io.writer import writing


def save_state(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays and facts to a file. An existing file is replaced only by a complete one.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
        TypeError: if an array is not of numbers, or a fact is no string.
    """
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise TypeError(f"{name} has the dtype {array.dtype}; only numbers can be saved")
    infos = [TensorInfo(name, array.dtype.name, array.shape) for name, array in plain.items()]
    with writing(path, infos, metadata) as writer:
        for name, array in plain.items():
            writer.write(name, array)


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the arrays and the facts in a file; bfloat16 is widened to float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, is cut short, or has a dtype that numpy has not.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file}, file.metadata
