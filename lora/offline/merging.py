"""merge_files: the update of an adapter added to a base, from files to files, by rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora.adapter import Adapter
from lora.certificate import CertificateRow, MergeCertificate, certify_layer, merging_into
from lora.frozen import Array, strips
from lora.offline.inspection import wrong_in
from lora.offline.model_folder import TIED, UNTIED, AdaptedBase, find_sidecars, other_weights
from lora.offline.stored_weight import StoredWeight, adapter_of
from lora.offline.workers import Crew, Update
from lora.peft.folder import FLOATS, WEIGHTS, AdapterFolder, is_finite_in
from minigrad import __version__
from minigrad.checks import check_problems
from minigrad.io import TensorInfo, TensorSet, TensorWriter, replacing
from minigrad.io.atomic import flush
from minigrad.io.sharded import SINGLE, staging_set
from minigrad.io.tensor_file import PART
from minigrad.io.tensor_info import bits_of
from minigrad.io.together import complete_in, note, note_complete, notes
from minigrad.kernels.vector import vector_registers
from minigrad.progress import progress_bar
from minigrad.tables import counted, in_bytes

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class MergedFiles:
    """The result of `merge_files`; for `tied`, `heads` and `prefix` see `ResolvedBase`."""

    path: Path  # of the file or the folder that was written
    certificate: MergeCertificate  # what the merge loses
    replaced: Sequence[str]  # tensors that the adapter replaces by its own, trained in full
    added: Sequence[str]  # those of them that the base lacks
    tied: Sequence[str]
    heads: Sequence[str]
    prefix: str
    left_out: Sequence[str]  # files beside the base that are not copied, and folders, with a slash
    nbytes: int  # of all tensors
    kept: Sequence[str]  # files that a merge which was killed had completed
    unused: int  # workers that wrote no file

    def __repr__(self) -> str:
        lines = [repr(self.certificate)]
        if self.prefix:
            lines.append(f"names of the base have {self.prefix!r} before those of the adapter")
        if self.replaced:
            added = f", {len(self.added)} of them new to it" if self.added else ""
            lines.append(f"taken over in full: {len(self.replaced)} tensors of the adapter{added}")
        lines += [f"{name} {TIED}" for name in self.tied]
        lines += [f"{name} {UNTIED}" for name in self.heads]
        if self.left_out:
            left_out = ", ".join(self.left_out)
            lines.append(f"not copied, for there may be weights without the update: {left_out}")
        if self.kept:
            lines.append(f"complete from a merge that was killed: {', '.join(self.kept)}")
        if self.unused:
            one = "a worker writes whole files, and there were fewer of them than workers"
            lines.append(f"{counted(self.unused, 'worker')} wrote no file: {one}")
        return "\n".join([*lines, f"written: {self.path} ({in_bytes(self.nbytes)})"])


def merge_files(
    base: PathLike,
    adapter: PathLike,
    out: PathLike,
    *,
    dtype: str | None = None,
    limit: float | None = None,
    radius: float = 1.0,
    check_base: bool = True,
    workers: int = 1,
    progress: bool = True,
) -> MergedFiles:
    """Write a base with the update of an adapter in it: V = W + s B A, computed in float64.

    No more than some rows of a tensor are in memory at a time. What the adapter does not change is
    copied to the bit, whatever its dtype. Files at `out` are replaced only by complete ones.

    If `out` is a folder and the merge is killed, or one of its workers, the next merge of the same
    content with the same options goes on with what is complete: layers of the certificate, and
    files. It compares hashes of all inputs.

    Args:
        base: what `open_base` opens.
        adapter: a folder of PEFT's or of `lora.save`.
        out: a file, if it ends in .safetensors; else a folder, which gets the files that the base
            has, and copies of those without weights (`lora.offline.model_folder`).
        dtype: the dtype for all floats of 16 bits or more, which a copied `config.json` then names
            too; None for the dtype of each tensor.
        limit: raise an error if in one layer a larger share of the update is lost to rounding.
        radius: the norm of the inputs that the certificate's bound is for.
        check_base: raise an error for a base that the adapter was not made on, if its metadata
            names one.
        workers: the number of processes. They share the layers of the certificate, and the files;
            each takes the memory of one. The files are the same to the bit.
        progress: show progress bars.

    Raises:
        FileNotFoundError: if a file is not there, or a folder for the one to be made.
        ChildProcessError: if a worker was killed.
        ValueError: if a file is not what it should be, `check_adapter` finds something wrong with
            the adapter, it does not go with the base, `out` is one of the inputs, of another kind
            than its name says, or has other weights in it, or something would not be finite.
        MergeError: if more than the limit would be lost.
        OSError: if it cannot be written. Whatever the error, the files at `out` are as they were.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"weights are merged in {', '.join(FLOATS)}, not in {dtype!r}")
    target = Path(out)
    bytes_of = partial(progress_bar, unit="B", shown=progress, unit_scale=True)
    with ExitStack() as stack:
        opening = partial(_Merge.opened, base, adapter, target, dtype, radius)
        crew = stack.enter_context(Crew(opening, workers, progress))
        merge = crew.opened
        tensors, files, resolved = merge.tensors, merge.files, merge.resolved
        _check_out(target, tensors, files, merge.sources)
        problems = [*wrong_in(files, progress), *resolved.problems]
        if check_base:
            problems += other_weights(crew)
        check_problems(f"{os.fspath(adapter)!r} does not go with {os.fspath(base)!r}", problems)
        stage: Path | None = None
        left_out: Sequence[str] = ()
        kept: Sequence[str] = ()
        if not merge.is_file:
            sidecars, left_out = find_sidecars(Path(base), tensors, dtype, bool(resolved.heads))
            total = sum(file.path.stat().st_size for file in tensors.files.values())
            with bytes_of(what="hash of the base", total=total) as bar:
                plan = merge.plan(dict(crew.each(_Merge.digest, [*tensors.files], bar.update)))
            stage = stack.enter_context(staging_set(target, merge.shards, sidecars, plan))
            stack.callback(crew.close)  # no worker writes when the folder is moved or removed
            kept = complete_in(stage)
        certificate = _certificate(crew, stage, progress)
        if limit is not None:
            for kind in certificate.dtypes:
                certificate.only([kind]).check(limit, kind)
        if stage is None:
            paths = [Path(stack.enter_context(replacing(target)).name)]
        else:
            paths = [stage / name for name in merge.shards if name not in kept]
        sizes = {name: sum(i.nbytes for i in infos) for name, infos in merge.shards.items()}
        total = sum(sizes[name] for name in sizes if name not in kept)
        with bytes_of(what="merge", total=total) as bar:
            for path, _ in crew.each(_Merge.write, paths, bar.update):
                if stage is not None:
                    note_complete(stage, path.name)
    found = resolved.added, resolved.tied, resolved.heads, resolved.prefix
    names, unused = list(resolved.replaced), max(0, workers - max(1, len(paths)))
    more = left_out, sum(sizes.values()), kept, unused
    return MergedFiles(target, certificate, names, *found, *more)


