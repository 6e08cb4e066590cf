"""summarise: what an adapter in files is made of, layer by layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.factors import singular_values
from lora.peft.config import PeftConfig
from lora.peft.facts import Facts
from lora.peft.folder import MAGNITUDE, A, AdapterFolder, B, StoredLayer
from lora.spectrum import Spectral
from minigrad.tables import aligned, in_bytes

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerSummary(Spectral):
    """The update s B A of one layer, where DoRA's magnitude is left aside.

    Attributes:
        name: of the layer.
        kind: "linear" or "embedding", and "DoRA" if it has a magnitude.
        d_in, d_out: the sizes of an input and an output; of an embedding, d_in is the count.
        rank: of B A, at most.
        scale: s.
        norm_a, norm_b: the Frobenius norms of A and B.
        singular_values: of s B A, descending.
    """

    name: str
    kind: str
    d_in: int
    d_out: int
    rank: int
    scale: float
    norm_a: float
    norm_b: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summarise` found.

    Attributes:
        path: of the folder.
        layers: those with an update.
        whole: the shape of each parameter that was trained whole, by its name in the model.
        dtypes: of the tensors.
        parameters: how many numbers there are.
        nbytes: that they take in the file.
        config: what the configuration says.
        facts: what the metadata says.
    """

    path: str
    layers: tuple[LayerSummary, ...]
    whole: dict[str, tuple[int, ...]]
    dtypes: tuple[str, ...]
    parameters: int
    nbytes: int
    config: PeftConfig
    facts: Facts

    def __repr__(self) -> str:
        head = ("layer", "kind", "d_in -> d_out", "rank", "s", "|A|", "|B|", "|s B A|", "eff. rank")
        rows = [
            (
                layer.name,
                layer.kind,
                f"{layer.d_in} -> {layer.d_out}",
                str(layer.rank),
                f"{layer.scale:.4g}",
                f"{layer.norm_a:.4g}",
                f"{layer.norm_b:.4g}",
                f"{layer.norm:.4g}",
                f"{layer.effective_rank:.3g}",
            )
            for layer in self.layers
        ]
        whole = [f"whole: {name} {shape}" for name, shape in self.whole.items()]
        return "\n".join([*aligned(head, rows, left=3), *whole, *self._facts()])

    def _facts(self) -> list[str]:
        """Lines about all of it."""
        config, facts = self.config, self.facts
        asked = [
            f"r={config.r}",
            f"lora_alpha={config.lora_alpha:g}",
            *(name for name in ("use_rslora", "use_dora") if getattr(config, name)),
            f"bias={config.bias}",
        ]
        lines = [
            f"{len(self.layers)} layers, {self.parameters:,} numbers, {in_bytes(self.nbytes)} in "
            f"{', '.join(self.dtypes) or 'nothing'}; {', '.join(asked)}"
        ]
        if config.base_model_name_or_path:
            lines.append(f"base: {config.base_model_name_or_path!r}")
        if facts.version is not None:
            seed = "not known" if facts.seed is None else str(facts.seed)
            lines.append(f"written by minigrad-lora {facts.version}, seed {seed}")
        return lines


def summarise(folder: str | os.PathLike[str]) -> Summary:
    """Say what an adapter is made of.

    Args:
        folder: of PEFT's, or of `lora.save`.

    Raises:
        FileNotFoundError: if one of its files is not there.
        ValueError: if one is not what it should be, or A and B of a layer do not go together.
    """
    with AdapterFolder(folder) as files:
        layers = tuple(_summarised(files, layer) for layer in files.layers.values())
        infos = files.tensors.values()
        return Summary(
            os.fspath(folder),
            layers,
            {name: files.tensors[key].shape for name, key in files.whole.items()},
            tuple(sorted({info.dtype for info in infos})),
            sum(info.size for info in infos),
            sum(info.nbytes for info in infos),
            files.config,
            files.facts,
        )


def _summarised(files: AdapterFolder, layer: StoredLayer) -> LayerSummary:
    missing = [part for part in (A, B) if part not in layer.keys]
    if missing:
        raise ValueError(f"{layer.name} has no {' and no '.join(missing)}")
    a, b = (files.read(layer.keys[part], np.float64) for part in (A, B))
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise ValueError(
            f"{layer.name}: A is {a.shape} and B {b.shape}; they must be (rank, d_in) and "
            f"(d_out, rank)"
        )
    scale = files.scale(layer)
    kind = "embedding" if layer.is_embedding else "linear"
    return LayerSummary(
        layer.name,
        f"{kind}, DoRA" if MAGNITUDE in layer.keys else kind,
        a.shape[1],
        b.shape[0],
        len(a),
        scale,
        float(np.linalg.norm(a)),
        float(np.linalg.norm(b)),
        tuple((abs(scale) * singular_values(a, b)).tolist()),
    )
