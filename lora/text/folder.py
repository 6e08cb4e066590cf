"""A language model in a Hugging Face folder: its configuration, and its weights one at a time.

The weights have the dtype in which they are stored. A weight of bfloat16 is an array of ml_dtypes'
bfloat16, so no copy in float32 is made. Weights of float8 become bfloat16, which has all of their
values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.text.architecture import ModelConfig, check_shapes, config_from_json, expected_shapes
from lora.text.packages import package
from minigrad.io import TensorSet, find, open_tensors
from minigrad.io.tensor_file import parse_json

_LARGEST_JSON = 1 << 26  # bytes; tokenizer_config.json may list some hundred thousand tokens

_FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""The names in ml_dtypes of the narrow dtypes in files."""

_FLOATS = ("float32", "bfloat16", "float16", *_FLOAT8)

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def read_json(folder: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """Return the table in a JSON file of a folder, or None if there is no such file.

    A ValueError is raised if the file is no JSON, no table, or larger than any such file.
    """
    path = find(folder, name)
    text = repr(os.fspath(path))
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{text} is larger than any file of that name")
    try:
        found = parse_json(path.read_bytes(), text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text} cannot be read: {error!r:.200}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{text} must be a table, not {found!r:.60}")
    return found


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the configuration of the model in a folder.

    A FileNotFoundError is raised if it has no `config.json`, or no weights, and a ValueError if the
    model is not supported, or a file is wrong.
    """
    config = read_json(folder, "config.json")
    if config is None:
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} has no config.json, so it is no model's folder"
        )
    with open_tensors(folder) as tensors:
        infos = tensors.tensors.values()
        sizes = [("bfloat16" if i.dtype in _FLOAT8 else i.dtype, i.nbytes) for i in infos]
    return config_from_json(config, read_json(folder, "generation_config.json"), sizes)


def weights(
    folder: str | os.PathLike[str], config: ModelConfig
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and values of each parameter, in the order of the files.

    A ValueError is raised before the first one if tensors are missing, unexpected, mis-shaped or of
    a dtype that is not supported; and later if a file is cut short.
    """
    with open_tensors(folder) as tensors:
        # Old files have the frequencies too, which follow from the configuration.
        names = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
        if config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= set(names):
            head, embedding = (tensors.raw(name) for name in (_HEAD, _EMBEDDING))
            if any(a != b for a, b in zip_longest(head, embedding)):
                raise ValueError(
                    f"{tensors.location} has a {_HEAD} that is not {_EMBEDDING}, and config.json "
                    f"says that it is (tie_word_embeddings)"
                )
            names.remove(_HEAD)
        shapes = {name: tensors.info(name).shape for name in names}
        check_shapes(tensors.location, shapes, expected_shapes(config))
        for name in names:
            if (dtype := tensors.info(name).dtype) not in _FLOATS:
                raise ValueError(
                    f"{name} of {tensors.location} is of {dtype}; there are {', '.join(_FLOATS)}"
                )
        for name in names:
            yield name, _read(tensors, name)


def _read(tensors: TensorSet, name: str) -> NDArray[Any]:
    """Read a tensor in its dtype, or in bfloat16 if that is float8."""
    info = tensors.info(name)
    if info.dtype in ("float32", "float16"):
        return tensors.read(name)
    narrow = package("ml_dtypes")
    stored, start = np.empty(info.nbytes, np.uint8), 0
    for part in tensors.raw(name):
        stored[start : start + len(part)] = np.frombuffer(part, np.uint8)
        start += len(part)
    dtype = getattr(narrow, _FLOAT8.get(info.dtype, "bfloat16"))
    found: NDArray[Any] = stored.view(dtype).reshape(info.shape).astype(narrow.bfloat16, copy=False)
    return found
