"""AdapterFolder: an adapter in files, without a model.

A key of PEFT's is `base_model.model.<layer>.<part>`. Parts of an update are

    lora_A.weight, lora_B.weight            A (rank, d_in), B (d_out, rank) of a linear layer
    lora_embedding_A, lora_embedding_B      A (rank, count), B (d, rank) of an embedding
    lora_magnitude_vector                   m of DoRA

and every other key is a parameter that was trained whole: the bias of a layer with an update is
called `<layer>.base_layer.bias`, others as in the model.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike, NDArray

from lora.files.config import CONFIG, PeftConfig, read_config
from lora.files.facts import Facts
from lora.files.matching import is_saved_whole, scale_of
from minigrad.io import TensorFile, TensorInfo, find
from minigrad.io.reader import Closing

WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."

KEYS = f"{PREFIX}<layer>.lora_A.weight"
"""What keys of updates are like, for messages."""

_SAME = 1e-9  # relative, of scales

_LONGEST = 1000  # characters of a key; those of models have some tens

_TRIES, _PAUSE = 50, 0.01  # seconds, to wait for a save that moves its files to their places

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"

_PARTS = {
    "lora_A.weight": (A, False),
    "lora_B.weight": (B, False),
    "lora_embedding_A": (A, True),
    "lora_embedding_B": (B, True),
    "lora_magnitude_vector": (MAGNITUDE, False),
}


def key_of(layer: str, part: str, is_embedding: bool) -> str:
    """What PEFT calls a part of an update."""
    for ending, (own, of_embedding) in _PARTS.items():
        if own == part and (of_embedding == is_embedding or part == MAGNITUDE):
            return f"{PREFIX}{layer}.{ending}"
    raise KeyError(part)


def key_of_whole(name: str, has_update: bool) -> str:
    """What PEFT calls a parameter that is trained whole, by its name in the model."""
    if not has_update:
        return PREFIX + name
    layer, _, last = name.rpartition(".")
    return f"{PREFIX}{layer}.base_layer.{last}"


@dataclass(frozen=True)
class StoredLayer:
    """The update of one layer in a file.

    Attributes:
        name: of the layer in the model.
        keys: of the tensors, by part: "lora_a", "lora_b", "lora_magnitude".
        is_embedding: whether it is one.
        scale: what B A is multiplied by, according to the configuration.
    """

    name: str
    keys: Mapping[str, str]
    is_embedding: bool
    scale: float


class AdapterFolder(Closing):
    """The files of an adapter. `with AdapterFolder(path) as folder:` closes them at the end.

    Args:
        path: of the folder.

    Attributes:
        path: of the folder.
        config: what `adapter_config.json` says.
        facts: what the metadata of the tensors says beyond.
        layers: the updates in the file, by the names of the layers.
        whole: the keys of parameters that were trained whole, by their names in the model.
        repeated: the keys of biases that PEFT writes of a module that is trained whole, once more.

    Raises:
        FileNotFoundError: if one of the two files is not there.
        ValueError: if one is not what it should be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        _check_there(self.path, may_be_moving=True)
        self.config, self._file = _opened(self.path)
        try:
            _check_names(self._file)
            self.facts = Facts.of(self._file.metadata)
        except ValueError as error:
            self._file.close()
            raise ValueError(f"{os.fspath(path)!r}: {error}") from None
        self.layers, self.whole, self.repeated = self._sorted()

    def _sorted(self) -> tuple[dict[str, StoredLayer], dict[str, str], list[str]]:
        keys: dict[str, dict[str, str]] = {}
        embeddings, whole, repeated = set(), {}, []
        for key in sorted(self._file):
            layer, part, is_embedding = _split(key)
            if layer is None or part is None:
                if self._is_repeated(key):
                    repeated.append(key)
                else:
                    whole[key.removeprefix(PREFIX).replace(".base_layer.", ".")] = key
                continue
            keys.setdefault(layer, {})[part] = key
            if is_embedding:
                embeddings.add(layer)
        layers = {
            name: StoredLayer(name, parts, name in embeddings, scale_of(self.config, name))
            for name, parts in keys.items()
        }
        return layers, whole, repeated

    def _is_repeated(self, key: str) -> bool:
        """Whether a bias is that of a module trained whole, which PEFT writes three times."""
        if self.config.bias != "all" or not key.endswith(".bias"):
            return False
        shortened = (
            key.replace(f".{part}.", ".", 1) for part in ("modules_to_save", "original_module")
        )
        return any(each != key and each in self.tensors for each in shortened)

    def is_meant(self, key: str) -> bool:
        """Whether the configuration says that a parameter was trained whole."""
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if not key.startswith(PREFIX):
            return False
        if self.config.bias != "none" and name.endswith(".bias"):
            return True
        return is_saved_whole(self.config, name)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is known of each tensor, by key."""
        return self._file.tensors

    def lost_scales(self) -> Iterator[tuple[str, float, float]]:
        """Layers whose scale is another one by the configuration than by the metadata, and both.

        Both are exact but for rounding, and alpha may be written with few digits.
        """
        for name, facts in self.facts.layers.items():
            said = scale_of(self.config, name)
            if not math.isclose(said, facts.scale, rel_tol=_SAME):
                yield name, said, facts.scale

    def scale(self, layer: StoredLayer) -> float:
        """That in force: by the metadata, or where these say nothing by the configuration."""
        facts = self.facts.layers.get(layer.name)
        return layer.scale if facts is None else facts.scale

    def read(self, key: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """A tensor; bfloat16 is widened to float32."""
        return self._file.read(key, dtype)

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()


def _opened(path: Path) -> tuple[PeftConfig, TensorFile]:
    """The configuration and the tensors, of one save, even if another one is going on."""
    for _ in range(_TRIES):
        file = None
        try:
            before = _identity(find(path, CONFIG))
            config = read_config(find(path, CONFIG))
            file = TensorFile(find(path, WEIGHTS))
            if _identity(find(path, CONFIG)) == before:
                return config, file
        except FileNotFoundError:  # it was moved to its place between two looks
            pass
        if file is not None:
            file.close()
        time.sleep(_PAUSE)
    _check_there(path, may_be_moving=False)
    raise FileNotFoundError(f"{os.fspath(path)!r} is written anew all the time; copy it meanwhile")


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _split(key: str) -> tuple[str | None, str | None, bool]:
    """The layer and the part that a key of an update is about."""
    if key.startswith(PREFIX):
        for ending, (part, is_embedding) in _PARTS.items():
            if key.endswith(f".{ending}"):
                return key[len(PREFIX) : -len(ending) - 1], part, is_embedding
    return None, None, False


def _check_names(keys: Iterable[str]) -> None:
    """Refuse keys that are no names: what they would do to a terminal, and to expressions.

    Raises:
        ValueError: with the first of them.
    """
    for key in keys:
        if len(key) > _LONGEST or not key.isprintable():
            raise ValueError(
                f"the key {key[:100]!r} of a tensor is longer than {_LONGEST} characters, or has "
                f"some that cannot be printed"
            )


def _check_there(path: Path, may_be_moving: bool) -> None:
    """Say what is not there, or is there in its place; of two files, one may be on its way."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(path)!r}")
    missing = [name for name in (CONFIG, WEIGHTS) if not find(path, name).is_file()]
    if missing and (len(missing) == 2 or not may_be_moving):
        pickled = (path / "adapter_model.bin").is_file()
        raise FileNotFoundError(
            f"{os.fspath(path)!r} has no {' and no '.join(missing)} in it, so it is no folder of "
            f"an adapter, or one whose saving was broken off"
            + (
                "; adapter_model.bin is a pickle, which can run any code, and is not read: load it "
                "with PEFT, and save it with safe_serialization=True"
                if pickled
                else ""
            )
        )
