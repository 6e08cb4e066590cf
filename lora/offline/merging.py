"""merge_files: the update of an adapter added to a base, from files to files, by rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora.adapter import Adapter
from lora.certificate import MergeCertificate, certify, merging_into
from lora.frozen import Array, strips
from lora.offline.inspection import wrong_in
from lora.offline.model_folder import TIED, UNTIED, find_sidecars, open_base, resolve
from lora.offline.stored_weight import StoredWeight, adapter_of
from lora.peft.folder import FLOATS, WEIGHTS, AdapterFolder, is_finite_in
from minigrad.checks import check_problems
from minigrad.io import TensorInfo, TensorSet, TensorWriter, writing, writing_set
from minigrad.progress import progress_bar
from minigrad.tables import in_bytes


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
        return "\n".join([*lines, f"written: {self.path} ({in_bytes(self.nbytes)})"])


def merge_files(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    limit: float | None = None,
    radius: float = 1.0,
    check_base: bool = True,
    progress: bool = True,
) -> MergedFiles:
    """Write a base with the update of an adapter in it: V = W + s B A, computed in float64.

    No more than some rows of a tensor are in memory at a time. What the adapter does not change is
    copied to the bit, whatever its dtype. Files at `out` are replaced only by complete ones.

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
        progress: show progress bars.

    Raises:
        FileNotFoundError: if a file is not there, or a folder for the one to be made.
        ValueError: if a file is not what it should be, `check_adapter` finds something wrong with
            the adapter, it does not go with the base, `out` is one of the inputs, of another kind
            than its name says, or has other weights in it, or something would not be finite.
        MergeError: if more than the limit would be lost.
        OSError: if it cannot be written. Whatever the error, the files at `out` are as they were.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"weights are merged in {', '.join(FLOATS)}, not in {dtype!r}")
    target = Path(out)
    is_file = target.suffix == ".safetensors"
    with open_base(base) as tensors, AdapterFolder(adapter) as files:
        shards = {name: list(file.tensors.values()) for name, file in tensors.files.items()}
        if is_file or len(shards) == 1:
            shards = {target.name if is_file else "model.safetensors": [*tensors.tensors.values()]}
        _check_out(target, tensors, files, shards)
        problems = wrong_in(files, progress)
        resolved = resolve(files, tensors, check_base, progress)
        what = f"{os.fspath(adapter)!r} does not go with {os.fspath(base)!r}"
        check_problems(what, [*problems, *resolved.problems])
        for name in resolved.added:
            next(iter(shards.values())).append(files.tensors[resolved.replaced[name]])
        names = {key: name for name, key in resolved.replaced.items()}

        def result(info: TensorInfo) -> TensorInfo:
            """Describe the result of a tensor of the base, or of one that the adapter adds."""
            stored = dtype if dtype is not None and info.dtype in FLOATS else info.dtype
            return TensorInfo(names.get(info.name, info.name), stored, info.shape)

        shards = {file: [result(info) for info in infos] for file, infos in shards.items()}
        every = {info.name: info for infos in shards.values() for info in infos}
        updates, merges = {}, []
        dtypes = {layer: every[weight.name].dtype for layer, weight in resolved.weights.items()}
        for layer in sorted(dtypes, key=lambda layer: [*dtypes.values()].index(dtypes[layer])):
            weight, stored_layer = resolved.weights[layer], files.layers[layer]
            update = adapter_of(files, stored_layer, weight)
            updates[weight.name] = weight, update
            one_hot = stored_layer.is_embedding
            merges.append(merging_into(layer, weight, [update], [update], one_hot=one_hot))
        certificate = certify(merges, dtypes, radius, progress=progress)
        broken = [row for row in certificate.rows if not row.is_finite]
        if broken:
            raise ValueError(
                f"the merged weight would not be finite in "
                f"{', '.join(row.layer for row in broken)}: {broken[0].note}"
            )
        if limit is not None:
            for kind in certificate.dtypes:
                certificate.only([kind]).check(limit, kind)
        metadata = {"format": "pt", **tensors.metadata}
        total = sum(info.nbytes for info in tensors.tensors.values())
        left_out: Sequence[str] = ()
        with ExitStack() as stack:
            if is_file:
                writer = stack.enter_context(writing(target, every.values(), metadata))
                writers: Mapping[str, TensorWriter] = dict.fromkeys(every, writer)
            else:
                is_untied = bool(resolved.heads)
                sidecars, left_out = find_sidecars(Path(base), tensors, dtype, is_untied)
                writers = stack.enter_context(writing_set(target, shards, metadata, sidecars))
            bar = stack.enter_context(
                progress_bar(what="merge", unit="B", shown=progress, total=total, unit_scale=True)
            )

            def unchanged(name: str) -> Iterator[bytes]:
                for part in tensors.raw(name):
                    yield part
                    bar.update(len(part))

            for name in [*tensors, *resolved.added]:
                is_replaced, stored = name in resolved.replaced, every[name].dtype
                parts: Iterable[tuple[int, Array]]
                if is_replaced:
                    parts = [(0, files.read(resolved.replaced[name]))]
                elif name in updates:
                    parts = _merged(*updates[name])
                elif tensors.info(name).dtype == stored:
                    writers[name].copy(name, unchanged(name))
                    continue
                else:
                    strip = strips(tensors.info(name).shape)
                    parts = ((rows.start or 0, tensors.read(name, None, rows)) for rows in strip)
                for first, part in parts:
                    is_rounded = (dtype is not None or is_replaced) and part.dtype.kind == "f"
                    if is_rounded and not is_finite_in(part, stored):
                        raise ValueError(
                            f"{name} has numbers that {stored} has not; take bfloat16 or float32"
                        )
                    writers[name].write(name, part, first)
                    bar.update(part.nbytes)
    found = resolved.added, resolved.tied, resolved.heads, resolved.prefix
    size = sum(info.nbytes for info in every.values())
    return MergedFiles(target, certificate, list(resolved.replaced), *found, left_out, size)


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
