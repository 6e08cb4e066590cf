"""What a model's folder or file says: all guesses about the meaning of a model's files are here.

The files of transformers do not say which weights are stored transposed (the Conv1D of GPT-2),
which are tables of vectors, which table is the head too, and which buffers are computed.

`find_sidecars` finds the files of a model beside its weights, and which of them a merged model
gets. Configuration, tokenizer, model card and code are copied, folders that contain only such
files, and the modules that sentence-transformers runs after the model. Other files and folders are
left out, and reported. For example, weights in another format, as in `onnx/`, are not merged.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lora.patterns import is_any_match
from lora.peft.config import CONFIG, read_json
from lora.text.architecture import ModelConfig, config_from_json, json_table, rotary_frequencies
from lora.text.gguf_file import GGUFFile, GGUFTensors, config_json
from lora.text.tokenization import Tokenizer
from minigrad.io import TensorSet, open_tensors

PathLike = str | os.PathLike[str]

TIED = (
    "may be the weight of the head too (tie_word_embeddings): then a merged model has the change "
    "in both, and a model with the adapter only in the embedding; to keep the head as it is, first "
    "save the base with a copy of the weight for the head (tie_word_embeddings=False)"
)
COPIED = (
    "is the weight of the head too, which the adapter does not change: so the merged model has a "
    "copy of the old weight as its head, and tie_word_embeddings=false in its config.json"
)
UNTIED = (
    "is the weight of the head, which in the base is the weight of the embedding: config.json must "
    "have tie_word_embeddings=false, as a copied one has"
)

EMBEDDINGS = (
    *("*embedding", "*embeddings", "embed", "embed_tokens", "embed_positions", "embed_in"),
    *("wte", "wpe", "shared", "relative_attention_bias"),
)
"""The usual names of tables of vectors, without the names of their parent modules.

Some similar names are linear layers: `embed_out`, the head of GPT-NeoX, and `embeddings_project`.
"""

_WITH_HEADS = re.compile(
    "CausalLM|MaskedLM|LMHead|ConditionalGeneration|PreTraining|DoubleHeads", re.ASCII
)
"""Matches the names of transformers' classes that have a head, which may be tied."""

_TABLES = {"model.embed_tokens.weight": "ForCausalLM", "transformer.wte.weight": "GPT2LMHeadModel"}
"""Tables of embeddings in transformers' classes whose head, if it has one, is `lm_head.weight`."""

_MODEL = "config.json"

