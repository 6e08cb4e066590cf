"""Merging the adapters of a whole model, and taking that back."""

from __future__ import annotations

from collections.abc import Sequence

from lora.adapted import AdaptedLayer
from lora.attachment import (
    adapters,
    keep,
    layers_in_place,
    record_of,
    required,
    restore_flags,
)
from lora.replacing import replace
from minigrad.nn import Module


def merge(model: Module, names: str | Sequence[str] | None = None) -> list[str]:
    """Let every adapter of `model` compute with W + scale B A; return the names of their layers.

    The base weights stay beside the merged ones, so this takes memory; `lora.fold` does not keep
    them.

    Raises:
        ValueError: if there are no adapters.
    """
    found = adapters(model)
    chosen = _chosen(model, names)
    for _, layer in found:
        layer.merge([name for name in layer.active if chosen is None or name in chosen])
    return [name for name, _ in found]


def _chosen(model: Module, names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The adapters to merge, or None for all that are active.

    Raises:
        ValueError: if one is not there, or not active.
    """
    if names is None:
        return None
    record, chosen = required(model), (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        record.get(name)
        if name not in record.active:
            raise ValueError(
                f"adapter {name!r} is not active, and is not merged; lora.switch(model, {name!r}) "
                f"makes it so"
            )
    return chosen


def unmerge(model: Module) -> list[str]:
    """Let every adapter compute with W, A and B again; return the names of their layers.

    The base weights are those from before the merge to the bit: they were never written to.

    Raises:
        ValueError: if there are no adapters.
    """
    found = adapters(model)
    for _, layer in found:
        layer.unmerge()
    return [name for name, _ in found]


def fold(model: Module) -> Module:
    """Replace each layer with adapters by a plain one of W + dW; return the model.

    W is let go of, unless someone else holds it: a weight that was tied to another is so no longer.
    What was trained whole stays in its place. Flags are as they were before `attach`. A model that
    is itself a layer with adapters is not changed; its plain layer is returned.

    Raises:
        ValueError: if there are no adapters, or one is not active, which would be lost.
    """
    layers = dict(adapters(model))
    record = record_of(model)
    if record is not None:
        record.check_enabled("adapters cannot be folded in")
        layers_in_place(model, record)
        lost = [name for name in record.adapters if name not in record.active]
        if lost:
            raise ValueError(
                f"adapter {', '.join(map(repr, lost))} is not active, and would be lost; "
                f"lora.remove(model, {lost[0]!r}) says that it may be, lora.switch makes it active"
            )
    folded = {id(layer): layer.plain() for layer in layers.values()}
    if isinstance(model, AdaptedLayer):
        return folded[id(model)]
    for layer in layers.values():
        folded[id(layer)].training = layer.training
    if record is not None:
        flags = {id(parameter): flag for parameter, flag in record.flags}
        for name, original in record.originals.items():
            new = dict(folded[id(layers[name])].named_parameters())
            for key, parameter in original.named_parameters():
                new[key].requires_grad_(flags[id(parameter)])
        for name in record.active:
            restore_flags(
                (copy.own, flags[id(copy.original)]) for copy in record.adapters[name].copies
            )
        keep(model, None)
        restore_flags(record.flags)
    replace(model, folded)
    return model
