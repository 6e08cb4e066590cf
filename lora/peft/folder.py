"""AdapterFolder: read an adapter from files, without a model; `write_folder` writes one."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from lora.frozen import Array
from lora.peft.config import CONFIG, PeftConfig, read_config
from lora.peft.facts import Facts
from lora.peft.keys import (
    MAGNITUDE,
    PARTS,
    PREFIX,
    A,
    B,
    Shape,
    in_order,
    parameter_of,
    usual,
)
from lora.scaling import largest_rank
from minigrad.errors import named_errors
from minigrad.io import TensorFile, TensorInfo, TensorWriter, replacing_together, unfinished
from minigrad.io.tensor_file import Closing
from minigrad.io.tensor_info import CODES, from_stored, to_stored

WEIGHTS = "adapter_model.safetensors"
"""The name of the file with the tensors, in the folder of an adapter."""

FLOATS = ("float64", "float32", "float16", "bfloat16")  # the dtypes that tensors can have

_OUT_PROJ = ".base_layer.out_proj"  # PEFT's name of a layer inside of nn.MultiheadAttention
_PROJECTION = ".lora_velora_embed"  # the end of the keys of VeLoRA's projections

_MODELS = ("model*.safetensors", "pytorch_model*.bin", "*.gguf")  # names of files of weights

_SAME = 1e-9  # relative tolerance of scales, because alpha may be written with few digits

_TRIES, _PAUSE = 20, 0.01  # attempts to read files that a save moves, and seconds between them


@dataclass(frozen=True)
class StoredLayer:
    """The update of one layer in a file.

    Attributes:
        name: the name of the layer in the model.
        keys: the keys of the tensors, by part: "lora_a", "lora_b", "lora_magnitude".
        kind: "linear", "embedding", "convolution", or "attention" for PyTorch's
            nn.MultiheadAttention.
        scale: the factor of B A, from the metadata, or otherwise from the configuration.
        groups: the groups of a convolution, by the shapes of A and B.
    """

    name: str
    keys: Mapping[str, str]
    kind: str
    scale: float
    groups: int = 1


class AdapterFolder(Closing):
    """The open files of an adapter; `with AdapterFolder(path) as folder:` closes them at the end.

    Attributes:
        path: the folder.
        config: the configuration, a `PeftConfig`.
        facts: what `lora.save` added in the metadata, a `Facts`; empty for files of PEFT.
        file: the open file of the tensors.
        repeated: the keys under which PEFT repeats tensors that have another key too.
        layers: the updates, each a `StoredLayer`, by the names of the layers.
        whole: the keys of parameters and buffers in full, by their names in the model.
        tensors: the dtype and shape of each tensor, by key; `read` returns its values. VeLoRA's
            projections are left out: with them, PEFT approximates gradients, and no outputs.
        has_checksum: whether the tensors have a checksum, which was right.
        unfinished: the names of files that an interrupted save left in `.saved`.

    Raises:
        FileNotFoundError: if the folder or one of the two files is missing.
        NotADirectoryError: if the path is a file.
        ValueError: if a file is invalid, has two tensors for the same part of an update or the same
            parameter, or a checksum is wrong.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config, self.file, self.unfinished = _open(self.path)
        infos = self.file.tensors.items()
        self.tensors = {key: info for key, info in infos if not key.endswith(_PROJECTION)}
        self.has_checksum = self.file.has_checksum
        self.whole: dict[str, str] = {}
        self.repeated: list[str] = []
        self._keys: dict[str, str] = {}  # of the parts of updates, by the key that PEFT writes
        updates: dict[str, dict[str, str]] = {}
        try:
            for key in sorted(self.tensors, key=in_order):
                name = usual(key)
                ending = next((e for e in PARTS if name.endswith(f".{e}")), None)
                if ending is not None and key.startswith(PREFIX):
                    layer, part = name[len(PREFIX) : -len(ending) - 1], PARTS[ending][0]
                    self._keys[name] = key
                    _put(updates.setdefault(layer, {}), part, key, f"{part} of {layer}")
                elif self._is_repeated(key):
                    self.repeated.append(key)
                else:
                    _put(self.whole, parameter_of(key), key, parameter_of(key))
            self.facts = Facts.of(self.file.metadata)
            self.file.check()
        except ValueError as error:
            self.file.close()
            raise ValueError(f"{os.fspath(path)!r}: {error}") from None
        self.layers: dict[str, StoredLayer] = {}
        for name, keys in updates.items():
            facts = self.facts.layers.get(name)
            scale = self.config.scale_of(name) if facts is None else facts.scale
            is_conv = any(len(self.tensors[key].shape) > 2 for key in keys.values())
            kind = "convolution" if is_conv else "linear"
            if any(key.startswith(f"{PREFIX}{name}.lora_embedding_") for key in keys.values()):
                kind = "embedding"
            if name.removesuffix(_OUT_PROJ) + _OUT_PROJ in updates:
                kind = "attention"
            groups = self._groups(keys) if kind == "convolution" else 1
            self.layers[name] = StoredLayer(name, keys, kind, scale, groups)

    def _groups(self, keys: Mapping[str, str]) -> int:
        """Return the groups of a convolution with A `(rank, C, ..)`, B `(O, rank / groups, ..)`."""
        a, b = (self.tensors[keys[part]].shape if part in keys else () for part in (A, B))
        if min(len(a), len(b)) < 3 or not b[1]:  # `findings_of` reports what is wrong
            return 1
        groups = max(1, a[0] // b[1])
        is_right = groups * b[1] == a[0] and a[1] % groups == b[0] % groups == 0
        return groups if is_right else 1

    def _is_repeated(self, key: str) -> bool:
        """Return whether PEFT also wrote this tensor as one of a module that is trained in full.

        With bias="all" it writes all biases twice, and with `save_embedding_layers` tables.
        """
        is_bias = self.config.bias == "all" and key.endswith(".bias")
        if not is_bias and not self.config.is_saved(parameter_of(key)):
            return False
        # Inside of a container, the name of the adapter stands after modules_to_save.
        parts = "modules_to_save", r"modules_to_save\.[^.]+", "original_module"
        shortened = (re.sub(rf"\.{part}\.", ".", key, count=1) for part in parts)
        return any(each != key and each in self.tensors for each in shortened)

    def key_for(self, key: str) -> str:
        """Return the key that a tensor has in this file, by the one that PEFT gives it today.

        Before 0.6, PEFT gave the bias of a layer with an update the name that it has in the model.
        """
        key = self._keys.get(key, key)
        older = key.replace(".base_layer.", ".")
        return older if key not in self.tensors and older in self.tensors else key

    def is_pissa(self, layer: str) -> bool:
        """Return whether an update began as PiSSA; in PEFT, that of an embedding never does."""
        is_other = layer in self.layers and self.layers[layer].kind != "embedding"
        return is_other and self.config.init_lora_weights == "pissa"

    def rank_of(self, layer: str, shape: Shape) -> int:
        """Return the rank of the update of a weight; PiSSA's is at most that of the weight."""
        rank = self.config.rank_of(layer)
        return min(rank, largest_rank(shape)) if self.is_pissa(layer) else rank

    def is_trained_in_full(self, key: str) -> bool:
        """Return whether the configuration says that a parameter was trained in full."""
        name = parameter_of(key)
        is_bias = self.config.bias != "none" and name.endswith(".bias")
        return key.startswith(PREFIX) and (is_bias or self.config.is_saved(name))

    def read(self, key: str, dtype: DTypeLike | None = None, rows: slice = slice(None)) -> Array:
        """Return a tensor, or some of its rows; bfloat16 is widened to float32."""
        return self.file.read(key, dtype, rows)

    def part(self, layer: StoredLayer, part: str, dtype: DTypeLike | None = None) -> Array:
        """Return A or B as a matrix, or m as a vector, also for a convolution."""
        array = self.read(layer.keys[part], dtype)
        if array.ndim < 3:
            return array
        if part == MAGNITUDE:
            return array.reshape(-1)
        return array.reshape(len(array), math.prod(array.shape[1:]))

    def counts(self, key: str) -> bool:
        """Return whether a tensor can be a buffer of integers, such as a count of batches."""
        dtype = self.tensors[key].dtype
        is_integer = dtype in CODES and dtype not in FLOATS
        return is_integer and self.config.is_saved(parameter_of(key))

    def dtype_problem(self, key: str, dtype: str = FLOATS[0]) -> str:
        """Return why a tensor cannot be loaded into one with `dtype`; empty if it can.

        A float tensor may have any of `FLOATS`; a buffer of integers must have the same dtype.
        """
        own = self.tensors[key].dtype
        if dtype in FLOATS:
            return "" if own in FLOATS else f"has dtype {own}, and not of {', '.join(FLOATS)}"
        return "" if own == dtype else f"has dtype {own}, not {dtype}"

    def is_same(self, key: str, array: Array, dtype: str) -> bool:
        """Return whether a tensor is equal to an array of numbers that are stored in `dtype`.

        A model may be loaded in a dtype with fewer digits than its files have, here and in PEFT. So
        the numbers are also equal if those of one become the others in the dtype of the others.
        PEFT writes a weight as PiSSA has changed it, so of this weight only the shape is compared.
        """
        info = self.tensors[key]
        if info.shape != array.shape or self.dtype_problem(key):
            return False
        own = self.read(key, array.dtype)
        return (
            self.is_pissa(parameter_of(key).removesuffix(".weight"))
            or np.array_equal(own, array)
            or np.array_equal(own, _rounded(array, info.dtype))
            or np.array_equal(_rounded(own, dtype), array)
        )

    def tensor_problems(self, key: str, shape: Shape, dtype: str, source: str) -> Iterator[str]:
        """Yield why a tensor does not have the shape and dtype of the model or base, `source`."""
        own = self.tensors[key].shape
        if own != shape:
            yield f"mis-shaped: {key} is {own} in the file, and {shape} {source}"
        if problem := self.dtype_problem(key, dtype):
            yield f"unusable: {key} {problem}"

    def scale_problems(self) -> Iterator[tuple[str, str]]:
        """Yield each layer whose scale differs from the saved one, with an error message."""
        for name, facts in self.facts.layers.items():
            scale = self.config.scale_of(name)
            if name in self.layers and not math.isclose(scale, facts.scale, rel_tol=_SAME):
                yield (
                    name,
                    f"the scale is {scale:g} by the configuration, and was {facts.scale:g} when it "
                    f"was saved, by the metadata of {WEIGHTS}; one of the files has been changed, "
                    f"so put the other back, and assign layer.scale after loading",
                )

    def close(self) -> None:
        """Close the files."""
        self.file.close()


def _rounded(x: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):  # a number beyond the largest becomes infinite
        return from_stored(to_stored(x, dtype), dtype).astype(x.dtype)


def _put(keys: dict[str, str], part: str, key: str, what: str) -> None:
    """Note the key of a part of an adapter; a ValueError if the file has the part twice."""
    if keys.setdefault(part, key) != key:
        raise ValueError(f"{keys[part]!r} and {key!r} are both {what}; take one of them out")


def check_is_folder(path: str | os.PathLike[str]) -> None:
    """Raise an error unless a path is a folder, which may contain an adapter."""
    name = os.fspath(path)
    if os.path.isfile(path):
        advice = f"name its folder, which has {CONFIG} too"
        if name.endswith(".gguf"):
            advice = (
                f"python -m lora convert {name} FOLDER --base BASE converts it, if it is an "
                f"adapter and not a model"
            )
        raise NotADirectoryError(f"{name!r} is a file, and an adapter is a folder; {advice}")
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no folder {name!r}")


def check_not_empty(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError for an empty path, as of a shell variable that is not set."""
    if not os.fspath(path):
        raise ValueError("the path is empty; name one, '.' for the present folder")


def check_can_be_folder(path: str | os.PathLike[str]) -> None:
    """Raise an error if there can be no folder at a path, or nothing can be written into it."""
    check_not_empty(path)
    folder = Path(path)
    there = next(filter(os.path.lexists, (folder, *folder.parents)), folder)
    if not os.path.isdir(there):  # a file, a pipe, or a link to no folder
        raise NotADirectoryError(
            f"{os.fspath(there)!r} is not a folder, and a folder is needed there; name another path"
        )
    if not os.access(there, os.W_OK):
        raise PermissionError(
            f"nothing can be written into the folder {os.fspath(there)!r}, which is read-only or "
            f"belongs to another user; name another path"
        )


def check_no_model(path: str | os.PathLike[str], *models: str | os.PathLike[str]) -> None:
    """Raise an error if a path for an adapter is a model's folder, one of `models` or another.

    There transformers would load that model as the base of the adapter. Also raise the errors of
    `check_can_be_folder`.
    """
    check_can_be_folder(path)
    folder = Path(path)
    folders = [model if model.is_dir() else model.parent for model in map(Path, models)]
    is_model = (folder / "config.json").is_file() and any(
        any(folder.glob(pattern)) for pattern in _MODELS
    )
    if is_model or folder.resolve() in [each.resolve() for each in folders]:
        raise ValueError(f"{os.fspath(path)!r} is the folder of a model; name another one")


def _open(path: Path) -> tuple[PeftConfig, TensorFile, tuple[str, ...]]:
    """Return the configuration and the tensors of one save, even while another save is running.

    The third result are the names of the files that were read from `.saved`.
    """
    check_is_folder(path)
    for _ in range(_TRIES):
        files, before = _files(path)
        try:
            config, tensors = read_config(files[CONFIG]), TensorFile(files[WEIGHTS])
        except FileNotFoundError:  # just moved by a save, or missing
            is_complete = all(file.is_file() for file in files.values())
            if not is_complete and _files(path) == (files, before):
                break  # no save moves files
        else:
            if _files(path) == (files, before):
                return config, tensors, tuple(n for n in files if files[n] != path / n)
            tensors.close()
        time.sleep(_PAUSE)
    if missing := [name for name, file in files.items() if not file.is_file()]:
        message = (
            f"{os.fspath(path)!r} has no {' and no '.join(missing)} in it, so it is not a folder "
            f"of an adapter, or its save was interrupted"
        )
        if (path / "adapter_model.bin").is_file():
            message += (
                "; adapter_model.bin is a pickle, which can run any code, and is not read: load it "
                "with PEFT, and save it with safe_serialization=True"
            )
        elif inner := sorted(path.glob(f"*/{CONFIG}")):  # of several adapters, or checkpoints
            found = os.fspath(inner[0].parent)
            message += f"; name a folder in it that has them, such as {found!r}"
        raise FileNotFoundError(message)
    raise FileNotFoundError(f"{os.fspath(path)!r} is written again and again; wait, or copy it")


def _files(path: Path) -> tuple[dict[str, Path], list[tuple[int, int, int]]]:
    """Return the paths of the files of an adapter, and what identifies those that exist."""
    left = unfinished(path)
    files = {name: left.get(name, path / name) for name in (CONFIG, WEIGHTS)}
    identities = []
    for file in files.values():
        with suppress(OSError):
            found = file.stat()
            identities.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return files, identities


@named_errors
def write_folder(
    folder: str | os.PathLike[str],
    config: PeftConfig,
    tensors: Mapping[str, Array],
    facts: Facts,
    dtype: str | None = None,
) -> None:
    """Write the two files of an adapter, which appear together or not at all.

    The folder is created if it does not exist; other files in it stay. The tensors are given by
    PEFT's keys. Floats are rounded to `dtype`, one of `FLOATS`; with None they keep their dtype, as
    integers always do.

    Raises:
        ValueError: if the dtype is unknown, or a tensor has NaN or Inf, or would have after
            rounding.
        OSError: if the files cannot be written; old files, if any, are unchanged.
    """
    with replacing_together(folder, CONFIG) as stage:
        write_files(stage, config, tensors, facts, dtype)


def write_files(
    stage: Path,
    config: PeftConfig,
    tensors: Mapping[str, Array],
    facts: Facts,
    dtype: str | None = None,
) -> None:
    """Write the two files of an adapter into a temporary folder, as `write_folder` does."""
    check_dtype(dtype)
    infos = check_tensors(tensors, dtype)
    with open(stage / WEIGHTS, "w+b") as file:
        writer = TensorWriter(file, infos, facts.metadata())
        for key, array in tensors.items():
            writer.write(key, array)
        writer.finish()
    (stage / CONFIG).write_text(config.as_json(), encoding="utf-8")


def check_dtype(dtype: str | None) -> None:
    """Raise an error if an adapter cannot be saved in a dtype; None keeps each tensor's dtype."""
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"an adapter is saved in {', '.join(FLOATS)}, not in {dtype!r}")


def check_tensors(tensors: Mapping[str, Array], dtype: str | None = None) -> list[TensorInfo]:
    """Describe the tensors as they will be in a file; raise an error as `write_folder` does."""
    infos = []
    for key, array in tensors.items():
        is_integer = array.dtype.kind in "iub"  # a buffer may be
        own = array.dtype.name if is_integer else dtype or array.dtype.name
        if not is_integer:
            check_dtype(own)
        infos.append(TensorInfo(key, own, array.shape))
    if broken := [key for key, array in tensors.items() if not np.isfinite(array).all()]:
        raise ValueError(
            f"{', '.join(broken)} would have NaN or Inf in the file; save an earlier adapter"
        )
    if beyond := [info for info in infos if not is_finite_in(tensors[info.name], info.dtype)]:
        names = ", ".join(f"{info.name} in {info.dtype}" for info in beyond)
        raise ValueError(f"{names} would be Inf; save in bfloat16 or float32")
    return infos


def is_finite_in(array: Array, dtype: str) -> bool:
    """Return whether the finite elements of an array stay finite when rounded to a dtype."""
    rounded = from_stored(to_stored(array, dtype), dtype)
    return bool(np.isfinite(rounded)[np.isfinite(array)].all())
