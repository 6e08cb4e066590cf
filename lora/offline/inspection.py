"""Look into an adapter in files: `summarise` it, and `draw` a summary."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from lora.peft.config import PeftConfig
from lora.peft.facts import Facts
from lora.peft.folder import MAGNITUDE, A, AdapterFolder, B, StoredLayer
from lora.spectra import Spectral, singular_values
from lora.viz import draw_spectra
from minigrad.tables import aligned, in_bytes

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class LayerSummary(Spectral):
    """The update s B A of one layer, without DoRA's magnitude.

    Attributes:
        name: the name of the layer.
        kind: "linear" or "embedding", and "DoRA" if it has a magnitude.
        d_in, d_out: the sizes of an input and an output; of an embedding, d_in is the count.
        rank: the rank of B A, at most.
        scale: s.
        norm_a, norm_b: the Frobenius norms of A and B.
        singular_values: those of s B A, descending.
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

    @classmethod
    def of(cls, files: AdapterFolder, layer: StoredLayer) -> LayerSummary:
        """Summarise a layer.

        Raises:
            ValueError: if A and B do not go together.
        """
        missing = [part for part in (A, B) if part not in layer.keys]
        if missing:
            raise ValueError(f"{layer.name} has no {' and no '.join(missing)}")
        a, b = (files.read(layer.keys[part], np.float64) for part in (A, B))
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise ValueError(
                f"{layer.name}: A is {a.shape} and B {b.shape}; they must be (rank, d_in) and "
                f"(d_out, rank)"
            )
        kind = "embedding" if layer.is_embedding else "linear"
        kind += ", DoRA" if MAGNITUDE in layer.keys else ""
        (rank, d_in), d_out, scale = a.shape, len(b), files.scale(layer)
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        values = tuple((abs(scale) * singular_values(a, b)).tolist())
        return cls(layer.name, kind, d_in, d_out, rank, scale, *norms, values)

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the layer in a table."""
        sizes = f"{self.d_in} -> {self.d_out}"
        figures = self.scale, self.norm_a, self.norm_b, self.norm
        norms = [f"{figure:.4g}" for figure in figures]
        return self.name, self.kind, sizes, str(self.rank), *norms, f"{self.effective_rank:.3g}"


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `summarise`.

    Attributes:
        path: the folder.
        layers: the layers with an update.
        whole: the shape of each parameter that was trained in full, by its name in the model.
        dtypes: the dtypes of the tensors.
        parameters: the number of parameters.
        nbytes: their bytes in the file.
        config: the configuration.
        facts: the metadata.
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
        config, facts = self.config, self.facts
        flags = (name for name in ("use_rslora", "use_dora") if getattr(config, name))
        asked = [f"r={config.r}", f"lora_alpha={config.lora_alpha:g}", *flags]
        lines = [f"whole: {name} {shape}" for name, shape in self.whole.items()]
        lines.append(
            f"{len(self.layers)} layers, {self.parameters:,} parameters, {in_bytes(self.nbytes)} "
            f"in {', '.join(self.dtypes) or 'nothing'}; {', '.join(asked)}, bias={config.bias}"
        )
        if config.base_model_name_or_path:
            lines.append(f"base: {config.base_model_name_or_path!r}")
        if facts.version is not None:
            seed = "not known" if facts.seed is None else str(facts.seed)
            lines.append(f"written by minigrad-lora {facts.version}, seed {seed}")
        return "\n".join([*aligned(head, [layer.cells for layer in self.layers], left=3), *lines])


def summarise(folder: PathLike) -> Summary:
    """Summarise an adapter, layer by layer.

    Args:
        folder: a folder of PEFT's, or of `lora.save`.

    Raises:
        FileNotFoundError: if one of its files is not there.
        ValueError: if one is not what it should be, or A and B of a layer do not go together.
    """
    with AdapterFolder(folder) as files:
        infos = files.tensors.values()
        return Summary(
            os.fspath(folder),
            tuple(LayerSummary.of(files, layer) for layer in files.layers.values()),
            {name: files.tensors[key].shape for name, key in files.whole.items()},
            tuple(sorted({info.dtype for info in infos})),
            sum(info.size for info in infos),
            sum(info.nbytes for info in infos),
            files.config,
            files.facts,
        )


def draw(summary: Summary, path: PathLike) -> None:
    """Draw the norm of the update in each layer, and its singular values, to a PNG, SVG or PDF.

    Raises:
        ImportError: without matplotlib, which is in the extra "examples".
        ValueError: if there are no layers, or the file's ending is that of no picture.
        FileNotFoundError: if the folder of the file does not exist.
    """
    from minigrad.viz.figure import BLUE, Picture, name_rows, open_frame

    layers = summary.layers
    if not layers:
        raise ValueError(f"{summary.path} has no layers with an update, so nothing to draw")
    figure = Picture(11, 1.6 + 0.28 * min(max(len(layers), 8), 60), path)
    norms, spectra = figure.subplots(1, 2, width_ratios=(3, 2))
    norms.barh(range(len(layers)), [layer.norm for layer in layers], color=BLUE)
    name_rows(norms.yaxis, [f"{x.name}  {x.effective_rank:.1f} / {x.rank}" for x in layers])
    norms.set_ylim(len(layers) - 0.4, -0.6)
    norms.set_xlabel("|s B A|, Frobenius norm")
    norms.set_title("How much each layer changes (effective rank / rank)", loc="left")
    draw_spectra(spectra, layers)
    open_frame(norms, spectra)
    figure.saved()
