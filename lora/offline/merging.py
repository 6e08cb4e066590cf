"""merge_files: the adapter's update added to a base, from files to files, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora.adapter import Adapter
from lora.certificate import MergeCertificate
from lora.certificate.certificate import Row
from lora.certificate.certify import certify
from lora.certificate.layers import merging_into
from lora.offline.checking import findings_of
from lora.offline.resolve_base import TIED, UNTIED, Fit, fit
from lora.offline.sidecars import beside
from lora.offline.stored_weight import StoredWeight, adapter_of
from lora.peft.folder import WEIGHTS, AdapterFolder
from lora.peft.writing import FLOATS
from lora.weight import strips
from minigrad.io import TensorInfo, TensorSet, TensorWriter, open_tensors, writing, writing_set
from minigrad.io.tensor_info import from_stored, to_stored
from minigrad.progress import progress_bar
from minigrad.tables import in_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class MergedFiles:
    """What `merge_files` has written.

    Attributes:
        path: of the file or the folder.
        certificate: what the merge loses.
        replaced: the tensors that the adapter has whole, in place of those of the base.
        added: of these, those that the base has not.
        tied, heads, prefix: see `Fit`.
        left_out: files beside the base that are not copied, and folders, which end in a slash.
        nbytes: of all tensors.
    """

    path: Path
    certificate: MergeCertificate
    replaced: Sequence[str]
    added: Sequence[str]
    tied: Sequence[str]
    heads: Sequence[str]
    prefix: str
    left_out: Sequence[str]
    nbytes: int

    def __repr__(self) -> str:
        lines = [repr(self.certificate)]
        if self.prefix:
            lines.append(f"names of the base have {self.prefix!r} before those of the adapter")
        if self.replaced:
            added = f", {len(self.added)} of them new to it" if self.added else ""
            lines.append(f"taken over whole: {len(self.replaced)} tensors of the adapter{added}")
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
    copied to the bit, whatever its dtype. What is at `out` is replaced only by what is complete.

    Args:
        base: a safetensors file, an index of several, or a folder with `model.safetensors` or an
            index.
        adapter: a folder of PEFT's or of `lora.save`.
        out: a file, if it ends in .safetensors; else a folder, which gets the files that the base
            has, and copies of those without weights (`lora.offline.sidecars`).
        dtype: to store all floats in that have 16 bits or more, which a copied `config.json` then
            says too; None for the dtype of each tensor.
        limit: refuse if in one layer a larger share of the update is lost to rounding.
        radius: the norm of the inputs that the certificate's bound holds for.
        check_base: refuse a base that the adapter was not made on, if its metadata says on which.
        progress: show progress bars.

    Raises:
        FileNotFoundError: if a file is not there, or a folder for the one to be made.
        ValueError: if a file is not what it should be, something is wrong with the adapter, as
            `check_adapter` tells it, or does not go with the base, `out` is one of the inputs, of
            another kind than it says, or has other weights in it, or something would not be
            finite.
        MergeError: if more than the limit would be lost.
        OSError: if it cannot be written. Whatever the error, what was at `out` is as it was.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"weights are merged in {', '.join(FLOATS)}, not in {dtype!r}")
    with open_tensors(base) as tensors, AdapterFolder(adapter) as files:
        shards = _shards(tensors, Path(out))
        _check_out(Path(out), tensors, files, shards)
        wrong = [
            f"{each.where}: {each.what}"
            for each in findings_of(files, progress, with_ranks=False)
            if each.level == "wrong"
        ]
        found = fit(files, tensors, check_base, progress)
        if wrong or found.problems:
            raise ValueError(
                f"{os.fspath(adapter)!r} does not go with {os.fspath(base)!r}:\n  "
                + "\n  ".join([*wrong, *found.problems])
            )
        merge = _Merge(tensors, files, found, dtype)
        certificate = merge.certified(limit, radius, progress)
        for name in found.added:
            shards[next(iter(shards))].append(files.tensors[found.whole[name]])
        infos = {file: [merge.info(i) for i in listed] for file, listed in shards.items()}
        every = [info for listed in infos.values() for info in listed]
        others = beside(Path(base), tensors, dtype, bool(found.heads))
        with _writing(Path(out), infos, tensors.metadata, others.copied) as writers:
            merge.write(writers, {info.name: info.dtype for info in every}, progress)
        nbytes = sum(info.nbytes for info in every)
    is_folder = Path(out).suffix != ".safetensors"
    return MergedFiles(
        Path(out),
        certificate,
        list(found.whole),
        found.added,
        found.tied,
        found.heads,
        found.prefix,
        others.left_out if is_folder else (),
        nbytes,
    )


class _Merge:
    """All tensors of the result, one after the other."""

    def __init__(
        self, tensors: TensorSet, files: AdapterFolder, found: Fit, dtype: str | None
    ) -> None:
        self._tensors, self._files, self._found, self._dtype = tensors, files, found, dtype
        self._updates: dict[str, tuple[StoredWeight, Adapter]] = {
            weight.name: (weight, adapter_of(files, files.layers[layer], weight))
            for layer, weight in found.weights.items()
        }

    def info(self, info: TensorInfo) -> TensorInfo:
        """What a tensor of the base becomes, or one of the adapter that the base has not."""
        of_adapter = {key: name for name, key in self._found.whole.items()}
        name = of_adapter.get(info.name, info.name)
        dtype = self._dtype if self._dtype is not None and info.dtype in FLOATS else info.dtype
        return TensorInfo(name, dtype, info.shape)

    def certified(self, limit: float | None, radius: float, progress: bool) -> MergeCertificate:
        """What is lost in each layer, in the dtype that its weight is stored in.

        Raises:
            ValueError: if a merged weight would not be finite.
            MergeError: if more than the limit is lost.
        """
        names = {weight.name: layer for layer, weight in self._found.weights.items()}
        by_dtype: dict[str, list[str]] = {}
        for name in self._updates:
            by_dtype.setdefault(self.info(self._tensors.info(name)).dtype, []).append(name)
        rows: list[Row] = []
        for dtype, listed in by_dtype.items():
            parts = (
                merging_into(
                    names[name], weight, [adapter], [adapter],
                    one_hot=self._files.layers[names[name]].is_embedding,
                )
                for name, (weight, adapter) in self._updates.items()
                if name in listed
            )  # fmt: skip
            certificate = certify(parts, dtype, radius, progress=progress)
            broken = [row for row in certificate.rows if not row.is_finite]
            if broken:
                raise ValueError(
                    f"the merged weight would not be finite in "
                    f"{', '.join(row.layer for row in broken)}: {broken[0].note}"
                )
            if limit is not None:
                certificate.check(limit, dtype)
            rows += certificate.rows
        return MergeCertificate(tuple(rows), float(radius))

    def write(
        self, writers: Mapping[str, TensorWriter], dtypes: Mapping[str, str], progress: bool
    ) -> None:
        """Write all tensors, each in its dtype.

        Raises:
            ValueError: if a finite number would not be so in it.
        """
        total = sum(self._tensors.info(name).nbytes for name in self._tensors)
        with progress_bar(
            what="merge", unit="B", shown=progress, total=total, unit_scale=True
        ) as bar:
            for name in [*self._tensors, *self._found.added]:
                if self._is_as_it_was(name, dtypes[name]):
                    writers[name].copy(name, self._counted(name, bar))
                    continue
                for first, part in self._parts(name):
                    if self._dtype is not None or name in self._found.whole:
                        _check_range(name, part, dtypes[name])
                    writers[name].write(name, part, first)
                    bar.update(part.nbytes)

    def _is_as_it_was(self, name: str, dtype: str) -> bool:
        """Whether a tensor of the result is one of the base, to the bit."""
        if name in self._found.whole or name in self._updates:
            return False
        return self._tensors.info(name).dtype == dtype

    def _counted(self, name: str, bar: tqdm[Any]) -> Iterator[bytes]:
        """The bytes of a tensor of the base, which the bar is told of."""
        for part in self._tensors.raw(name):
            yield part
            bar.update(len(part))

    def _parts(self, name: str) -> Iterator[tuple[int, Array]]:
        """The rows of a tensor of the result, in parts, and where each begins."""
        if name in self._found.whole:
            yield 0, self._files.read(self._found.whole[name])
            return
        update = self._updates.get(name)
        ratio = None if update is None else update[1].exact_ratio(update[0])
        for rows in strips(self._tensors.info(name).shape):
            if update is None:
                yield rows.start or 0, self._tensors.read(name, None, rows)
                continue
            weight, adapter = update
            if weight.is_transposed:
                every = slice(None)
                part = weight.rows(every, rows) + adapter.update(weight, every, rows, ratio)
                yield rows.start, part.T
            else:
                part = weight.rows(rows) + adapter.update(weight, rows, slice(None), ratio)
                yield rows.start, part


def _check_range(name: str, part: Array, dtype: str) -> None:
    """Refuse to turn finite numbers into infinite ones."""
    if part.dtype.kind != "f":
        return
    finite = np.isfinite(part)
    if not np.isfinite(from_stored(to_stored(part, dtype), dtype))[finite].all():
        raise ValueError(f"{name} has numbers that {dtype} has not; take bfloat16 or float32")


# --------------------------------------------------------------------------------------------------
# Where it goes
# --------------------------------------------------------------------------------------------------


def _shards(tensors: TensorSet, out: Path) -> dict[str, list[TensorInfo]]:
    """The tensors of each file: of those of the base, or all in one."""
    if out.suffix == ".safetensors":
        return {out.name: list(tensors.tensors.values())}
    if len(tensors.files) == 1:
        return {"model.safetensors": list(tensors.tensors.values())}
    return {name: list(file.tensors.values()) for name, file in tensors.files.items()}


def _check_out(
    out: Path, tensors: TensorSet, files: AdapterFolder, shards: Mapping[str, Any]
) -> None:
    """Refuse to write over an input, beside other weights, or where nothing can be written."""
    text, is_file = repr(os.fspath(out)), out.suffix == ".safetensors"
    folder = out.parent if is_file else out
    inputs = [file.path.resolve() for file in tensors.files.values()]
    targets = {(folder / name).resolve() for name in shards}
    mine = out.resolve() == files.path.resolve()
    if mine or targets & {*inputs, (files.path / WEIGHTS).resolve()}:
        raise ValueError(f"{text} is what is merged; name another place, so that it stays as it is")
    if is_file:
        if out.is_dir():
            raise ValueError(f"{text} is a folder, and would be a file; name another place")
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {os.fspath(folder)!r} for {text}; make it")
        return
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(
            f"{text} is no folder; name one, or a file that ends in .safetensors, to be made"
        )
    strange = {each.name for each in out.glob("*.safetensors") if each.name not in shards}
    if len(shards) == 1:  # an index would be older than what is beside it
        strange |= {each.name for each in out.glob("*.safetensors.index.json")}
    if strange:
        raise ValueError(
            f"{text} has other weights in it, {', '.join(sorted(strange))}; name a folder without"
        )


@contextmanager
def _writing(
    out: Path,
    infos: Mapping[str, Sequence[TensorInfo]],
    metadata: Mapping[str, str],
    others: Mapping[str, Path | bytes],
) -> Iterator[Mapping[str, TensorWriter]]:
    """Writers for a file, or for the files of a folder, by the name of each tensor."""
    facts = {"format": "pt", **metadata}
    if out.suffix == ".safetensors":
        (listed,) = infos.values()
        with writing(out, listed, facts) as writer:
            yield {info.name: writer for info in listed}
        return
    with writing_set(out, infos, facts, others) as writers:
        yield writers
