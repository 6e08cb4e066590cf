"""Inspect an adapter in files: `summarise` and `draw` it, and find mistakes (`check_adapter`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from lora.adapter import UNMERGEABLE
from lora.attachment.targets import without_layers
from lora.frozen import Array
from lora.offline.adapted_base import AdaptedBase, made_on_nf4, other_weights
from lora.offline.merged_model import HIDDEN, RIGHT, MergedLayer, compare_tensor
from lora.offline.model_folder import TIED, UNTIED, PathLike, other_settings
from lora.offline.workers import WorkerPool
from lora.peft.config import PeftConfig
from lora.peft.facts import Facts
from lora.peft.folder import AdapterFolder, StoredLayer, check_is_folder
from lora.peft.keys import KEYS, MAGNITUDE, PREFIX, A, B
from lora.spectra import Spectral, block_diagonal, singular_values
from lora.viz import draw_spectra
from minigrad.checks import LONGEST_LINE, check_positive, shortened
from minigrad.errors import named_errors
from minigrad.progress import progress_bar
from minigrad.tables import aligned, counted, in_bytes

if TYPE_CHECKING:
    from minigrad.viz.figure import Picture


UNFINISHED = (
    "is read from .saved, where an interrupted save has left it; the next save into the folder "
    "completes that save, and until then other programs do not see the file"
)


@dataclass(frozen=True)
class LayerSummary(Spectral):
    """The update s B A of one layer, without DoRA's magnitude.

    Attributes:
        name: the name of the layer.
        rank: the largest rank that B A can have.
        singular_values: the singular values of s B A, in descending order.
        kind: the kind of the layer, the groups of a convolution if it has several, and "DoRA" if
            the update has a magnitude.
        d_in: the size of an input; for an embedding, the number of vectors.
        d_out: the size of an output.
        scale: s, the factor of B A.
        norm_a: the Frobenius norm of A.
        norm_b: the Frobenius norm of B.
    """

    kind: str
    d_in: int
    d_out: int
    scale: float
    norm_a: float
    norm_b: float

    @classmethod
    def of(cls, files: AdapterFolder, layer: StoredLayer) -> LayerSummary:
        """Summarise a layer, whose A and B must have the same rank."""
        if missing := [part for part in (A, B) if part not in layer.keys]:
            raise ValueError(f"{layer.name} has no {' and no '.join(missing)}")
        a, b = (files.part(layer, part, np.float64) for part in (A, B))
        if problem := _shape_problem(a, b, layer.groups):
            raise ValueError(f"{layer.name}: {problem}")
        kind = layer.kind + (f", {layer.groups} groups" if layer.groups > 1 else "")
        kind += ", DoRA" if MAGNITUDE in layer.keys else ""
        with np.errstate(over="ignore"):
            norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        found = singular_values(a, block_diagonal(b, layer.groups)).tolist()
        values = tuple(abs(layer.scale) * value for value in found)
        return cls(layer.name, len(a), values, kind, a.shape[1], len(b), layer.scale, *norms)


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `summarise`.

    Attributes:
        path: the folder.
        layers: the layers with an update.
        whole: the shape of each tensor in full, trained or a weight that PEFT repeats, by name.
        dtypes: the dtypes of the tensors.
        parameters: the number of elements of all tensors.
        nbytes: the size of all tensors in the file, in bytes.
        config: the configuration.
        facts: the metadata.
        has_checksum: whether the tensors have a checksum; if so, it is right.
        unfinished: files of an interrupted save, see `UNFINISHED`.
    """

    path: str
    layers: tuple[LayerSummary, ...]
    whole: dict[str, tuple[int, ...]]
    dtypes: tuple[str, ...]
    parameters: int
    nbytes: int
    config: PeftConfig
    facts: Facts
    has_checksum: bool
    unfinished: tuple[str, ...]

    def __repr__(self) -> str:
        head = ("layer", "kind", "d_in -> d_out", "rank", "s", "|A|", "|B|", "|s B A|", "eff. rank")
        rows = []
        for x in self.layers:
            norms = [f"{figure:.4g}" for figure in (x.scale, x.norm_a, x.norm_b, x.norm)]
            sizes = f"{x.d_in} -> {x.d_out}", str(x.rank)
            name = shortened(x.name, LONGEST_LINE)
            rows.append((name, x.kind, *sizes, *norms, f"{x.effective_rank:.3g}"))
        config, facts = self.config, self.facts
        flags = (name for name in ("use_rslora", "use_dora") if getattr(config, name))
        asked = [f"r={config.r}", f"lora_alpha={config.lora_alpha:g}", *flags]
        lines = [f"in full: {name} {shape}" for name, shape in self.whole.items()]
        lines.append(
            f"{counted(len(self.layers), 'layer')}, {counted(self.parameters, 'parameter')}, "
            f"{in_bytes(self.nbytes)} in {', '.join(self.dtypes) or 'nothing'}; "
            f"{', '.join(asked)}, bias={config.bias}"
        )
        if config.base_model_name_or_path:
            lines.append(f"base: {config.base_model_name_or_path!r}")
        if facts.version is not None:
            seed = "not known" if facts.seed is None else str(facts.seed)
            lines.append(f"written by minigrad-lora {facts.version}, seed {seed}")
        if not self.has_checksum:
            lines.append("the tensors have no checksum")
        lines += [f"{name} {UNFINISHED}" for name in self.unfinished]
        lines = [shortened(line, LONGEST_LINE) for line in lines]
        return "\n".join([*aligned(head, rows, left=3), *lines])


