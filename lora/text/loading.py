"""Load a language model and its tokenizer from a Hugging Face folder, or from one GGUF file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.peft import CONFIG
from lora.text.architecture import FLOAT8, ModelConfig, check_shapes, expected_shapes, read_config
from lora.text.gguf_file import GGUFFile, GGUFTensors, check_is_model
from lora.text.model import LanguageModel, TiedHead
from lora.text.tokenization import Tokenizer
from lora.variants.narrow import BFloat16Embedding, BFloat16Linear, NF4Linear
from minigrad import kernels
from minigrad.errors import named_errors
from minigrad.heap import physical_memory
from minigrad.io import TensorInfo, find, open_tensors
from minigrad.io.tensor_file import Tensors
from minigrad.nn import Linear, Module, init
from minigrad.packages import package
from minigrad.progress import progress_bar
from minigrad.tables import in_bytes

__all__ = ["DTYPES", "load_model", "tokenizer"]

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_FLOATS = ("float32", "bfloat16", "float16", *FLOAT8)

DTYPES = ("float32", "bfloat16", "nf4")
"""The forms in which `load_model` can store matrices in memory; vectors are in float32."""


@named_errors
def load_model(
    path: str | os.PathLike[str], dtype: str | None = None, *, progress: bool = True
) -> LanguageModel:
    """Load a language model, in evaluation mode and with frozen parameters.

    Args:
        path: a Hugging Face folder, or a GGUF file.
        dtype: how matrices are stored in memory, one of `DTYPES`; None for bfloat16 if most weights
            in the files have bfloat16 or float8, and else float32. With "nf4", the table of the
            embeddings and the head are in bfloat16.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if the path does not exist, or a file is missing in the folder.
        ValueError: if the dtype is unknown, the model is not supported, or a file is invalid; the
            message says which.
        MemoryError: if the weights do not fit into this machine's memory.
        ImportError: if a package that reads such files is not installed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, or None, not {dtype!r}")
    file = GGUFTensors(GGUFFile(path)) if is_gguf(path) else None
    config = read_config(path) if file is None else file.config
    form = dtype or ("bfloat16" if config.stored_dtype == "bfloat16" else "float32")
    shapes = expected_shapes(config)
    check_memory(shapes, form)
    with init.skipped():
        model = LanguageModel(config)
    arrays = weights(open_tensors(path) if file is None else file, config)
    options: Any = {"unit": "tensor", "shown": progress, "total": len(shapes)}
    fill(model, progress_bar(arrays, what="reading", **options), form)
    return model


def check_model(model: Any) -> None:
    """Raise a TypeError unless it is a language model, for example if it is a path."""
    if not (isinstance(model, Module) and hasattr(model, "loss")):
        kind = type(model).__name__
        raise TypeError(f"model is what lora.text.load_model(path) returns, not a {kind}")


def fill(model: LanguageModel, arrays: Iterable[tuple[str, Any]], form: str) -> None:
    """Copy weights into a model by their names, in a form of `DTYPES`, and freeze the model."""
    model.freeze()
    modules = dict(model.named_modules())
    for name, array in arrays:
        owner, _, part = name.rpartition(".")
        layer = modules[owner]
        if array.ndim == 1 or form == "float32":
            getattr(layer, part).data[...] = array  # converts bfloat16 too
            continue
        narrow: Module  # stores the matrix in few bits
        if not isinstance(layer, Linear):
            narrow = BFloat16Embedding(kernels.bfloat16.BFloat16Matrix.of(array))
            if isinstance(model.lm_head, TiedHead):
                model.lm_head.weight = narrow.weight
        elif form == "bfloat16" or name == _HEAD:
            narrow = BFloat16Linear(kernels.bfloat16.BFloat16Matrix.of(array), layer.bias)
        else:
            wide = array.astype(np.float32, copy=False)
            narrow = NF4Linear(kernels.nf4.NF4Matrix.of(wide), layer.bias)
        parent, _, child = owner.rpartition(".")
        setattr(modules[parent], child, narrow)
    model.eval()


