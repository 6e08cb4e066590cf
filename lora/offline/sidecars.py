"""Beside: the files of a model that are not its weights, and which of them a merged model gets.

Its configuration, tokenizer, card and code are copied, and so are folders of nothing else, and the
modules that sentence-transformers puts behind it. The same weights in another format, as in
`pytorch_model.bin` or `onnx/`, would be those from before the merge: what is of another kind, or a
folder with something of another kind, is left out, and told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.peft.config import CONFIG
from minigrad.io import TensorSet

_MODEL = "config.json"
_MODULES = "modules.json"

_COPIED = {
    *(".json", ".txt", ".md", ".py", ".jinja", ".yaml", ".yml"),
    *(".model", ".tiktoken", ".spm", ".vocab"),
}
"""Endings of files that are none of weights."""


@dataclass(frozen=True)
class Beside:
    """What is beside the weights of a model.

    Attributes:
        copied: the files that a merged model gets, by name: what to copy, or what is in them.
        left_out: the names of the others; those of folders end in a slash.
    """

    copied: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]


def beside(base: Path, tensors: TensorSet, dtype: str | None, is_untied: bool) -> Beside:
    """What is beside a base, if that is a whole folder.

    Hidden files belong to other programs, and not to the model. A link is followed if it leads to a
    place inside of the folder, or to the blobs of the hub's cache: another one may lead to what
    nobody means to give away with a model.

    Args:
        base: the path that was named.
        tensors: of the base.
        dtype: that `config.json` is to say, if it says one; None for the one that it says.
        is_untied: whether it is to say that the head is not tied to the embedding.
    """
    folder = base if base.is_dir() else base.parent if base.suffix == ".json" else None
    if folder is None:
        return Beside({}, ())
    here = folder.resolve()
    roots = here, here.parent.parent / "blobs"
    weights = {file.path.name for file in tensors.files.values()}
    modules = _modules(folder / _MODULES)
    copied: dict[str, Path | bytes] = {}
    left_out = []
    for each in sorted(folder.iterdir()):
        if each.name.startswith(".") or each.name in weights or each.name.endswith(".index.json"):
            continue
        if each.is_dir():
            found = _inside(each, roots, each.name in modules)
            if found is None:
                left_out.append(f"{each.name}/")
            copied |= {file.relative_to(folder).as_posix(): file for file in found or ()}
        # With that configuration transformers would put an adapter on the merged model.
        elif each.name != CONFIG and _is_copied(each) and _is_there(each, roots):
            copied[each.name] = each
        else:
            left_out.append(each.name)
    if _MODEL in copied:
        copied[_MODEL] = _configuration(folder / _MODEL, dtype, is_untied)
    return Beside(copied, tuple(left_out))


def _inside(folder: Path, roots: Sequence[Path], is_module: bool) -> list[Path] | None:
    """The files in a folder and those inside of it; None if it is to be left out."""
    if folder.is_symlink():
        return None
    found = []
    for each in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in each.relative_to(folder).parts)
        if hidden or (each.is_dir() and not each.is_symlink()):
            continue
        if not _is_there(each, roots) or not (is_module or _is_copied(each)):
            return None
        found.append(each)
    return sorted(found)


def _is_copied(file: Path) -> bool:
    """Whether its name is that of no weights; without an ending it may be LICENSE or NOTICE."""
    return file.suffix in _COPIED or (not file.suffix and file.name.isupper())


def _is_there(file: Path, roots: Sequence[Path]) -> bool:
    """Whether there is such a file, at a place that may be read."""
    return file.is_file() and any(file.resolve().is_relative_to(root) for root in roots)


def _modules(path: Path) -> set[str]:
    """The folders of the modules that sentence-transformers puts behind a model."""
    content = _content(path)
    listed = content if isinstance(content, list) else []
    places = [each.get("path") for each in listed if isinstance(each, dict)]
    return {place for place in places if isinstance(place, str)}


def _configuration(path: Path, dtype: str | None, is_untied: bool) -> Path | bytes:
    """A configuration that says of the merged weights what is so.

    transformers loads a model in the dtype that it says, and the weight of a head from the
    embedding, if it does not say that this is not so.
    """
    content = _content(path)
    if not isinstance(content, dict):
        return path
    said = () if dtype is None else {"dtype", "torch_dtype"} & content.keys()
    changes: dict[str, Any] = dict.fromkeys(said, dtype)
    if is_untied:
        changes["tie_word_embeddings"] = False
    if not changes:
        return path
    return (json.dumps({**content, **changes}, indent=2) + "\n").encode()


def _content(path: Path) -> Any:
    """What a file of JSON says; None if it is none, which is nothing that merging needs to know."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
