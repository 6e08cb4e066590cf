"""The checker: what is wrong with an adapter in files, by itself, on a model, and on a base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lora.attachment.plan import Plan
from lora.attachment.state import parameters_in_use
from lora.peft.facts import LayerFacts, fingerprint_of
from lora.peft.folder import (
    FLOATS,
    KEYS,
    MAGNITUDE,
    PREFIX,
    WEIGHTS,
    A,
    AdapterFolder,
    B,
    StoredLayer,
)
from lora.spectra import singular_values
from minigrad.nn import Module, Parameter
from minigrad.progress import progress_bar

Array = NDArray[Any]
W = TypeVar("W")

_NO_FLOATS = f"and not of {', '.join(FLOATS)}"


@dataclass(frozen=True)
class Finding:
    """Something about an adapter.

    Attributes:
        level: "wrong": it does not work, or does something else than it says. "odd": it may be
            meant so.
        where: the layer, key or file.
        what: the fact, and what to do about it.
    """

    level: Literal["wrong", "odd"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


# --------------------------------------------------------------------------------------------------
# An adapter by itself
# --------------------------------------------------------------------------------------------------


def findings_of(
    files: AdapterFolder, progress: bool, *, with_ranks: bool = True
) -> Iterator[Finding]:
    """Yield what is wrong or odd about an adapter by itself.

    Args:
        files: the adapter.
        progress: show a progress bar.
        with_ranks: look for updates of 0 or of a low rank too, which takes the most time.
    """
    if not files.layers:
        yield Finding("wrong", "files", "there is no layer with an update")
    linear = [layer.name for layer in files.layers.values() if not layer.is_embedding]
    found = files.config.targets_among(files.layers, linear)
    for name in files.layers:
        if name not in found:
            yield Finding("wrong", name, "target_modules do not find it, so PEFT ignores it")
    for name in files.facts.layers:
        if name not in files.layers:
            yield Finding("wrong", name, "is in the metadata, and has no tensors")
    for name, problem in scale_problems(files):
        yield Finding("wrong", name, problem)
    bar = progress_bar(files.layers.values(), what="check", unit="layer", shown=progress)
    for layer in bar:
        yield from _findings_of_layer(files, layer, with_ranks)
    for name, key in files.whole.items():
        if files.tensors[key].dtype not in FLOATS:
            yield Finding("wrong", key, f"is of {files.tensors[key].dtype}, {_NO_FLOATS}")
        elif not np.isfinite(files.read(key)).all():
            yield Finding("wrong", key, "has NaN or Inf in it")
        is_base = name.removesuffix(".weight") in files.layers  # as PEFT may write of an embedding
        if files.is_meant(key) or is_base:
            continue
        if not key.startswith(PREFIX) or ".lora_" in key:
            yield Finding("wrong", key, f"is no key of PEFT's, which are like {KEYS}")
        else:
            yield Finding(
                "odd", name,
                "is no part of an update, and neither bias nor modules_to_save say that it was "
                "trained in full; PEFT replaces the model's own by it, if there is one",
            )  # fmt: skip


def scale_problems(files: AdapterFolder) -> Iterator[tuple[str, str]]:
    """Yield layers with updates whose scale was changed since they were saved, and the problem."""
    for name, scale, saved in files.lost_scales():
        if name in files.layers:
            yield (
                name,
                f"the scale is {scale:g} by the configuration, and was {saved:g} when it was "
                f"saved, by the metadata of {WEIGHTS}; one of the files has been changed, so put "
                f"the other back, and assign layer.scale after loading",
            )


def _findings_of_layer(
    files: AdapterFolder, layer: StoredLayer, with_ranks: bool
) -> Iterator[Finding]:
    """Yield what is wrong or odd about the tensors of one layer."""

    def wrong(what: str) -> Finding:
        return Finding("wrong", layer.name, what)

    wanted = {A, B, MAGNITUDE} if files.config.use_dora else {A, B}
    for part in sorted(wanted - layer.keys.keys()):
        yield wrong(f"{part} is missing, so PEFT begins with another one")
    if MAGNITUDE in layer.keys.keys() - wanted:
        yield wrong("has a magnitude, and use_dora is not set")
    dtypes = {part: files.tensors[key].dtype for part, key in layer.keys.items()}
    unread = {part: dtype for part, dtype in dtypes.items() if dtype not in FLOATS}
    for part, dtype in unread.items():
        yield wrong(f"{part} is of {dtype}, {_NO_FLOATS}")
    if unread or not {A, B} <= layer.keys.keys():
        return
    arrays = {part: files.read(key, np.float64) for part, key in layer.keys.items()}
    for part, array in arrays.items():
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            yield wrong(f"{part} has {broken:,} numbers that are NaN or Inf")
    a, b = arrays[A], arrays[B]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not a.size or not b.size:
        yield wrong(f"A is {a.shape} and B {b.shape}; they must be (rank, d_in) and (d_out, rank)")
        return
    m = arrays.get(MAGNITUDE)
    if m is not None and m.shape != (len(b),):
        yield wrong(f"the magnitude is {m.shape}; it must be {(len(b),)}")
    rank = files.config.rank_of(layer.name)
    if rank != len(a):
        yield wrong(
            f"the rank is {len(a)} by its tensors and {rank} by the configuration, so its scale "
            f"is another one than it was trained with, or a rank_pattern is lost"
        )
    if with_ranks and np.isfinite(a).all() and np.isfinite(b).all():
        for what in _odd_ranks(a, b, m):
            yield Finding("odd", layer.name, what)


def _odd_ranks(a: Array, b: Array, m: Array | None) -> Iterator[str]:
    """Yield what is odd about an update that is zero, or of a lower rank than it could have."""
    if not a.any() or not b.any():
        which = " and ".join(part for part, x in (("A", a), ("B", b)) if not x.any())
        and_magnitude = "" if m is None else ", but for its magnitude"
        yield f"{which} is 0, so it changes nothing{and_magnitude}"
        return
    values = singular_values(a, b)
    room = min(len(a), a.shape[1], len(b))
    # What rounding to float32 makes of values that are 0.
    least = float(values[0]) * max(a.shape[1], len(b)) * 2.0**-24
    rank = int(np.count_nonzero(values > least))
    if rank < room:
        yield f"B A is of rank {rank} only, with room for {room}"
    if len(a) > room:
        yield f"its rank {len(a)} is larger than the layer, {room}"


# --------------------------------------------------------------------------------------------------
# An adapter on a base or a model
# --------------------------------------------------------------------------------------------------


def tensor_problems(
    files: AdapterFolder, key: str, shape: tuple[int, ...], source: str
) -> Iterator[str]:
    """Yield why a tensor cannot be one of this shape, which a model or a base, the source, has."""
    info = files.tensors[key]
    if info.shape != shape:
        yield f"mis-shaped: {key} is {info.shape} in the file, and {shape} {source}"
    if info.dtype not in FLOATS:
        yield f"unusable: {key} is of {info.dtype}, {_NO_FLOATS}"


def is_same(files: AdapterFolder, key: str, array: Array) -> bool:
    """Whether a tensor has the shape and, in the dtype of the array, the elements of an array."""
    info = files.tensors[key]
    if info.shape != array.shape or info.dtype not in FLOATS:
        return False
    return np.array_equal(files.read(key, array.dtype), array)


def base_problems(
    facts: Mapping[str, LayerFacts],
    weights: Mapping[str, W],
    fingerprint: Callable[[W], str],
    progress: bool,
) -> Iterator[str]:
    """Yield the layers whose matrices are not those that the adapter was made on.

    Args:
        facts: the facts about the layers, by name.
        weights: what the layers have.
        fingerprint: a function that returns the fingerprint of one.
        progress: show a progress bar if it takes long.
    """
    known = [name for name in weights if name in facts and facts[name].base is not None]
    for name in progress_bar(known, what="hash of the base", unit="layer", shown=progress):
        found, fact = fingerprint(weights[name]), facts[name]
        if found != fact.base:
            four_bits = " in four bits" if fact.stored == "nf4" else ""
            yield (
                f"another base: the weight of {name} has the sha256 {found[:12]}..., and the "
                f"adapter was made on {str(fact.base)[:12]}...{four_bits}; take that base, or say "
                f"check_base=False (--any-base) to take this one"
            )


def model_problems(
    files: AdapterFolder,
    model: Module,
    plan: Plan,
    parameters: Mapping[str, Parameter],
    check_base: bool,
    progress: bool,
) -> Iterator[str]:
    """Yield why an adapter cannot be put on a model.

    Args:
        files: the adapter.
        model: the model.
        plan: the attachment of the adapter to the model.
        parameters: the parameters that need a value from the file, by key.
        check_base: whether the base must be the one that the adapter was made on.
        progress: show a progress bar if it takes long.
    """
    for key, parameter in parameters.items():
        if key not in files.tensors:
            yield f"missing: {key} {parameter.shape}"
            continue
        source = "by its configuration and the model"
        yield from tensor_problems(files, key, parameter.shape, source)
    own = dict(parameters_in_use(model))
    for key in files.tensors:
        if key in parameters or key in files.repeated:
            continue
        # PEFT may write the weights of embeddings and of the head, adapted or not; these must be
        # those that the model has.
        layer = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
        adapted = plan.layers.get(layer)
        stored = None if adapted is None else getattr(adapted.base_weight, "_data", None)
        if stored is not None and key.endswith(".weight"):
            if not is_same(files, key, stored):
                yield f"another base: {key} is not the weight that the model has"
        else:
            same = own.get(key.removeprefix(PREFIX))
            if same is None or not is_same(files, key, same.data):
                yield f"unexpected: {key} {files.tensors[key].shape}"
    for name, problem in scale_problems(files):
        yield f"scale: of {name}, {problem}"
    if check_base:
        yield from base_problems(files.facts.layers, plan.layers, fingerprint_of, progress)
