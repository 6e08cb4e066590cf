"""Sidecars: the files of a model beside its weights, and which of them a merged model gets.

Its configuration, tokenizer, card and code are copied, and so are folders of nothing else, and the
modules that sentence-transformers puts behind it. The same weights in another format, as in
`pytorch_model.bin` or `onnx/`, would be those from before the merge: files of another kind, and
folders with a file of another kind, are left out, and reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
"""The endings of files that have no weights."""


def find_sidecars(
    base: Path, tensors: TensorSet, dtype: str | None, is_untied: bool
) -> tuple[Mapping[str, Path | bytes], Sequence[str]]:
    """Find the files beside a base, if that is an entire folder.

    Hidden files belong to other programs, and not to the model. A link is followed if it leads to a
    file inside of the folder, or to the blobs of the hub's cache: another one may lead to what
    nobody means to give away with a model.

    Args:
        base: the path that was named.
        tensors: the tensors of the base.
        dtype: the dtype for `config.json`, if that names one; None for the one that it names.
        is_untied: whether `config.json` is to say that the head is not tied to the embedding.

    Returns:
        The files that a merged model gets, by name: a path to copy, or the content; and the names
        of the others, of which those of folders end in a slash.
    """
    folder = base if base.is_dir() else base.parent if base.suffix == ".json" else None
    if folder is None:
        return {}, ()
    here = folder.resolve()
    roots = here, here.parent.parent / "blobs"

    def is_readable(file: Path) -> bool:
        return file.is_file() and any(file.resolve().is_relative_to(root) for root in roots)

    weights = {file.path.name for file in tensors.files.values()}
    listed = _read_json(folder / _MODULES)
    modules = listed if isinstance(listed, list) else []
    paths = [each.get("path") for each in modules if isinstance(each, dict)]
    copied: dict[str, Path | bytes] = {}
    left_out = []
    for each in sorted(folder.iterdir()):
        if each.name.startswith(".") or each.name in weights or each.name.endswith(".index.json"):
            continue
        is_folder = each.is_dir()
        # With that configuration transformers would put an adapter on the merged model.
        is_unwanted = each.is_symlink() if is_folder else each.name == CONFIG
        found = [
            file
            for file in (sorted(each.rglob("*")) if is_folder and not is_unwanted else [each])
            if not any(part.startswith(".") for part in file.relative_to(each).parts)
            and (file.is_symlink() or not file.is_dir())
        ]
        is_module = is_folder and each.name in paths
        are_right = all(is_readable(file) and (is_module or _is_copied(file)) for file in found)
        if are_right and not is_unwanted:
            copied |= {file.relative_to(folder).as_posix(): file for file in found}
        else:
            left_out.append(each.name + "/" * is_folder)
    content = _read_json(folder / _MODEL) if _MODEL in copied else None
    if isinstance(content, dict):
        # transformers loads a model in the dtype that its configuration names, and takes the weight
        # of a head from the embedding, unless it says that the two are not tied.
        named = () if dtype is None else {"dtype", "torch_dtype"} & content.keys()
        changes: dict[str, Any] = dict.fromkeys(named, dtype)
        if is_untied:
            changes["tie_word_embeddings"] = False
        if changes:
            copied[_MODEL] = (json.dumps({**content, **changes}, indent=2) + "\n").encode()
    return copied, tuple(left_out)


def _is_copied(file: Path) -> bool:
    """Whether its name is that of no weights; without an ending it may be LICENSE or NOTICE."""
    return file.suffix in _COPIED or (not file.suffix and file.name.isupper())


def _read_json(path: Path) -> Any:
    """Return the content of a file; None if it is no JSON, which does not matter for merging."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
