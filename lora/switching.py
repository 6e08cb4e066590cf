"""Choosing the adapters of a model that take part: one, several, or for a while none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lora.attachment.state import (
    Attachment,
    adapted_layers,
    attached_layers,
    attachment_of,
    required_attachment,
    restore_flags,
)
from lora.config import LoRAConfig
from lora.frozen import TrainedCopy
from minigrad.nn import Module

_LOCK = threading.Lock()  # blocks of `disabled` are counted, and several threads may be in one


def switch(model: Module, *names: str) -> Module:
    """Make these adapters active, and no others; return the model.

    The updates of several add up. An adapter that is not active does not train; its `requires_grad`
    flags come back when it is active again. Without names, none is active.

    Raises:
        ValueError: if there is no adapter of that name, one is named twice, one that is merged
            would be switched off, or two would train one parameter in full; then nothing is
            changed.
    """
    attachment = required_attachment(model)
    attachment.check_enabled("adapters cannot be switched")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"switch takes names, as in switch(model, 'a', 'b'), not {name!r}")
        attachment.get(name)
    if len(set(names)) < len(names):
        raise ValueError(f"an adapter is active once or not at all: {', '.join(map(repr, names))}")
    check_switch(model, attachment, names)
    activate(model, attachment, names)
    return model


def active(model: Module) -> tuple[str, ...]:
    """Return the names of the adapters that take part.

    Raises:
        ValueError: if `attach` has put none on.
    """
    return required_attachment(model).active


def adapters(model: Module) -> dict[str, LoRAConfig | None]:
    """Return the configuration of each adapter of a model by name; None for one that was computed.

    Raises:
        ValueError: if `attach` has put none on.
    """
    return {name: each.config for name, each in required_attachment(model).adapters.items()}


def check_switch(model: Module, attachment: Attachment, names: Sequence[str]) -> None:
    """Check that these adapters can be the active ones.

    Raises:
        ValueError: if a merged adapter would be switched off, or two train one parameter in full.
    """
    for path, layer in attached_layers(model, attachment).items():
        left = [name for name in layer.merged_adapters if name not in names]
        if left:
            raise ValueError(
                f"adapter {', '.join(map(repr, left))} is merged in {path}, and could not be "
                f"switched off; call lora.unmerge(model) first"
            )
    owners: dict[int, str] = {}
    for name in names:
        for copy in attachment.adapters[name].copies if name in attachment.adapters else ():
            other = owners.setdefault(id(copy.original), name)
            if other != name:
                raise ValueError(
                    f"adapters {other!r} and {name!r} both train {copy.name} in full, and cannot "
                    f"be active together"
                )


def activate(model: Module, attachment: Attachment, names: Sequence[str]) -> None:
    """Make these adapters active, which has been checked to be possible."""
    layers = attached_layers(model, attachment)
    for name in attachment.active:
        if name not in names:
            deactivate(model, attachment, name)
    for layer in layers.values():
        layer.use([name for name in names if name in layer.adapters])
    for name in names:
        if name not in attachment.active:
            restore_flags(attachment.adapters[name].flags)
    attachment.active = tuple(names)
    attachment.swap_in(model, names)


def deactivate(model: Module, attachment: Attachment, name: str) -> None:
    """Let nothing of an adapter train until it is active again."""
    attached = attachment.adapters[name]
    layers = attached_layers(model, attachment)
    own = [part for layer in attached.layers for part in layers[layer].adapters[name].trained()]
    own += [copy.own for copy in attached.copies]
    attached.flags = [(parameter, parameter.requires_grad) for parameter in own]
    restore_flags((parameter, False) for parameter in own)


@contextmanager
def disabled(model: Module) -> Iterator[Module]:
    """Let the model compute what it did without adapters inside of the block, to the bit.

    It does so for all threads, until the last of the blocks is left.

    Raises:
        ValueError: if there are no adapters, or the model is a part of the one that they are on,
            and contains a parameter that an adapter trains in full.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    attachment = attachment_of(model)
    for name, parameter in model.named_parameters() if attachment is None else ():
        if isinstance(parameter, TrainedCopy):
            raise ValueError(
                f"{name} is trained in full by an adapter, and its original is known to the "
                f"complete model only; call this with the model that lora.attach was called with"
            )
    with _LOCK:
        if attachment is not None:
            attachment.disabled += 1
            if attachment.disabled == 1:
                attachment.swap_in(model, ())
        for layer in layers:
            layer.pause()
    try:
        yield model
    finally:
        with _LOCK:
            for layer in layers:
                layer.resume()
            if attachment is not None:
                attachment.disabled -= 1
                if attachment.disabled == 0:
                    attachment.swap_in(model, attachment.active)