_MAY_DIFFER = (
    *("architecture", "max_position_embeddings", "sliding_window", "stored_dtype"),
    *("bos_token_id", "eos_token_ids", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_layers"),  # what follows from these is compared
)
"""The parts of a configuration that are not compared as they are."""

_COPIED = {
    *(".json", ".txt", ".md", ".py", ".jinja", ".yaml", ".yml"),
    *(".model", ".tiktoken", ".spm", ".vocab"),
}
"""The suffixes of files without weights, which are copied."""


def open_base(path: PathLike) -> TensorSet:
    """Open the tensors of a model: a safetensors file, an index, a folder, or a GGUF file.

    The tensors of a GGUF file get transformers' names, and are converted when they are read. Errors
    are those of `open_tensors` and `GGUFTensors`.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return TensorSet({path.name: GGUFTensors(GGUFFile(path))})
    return open_tensors(path)


def is_computed(name: str, axes: int) -> bool:
    """Return whether a tensor is a buffer that transformers computes, and wrote in old versions."""
    last = name.rpartition(".")[2]
    is_mask = last == "bias" and axes == 4  # the causal mask of GPT-2
    return is_mask or last in ("inv_freq", "masked_bias", "position_ids")


def transposed_weights(base: TensorSet) -> dict[str, bool]:
    """Return whether weights of a model are stored as W^T, `(d_in, d_out)`, if the base shows it.

    The length of a layer's bias shows it, unless the weight is square. A square weight is assumed
    to be stored like the weights of the nearest layers by name whose biases show it. For a layer of
    the root module, only other layers of the root module are near, because a head may differ from
    the model below it. A layer without a bias shows nothing, but transformers' Conv1D always has
    one.
    """
    sizes = {
        name: (*info.shape, base.info(bias_of(name)).size)
        for name, info in base.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and bias_of(name) in base
    }
    known = {
        name: size == columns
        for name, (rows, columns, size) in sizes.items()
        if rows != columns and size in (rows, columns)
    }
    found = dict(known)
    squares = [name for name, (rows, columns, _) in sizes.items() if rows == columns]
    for name in squares:
        parts = name.split(".")
        for i in reversed(range(len(parts))):
            module = "".join(f"{part}." for part in parts[:i])
            near = {
                is_transposed
                for each, is_transposed in known.items()
                if each.startswith(module) and (i or each.count(".") == name.count(".") == 1)
            }
            if near:
                if len(near) == 1:
                    found[name] = near.pop()
                break
    return found


def bias_of(weight: str) -> str:
    """Return the name of the bias of the layer that has a weight."""
    return f"{weight.removesuffix('.weight')}.bias"


def tied_tables(names: Iterable[str], base: TensorSet) -> list[str]:
    """Return the weights that are also the model's head, by its `config.json` and the shapes."""
    config = config_of(base)
    text_config = config.get("text_config")
    config = {**(text_config if isinstance(text_config, dict) else {}), **config}
    kinds = str(config.get("architectures") or "LMHead")
    is_tied = config.get("tie_word_embeddings", True)  # transformers writes no default values
    if not is_tied or not _WITH_HEADS.search(kinds):
        return []
    shapes = Counter(info.shape for info in base.tensors.values())
    size = config.get("vocab_size")
    return [
        name
        for name in names
        if len(shape := base.info(name).shape) == 2 and shape[0] == size
        if shapes[shape] == 1 or name_of_head(name, base) not in ("", *base)
    ]


def name_of_head(table: str, base: TensorSet) -> str:
    """Return the name that transformers gives to the head of which a table is the weight, or ""."""
    kinds = str(config_of(base).get("architectures"))
    return "lm_head.weight" if table in _TABLES and _TABLES[table] in kinds else ""


def has_scaled_head(base: TensorSet) -> bool:
    """Return whether the model scales the vectors before its head, but only if it is tied."""
    scaled = "longt5", "mt5", "pop2piano", "switch_transformers", "t5", "udop", "umt5"
    config = config_of(base)
    return config.get("model_type") in scaled and bool(config.get("tie_word_embeddings", True))


def head_and_tables(base: TensorSet) -> list[str]:
    """List the names of a head that the base has, and of embeddings that may be tied to it."""
    heads = [name for name in base if name.endswith("lm_head.weight")]
    shapes = [base.info(name).shape for name in heads]
    alike = [name for name in base if base.info(name).shape in shapes]
    return [n for n in alike if n in heads or is_any_match(EMBEDDINGS, n.removesuffix(".weight"))]


def other_settings(base: TensorSet, model: TensorSet) -> list[str]:
    """Return error messages about settings with which a model does not compute what the base does.

    They are compared if `lora.text` supports the configuration of the base, and the model has one.
    The context, the window and the end tokens may differ, because they change no short text.
    """
    try:
        theirs = config_from_json(config_of(base))
    except ValueError:
        return []
    try:
        if not (found := _config_of(model)):
            return []
        own = config_from_json(found)
    except ValueError as error:
        return [str(error)]
    names = [each.name for each in fields(ModelConfig) if each.name not in _MAY_DIFFER]
    # A head in the file is used only if it is not tied, and without one it must be tied.
    if own.tie_word_embeddings is any(name.endswith("lm_head.weight") for name in model):
        names.append("tie_word_embeddings")
    pairs = {name: (getattr(own, name), getattr(theirs, name)) for name in names}
    problems = [
        f"{name} is {value} in the model, and {wanted} in the base"
        for name, (value, wanted) in pairs.items()
        if not math.isclose(value, wanted, rel_tol=1e-6)  # GGUF has float32
    ]
    frequencies, wanted = (
        rotary_frequencies(each.head_dim, each.rope_theta, each.rope_scaling)
        for each in (own, theirs)
    )
    if own.head_dim == theirs.head_dim and not np.allclose(frequencies, wanted, rtol=1e-5, atol=0):
        problems.append("the rotary frequencies are not those of the base (rope_theta and scaling)")
    if any(a != b for a, b in zip(own.rope_layers, theirs.rope_layers, strict=False)):
        problems.append("other layers than those of the base have no rotary embeddings")
    return problems


def find_sidecars(
    base: Path, tensors: TensorSet, dtype: str | None, is_untied: bool
) -> tuple[Mapping[str, Path | bytes], Sequence[str]]:
    """Find the files that belong to a base beside its weights, if the base is a complete folder.

    For a GGUF file, the configuration and the tokenizer follow from its metadata. If `config.json`
    names a dtype, it is replaced by `dtype`; if the head `is_untied` from the embedding,
    `config.json` gets this too. Return the files that a merged model gets, by name: a path to copy,
    or the content. Also return the names of the other files and folders; folders end in a slash.
    """
    folder = base if base.is_dir() else base.parent if base.suffix == ".json" else None
    source = next(iter(tensors.files.values()), None)
    copied: dict[str, Path | bytes] = {}
    left_out: list[str] = []
    if isinstance(source, GGUFTensors):
        try:
            copied |= {_MODEL: b"", **Tokenizer.from_gguf(source.file.metadata).files()}
        except ValueError as error:
            advice = "name an output that ends in .safetensors, which needs no tokenizer"
            raise ValueError(f"{source.location}: {error}; {advice}") from None
    elif folder is not None:
        copied, left_out = _copied(folder, tensors)
    content = config_of(tensors)
    if content and _MODEL in copied:
        # transformers loads a model in the dtype of its configuration, and uses the embedding as
        # the weight of the head, unless the configuration says that they are not tied.
        named = () if dtype is None else {"dtype", "torch_dtype"} & content.keys()
        changes: dict[str, Any] = dict.fromkeys(named, dtype)
        if is_untied:
            changes["tie_word_embeddings"] = False
            if isinstance(inner := content.get("text_config"), dict):
                changes["text_config"] = inner | {"tie_word_embeddings": False}
        if changes or copied[_MODEL] == b"":
            copied[_MODEL] = (json.dumps({**content, **changes}, indent=2) + "\n").encode()
    return copied, tuple(left_out)


def _copied(folder: Path, tensors: TensorSet) -> tuple[dict[str, Path | bytes], list[str]]:
    """Find the files of a folder that a merged model gets, and the names of the others.

    Hidden files belong to other programs, and are neither.
    """
    weights = {file.path.name for file in tensors.files.values()}
    modules = _modules(folder)
    copied: dict[str, Path | bytes] = {}
    left_out = []
    for each in sorted(folder.iterdir()):
        if each.name.startswith(".") or each.name in weights or each.name.endswith(".index.json"):
            continue
        is_folder = each.is_dir() and not each.is_symlink()
        files = [each]
        if is_folder:
            files = [
                file
                for file in sorted(each.rglob("*"))
                if not file.is_dir() and "/." not in file.relative_to(folder).as_posix()
            ]
        # With an adapter's configuration, transformers would add the adapter to the merged model.
        is_module = is_folder and each.name in modules
        if each.name != CONFIG and (is_module or all(map(_has_no_weights, files))):
            copied |= {file.relative_to(folder).as_posix(): file for file in files}
        else:
            left_out.append(f"{each.name}/" if each.is_dir() else each.name)
    return copied, left_out


def _modules(folder: Path) -> list[Any]:
    """Return the names of the folders of the modules of sentence-transformers."""
    try:
        listed = read_json(folder / "modules.json")
    except (OSError, ValueError):  # missing or invalid
        return []
    found = listed if isinstance(listed, list) else []
    return [module.get("path") for module in found if isinstance(module, dict)]


def _has_no_weights(file: Path) -> bool:
    """Return whether the name of a file shows no weights; LICENSE and NOTICE have no suffix."""
    is_text = file.suffix in _COPIED or (not file.suffix and file.name.isupper())
    return is_text and file.is_file()  # a link may lead nowhere


def config_of(base: TensorSet) -> dict[str, Any]:
    """Return the content of a model's `config.json`, or the equivalent from a GGUF file."""
    with suppress(OSError, ValueError):  # missing or invalid
        return _config_of(base)
    return {}


def _config_of(base: TensorSet) -> dict[str, Any]:
    """Return what `config_of` does, but raise a ValueError if the file is not JSON."""
    source = next(iter(base.files.values()), None)
    if source is None:
        return {}
    if isinstance(source, GGUFTensors):
        return {**config_json(source.file), "dtype": source.config.stored_dtype}
    return json_table(source.path.parent, _MODEL) or {}
