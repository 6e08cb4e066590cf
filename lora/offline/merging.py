"""merge_files: add the update of an adapter to a base, from files to files, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora.adapter import UNMERGEABLE, Adapter
from lora.certificate import CertificateRow, MergeCertificate, certify, merging_into
from lora.frozen import Array, strips
from lora.offline.adapted_base import AdaptedBase, made_on_nf4, other_weights
from lora.offline.inspection import wrong_in
from lora.offline.model_folder import COPIED, TIED, UNTIED, find_sidecars
from lora.offline.stored_weight import StoredWeight
from lora.offline.workers import WorkerPool
from lora.peft.config import CONFIG
from lora.peft.folder import FLOATS, WEIGHTS, check_can_be_folder, check_not_empty, is_finite_in
from minigrad import __version__
from minigrad.checks import check_problems
from minigrad.errors import named_errors
from minigrad.io import TensorInfo, writing
from minigrad.io.sharded import SINGLE, staging_set
from minigrad.io.tensor_file import is_complete
from minigrad.kernels.vector import REGISTERS, VECTOR
from minigrad.tables import counted, in_bytes


@dataclass(frozen=True, repr=False)
class MergedFiles:
    """The result of `merge_files`.

    Attributes:
        path: the file or the folder that was written.
        certificate: the rounding error of the merge.
        replaced: the tensors that the adapter replaces by its own, trained in full.
        added: the tensors among them that the base does not have.
        tied: weights of embeddings that change, and may also be the weight of the model's head.
        copied: weights of embeddings that change; the merged model has their copies as heads.
        heads: the tensors among `added` that are heads, which the base ties to an embedding.
        prefix: the beginning of names that only the base has; or "-" and one that only the adapter
            has.
        left_out: files beside the base that are not copied, and folders, with a slash.
        nbytes: the size of all tensors in bytes.
        kept: the files that an earlier merge completed before it was killed.
        on_nf4: the layers whose adapter was trained on the values of the base in nf4.
    """

    path: Path
    certificate: MergeCertificate
    replaced: Sequence[str]
    added: Sequence[str]
    tied: Sequence[str]
    copied: Sequence[str]
    heads: Sequence[str]
    prefix: str
    left_out: Sequence[str]
    nbytes: int
    kept: Sequence[str]
    on_nf4: Sequence[str]

    def __repr__(self) -> str:
        lines = [repr(self.certificate)]
        if self.prefix.startswith("-"):
            lines.append(f"names of the adapter have {self.prefix[1:]!r} before those of the base")
        elif self.prefix:
            lines.append(f"names of the base have {self.prefix!r} before those of the adapter")
        if self.replaced:
            added = f", {len(self.added)} of them new to it" if self.added else ""
            tensors = counted(len(self.replaced), "tensor")
            lines.append(f"taken over in full: {tensors} of the adapter{added}")
        lines += [f"{name} {TIED}" for name in self.tied]
        lines += [f"{name} {COPIED}" for name in self.copied]
        lines += [f"{name} {UNTIED}" for name in self.heads]
        if self.on_nf4:
            verb = "was" if len(self.on_nf4) == 1 else "were"
            lines.append(
                f"{counted(len(self.on_nf4), 'layer')} {verb} trained on nf4, and are merged with "
                f"the values of this base, which differ; measure the merged model with lora eval"
            )
        if self.left_out:
            names = ", ".join(self.left_out)
            lines.append(f"not copied, because weights without the update may be in them: {names}")
        if self.kept:
            lines.append(f"complete already, from a merge that was killed: {', '.join(self.kept)}")
        return "\n".join([*lines, f"written: {self.path} ({in_bytes(self.nbytes)})"])


@named_errors
def merge_files(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    limit: float | None = None,
    radius: float = 1.0,
    check_base: bool = True,
    workers: int = 1,
    progress: bool = True,
) -> MergedFiles:
    """Merge an adapter into a base in files: write W + dW, computed in float64 and rounded once.

    dW is s B A, or for DoRA diag(m / n) (W + s B A) - W; see `lora.Adapter`. Only some rows of a
    tensor are in memory at a time. Tensors that the adapter does not change are copied bit for bit,
    in any dtype, unless `dtype` converts them. Files at `out` are replaced only by complete ones.

    If `out` is a folder and the merge or one of its workers is killed, start it again with the same
    inputs and options. It keeps the complete files, if the hashes of all inputs are the same.

    Args:
        base: the base model: a safetensors file, an index of several, a folder with one of
            the two, or a GGUF file.
        adapter: a folder that PEFT or `lora.save` wrote.
        out: a file, if it ends in .safetensors; otherwise a folder. It gets the same files of
            weights as the base, or `model.safetensors` if the base has only one, and copies of
            other files (`lora.offline.model_folder`).
        dtype: the dtype for all floats of 16 bits or more, also written to a copied `config.json`;
            None for the dtype of each tensor.
        limit: refuse if in one layer a larger share of the update than this is lost to rounding;
            by default there is no limit.
        radius: the norm of the inputs for which the certificate's bound is valid.
        check_base: raise an error if the metadata of the adapter have the hash of another base.
        workers: the number of processes that share the work, each of which needs as much memory as
            one alone; the result has the same bits.
        progress: show progress bars.

    Raises:
        FileNotFoundError: if an input or the parent folder of `out` does not exist.
        NotADirectoryError: if the adapter is a file.
        TypeError: if the limit or the radius is not a number.
        ChildProcessError: if a worker was killed, or could not start. Each worker imports the main
            script again, which therefore needs `if __name__ == "__main__":`.
        ValueError: if a file is invalid, `check_adapter` finds a mistake in the adapter, the
            adapter does not fit the base or has an update of a grouped convolution, or a result
            would not be finite; if an option has an impossible value; or if `out` is one of the
            inputs, is not the kind that its name says, or has other weights or an adapter in it.
            The checksum of a base is compared only in a merge into a folder, which reads the base
            twice.
        ImportError: if the base is a GGUF file, and the package gguf is not installed.
        MergeError: if more than the limit would be lost.
        OSError: if the result cannot be written. After any error, the files at `out` are unchanged.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"weights are merged in {', '.join(FLOATS)}, not in {dtype!r}")
    check_not_empty(out)
    target = Path(out)
    is_file = target.suffix == ".safetensors"
    with ExitStack() as stack:
        opening = partial(AdaptedBase, base, adapter)
        pool = stack.enter_context(WorkerPool(opening, workers, progress))
        opened, tensors, files = pool.opened, pool.opened.tensors, pool.opened.files
        shards = {name: list(file.tensors.values()) for name, file in tensors.files.items()}
        if is_file or len(shards) == 1:
            shards = {target.name if is_file else SINGLE: [*tensors.tensors.values()]}
        _check_out(target, opened, shards)
        problems = [*wrong_in(files, progress), *opened.problems]
        if check_base:
            problems += other_weights(pool)
        check_problems(f"{os.fspath(adapter)!r} does not fit {os.fspath(base)!r}", problems)
        if opened.grouped:
            raise ValueError(
                f"the updates of {', '.join(opened.grouped)} in {os.fspath(adapter)!r} cannot be "
                f"merged: {UNMERGEABLE}. Nothing was written. Load the adapter with lora.load or "
                f"PEFT, which compute unmerged, or train one that excludes these layers"
            )
        added = [replace(files.tensors[opened.replaced[name]], name=name) for name in opened.added]
        copied = {} if is_file else opened.copied  # only a folder has a configuration
        added += [replace(tensors.info(table), name=name) for name, table in copied.items()]
        next(iter(shards.values())).extend(added)
        if dtype is not None:
            shards = {
                file: [replace(x, dtype=dtype) if x.dtype in FLOATS else x for x in infos]
                for file, infos in shards.items()
            }
        metadata = {"format": "pt", **tensors.metadata}
        folder, kept = target.parent, list[str]()
        left_out: Sequence[str] = ()
        if not is_file:
            sidecars, left_out = find_sidecars(Path(base), tensors, dtype, opened.is_untied)
            hashes = list(pool.map(_digest, [None, *tensors.files], "hash of the inputs", "file"))
            computing = __version__, np.__version__, (VECTOR, REGISTERS)
            facts = hashes, files.config, metadata, shards, sorted(sidecars), radius, computing
            plan = sha256(repr(facts).encode()).hexdigest()
            folder = stack.enter_context(staging_set(target, shards, sidecars, plan))
            stack.callback(pool.close)  # no worker may write while the folder is moved or removed
            kept = [name for name in shards if is_complete(folder / name)]
        certificate = _certificate(pool, shards, radius)
        if limit is not None:
            for kind in certificate.dtypes:
                certificate.only([kind]).check(limit, kind)
        tasks = [
            (folder / name, infos, metadata, dtype is not None)
            for name, infos in shards.items()
            if name not in kept
        ]
        list(pool.map(_write, tasks, "merge", "file"))
    prefix = f"-{opened.own_prefix}" if opened.own_prefix else opened.base_prefix
    tied = [] if copied else opened.tied
    found = list(opened.replaced), opened.added, tied, [*copied.values()], opened.heads, prefix
    size = sum(info.nbytes for infos in shards.values() for info in infos)
    return MergedFiles(target, certificate, *found, left_out, size, kept, made_on_nf4(opened))