@named_errors
def summarise(folder: PathLike) -> Summary:
    """Summarise an adapter, layer by layer.

    Args:
        folder: a folder that PEFT or `lora.save` wrote.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        NotADirectoryError: if `folder` is a file.
        ValueError: if a file is invalid, a layer has no A or no B, or their shapes do not match.
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
            files.has_checksum,
            files.unfinished,
        )


def _shape_problem(a: Array, b: Array, groups: int) -> str:
    """Return why A and B cannot be the factors of an update; empty if they can."""
    if a.ndim == b.ndim == 2 and len(a) == b.shape[1] * groups:
        return ""
    return f"A is {a.shape} and B {b.shape}; they must be (rank, d_in) and (d_out, rank)"


def draw(summary: Summary, path: PathLike | None = None) -> Picture:
    """Plot the norm and the singular values of each layer's update; save the picture to `path`.

    An ImportError is raised without matplotlib, which is in the extra "examples". A ValueError or
    FileNotFoundError is raised if there are no layers, or the path is invalid for a picture.
    """
    from minigrad.viz.figure import BLUE, VERMILLION, Picture, name_rows, open_frame

    layers = summary.layers
    if not layers:
        raise ValueError(f"{summary.path} has no layers with an update, so nothing to draw")
    figure = Picture(11, 1.6 + 0.28 * min(max(len(layers), 8), 60), path)
    norms, spectra = figure.subplots(1, 2, width_ratios=(3, 2))
    for y, layer in enumerate(layers):
        if math.isfinite(layer.norm):
            norms.barh(y, layer.norm, color=BLUE)
        else:
            norms.text(0, y, " not finite", color=VERMILLION, weight="bold", va="center")
    name_rows(norms.yaxis, [f"{x.name}  {x.effective_rank:.1f} / {x.rank}" for x in layers])
    norms.set_ylim(len(layers) - 0.4, -0.6)
    norms.set_xlabel("|s B A|, Frobenius norm")
    norms.set_title("How much each layer changes (effective rank / rank)", loc="left")
    draw_spectra(spectra, layers)
    open_frame(norms, spectra)
    return figure.saved()


@dataclass(frozen=True)
class Finding:
    """A mistake in an adapter, or an unusual fact that may be intended.

    Attributes:
        level: "wrong" for a mistake, or "odd" for an unusual fact.
        where: the layer, key or file.
        what: the fact, and what to do about it.
    """

    level: Literal["wrong", "odd"]
    where: str
    what: str

    def __str__(self) -> str:
        return shortened(f"{self.level}: {self.where}: {self.what}", LONGEST_LINE)


@dataclass(frozen=True, repr=False)
class Findings:
    """The result of `check_adapter`.

    Attributes:
        path: the folder of the adapter.
        findings: the mistakes and unusual facts.
        checked: the number of layers.
        has_base: whether a base was checked too.
        has_checksum: whether all files, also those of the base, have a checksum, which was right.
        merged: the layers of a merged model, if one was checked.
    """

    path: str
    findings: tuple[Finding, ...]
    checked: int
    has_base: bool
    has_checksum: bool
    merged: tuple[MergedLayer, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.level != "wrong" for finding in self.findings)

    def __repr__(self) -> str:
        wrong = sum(finding.level == "wrong" for finding in self.findings)
        odd = len(self.findings) - wrong
        and_base = " and the base" if self.has_base else ""
        total = f"{counted(self.checked, 'layer')}{and_base} checked: "
        total += f"{wrong} wrong, {odd} odd" if self.findings else "nothing is wrong"
        if self.checked and not self.has_checksum:
            which = " of the adapter and the base" if self.has_base else ""
            total += f"; not all tensors{which} have a checksum"
        lines = [*map(str, self.findings), total]
        if self.merged:
            right = [layer for layer in self.merged if layer.verdict == RIGHT]
            dtypes = ", ".join(sorted({layer.dtype for layer in self.merged}))
            text = f"{len(right)} of {self.checked} layers of the model have the update; the "
            text += f"model stores them in {dtypes}"
            if right:
                lost = max(layer.error for layer in right)
                text += f", and rounding changed the update by {lost:.2g} of its norm at most"
            lines.append(text)
        return "\n".join(lines)


@named_errors
def check_adapter(
    folder: PathLike,
    base: PathLike | None = None,
    merged: PathLike | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
) -> Findings:
    """Find mistakes in an adapter: in its files, tensors, scales, base and merged model.

    Args:
        folder: a folder that PEFT or `lora.save` wrote.
        base: the base model: a safetensors file, an index of several, a folder with one of
            the two, or a GGUF file; None to check the adapter alone.
        merged: a model that should be the base with the update merged, in one of the same forms.
            The findings name the mistake if it was merged wrongly.
        workers: the number of processes that share the work, each of which needs as much memory as
            one alone; the result has the same bits.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if the folder, the base or the merged model does not exist. A file that
            is missing in the folder is a finding.
        NotADirectoryError: if `folder` is a file.
        ValueError: if the base or the model is invalid, `workers` is not positive, or `merged` is
            given without `base`.
        ImportError: if a model is a GGUF file, and the package gguf is not installed.
        ChildProcessError: if a worker was killed, or could not start; see `merge_files`.
    """
    if merged is not None and base is None:
        raise ValueError("a merged model is compared with its base, so name that too")
    check_positive("workers", workers)
    path = os.fspath(folder)
    check_is_folder(folder)
    rows: list[MergedLayer] = []
    with ExitStack() as stack:
        try:
            files = stack.enter_context(AdapterFolder(folder))
        except (FileNotFoundError, ValueError) as error:
            return Findings(path, (Finding("wrong", "files", str(error)),), 0, False, False)
        found, has_checksum = list(findings_of(files, progress)), files.has_checksum
        layers = len(files.layers)
        if base is None:
            targets = without_layers(files.config.target_modules, files.layers, {})
            found += _findings_of_untrained(targets, "name")
            return Findings(path, tuple(found), layers, False, has_checksum)
        opening = partial(AdaptedBase, base, folder, merged)
        pool = stack.enter_context(WorkerPool(opening, workers, progress))
        opened, tensors = pool.opened, pool.opened.tensors
        has_checksum &= all(file.has_checksum for file in tensors.files.values())
        found += _findings_of_untrained(opened.untrained(), "layer", " of the base")
        damage = pool.map(_damage, list(tensors.files), "base", "file")
        found += [Finding("wrong", "base", problem) for problem in damage if problem]
        problems = [*opened.problems, *other_weights(pool)]
        finite = pool.map(_is_finite, list(opened.weights), "base", "layer")
        weights = zip(opened.weights.values(), finite, strict=True)
        broken = [weight.name for weight, is_finite in weights if not is_finite]
        if opened.model is not None:
            names = list({**tensors.tensors, **opened.replaced, **opened.model.tensors})
            compared = pool.map(compare_tensor, names, "compare", "tensor")
            for where, verdict in zip(names, compared, strict=True):
                if isinstance(verdict, MergedLayer):
                    rows.append(verdict)
                    where, verdict = verdict.name, verdict.verdict  # the layer, not its weight
                if verdict not in ("", RIGHT):
                    found.append(Finding("odd" if verdict == HIDDEN else "wrong", where, verdict))
            settings = other_settings(tensors, opened.model)
            found += [Finding("wrong", "config.json", problem) for problem in settings]
        if count := len(made_on_nf4(opened)):
            what = (
                f"{counted(count, 'layer')} {'was' if count == 1 else 'were'} trained on nf4, so "
                f"the hash of the base was not compared; to compare it, load the model in nf4 and "
                f"the adapter into it (--dtype nf4 of generate and eval)"
            )
            found.append(Finding("odd", "base", what))
        if opened.own_prefix in ("_orig_mod.", "module.", "base_model.model."):
            what = (
                f"begin with {opened.own_prefix!r}, the mark of a wrapped model (torch.compile, "
                f"data-parallel training, PEFT twice): PEFT ignores them; take it out of the keys"
            )
            found.append(Finding("odd", "names", what))
        added = "is trained in full, and not in the base"
        keeps_head = opened.copied if opened.model is None else opened.copied.keys() & opened.model
        found += [
            *(Finding("wrong", name, "has NaN or Inf in it, in the base") for name in broken),
            *(Finding("wrong", "base", problem) for problem in problems),
            *(Finding("odd", name, added) for name in opened.added),
            *(Finding("odd", name, TIED) for name in opened.tied if not keeps_head),
            *(Finding("odd", name, UNTIED) for name in opened.heads),
        ]
        return Findings(path, tuple(found), layers, True, has_checksum, tuple(rows))


def _findings_of_untrained(names: Sequence[str], what: str, where: str = "") -> Iterator[Finding]:
    """Yield an unusual fact about targets that have no tensors in the file, if there are any."""
    if names:
        shown = ", ".join(map(repr, names[:5])) + ", ..." * (len(names) > 5)
        verb, they = ("has", "it is") if len(names) == 1 else ("have", "they are")
        yield Finding(
            "odd", "target_modules",
            f"{counted(len(names), what)}{where}, {shown}, {verb} no tensors in the file; if "
            f"{they} in the model, PEFT leaves B at 0 there, so that nothing changes, and "
            f"lora.load refuses the adapter",
        )  # fmt: skip


def _damage(base: AdaptedBase, file: str) -> str:
    """Return a message if a file of the base is damaged; empty if no damage is known."""
    try:
        base.tensors.files[file].check()
    except ValueError as error:
        return str(error)
    return ""


def _is_finite(base: AdaptedBase, layer: str) -> bool:
    return base.weights[layer].is_finite()


def wrong_in(files: AdapterFolder, progress: bool) -> list[str]:
    """Return the mistakes in an adapter by itself."""
    found = findings_of(files, progress)
    return [f"{each.where}: {each.what}" for each in found if each.level == "wrong"]


def findings_of(files: AdapterFolder, progress: bool) -> Iterator[Finding]:
    """Yield the mistakes and unusual facts of an adapter by itself."""
    for name in files.unfinished:
        yield Finding("odd", name, UNFINISHED)
    if not files.layers:
        yield Finding("wrong", "files", "there is no layer with an update")
    linear = [layer.name for layer in files.layers.values() if layer.kind == "linear"]
    found = files.config.targets_among(files.layers, linear)
    for name, layer in files.layers.items():
        if layer.kind == "attention":
            yield Finding(
                "wrong", name,
                "belongs to PyTorch's nn.MultiheadAttention, which is not supported here; merge "
                "the adapter with PEFT's merge_and_unload",
            )  # fmt: skip
        elif name not in found:
            yield Finding("wrong", name, "target_modules do not find it, so PEFT ignores it")
    for name in files.facts.layers:
        if name not in files.layers:
            yield Finding("wrong", name, "is in the metadata, and has no tensors")
    for name, problem in files.scale_problems():
        yield Finding("wrong", name, problem)
    for layer in progress_bar(files.layers.values(), what="check", unit="layer", shown=progress):
        yield from _findings_of_layer(files, layer)
    for name, key in files.whole.items():
        if not files.counts(key) and (problem := files.dtype_problem(key)):
            yield Finding("wrong", key, problem)
        elif not np.isfinite(files.read(key)).all():
            yield Finding("wrong", key, "has NaN or Inf in it")
        is_base = name.removesuffix(".weight") in files.layers  # as PEFT may write of an embedding
        if files.is_trained_in_full(key) or is_base:
            continue
        if not key.startswith(PREFIX) or ".lora_" in key:
            yield Finding("wrong", key, f"is not a key of PEFT's, which are like {KEYS}")
        else:
            yield Finding(
                "odd", name,
                "is not a part of an update, and neither bias nor modules_to_save say that it was "
                "trained in full; PEFT replaces the model's own by it, if there is one",
            )  # fmt: skip


def _findings_of_layer(files: AdapterFolder, layer: StoredLayer) -> Iterator[Finding]:
    wrong, odd = (partial(Finding, level, layer.name) for level in ("wrong", "odd"))
    wanted = {A, B, MAGNITUDE} if files.config.use_dora else {A, B}
    for part in sorted(wanted - layer.keys.keys()):
        yield wrong(f"{part} is missing, so PEFT begins with another one")
    if MAGNITUDE in layer.keys.keys() - wanted:
        yield wrong("has a magnitude, and use_dora is not set")
    found = {part: files.dtype_problem(key) for part, key in layer.keys.items()}
    problems = [f"{part} {problem}" for part, problem in found.items() if problem]
    yield from map(wrong, problems)
    if problems or not {A, B} <= layer.keys.keys():
        return
    arrays = {part: files.part(layer, part, np.float64) for part in layer.keys}
    for part, array in arrays.items():
        if broken := int(np.count_nonzero(~np.isfinite(array))):
            yield wrong(f"{part} has {broken:,} numbers that are NaN or Inf")
    a, b = arrays[A], arrays[B]
    if problem := _shape_problem(a, b, layer.groups):
        yield wrong(problem)
        return
    m = arrays.get(MAGNITUDE)
    if m is not None and m.shape != (len(b),):
        yield wrong(f"the magnitude is {m.shape}; it must be {(len(b),)}")
    if (rank := files.rank_of(layer.name, (len(b), a.shape[1]))) != len(a):
        yield wrong(
            f"the rank is {len(a)} by its tensors and {rank} by the configuration, so its scale "
            f"is another one than it was trained with, or a rank_pattern is lost"
        )
    if layer.groups > 1:
        dora = "" if m is None else "; its magnitude is of a product that PEFT forms by mistake"
        use = "is loaded by PEFT only" if m is not None else "computes unmerged, after lora.load"
        yield odd(
            f"is of a convolution with {layer.groups} groups, which cannot be merged: "
            f"{UNMERGEABLE}{dora}. It {use}"
        )
    for part, array in (("A", a), ("B", b)):
        if not array.any():
            yield odd(f"{part} is 0, so B A changes nothing")
