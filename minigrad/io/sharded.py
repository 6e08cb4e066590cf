"""TensorSet: the tensors of a model, in one file or in several with an index.

A large model is stored in files `model-00001-of-00003.safetensors` and an index in JSON, whose
`weight_map` names the file of each tensor.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from minigrad.checks import check_problems
from minigrad.errors import named_errors
from minigrad.io.tensor_file import TensorFile, Tensors, TensorWriter, writing
from minigrad.io.tensor_info import TensorInfo
from minigrad.io.together import find, replacing_together

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The name of the index: a JSON file that says in which file of the folder each tensor is."""


class TensorSet(Tensors):
    """The tensors of one or several files, as if they were in one file. `open_tensors` makes it.

    At the end of a `with` block, all files are closed.

    Args:
        files: open files by name; the set closes them.

    Attributes:
        files: the files by name, in order.
        tensors: the dtype and shape of each tensor, by name.

    Raises:
        ValueError: if a tensor is in two files.
    """

    def __init__(self, files: Mapping[str, TensorFile]) -> None:
        self.files = dict(files)
        self._stack = ExitStack()
        self.tensors = {}
        self._owners: dict[str, TensorFile] = {}
        for file in self.files.values():
            for name in file:
                if name in self:
                    raise ValueError(f"{name} is in {self._owners[name].path} and in {file.path}")
            self._stack.enter_context(file)
            self.tensors |= file.tensors
            self._owners |= dict.fromkeys(file, file)
        paths = {file.path for file in self.files.values()}
        if len(paths) > 1:  # there may be hundreds
            paths = {path.parent for path in paths}
        self.location = ", ".join(repr(os.fspath(path)) for path in sorted(paths))

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata in the header of the first file."""
        return next((file.metadata for file in self.files.values()), {})

    def _read(self, info: TensorInfo, rows: slice) -> NDArray[Any]:
        return self._owners[info.name]._read(info, rows)

    def raw(self, name: str) -> Iterator[bytes]:
        """Read the bytes of a tensor, in parts; see `Tensors.raw`."""
        return self._owners[self.info(name).name].raw(name)


@named_errors
def open_tensors(path: str | os.PathLike[str]) -> TensorSet:
    """Open the tensors at a path: a safetensors file, an index, or a folder with one of the two.

    In a folder, the file is called `model.safetensors` or `model.safetensors.index.json`.

    Raises:
        FileNotFoundError: if there is no such file, or a file in the index is missing.
        ValueError: if a file is not a safetensors file, or is incomplete; or the index is invalid,
            names a file outside of its folder, or contradicts the files; or a folder has both an
            index and a `model.safetensors`.
    """
    path = Path(path)
    if path.is_dir():
        has_index, single = find(path, INDEX).is_file(), find(path, SINGLE)
        if has_index and single.is_file():
            raise ValueError(f"{os.fspath(path)!r} has both {INDEX} and {SINGLE}; name one of them")
        if has_index:
            return _open_index(path, INDEX)
        if single.is_file():
            return TensorSet({SINGLE: TensorFile(single)})
        others = ", ".join(sorted(file.name for file in path.glob("*.safetensors")))
        advice = (
            f"fetch the index, too, if {others!s:.200} are parts of one model, or name the file"
            if others
            else "other formats, such as pytorch_model.bin, are not read, so load the model with "
            "transformers, and write it again with save_pretrained"
        )
        raise FileNotFoundError(
            f"{os.fspath(path)!r} has neither {SINGLE} nor {INDEX} in it; {advice}"
        )
    if path.name.endswith(".json"):
        return _open_index(path.parent, path.name)
    return TensorSet({path.name: TensorFile(path)})


def _open_index(folder: Path, name: str) -> TensorSet:
    index = find(folder, name)
    try:
        weight_map: dict[str, str] = dict(json.loads(index.read_bytes())["weight_map"].items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{os.fspath(index)!r} is not an index of tensors, with a weight_map: {error!r:.200}"
        ) from None
    for tensor, file in weight_map.items():
        _check_plain(file, f"{os.fspath(index)!r} says that {tensor!r} is in")
    with ExitStack() as stack:  # closes the files if there is an error
        opened = {
            file: stack.enter_context(TensorFile(find(folder, file)))
            for file in sorted(set(weight_map.values()))
        }
        there = {(tensor, file) for file, tensors in opened.items() for tensor in tensors}
        listed = set(weight_map.items())
        wrong = [f"missing: {tensor} in {file}" for tensor, file in sorted(listed - there)]
        extra = sorted(there - listed)
        wrong += [f"not in the index: {tensor} of {file}" for tensor, file in extra]
        check_problems(f"{name} and its files contradict each other", wrong)
        stack.pop_all()
    return TensorSet(opened)


def _check_plain(file: Any, what: str) -> None:
    if (
        not isinstance(file, str)
        or file != Path(file).name
        or "\\" in file
        or not file.endswith(".safetensors")
    ):
        raise ValueError(f"{what} {file!r}, which does not name a safetensors file in its folder")


@contextmanager
def writing_set(
    folder: str | os.PathLike[str],
    shards: Mapping[str, Sequence[TensorInfo]],
    metadata: Mapping[str, str] | None = None,
    others: Mapping[str, Path | bytes] | None = None,
) -> Iterator[Mapping[str, TensorWriter]]:
    """Open writers for the files of a model, as a mapping from the name of a tensor to its writer.

    All files appear together, at the end of the block. If there is more than `model.safetensors`,
    an index is written too.

    Args:
        folder: the folder of the files; it is made if it does not exist.
        shards: the tensors of each file, by file name.
        metadata: metadata for the header of each file.
        others: contents of other files, or paths to copy, by a name that may include a folder. No
            part of a name begins with a dot, because hidden files are not moved to the folder.

    Raises:
        OSError: if the files cannot be written; the old files are not changed then.
        ValueError: if a name is not that of a file in the folder, a tensor is in two files, the
            folder has weights of the other kind, or the block ends before all is written.
        ValueError, TypeError: as in `TensorWriter`.
    """
    with staging_set(folder, shards, others) as stage, ExitStack() as stack:
        writers = {
            file: stack.enter_context(writing(stage / file, infos, metadata))
            for file, infos in shards.items()
        }
        yield {info.name: writers[file] for file, infos in shards.items() for info in infos}


@contextmanager
def staging_set(
    folder: str | os.PathLike[str],
    shards: Mapping[str, Sequence[TensorInfo]],
    others: Mapping[str, Path | bytes] | None = None,
    plan: str | None = None,
) -> Iterator[Path]:
    """Make a temporary folder, to write the files of a model one by one; see `writing_set`.

    For a plan see `replacing_together`.
    """
    for file in shards:
        _check_plain(file, "there cannot be a file")
    for name in [*shards, *(others or {})]:
        is_plain = "\\" not in name and not Path(name).drive  # which lead out of it on Windows
        if not is_plain or any(not part or part.startswith(".") for part in name.split("/")):
            raise ValueError(
                f"there cannot be a file {name!r}; a name leads to a file in the folder, with / "
                f"after each folder, and no part of it begins with a dot"
            )
    if taken := {*shards, SINGLE, INDEX} & set(others or {}):
        raise ValueError(f"the name {min(taken)!r} is that of weights or of their index")
    weight_map = {info.name: file for file, infos in shards.items() for info in infos}
    if len(weight_map) < sum(map(len, shards.values())):
        raise ValueError("a tensor is in one file only, but one is in several of these")
    is_single = list(shards) == [SINGLE]
    other_kind = INDEX if is_single else SINGLE
    if find(folder, other_kind).is_file():
        raise ValueError(
            f"{os.fspath(folder)!r} has {other_kind} in it, of other weights than those to be "
            f"written; remove it, or name another folder"
        )
    with replacing_together(folder, SINGLE if is_single else INDEX, plan) as stage:
        for name, content in (others or {}).items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (stage / name).write_bytes(content)
            else:
                shutil.copyfile(content, stage / name)
        yield stage
        if is_single:
            return
        total = sum(info.nbytes for infos in shards.values() for info in infos)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
