"""write_folder: an adapter to a folder, without a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.peft.config import CONFIG, PeftConfig
from lora.peft.facts import Facts
from lora.peft.folder import WEIGHTS
from minigrad.io import TensorInfo, TensorWriter, replacing_together
from minigrad.io.tensor_info import from_stored, to_stored

Array = NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""What the tensors of an adapter can be in."""


def write_folder(
    folder: str | os.PathLike[str],
    config: PeftConfig,
    tensors: Mapping[str, Array],
    facts: Facts,
    dtype: str | None = None,
) -> None:
    """Write the two files of an adapter, which appear together or not at all.

    Args:
        folder: made if it is not there; other files in it stay.
        config: what `adapter_config.json` says.
        tensors: by PEFT's keys.
        facts: for the metadata of the tensors.
        dtype: to round the tensors to, one of `FLOATS`; None for their own.

    Raises:
        ValueError: if there is no such dtype, or there is NaN or Inf in a tensor, or would be.
        OSError: if it cannot be written; the old files, if any, are as they were.
    """
    infos = check_tensors(tensors, dtype)
    with replacing_together(folder, CONFIG) as stage:
        with open(stage / WEIGHTS, "wb") as file:
            writer = TensorWriter(file, infos, facts.metadata())
            for key, array in tensors.items():
                writer.write(key, array)
            writer.finish()
        (stage / CONFIG).write_text(config.as_json(), encoding="utf-8")


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that no adapter is saved in; None is that of each tensor."""
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"an adapter is saved in {', '.join(FLOATS)}, not in {dtype!r}")


def check_tensors(tensors: Mapping[str, Array], dtype: str | None = None) -> list[TensorInfo]:
    """The tensors as they will be in a file.

    Raises:
        ValueError: as `write_folder`.
    """
    infos = [TensorInfo(k, dtype or each.dtype.name, each.shape) for k, each in tensors.items()]
    for info in infos:
        check_dtype(info.dtype)
    broken = [key for key, array in tensors.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(
            f"{', '.join(broken)} would have NaN or Inf in the file; mend the adapter, or take an "
            f"earlier one"
        )
    beyond = list(_beyond(tensors, infos))
    if beyond:
        raise ValueError(f"{', '.join(beyond)} would be Inf; save in bfloat16 or float32")
    return infos


def _beyond(tensors: Mapping[str, Array], infos: list[TensorInfo]) -> Iterator[str]:
    """What has finite numbers that the dtype has not."""
    for info in infos:
        stored = to_stored(tensors[info.name], info.dtype)
        if not np.isfinite(from_stored(stored, info.dtype)).all():
            yield f"{info.name} in {info.dtype}"
