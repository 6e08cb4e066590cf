"""Which adapters of a model take part: one, several, or for a while none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lora.attachment.record import (
    Attachment,
    adapted_layers,
    layers_in_place,
    record_of,
    required,
    restore_flags,
)
from lora.config import LoRAConfig
from lora.full_copies import Whole
from minigrad.nn import Module, Parameter

_LOCK = threading.Lock()  # blocks of `disabled` are counted, which several threads may do at once


def switch(model: Module, *names: str) -> Module:
    """Let these adapters be active, and no others; return the model.

    The updates of several add up. Of an adapter that is not active nothing trains; its
    `requires_grad` flags come back when it is active again. Without names, none is active.

    Raises:
        ValueError: if there is no adapter of that name, one is named twice, one that is merged
            would be switched off, or two would train one parameter whole; then nothing is changed.
    """
    record = required(model)
    record.check_enabled("adapters cannot be switched")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"switch takes names, as in switch(model, 'a', 'b'), not {name!r}")
        record.get(name)
    if len(set(names)) < len(names):
        raise ValueError(f"an adapter is active once or not at all: {', '.join(map(repr, names))}")
    check_switch(model, record, names)
    activate(model, record, names)
    return model


def active(model: Module) -> tuple[str, ...]:
    """The names of the adapters that take part.

    Raises:
        ValueError: if `attach` has put none on.
    """
    return required(model).active


def adapters(model: Module) -> dict[str, LoRAConfig | None]:
    """All adapters of a model by name, with what each was made by; None for one that was computed.

    Raises:
        ValueError: if `attach` has put none on.
    """
    return {name: attached.config for name, attached in required(model).adapters.items()}


def check_switch(model: Module, record: Attachment, names: Sequence[str]) -> None:
    """Refuse to switch a merged adapter off, and to have two copies of one parameter.

    Raises:
        ValueError: in these cases.
    """
    for place, layer in layers_in_place(model, record).items():
        left = [name for name in layer.merged_adapters if name not in names]
        if left:
            raise ValueError(
                f"adapter {', '.join(map(repr, left))} is merged in {place}, and could not be "
                f"switched off; call lora.unmerge(model) first"
            )
    owners: dict[int, str] = {}
    for name in names:
        for copy in record.adapters[name].copies if name in record.adapters else ():
            other = owners.setdefault(id(copy.original), name)
            if other != name:
                raise ValueError(
                    f"adapters {other!r} and {name!r} both train {copy.name} whole, and cannot be "
                    f"active together"
                )


def activate(model: Module, record: Attachment, names: Sequence[str]) -> None:
    """Let these adapters be active, which has been checked to be possible."""
    layers = layers_in_place(model, record)
    for name in record.active:
        if name not in names:
            rest(model, record, name)
    for layer in layers.values():
        layer.use([name for name in names if name in layer.adapters])
    for name in names:
        if name not in record.active:
            restore_flags(record.adapters[name].flags)
    record.active = tuple(names)
    record.let_in(model, names)


def rest(model: Module, record: Attachment, name: str) -> None:
    """Let nothing of an adapter train until it is active again."""
    attached = record.adapters[name]
    attached.flags = [(p, p.requires_grad) for p in _parameters(record, model, name)]
    restore_flags((p, False) for p, _ in attached.flags)


def _parameters(record: Attachment, model: Module, name: str) -> list[Parameter]:
    """What an adapter trains in a model."""
    attached = record.adapters[name]
    layers = layers_in_place(model, record)
    own = [part for layer in attached.layers for part in layers[layer].adapters[name].trained()]
    return own + [copy.own for copy in attached.copies]


@contextmanager
def disabled(model: Module) -> Iterator[Module]:
    """Inside the block the model computes what it did without adapters, to the bit.

    It does so for all threads, until the last of the blocks is left.

    Raises:
        ValueError: if there are no adapters, or the model is a part of one, and holds what an
            adapter of the whole trains whole.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    record = record_of(model)
    if record is None:
        _check_originals(model)
    with _LOCK:
        if record is not None:
            record.disabled += 1
            if record.disabled == 1:
                record.let_in(model, ())
        for layer in layers:
            layer.pause()
    try:
        yield model
    finally:
        with _LOCK:
            for layer in layers:
                layer.resume()
            if record is not None:
                record.disabled -= 1
                if record.disabled == 0:
                    record.let_in(model, record.active)


def _check_originals(model: Module) -> None:
    """Refuse a part of a model whose originals only the whole knows."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, Whole):
            raise ValueError(
                f"{name} is trained whole by an adapter, and its original is known to the whole "
                f"model only; call this with the model that lora.attach was called with"
            )
