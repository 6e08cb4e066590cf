"""What there must be in a folder, by its configuration and the model, against what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.attachment.plan import Plan
from lora.embedding import LoRAEmbedding
from lora.full_copies import in_place
from lora.peft.fingerprint import fingerprint_of
from lora.peft.folder import PREFIX, WEIGHTS, AdapterFolder, key_of, key_of_whole
from lora.peft.writing import FLOATS
from minigrad.nn import Module, Parameter
from minigrad.progress import progress_bar

Array = NDArray[Any]


def places_of(model: Module, plan: Plan) -> dict[str, Parameter]:
    """The parameters that the file has values for, by key."""
    found: dict[str, Parameter] = {}
    for name, update in plan.updates.items():
        is_embedding = isinstance(plan.layers[name], LoRAEmbedding)
        for part, parameter in update.contents():
            if isinstance(parameter, Parameter):
                found[key_of(name, part, is_embedding)] = parameter
    for copy in plan.copies:
        found[key_of_whole(copy.name, copy.name.rpartition(".")[0] in plan.updates)] = copy.own
    return found


def problems_of(
    files: AdapterFolder, plan: Plan, places: Mapping[str, Parameter], model: Module
) -> Iterator[str]:
    """What is missing, mis-shaped or unexpected."""
    own = dict(in_place(model))
    for key, parameter in places.items():
        if key not in files.tensors:
            yield f"missing: {key} {parameter.shape}"
            continue
        info = files.tensors[key]
        if info.shape != parameter.shape:
            yield (
                f"mis-shaped: {key} is {info.shape} in the file, and {parameter.shape} by its "
                f"configuration and the model"
            )
        if info.dtype not in FLOATS:
            yield f"unusable: {key} is of {info.dtype}, and not of {', '.join(FLOATS)}"
    for key in files.tensors:
        if key not in places and key not in files.repeated:
            yield from _unexpected_problems(key, files, plan, own)


def _unexpected_problems(
    key: str, files: AdapterFolder, plan: Plan, own: Mapping[str, Parameter]
) -> Iterator[str]:
    """What is wrong with a tensor that has no place.

    PEFT may write the weights of embeddings and of the head, adapted or not; these must be those
    that the model has.
    """
    shape = files.tensors[key].shape
    layer = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    held = plan.layers.get(layer)
    stored = None if held is None else getattr(held.base_weight, "_data", None)
    if stored is None or not key.endswith(".weight"):
        same = own.get(key.removeprefix(PREFIX))
        if same is None or not _is_same(files, key, same.data):
            yield f"unexpected: {key} {shape}"
    elif not _is_same(files, key, stored):
        yield f"another base: {key} is not the weight that the model has"


def _is_same(files: AdapterFolder, key: str, stored: Array) -> bool:
    """Whether a tensor has the numbers that the model has."""
    info = files.tensors[key]
    if info.shape != stored.shape or info.dtype not in FLOATS:
        return False
    return np.array_equal(files.read(key, stored.dtype), stored)


def values_of(
    files: AdapterFolder, places: Mapping[str, Parameter], problems: list[str]
) -> Iterator[tuple[str, Array]]:
    """The tensors in the dtypes of their places, as far as they can be read."""
    for key, parameter in places.items():
        info = files.tensors.get(key)
        if info is None or info.shape != parameter.shape or info.dtype not in FLOATS:
            continue
        with np.errstate(over="ignore"):
            value = files.read(key, parameter.dtype)
        if not np.isfinite(value).all():
            problems.append(f"not finite: {key} has NaN or Inf in it, in {parameter.dtype}")
        yield key, value


def scale_problems(files: AdapterFolder, plan: Plan) -> Iterator[str]:
    """Scales that the metadata and the configuration disagree on."""
    for name, said, was in files.lost_scales():
        if name in plan.updates:
            yield (
                f"scale: of {name} it is {said:g} by the configuration, and {was:g} by the "
                f"metadata of {WEIGHTS}; one of the files has been changed, so put the other back, "
                f"and assign layer.scale after loading"
            )


def base_problems(files: AdapterFolder, plan: Plan, progress: bool) -> Iterator[str]:
    """Layers whose matrices are not those that the file says."""
    known = [(n, facts) for n, facts in files.facts.layers.items() if n in plan.layers]
    for name, facts in progress_bar(known, what="hash of the base", unit="layer", shown=progress):
        if facts.base is None:
            continue
        found = fingerprint_of(plan.layers[name])
        if found != facts.base:
            four_bits = " in four bits" if facts.stored == "nf4" else ""
            yield (
                f"another base: the weight of {name} has the sha256 {found[:12]}..., and the "
                f"adapter was made on {facts.base[:12]}...{four_bits}; load that base, or say "
                f"check_base=False to take this one"
            )
