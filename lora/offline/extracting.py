"""extract_files: the adapter that comes nearest to the difference of two models in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.config import Bias
from lora.extract import Extracted
from lora.factors import Approximation
from lora.offline.resolve_base import TIED, tied_tables
from lora.offline.stored_weight import StoredWeight
from lora.offline.transposed import Turned
from lora.patterns import near
from lora.peft.config import PeftConfig
from lora.peft.facts import Facts, LayerFacts, version
from lora.peft.fingerprint import fingerprint_of_rows
from lora.peft.matching import exact, is_saved_whole, whole_name
from lora.peft.to_peft import Update, tensors_of
from lora.peft.writing import FLOATS, check_dtype, write_folder
from lora.scaling import LoRAScaling, check_size
from minigrad.io import TensorSet, open_tensors
from minigrad.io.tensor_info import CODES
from minigrad.progress import progress_bar
from minigrad.tables import aligned

Array = NDArray[Any]
Place = str | os.PathLike[str]

EMBEDDINGS = (
    *("*embedding", "*embeddings", "embed", "embed_tokens", "embed_positions", "embed_in"),
    *("wte", "wpe", "shared", "relative_attention_bias"),
)
"""How tables of vectors are usually called, without the names of what they are in.

Others are alike, and linear: `embed_out`, the head of GPT-NeoX, and `embeddings_project`.
"""


@dataclass(frozen=True, repr=False)
class ExtractedFiles:
    """What `extract_files` has written.

    Attributes:
        path: of the folder.
        layers: those that differ, and get an update.
        embeddings: which of these are tables of vectors.
        whole: the tensors that the adapter has whole.
        lost: the tensors that differ, and that it has nothing of.
        tied: weights of embeddings that change, and may be the model's head too.
    """

    path: str
    layers: tuple[Extracted, ...]
    embeddings: tuple[str, ...]
    whole: tuple[str, ...]
    lost: tuple[str, ...]
    tied: tuple[str, ...]

    def __repr__(self) -> str:
        head = ("layer", "kind", "rank", "error", "relative", "energy")
        rows = [
            (
                row.name,
                "embedding" if row.name in self.embeddings else "linear",
                str(row.rank),
                f"{row.error:.3g}",
                f"{row.relative_error:.3g}",
                f"{100 * row.energy:.4g} %",
            )
            for row in self.layers
        ]
        rows += [(name, "whole", "", "", "", "") for name in self.whole]
        rows += [(name, "LOST", "", "", "", "") for name in self.lost]
        tied = [f"{name} {TIED}" for name in self.tied]
        return "\n".join([*aligned(head, rows, left=2), *tied])


def extract_files(
    base: Place,
    finetuned: Place,
    out: Place,
    rank: int,
    *,
    targets: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    embeddings: Sequence[str] = EMBEDDINGS,
    bias: Bias = "none",
    modules_to_save: Sequence[str] = (),
    fan_in_fan_out: bool = False,
    lossy: bool = False,
    dtype: str | None = None,
    progress: bool = True,
) -> ExtractedFiles:
    """Write the adapter that comes nearest to a model which was trained as a whole.

    In each layer B A is the best approximation there is of this rank to the difference of the
    weights, in the Frobenius norm, and the scale is 1. See `lora.extract`, which does it for models
    in memory. One layer is in memory at a time.

    Layers are called as in the files. Where transformers gives weights other names when it loads
    them, PEFT does not find them by these: save both models with
    `save_pretrained(..., save_original_format=False)`.
    Layers are called as in the files: where transformers gives weights other names when it loads
    them, PEFT does not find them by these, so save both models with
    `save_pretrained(..., save_original_format=False)`.

    Args:
        base: a safetensors file, an index, or a folder of a model.
        finetuned: the same of a model with the same names and shapes.
        out: a folder for the adapter.
        rank: of each update; where a layer is smaller, its size.
        targets: the layers to look at: patterns with * for their names, or the ends of these.
        exclude: of these, those to leave out.
        embeddings: which of them are tables of vectors: patterns for the last part of a name. What
            has a bias is none.
        bias: "lora_only" takes over the biases of layers with updates, "all" every bias.
        modules_to_save: ends of names of modules to take over whole.
        fan_in_fan_out: whether the files have weights as `(d_in, d_out)`, where biases do not tell.
        lossy: leave out what differs and the adapter would not have, instead of refusing.
        dtype: to save the tensors in; None for float32, or float64 if the base is of it.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if files are not what they should be, names or shapes differ, there is NaN or
            Inf, nothing differs, a pattern matches nothing, something differs that the adapter
            would not have, or `out` is the folder of a model.
        OSError: if it cannot be written; what was at `out` is as it was.
    """
    rank = check_size("rank", rank)
    check_dtype(dtype)
    _check_out(out, base, finetuned)
    with open_tensors(base) as before, open_tensors(finetuned) as after:
        _check_alike(before, after, modules_to_save)
        differing = [
            name
            for name in progress_bar(list(before), what="compare", unit="tensor", shown=progress)
            if name in after and not _is_same(before, after, name)
        ]
        layers = _layers(before, differing, targets, exclude)
        whole = _wholes(after, layers, bias, modules_to_save)
        lost = [n for n in differing if n not in whole and n.removesuffix(".weight") not in layers]
        _check_lost(lost, lossy)
        tables = [
            name
            for name in layers
            if _matches(name.rpartition(".")[2], embeddings) and f"{name}.bias" not in before
        ]
        linear = [name for name in layers if name not in tables]
        turned = Turned(before)
        updates, rows, facts = {}, [], {}
        for name in progress_bar(layers, what="extract", unit="layer", shown=progress):
            is_table = name in tables
            is_transposed = is_table or turned.of(f"{name}.weight", fan_in_fan_out)
            old = StoredWeight(before, f"{name}.weight", is_transposed)
            new = StoredWeight(after, f"{name}.weight", is_transposed)
            updates[name], row = _update(name, old, new, rank, is_table)
            rows.append(row)
            facts[name] = LayerFacts(1.0, fingerprint_of_rows(*old.stored_rows()))
        modules = sorted({n.removesuffix(".weight").removesuffix(".bias") for n in before})
        config = PeftConfig(
            exact(list(updates), modules),
            r=rank,
            lora_alpha=rank,
            rank_pattern={whole_name(n): u.rank for n, u in updates.items() if u.rank != rank},
            alpha_pattern={whole_name(n): u.rank for n, u in updates.items() if u.rank != rank},
            bias=bias,
            modules_to_save=tuple(modules_to_save),
            fan_in_fan_out=fan_in_fan_out or any(turned.of(f"{n}.weight", False) for n in linear),
        )
        tensors = tensors_of(updates, {name: after.read(name) for name in whole})
        write_folder(out, config, tensors, Facts(facts, version()), dtype)
        tables_changed = [f"{name}.weight" for name in tables] + [n for n in whole if n in before]
        tied = tied_tables(tables_changed, before)
    return ExtractedFiles(
        os.fspath(out), tuple(rows), tuple(tables), tuple(whole), tuple(lost), tuple(tied)
    )


def _check_out(out: Place, *models: Place) -> None:
    """Refuse the folder of a model, which transformers would take for that of an adapter then.

    Raises:
        ValueError: if it is one.
    """
    for model in map(Path, models):
        if Path(out).resolve() == (model if model.is_dir() else model.parent).resolve():
            raise ValueError(f"{os.fspath(out)!r} is the folder of a model; name another one")


def _check_alike(before: TensorSet, after: TensorSet, modules: Sequence[str]) -> None:
    """Refuse models of other names or shapes, but for modules that are taken over whole."""
    problems = [f"missing: {name}" for name in before if name not in after]
    for name in after:
        if name not in before:
            if not _is_in(name, modules):
                problems.append(f"unexpected: {near(name, list(before))}")
        elif before.info(name).shape != after.info(name).shape and not _is_in(name, modules):
            shapes = before.info(name).shape, after.info(name).shape
            problems.append(f"mis-shaped: {name} is {shapes[1]}, in the base {shapes[0]}")
    if problems:
        raise ValueError("the finetuned model does not fit the base:\n  " + "\n  ".join(problems))


def _is_same(before: TensorSet, after: TensorSet, name: str) -> bool:
    """Whether a tensor has the same numbers in both."""
    if before.info(name).shape != after.info(name).shape:
        return False
    dtypes = {tensors.info(name).dtype for tensors in (before, after)}
    if dtypes <= CODES.keys():
        return bool(np.array_equal(before.read(name), after.read(name)))
    # Of others it is known only whether they are the same to the bit.
    parts = zip_longest(before.raw(name), after.raw(name))
    return len(dtypes) == 1 and all(one == other for one, other in parts)


def _is_in(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor is of one of these modules, by the ends of their names."""
    return is_saved_whole(PeftConfig((), modules_to_save=tuple(modules)), name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is for the name, or for its end after a dot."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)


def _layers(
    before: TensorSet, differing: Sequence[str], targets: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """The layers that get an update: matrices that differ.

    Raises:
        ValueError: if there are none, or a pattern is for none of all matrices.
    """
    matrices = [
        name.removesuffix(".weight")
        for name, info in before.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and info.dtype in FLOATS
    ]
    for kind, patterns in (("targets", targets), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(name, [pattern]) for name in matrices):
                raise ValueError(
                    f"{kind}: {pattern!r} matches none of the matrices "
                    f"{', '.join(matrices) or '(none)'}"
                )
    meant = [n for n in matrices if _matches(n, targets) and not _matches(n, exclude)]
    found = [name for name in meant if f"{name}.weight" in differing]
    if not found:
        raise ValueError(
            "none of the targets differs from the base, so there is nothing to extract: "
            + ", ".join(meant)
        )
    return found


def _wholes(
    after: TensorSet,
    layers: Sequence[str],
    bias: Bias,
    modules: Sequence[str],
) -> list[str]:
    """The tensors that the adapter has whole.

    Raises:
        ValueError: if there are none of a module, or one has an update too.
    """
    for module in modules:
        if not any(_is_in(name, [module]) for name in after):
            raise ValueError(
                f"modules_to_save: {module!r} is the end of none of the modules "
                f"{', '.join(dict.fromkeys(name.rpartition('.')[0] for name in after))}"
            )

    def is_meant(name: str) -> bool:
        if _is_in(name, modules):
            return True
        if not name.endswith(".bias") or bias == "none":
            return False
        return bias == "all" or name.removesuffix(".bias") in layers

    found = [name for name in after if is_meant(name)]
    both = [name for name in found if name.removesuffix(".weight") in layers]
    if both:
        raise ValueError(
            f"{', '.join(both)} would be taken over whole and have an update; exclude the layers"
        )
    return found


def _check_lost(lost: Sequence[str], lossy: bool) -> None:
    if lost and not lossy:
        raise ValueError(
            f"the finetuned model differs from the base in what the adapter would not have: "
            f"{', '.join(lost)}; take biases over with bias, modules with modules_to_save, or say "
            f"lossy to leave these out"
        )


def _update(
    name: str, base: StoredWeight, tuned: StoredWeight, rank: int, is_table: bool
) -> tuple[Update, Extracted]:
    """The nearest update to a difference, and what to report of it."""
    difference = tuned.dense() - base.dense()
    if not np.isfinite(difference).all():
        raise ValueError(f"{base.name} has NaN or Inf in it")
    u, s, vt = np.linalg.svd(difference, full_matrices=False)
    best = Approximation.of_decomposition(u, s, vt, min(rank, len(s)))
    a, b = best.a.astype(base.dtype), best.b.astype(base.dtype)
    update = Update(a, b, None, 1.0, LoRAScaling.STANDARD, 0.0, is_table)
    row = Extracted(name, len(a), best.error, best.relative_error, best.energy)
    return update, row
