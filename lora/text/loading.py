"""Language models from files: a Hugging Face folder, or one GGUF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lora.text import folder, gguf_file
from lora.text.architecture import ModelConfig, expected_shapes
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer
from minigrad.nn import init
from minigrad.progress import progress_bar

__all__ = ["DTYPES", "load_model", "tokenizer"]

DTYPES = ("float32",)
"""The dtypes in which weights may be in memory."""


def load_model(
    path: str | os.PathLike[str], dtype: str | None = None, *, progress: bool = True
) -> LanguageModel:
    """Read a language model, all of whose parameters are frozen.

    Args:
        path: a Hugging Face folder, or a GGUF file.
        dtype: the dtype of the weights in memory; None for the stored one where that is bfloat16,
            and float32 for others.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if there is nothing at the path, or a file is missing in the folder.
        ValueError: if the model is not supported, or a file is wrong; the message names what.
        MemoryError: if the weights do not fit into this machine's memory.
        ImportError: if a package is missing that reads such files.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, or None, not {dtype!r}")
    source, config = open_model(path)
    module: Any = gguf_file if isinstance(source, gguf_file.GGUFFile) else folder
    with init.skipped():
        model = LanguageModel(config)
    model.freeze()
    parameters = dict(model.named_parameters())
    shapes = expected_shapes(config)
    arrays = module.weights(source, config)
    for name, array in progress_bar(
        arrays, what="reading", unit="tensor", shown=progress, total=len(shapes)
    ):
        parameters[name].data[...] = array  # also from bfloat16
    return model.eval()


def tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer of a language model from its folder, or its GGUF file.

    Raises:
        FileNotFoundError: if there is nothing at the path, or no tokenizer in the folder.
        ValueError: if the tokenizer is not supported, or a file is wrong.
    """
    if is_gguf(path):
        return Tokenizer.from_gguf(gguf_file.GGUFFile(path).metadata)
    return Tokenizer.from_folder(path)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a file, which a folder is not.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no folder and no file {os.fspath(path)!r}")
    return Path(path).is_file()


def open_model(path: str | os.PathLike[str]) -> tuple[Any, ModelConfig]:
    """Return what the weights are read from, and the configuration."""
    if is_gguf(path):
        file = gguf_file.GGUFFile(path)
        return file, gguf_file.read_config(file)
    return path, folder.read_config(path)