def _digest(base: AdaptedBase, name: str | None) -> str:
    """Return the hash of a file of the base, or with None that of the adapter."""
    return (base.files.file if name is None else base.tensors.files[name]).digest()


def _certificate(
    pool: WorkerPool[AdaptedBase], shards: Mapping[str, Sequence[TensorInfo]], radius: float
) -> MergeCertificate:
    """Compute the certificate; raise a ValueError if a merged weight would not be finite."""
    dtypes = {info.name: info.dtype for infos in shards.values() for info in infos}
    tasks = [(layer, dtypes[weight.name], radius) for layer, weight in pool.opened.weights.items()]
    rows = pool.map(_row, tasks, "certifying the merge", "layer")
    certificate = MergeCertificate(tuple(rows), float(radius))
    if broken := [row for row in certificate.rows if not row.is_finite]:
        raise ValueError(
            f"the merged weight would not be finite in "
            f"{', '.join(row.layer for row in broken)}: {broken[0].note}"
        )
    return certificate


def _row(base: AdaptedBase, task: tuple[str, str, float]) -> CertificateRow:
    """Compute the certificate's row of a layer, for the dtype that will store its weight."""
    layer, dtype, radius = task
    weight, update = base.weights[layer], base.update(layer)
    one_hot = base.files.layers[layer].kind == "embedding"
    part = merging_into(layer, weight, [update], [update], one_hot=one_hot)
    return certify([part], dtype, radius, progress=False).rows[0]


