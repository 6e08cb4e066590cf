"""check_adapter: all that is wrong with an adapter in files, and with a base for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lora.factors import singular_values
from lora.offline.resolve_base import TIED, UNTIED, fit
from lora.peft.folder import KEYS, MAGNITUDE, PREFIX, A, AdapterFolder, B, StoredLayer
from lora.peft.matching import rank_of, targeted
from lora.peft.writing import FLOATS
from minigrad.io import open_tensors
from minigrad.progress import progress_bar

_NOT_READ = f"and not of {', '.join(FLOATS)}"


@dataclass(frozen=True)
class Finding:
    """Something about an adapter.

    Attributes:
        level: "wrong": it does not work, or does something else than it says. "odd": it may be
            meant so.
        where: the layer, key or file.
        what: what is so, and what to do.
    """

    level: Literal["wrong", "odd"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


@dataclass(frozen=True, repr=False)
class Findings:
    """What `check_adapter` found.

    Attributes:
        path: of the adapter.
        findings: what is wrong or odd.
        checked: how many layers were looked at.
        has_base: whether a base was looked at too.
    """

    path: str
    findings: tuple[Finding, ...]
    checked: int
    has_base: bool

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.level != "wrong" for finding in self.findings)

    def __repr__(self) -> str:
        wrong = sum(finding.level == "wrong" for finding in self.findings)
        odd = len(self.findings) - wrong
        beside = " and the base" if self.has_base else ""
        total = f"{self.checked} layers{beside} checked: "
        total += f"{wrong} wrong, {odd} odd" if self.findings else "nothing is wrong"
        return "\n".join([*map(str, self.findings), total])


def check_adapter(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Findings:
    """Look for what is wrong with an adapter: its files, numbers, scales, and the base.

    Args:
        folder: of PEFT's, or of `lora.save`.
        base: a safetensors file, an index, or a folder of a model; None to look at the adapter
            alone.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if there is no such folder or base.
        ValueError: if the base is not what it should be.
    """
    path = os.fspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {path!r}")
    try:
        files = AdapterFolder(folder)
    except (FileNotFoundError, ValueError) as error:
        return Findings(path, (Finding("wrong", "files", str(error)),), 0, False)
    with files:
        found = list(findings_of(files, progress))
        if base is not None:
            with open_tensors(base) as tensors:
                fitted = fit(files, tensors, progress=progress)
                found += [
                    Finding("wrong", weight.name, "has NaN or Inf in it, in the base")
                    for weight in progress_bar(
                        fitted.weights.values(), what="base", unit="layer", shown=progress
                    )
                    if not weight.is_finite()
                ]
            found += [Finding("wrong", "base", problem) for problem in fitted.problems]
            found += [
                Finding("odd", name, "is trained whole, and not in the base")
                for name in fitted.added
            ]
            found += [Finding("odd", name, TIED) for name in fitted.tied]
            found += [Finding("odd", name, UNTIED) for name in fitted.heads]
        return Findings(path, tuple(found), len(files.layers), base is not None)


def findings_of(
    files: AdapterFolder, progress: bool, *, with_ranks: bool = True
) -> Iterator[Finding]:
    """What is wrong or odd about an adapter alone.

    Args:
        files: the adapter.
        progress: show a progress bar.
        with_ranks: look for updates of 0 or of a low rank too, which takes the most time.
    """
    yield from _of_keys(files)
    for name, said, was in files.lost_scales():
        if name in files.layers:
            yield Finding(
                "wrong", name,
                f"the scale is {said:g} by the configuration, and was {was:g} when it was saved; "
                f"put the file back that was changed",
            )  # fmt: skip
    layers = files.layers.values()
    for layer in progress_bar(layers, what="verify", unit="layer", shown=progress):
        yield from _of_layer(files, layer, with_ranks)
    yield from _of_wholes(files)


def _of_keys(files: AdapterFolder) -> Iterator[Finding]:
    """What the configuration and the tensors say of each other."""
    if not files.layers:
        yield Finding("wrong", "files", "there is no layer with an update")
    linear = [layer.name for layer in files.layers.values() if not layer.is_embedding]
    found = targeted(files.config, files.layers, linear)
    for name in files.layers:
        if name not in found:
            yield Finding("wrong", name, "target_modules do not find it, so PEFT passes it by")
    for name in files.facts.layers:
        if name not in files.layers:
            yield Finding("wrong", name, "is in the metadata, and has no tensors")
    for name, key in files.whole.items():
        is_base = name.removesuffix(".weight") in files.layers  # as PEFT may write of an embedding
        if files.is_meant(key) or is_base:
            continue
        if not key.startswith(PREFIX) or ".lora_" in key:
            yield Finding("wrong", key, f"is no key of PEFT's, which are like {KEYS}")
        else:
            yield Finding(
                "odd",
                name,
                "is no part of an update, and neither bias nor modules_to_save say that it was "
                "trained whole; PEFT puts it in the place of the model's own, if there is one",
            )


def _of_layer(files: AdapterFolder, layer: StoredLayer, with_ranks: bool) -> Iterator[Finding]:
    """What the tensors of one layer are like."""
    wanted = {A, B, MAGNITUDE} if files.config.use_dora else {A, B}
    for part in sorted(wanted - layer.keys.keys()):
        yield Finding("wrong", layer.name, f"{part} is missing, so PEFT begins with another one")
    if MAGNITUDE in layer.keys.keys() - wanted:
        yield Finding("wrong", layer.name, "has a magnitude, and use_dora is not set")
    infos = {part: files.tensors[key] for part, key in layer.keys.items()}
    unread = [part for part, info in infos.items() if info.dtype not in FLOATS]
    for part in unread:
        yield Finding("wrong", layer.name, f"{part} is of {infos[part].dtype}, {_NOT_READ}")
    if unread or not {A, B} <= layer.keys.keys():
        return
    arrays = {part: files.read(key, np.float64) for part, key in layer.keys.items()}
    for part, array in arrays.items():
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            yield Finding("wrong", layer.name, f"{part} has {broken:,} numbers that are NaN or Inf")
    a, b = arrays[A], arrays[B]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not a.size or not b.size:
        yield Finding(
            "wrong", layer.name,
            f"A is {a.shape} and B {b.shape}; they must be (rank, d_in) and (d_out, rank)",
        )  # fmt: skip
        return
    m = arrays.get(MAGNITUDE)
    if m is not None and m.shape != (len(b),):
        yield Finding("wrong", layer.name, f"the magnitude is {m.shape}; it must be {(len(b),)}")
    rank = rank_of(files.config, layer.name)
    if rank != len(a):
        yield Finding(
            "wrong", layer.name,
            f"the rank is {len(a)} by its tensors and {rank} by the configuration, so its scale "
            f"is another one than it was trained with, or a rank_pattern is lost",
        )  # fmt: skip
    if with_ranks:
        yield from _of_numbers(layer.name, a, b, m)


def _of_numbers(name: str, a: np.ndarray, b: np.ndarray, m: np.ndarray | None) -> Iterator[Finding]:
    """Updates of zero or of a lower rank than they have room for."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return
    if not a.any() or not b.any():
        which = " and ".join(part for part, x in (("A", a), ("B", b)) if not x.any())
        and_magnitude = "" if m is None else ", but for its magnitude"
        yield Finding("odd", name, f"{which} is 0, so it changes nothing{and_magnitude}")
        return
    values = singular_values(a, b)
    room = min(len(a), a.shape[1], len(b))
    # What rounding to float32 makes of values that are 0.
    least = float(values[0]) * max(a.shape[1], len(b)) * 2.0**-24
    rank = int(np.count_nonzero(values > least))
    if rank < room:
        yield Finding("odd", name, f"B A is of rank {rank} only, with room for {room}")
    if len(a) > room:
        yield Finding("odd", name, f"its rank {len(a)} is larger than the layer, {room}")


def _of_wholes(files: AdapterFolder) -> Iterator[Finding]:
    for key in files.whole.values():
        if files.tensors[key].dtype not in FLOATS:
            yield Finding("wrong", key, f"is of {files.tensors[key].dtype}, {_NOT_READ}")
        elif not np.isfinite(files.read(key)).all():
            yield Finding("wrong", key, "has NaN or Inf in it")