@dataclass
class _Merge(AdaptedBase):
    """A base with the update of an adapter, of which each worker writes some files."""

    out: Path
    dtype: str | None
    radius: float

    @property
    def is_file(self) -> bool:
        """Whether all is written to one file, without a folder."""
        return self.out.suffix == ".safetensors"

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """The tensors of the base in each file to be written."""
        if self.is_file or len(self.tensors.files) == 1:
            return {self.out.name if self.is_file else SINGLE: [*self.tensors]}
        return {name: [*file] for name, file in self.tensors.files.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """The facts in the header of each file."""
        return {"format": "pt", **self.tensors.metadata}

    @cached_property
    def shards(self) -> dict[str, list[TensorInfo]]:
        """The tensors of each file to be written; those that the adapter adds are in the first."""
        infos = {name: self.files.tensors[key] for name, key in self.resolved.replaced.items()}
        infos |= self.tensors.tensors
        shards = {file: list(names) for file, names in self.sources.items()}
        next(iter(shards.values())).extend(self.resolved.added)

        def result(name: str) -> TensorInfo:
            dtype = infos[name].dtype
            stored = self.dtype if self.dtype is not None and dtype in FLOATS else dtype
            return TensorInfo(name, stored, infos[name].shape)

        return {file: list(map(result, names)) for file, names in shards.items()}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The dtype in which the weight of each layer will be stored; equal ones together."""
        every = {info.name: info.dtype for infos in self.shards.values() for info in infos}
        found = {layer: every[weight.name] for layer, weight in self.resolved.weights.items()}
        kinds = list(found.values())
        return dict(sorted(found.items(), key=lambda item: kinds.index(item[1])))

    def plan(self, hashes: Mapping[str, str]) -> str:
        """Return a hash of all that the files and the certificate follow from.

        `hashes` are those of the files of the base.
        """
        adapter = sha256()
        for key in self.files.tensors:
            for part in self.files.raw(key):
                adapter.update(part)
        read = sorted(hashes.items()), adapter.hexdigest(), self.files.tensors, self.files.config
        computing = __version__, np.__version__, vector_registers()
        facts = read, self.files.facts, self.metadata, self.shards, self.radius, computing
        return sha256(repr(facts).encode()).hexdigest()

    def digest(self, file: str, update: Update) -> str:
        """Return the hash of a file of the base."""
        found = sha256()
        with open(self.tensors.files[file].path, "rb") as opened:
            while part := opened.read(PART):
                found.update(part)
                update(len(part))
        return found.hexdigest()

    def row(self, layer: str, update: Update) -> CertificateRow:
        """Return the row of a layer in the certificate."""
        weight, adapter = self._update_of(layer)
        one_hot = self.files.layers[layer].is_embedding
        part = merging_into(layer, weight, [adapter], [adapter], one_hot=one_hot)
        return certify_layer(part, [self.dtypes[layer]], self.radius, update)[0]

    def write(self, path: Path, update: Update) -> None:
        """Write one file to the disk."""
        name = self.out.name if self.is_file else path.name
        with open(path, "w+b") as file:
            writer = TensorWriter(file, self.shards[name], self.metadata)
            for info in self.shards[name]:
                key = self.resolved.replaced.get(info.name)
                parts: Iterable[tuple[int, Array]]
                if key is not None:
                    parts = [(0, self.files.read(key))]
                elif info.name in self.layers:
                    parts = _merged(*self._update_of(self.layers[info.name]))
                elif self.tensors.info(info.name).dtype == info.dtype:
                    writer.copy(info.name, self._unchanged(info.name, update))
                    continue
                else:
                    strip = strips(info.shape)
                    parts = ((s.start or 0, self.tensors.read(info.name, None, s)) for s in strip)
                for first, part in parts:
                    is_rounded = (self.dtype is not None or key) and part.dtype.kind == "f"
                    if is_rounded and not is_finite_in(part, info.dtype):
                        raise ValueError(
                            f"{info.name} has numbers that {info.dtype} has not; take bfloat16 or "
                            f"float32"
                        )
                    writer.write(info.name, part, first)
                    update(part.size * bits_of(info.dtype) // 8)
            writer.finish()
            flush(file)

    @cached_property
    def _updates(self) -> dict[str, Adapter]:
        return {}

    def _update_of(self, layer: str) -> tuple[StoredWeight, Adapter]:
        """Return the weight of a layer, and its update, which stays in memory."""
        weight = self.resolved.weights[layer]
        if layer not in self._updates:
            self._updates[layer] = adapter_of(self.files, self.files.layers[layer], weight)
        return weight, self._updates[layer]

    def _unchanged(self, name: str, update: Update) -> Iterator[bytes]:
        for part in self.tensors.raw(name):
            yield part
            update(len(part))


def _certificate(crew: Crew[_Merge], stage: Path | None, progress: bool) -> MergeCertificate:
    """Compute the certificate, without the rows that are noted in a stage, and note the others."""
    merge = crew.opened
    noted = [] if stage is None else [each for each in notes(stage) if isinstance(each, list)]
    rows = {row[0]: CertificateRow(*row) for row in noted}
    left = [layer for layer in merge.dtypes if layer not in rows]
    total = sum(math.prod(merge.resolved.weights[layer].shape) for layer in left)
    options: dict[str, Any] = {"unit": "number", "shown": progress, "unit_scale": True}
    with progress_bar(what="certifying the merge", total=total, **options) as bar:
        for layer, row in crew.each(_Merge.row, left, bar.update):
            rows[layer] = row
            if stage is not None:
                note(stage, astuple(row))
    certificate = MergeCertificate(tuple(map(rows.__getitem__, merge.dtypes)), float(merge.radius))
    broken = [row for row in certificate.rows if not row.is_finite]
    if broken:
        raise ValueError(
            f"the merged weight would not be finite in "
            f"{', '.join(row.layer for row in broken)}: {broken[0].note}"
        )
    return certificate


def _check_out(
    out: Path, tensors: TensorSet, files: AdapterFolder, shards: Mapping[str, Any]
) -> None:
    """Raise an error if `out` is an input, has other weights in it, or cannot be written."""
    text, is_file = repr(os.fspath(out)), out.suffix == ".safetensors"
    folder = out.parent if is_file else out
    inputs = [file.path.resolve() for file in tensors.files.values()]
    targets = {(folder / name).resolve() for name in shards}
    is_adapter = out.resolve() == files.path.resolve()
    if is_adapter or targets & {*inputs, (files.path / WEIGHTS).resolve()}:
        raise ValueError(f"{text} is what is merged; name another path, so that it stays as it is")
    if is_file and out.is_dir():
        raise ValueError(f"{text} is a folder, and would be a file; name another path")
    if is_file and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {os.fspath(folder)!r} for {text}; make it")
    if is_file:
        return
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(
            f"{text} is no folder; name one, or a file that ends in .safetensors, to be made"
        )
    strange = {each.name for each in out.glob("*.safetensors") if each.name not in shards}
    if len(shards) == 1:  # an index would be older than the files beside it
        strange |= {each.name for each in out.glob("*.safetensors.index.json")}
    if strange:
        raise ValueError(
            f"{text} has other weights in it, {', '.join(sorted(strange))}; name a folder without"
        )


def _merged(weight: StoredWeight, adapter: Adapter) -> Iterator[tuple[int, Array]]:
    """Yield the rows of the tensor with W + dW, in parts, each with the index of its first."""
    ratio, every = adapter.exact_ratio(weight), slice(None)
    for strip in strips(weight.shape[::-1] if weight.is_transposed else weight.shape):
        block = (every, strip) if weight.is_transposed else (strip, every)
        part = weight.rows(*block) + adapter.update(weight, *block, ratio)
        yield strip.start, part.T if weight.is_transposed else part