def weights(tensors: Tensors, config: ModelConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and values of each parameter, in the order of the files; then close the files.

    The values keep their dtype. bfloat16 arrays have the dtype of ml_dtypes, so no float32 copy is
    made. float8 is converted to bfloat16, which can represent all of its values.

    A ValueError is raised at the beginning if tensors are missing, unexpected, mis-shaped, of
    layers that PEFT has wrapped, or have a dtype that is not supported. It is raised later if a
    file is truncated.
    """
    with tensors:
        # Old files also have the rotary frequencies, which follow from the configuration.
        infos = {n: x for n, x in tensors.tensors.items() if not n.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= infos.keys():
            head, embedding = (tensors.raw(name) for name in (_HEAD, _EMBEDDING))
            if any(a != b for a, b in zip_longest(head, embedding)):
                raise ValueError(
                    f"{tensors.location} has a {_HEAD} that is not {_EMBEDDING}, and config.json "
                    f"says that it is (tie_word_embeddings)"
                )
            del infos[_HEAD]
        if wrapped := [name for name in infos if ".base_layer." in name]:
            raise ValueError(
                f"{tensors.location} has layers of PEFT with an adapter, such as {wrapped[0]}; "
                f"save the model that merge_and_unload() returns, or unload() for the base alone"
            )
        check_shapes(tensors.location, infos, config)
        for name, info in infos.items():
            if info.dtype not in _FLOATS:
                raise ValueError(
                    f"{name} of {tensors.location} has dtype {info.dtype}, not {', '.join(_FLOATS)}"
                )
        for name, info in infos.items():
            yield name, _read(tensors, info)


def _read(tensors: Tensors, info: TensorInfo) -> NDArray[Any]:
    """Read a tensor in its dtype; float8 is converted to bfloat16."""
    if info.dtype in ("float32", "float16"):
        return tensors.read(info.name)
    narrow = package("ml_dtypes")
    stored, start = np.empty(info.nbytes, np.uint8), 0
    for part in tensors.raw(info.name):
        stored[start : start + len(part)] = np.frombuffer(part, np.uint8)
        start += len(part)
    dtype = getattr(narrow, FLOAT8.get(info.dtype, "bfloat16"))
    found: NDArray[Any] = stored.view(dtype).reshape(info.shape).astype(narrow.bfloat16, copy=False)
    return found


def check_memory(shapes: Mapping[str, tuple[int, ...]], form: str) -> None:
    """Raise a MemoryError if weights of these shapes do not fit into the memory of this machine."""
    needed = dict.fromkeys(DTYPES, 0)
    for dtype, bits in zip(DTYPES, (32.0, 16.0, 4.2), strict=True):
        for name, shape in shapes.items():
            is_table = name in (_HEAD, _EMBEDDING)  # with "nf4" these are in bfloat16
            each = 32.0 if len(shape) == 1 else max(bits, 16.0 * is_table)
            needed[dtype] += int(math.prod(shape) * each / 8)
    there = physical_memory()
    if there is not None and needed[form] > there:
        fitting = [
            f'dtype="{dtype}" (--dtype {dtype}) takes {in_bytes(size)}'
            for dtype, size in needed.items()
            if size <= there
        ]
        raise MemoryError(
            f"the weights take {in_bytes(needed[form])} in {form}, and this machine has "
            f"{in_bytes(there)} of memory; {', and '.join(fitting) or 'take a smaller model'}"
        )


@named_errors
def tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer of a language model from its folder, or its GGUF file.

    Raises:
        FileNotFoundError: if the path does not exist, or the folder has no tokenizer.
        ValueError: if the tokenizer is not supported, or a file is invalid.
        ImportError: if the package tokenizers, or for a GGUF file gguf, is not installed.
    """
    if is_gguf(path):
        check_is_model(file := GGUFFile(path))
        return Tokenizer.from_gguf(file.metadata)
    return Tokenizer.from_folder(path)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a file, which must be GGUF.

    A FileNotFoundError is raised if the path does not exist, is a pipe, or is a folder of GGUF
    files only, of an adapter, or around the folder of a model.
    """
    folder, text = Path(path), repr(os.fspath(path))
    if folder.is_file() or find(path, "config.json").is_file():
        return folder.is_file()
    if not folder.exists():
        raise FileNotFoundError(
            f"there is no folder and no file {text}; give a Hugging Face folder or a GGUF file of "
            f"this machine, since nothing is downloaded"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{text} is neither a file nor a folder, but perhaps a pipe; save the model in a file"
        )
    if find(path, CONFIG).is_file():
        raise FileNotFoundError(
            f"{text} is the folder of an adapter; give its base, a Hugging Face folder or a GGUF "
            f"file, and load the adapter with --adapter or lora.load"
        )
    if files := sorted(map(os.fspath, folder.glob("*.gguf"))):
        raise FileNotFoundError(
            f"{text} has no config.json, but GGUF files; name one: {', '.join(files)}"
        )
    around = (folder.glob(f"{inside}*/config.json") for inside in ("", "snapshots/"))
    # For example, a folder in the cache of huggingface_hub has such folders.
    if models := sorted(os.fspath(file.parent) for found in around for file in found):
        raise FileNotFoundError(
            f"{text} has no config.json, but a folder in it does; name it: {', '.join(models[:5])}"
        )
    return False