def _write(
    base: AdaptedBase, task: tuple[Path, Sequence[TensorInfo], Mapping[str, str], bool]
) -> None:
    """Write a file; `task` is its path, tensors and metadata, and whether dtypes may change."""
    path, infos, metadata, is_converted = task
    with writing(path, infos, metadata) as writer:
        for info in infos:
            name, key = info.name, base.replaced.get(info.name)
            parts: Iterable[tuple[int, Array]]
            if key is not None:
                parts = [(0, base.files.read(key))]
            elif name in base.layers:
                layer = base.layers[name]
                parts = _merged(base.weights[layer], base.update(layer))
            elif base.tensors.info(source := base.copied.get(name, name)).dtype == info.dtype:
                writer.copy(name, base.tensors.raw(source))
                continue
            else:
                strip = strips(info.shape)
                parts = ((rows.start or 0, base.tensors.read(source, None, rows)) for rows in strip)
            for first, part in parts:
                is_rounded = (is_converted or key is not None) and part.dtype.kind == "f"
                if is_rounded and not is_finite_in(part, info.dtype):
                    raise ValueError(
                        f"{name} has numbers that {info.dtype} has not; take bfloat16 or float32"
                    )
                writer.write(name, part, first)


def _check_out(out: Path, base: AdaptedBase, shards: Mapping[str, Any]) -> None:
    """Raise an error if `out` is an input, holds another model or adapter, or cannot be made."""
    text, is_file = repr(os.fspath(out)), out.suffix == ".safetensors"
    folder = out.parent if is_file else out
    adapter = base.files.path
    inputs = [file.path for file in base.tensors.files.values()]
    read = {path.resolve() for path in (*inputs, adapter, adapter / WEIGHTS)}
    if read & {path.resolve() for path in (out, *(folder / name for name in shards))}:
        raise ValueError(f"{text} is what is merged; name another path, so that it stays as it is")
    if is_file and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(folder)!r} for {text}; make it")
    if is_file and out.is_dir():
        raise ValueError(f"{text} is a folder, and would be a file; name another path")
    if not is_file and not out.is_dir() and (os.path.lexists(out) or out.suffix == ".gguf"):
        raise ValueError(
            f"{text} is not a folder; name one, or a file that ends in .safetensors, to be made"
        )
    check_can_be_folder(folder)
    strange = set[str]()
    if not is_file:  # a single file may be in a folder with others
        strange = {each.name for each in out.glob("*.safetensors") if each.name not in shards}
        if (out / CONFIG).is_file():  # transformers would take the merged model for an adapter
            strange.add(CONFIG)
    if len(shards) == 1:  # an old index beside it would be wrong
        strange |= {each.name for each in folder.glob("*.safetensors.index.json")}
    if strange:
        which = f"the folder of {text}" if is_file else text
        raise ValueError(
            f"{which} has other weights or an adapter in it, {', '.join(sorted(strange))}; name a "
            f"folder without"
        )


def _merged(weight: StoredWeight, adapter: Adapter) -> Iterator[tuple[int, Array]]:
    """Yield the rows of the merged tensor, W + dW, in parts, each with the index of its first."""
    ratio = adapter.exact_ratio(weight)
    for block in weight.blocks():
        part = weight.rows(*block) + adapter.update(weight, *block, ratio)
        part = part.T if weight.is_transposed else part
        first = block[weight.is_transposed].start
        yield first, part.reshape(len(part), *weight.stored_shape[1:])
