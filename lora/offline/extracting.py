"""extract_files: make an adapter that best approximates the difference of two models in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

import numpy as np

from lora.config import Bias, check_bias
from lora.extraction import Extracted
from lora.frozen import Array
from lora.offline.model_folder import EMBEDDINGS, TIED, open_base, tied_tables, transposed_weights
from lora.offline.stored_weight import StoredWeight
from lora.offline.workers import WorkerPool
from lora.patterns import check_several, is_glob_match, is_inside
from lora.peft.config import CONFIG, PeftConfig
from lora.peft.facts import Facts, LayerFacts
from lora.peft.folder import FLOATS, check_dtype, check_no_model, write_files
from lora.peft.keys import A, B, by_key
from lora.scaling import check_size
from lora.spectra import Approximation
from minigrad import __version__
from minigrad.checks import check_flag, check_problems, nearest
from minigrad.errors import named_errors
from minigrad.io import TensorSet, load_state, replacing_together, save_state
from minigrad.io.tensor_file import is_complete
from minigrad.io.tensor_info import CODES
from minigrad.tables import aligned

PathLike = str | os.PathLike[str]
_Models = tuple[TensorSet, TensorSet]  # the base and the fine-tuned model
_Match = Callable[[Sequence[str], str], bool]  # tells whether one of some patterns matches a name
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, repr=False)
class ExtractedFiles:
    """The result of `extract_files`.

    Attributes:
        path: the folder that was written.
        layers: the layers that differ, and get an update.
        embeddings: the layers among them that are tables of vectors.
        whole: the tensors that the adapter has in full.
        lost: the tensors that differ, and are not in the adapter.
        tied: weights of embeddings that change, and may also be the model's head.
        kept: the layers that an earlier extraction completed before it was killed.
    """

    path: str
    layers: tuple[Extracted, ...]
    embeddings: tuple[str, ...]
    whole: tuple[str, ...]
    lost: tuple[str, ...]
    tied: tuple[str, ...]
    kept: tuple[str, ...]

    def __repr__(self) -> str:
        head = ("layer", "kind", "rank", "error", "relative", "energy")
        rows = [
            (row.name, "embedding" if row.name in self.embeddings else "linear", *row.figures)
            for row in self.layers
        ]
        rows += [(name, "in full", "", "", "", "") for name in self.whole]
        rows += [(name, "LOST", "", "", "", "") for name in self.lost]
        lines = [*aligned(head, rows, left=2), *(f"{name} {TIED}" for name in self.tied)]
        if self.kept:
            kept = ", ".join(self.kept)
            lines.append(f"complete already, from an extraction that was killed: {kept}")
        return "\n".join(lines)


@named_errors
def extract_files(
    base: PathLike,
    finetuned: PathLike,
    out: PathLike,
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
    workers: int = 1,
    progress: bool = True,
) -> ExtractedFiles:
    """Write the adapter that best approximates a fully fine-tuned model.

        W_finetuned - W = U S V^T,  B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T,  scale 1

    In each layer B A is the best approximation of this rank to the difference of the weights, in
    the Frobenius norm (Eckart and Young, 1936). `lora.extract` does the same for models in memory,
    and for convolutions too; a file does not say into how many groups their filters are split. Only
    one layer is in memory at a time.

    Layers have the names in the files. If transformers renames weights when it loads them, PEFT
    does not find these names. Then save both models with
    `save_pretrained(..., save_original_format=False)` first.

    If the extraction or one of its workers is killed, start it again with the same inputs and
    options. It keeps the updates of complete layers, if the hashes of all inputs are the same.

    Args:
        base: the base model: a safetensors file, an index of several, a folder with one of
            the two, or a GGUF file.
        finetuned: the fine-tuned model, in one of the same forms, with the same names and shapes.
        out: a folder for the adapter.
        rank: the rank of each update; in a layer that is smaller, it is the smaller size of this
            layer.
        targets: the layers to compare: patterns with * for their names, or the ends of names; by
            default all.
        exclude: the targets to leave out.
        embeddings: which layers are tables of vectors: patterns for the last part of a name. A
            layer with a bias is never a table.
        bias: "lora_only" copies the biases of layers with updates, "all" every bias.
        modules_to_save: ends of names of modules to copy in full.
        fan_in_fan_out: whether the files have weights as `(d_in, d_out)`, if the biases do not show
            it.
        lossy: leave out differences that the adapter cannot contain, instead of refusing.
        dtype: the dtype of the tensors. With None, updates are in float32, or in float64 if the
            base has it; tensors that are copied in full keep their dtype, but bfloat16 becomes
            float32.
        workers: the number of processes that share the work, each of which needs as much memory as
            one alone; the result has the same bits. They share the singular vectors only if
            OPENBLAS_NUM_THREADS, OMP_NUM_THREADS or MKL_NUM_THREADS is set to 1.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if a file is missing.
        TypeError: if the rank is not an integer, or a single string is given instead of a list of
            names.
        ValueError: if a file is invalid, names or shapes differ, there is NaN or Inf, nothing
            differs, a pattern matches nothing, something differs that the adapter would not have,
            an option has an impossible value, or `out` is the folder of a model.
        ImportError: if a model is a GGUF file, and the package gguf is not installed.
        ChildProcessError: if a worker was killed, or could not start; see `merge_files`.
        OSError: if the adapter cannot be written; the files at `out` are unchanged.
    """
    rank = check_size("rank", rank)
    check_dtype(dtype)
    check_bias(bias)
    check_flag("lossy", lossy)
    lists = {"targets": targets, "exclude": exclude, "embeddings": embeddings}
    lists["modules_to_save"] = modules_to_save
    for role, names in lists.items():
        check_several(role, names)
    targets, exclude, embeddings, saved = map(tuple, lists.values())
    check_no_model(out, base, finetuned)
    with ExitStack() as stack:
        opening = partial(_opened, base, finetuned)
        pool = stack.enter_context(WorkerPool(opening, workers, progress))
        before, after = pool.opened
        _check_fit(before, after, saved)
        parts = {name.removesuffix(".weight").rpartition(".")[2] for name in before}
        if embeddings != EMBEDDINGS:
            _check_matches("embeddings", embeddings, sorted(parts), is_glob_match)
        are_equal = pool.map(_is_equal, list(before), "compare", "tensor")
        differing = [name for name, same in zip(before, are_equal, strict=True) if not same]
        layers = _layers(before, differing, targets, exclude)
        copied = _copied(after, layers, bias, saved)
        lost = [n for n in differing if n not in copied and n.removesuffix(".weight") not in layers]
        if lost and not lossy:
            raise ValueError(
                f"the finetuned model differs from the base in what the adapter would not have: "
                f"{', '.join(lost)}; copy biases with bias, and modules with modules_to_save, or "
                f"set lossy to leave these out"
            )
        tables = [
            name
            for name in layers
            if is_glob_match(embeddings, name.rpartition(".")[2]) and f"{name}.bias" not in before
        ]
        transposed = transposed_weights(before)
        shown = {n: transposed.get(f"{n}.weight") for n in layers if n not in tables}
        stored = {n: fan_in_fan_out if known is None else known for n, known in shown.items()}
        if all(os.environ.get(name) != "1" for name in _BLAS_THREADS):
            pool.workers = 1  # too many BLAS threads for the cores are ten times slower
        inputs = [(i, name) for i, model in enumerate(pool.opened) for name in model.files]
        hashes = list(pool.map(_digest, inputs, "hash of the inputs", "file"))
        given = hashes, layers, stored, rank, __version__, np.__version__
        plan = sha256(repr(given).encode()).hexdigest()
        stage = stack.enter_context(replacing_together(out, CONFIG, plan))
        stack.callback(pool.close)  # no worker may write while the folder is moved or removed
        # Hidden files are not moved to `out`.
        files = {name: stage / f".layer-{i}.safetensors" for i, name in enumerate(layers)}
        kept = tuple(name for name in layers if is_complete(files[name]))
        tasks = [
            (name, stored.get(name, True), rank, files[name]) for name in layers if name not in kept
        ]
        list(pool.map(_extract, tasks, "extract", "layer"))
        rows, *others = zip(*map(_read, files.values()), strict=True)
        updates, facts = (dict(zip(layers, each, strict=True)) for each in others)
        # The argument counts if the base shows nothing; else PEFT expects the last layer's value.
        known = None not in shown.values() and any(shown.values())
        modules = sorted({n.removesuffix(".weight").removesuffix(".bias") for n in before})
        ranks = {row.name: row.rank for row in rows}
        named = {"bias": bias, "modules_to_save": saved, "fan_in_fan_out": fan_in_fan_out or known}
        config = PeftConfig.of_layers(ranks, ranks, modules, (rank, rank), **named)
        tensors = by_key(updates, {name: after.read(name) for name in copied}, tables)
        write_files(stage, config, tensors, Facts(facts), dtype)
        changed = [f"{name}.weight" for name in tables] + [n for n in copied if n in before]
        tied = tied_tables(changed, before)
    found = tuple(tables), tuple(copied), tuple(lost), tuple(tied), kept
    return ExtractedFiles(os.fspath(out), rows, *found)


@contextmanager
def _opened(base: PathLike, finetuned: PathLike) -> Iterator[_Models]:
    with open_base(base) as before, open_base(finetuned) as after:
        yield before, after


def _is_equal(models: _Models, name: str) -> bool:
    (before, after), (old, new) = models, (each.info(name) for each in models)
    if old.shape != new.shape:
        return False
    if {old.dtype, new.dtype} <= CODES.keys():
        return np.array_equal(before.read(name), after.read(name), equal_nan=True)
    # numpy does not have the other dtypes, so their bytes are compared
    parts = zip_longest(before.raw(name), after.raw(name))
    return old.dtype == new.dtype and all(one == other for one, other in parts)


def _digest(models: _Models, task: tuple[int, str]) -> str:
    """Return the hash of an input; `task` is the index of its model, and its name there."""
    index, name = task
    return models[index].files[name].digest()


def _extract(models: _Models, task: tuple[str, bool, int, Path]) -> None:
    """Write the update of a layer, its report, and the facts about it.

    `task` is the name of the layer, whether its weight is transposed, the rank, and the file.
    """
    name, is_transposed, rank, file = task
    old, new = (StoredWeight(each, f"{name}.weight", is_transposed) for each in models)
    difference = new.dense() - old.dense()
    if not np.isfinite(difference).all():
        raise ValueError(f"{name}.weight has NaN or Inf in it")
    best = Approximation.of_matrix(difference, rank)
    update = {A: best.a.astype(old.dtype), B: best.b.astype(old.dtype)}
    row, facts = Extracted.of(name, best), LayerFacts(1.0, old.fingerprint())
    texts = {"row": json.dumps(asdict(row)), "facts": json.dumps(asdict(facts))}
    save_state(file, update, texts)


def _read(file: Path) -> tuple[Extracted, dict[str, Array], LayerFacts]:
    """Read what `_extract` wrote: the report, the update, and the facts."""
    update, texts = load_state(file)
    row, facts = (json.loads(texts[name]) for name in ("row", "facts"))
    return Extracted(**row), update, LayerFacts(**facts)


def _check_fit(before: TensorSet, after: TensorSet, saved: Sequence[str]) -> None:
    """Raise an error if names or shapes differ, except in modules copied in full."""
    problems = [f"missing: {name}" for name in before if name not in after]
    for name in after:
        if is_inside(saved, name):
            continue
        if name not in before:
            hint = nearest(name, before)
            problems.append(f"unexpected: {name!r}{hint}; modules_to_save can copy its module")
        elif before.info(name).shape != after.info(name).shape:
            shapes = before.info(name).shape, after.info(name).shape
            problems.append(f"mis-shaped: {name} is {shapes[1]}, in the base {shapes[0]}")
    check_problems("the finetuned model does not fit the base", problems)


def _check_matches(
    role: str, patterns: Sequence[str], names: Sequence[str], is_match: _Match
) -> None:
    for pattern in patterns:
        if not any(is_match([pattern], name) for name in names):
            raise ValueError(f"{role}: {pattern!r} matches none of {', '.join(names) or '(none)'}")


def _layers(
    before: TensorSet, differing: Sequence[str], targets: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Return the layers that get an update: targeted matrices that differ; at least one."""
    matrices = [
        name.removesuffix(".weight")
        for name, info in before.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and info.dtype in FLOATS
    ]
    for role, patterns in (("targets", targets), ("exclude", exclude)):
        _check_matches(role, patterns, matrices, is_glob_match)
    meant = [n for n in matrices if is_glob_match(targets, n) and not is_glob_match(exclude, n)]
    found = [name for name in meant if f"{name}.weight" in differing]
    if not found:
        raise ValueError(
            f"none of the targets differs from the base, so there is nothing to extract: "
            f"{', '.join(meant[:5])}{', ...' * (len(meant) > 5)}"
        )
    return found


def _copied(after: TensorSet, layers: Sequence[str], bias: Bias, saved: Sequence[str]) -> list[str]:
    """Return the tensors to copy in full; raise an error if one of them has an update too."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in after))
    _check_matches("modules_to_save", saved, modules, lambda ends, n: is_inside(ends, f"{n}."))
    biases = {f"{layer}.bias" for layer in layers} if bias == "lora_only" else set(after)
    biases = {name for name in biases if bias != "none" and name.endswith(".bias")}
    found = [name for name in after if is_inside(saved, name) or name in biases]
    if both := [name for name in found if name.removesuffix(".weight") in layers]:
        raise ValueError(
            f"{', '.join(both)} would be saved in full and have an update too; exclude the layers"
        )
    return found
