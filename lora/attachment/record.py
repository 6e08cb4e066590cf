"""What has been put on a model, kept on the model itself: so that all of it can be taken off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.adapted import AdaptedLayer
from lora.config import LoRAConfig
from lora.full_copies import Copy, forget, put_in
from lora.patterns import near
from minigrad.nn import Module, Parameter

_RECORD = "_lora_attachment"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Attached:
    """One adapter of a model.

    Attributes:
        config: what it was made by; None for the result of a computation with others.
        layers: the names of its layers.
        copies: what it trains besides.
        flags: of what trains in it, while it is not active.
        seed: what A was drawn from, if that is known.
    """

    config: LoRAConfig | None
    layers: list[str]
    copies: list[Copy] = field(default_factory=list)
    flags: list[tuple[Parameter, bool]] = field(default_factory=list)
    seed: int | None = None


@dataclass
class Attachment:
    """What a model was before, and its adapters; no module, so a walk over the model passes it by.

    Attributes:
        originals: the layers that have given their place to one with adapters, by name.
        placed: what has taken it.
        flags: `requires_grad` of every parameter before.
        adapters: by name.
        active: the names of those that take part.
        disabled: how many blocks of `lora.disabled` there are around.
    """

    originals: dict[str, Module]
    placed: dict[str, AdaptedLayer]
    flags: list[tuple[Parameter, bool]]
    adapters: dict[str, Attached] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    disabled: int = 0

    def check_enabled(self, what: str) -> None:
        """Refuse to change what a block of `lora.disabled` is about to put back.

        Raises:
            RuntimeError: inside of one.
        """
        if self.disabled:
            raise RuntimeError(f"{what} inside of lora.disabled(model); leave the block first")

    def let_in(self, model: Module, names: Sequence[str]) -> None:
        """Let what these adapters train whole, and no others, take the place of the originals."""
        put_in(model, {name: each.copies for name, each in self.adapters.items()}, names)

    def get(self, name: str) -> Attached:
        """An adapter by its name.

        Raises:
            ValueError: with the names there are.
        """
        if name not in self.adapters:
            raise ValueError(
                f"there is no adapter {near(name, self.adapters)}; the model has "
                f"{', '.join(map(repr, self.adapters))}"
            )
        return self.adapters[name]


def _check_module(model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"adapters are on a Module, not on {model!r:.60}")


def record_of(model: Module) -> Attachment | None:
    """What `attach` has put on a model, or None."""
    _check_module(model)
    found: Attachment | None = vars(model).get(_RECORD)
    return found


def required(model: Module) -> Attachment:
    """What `attach` has put on a model.

    Raises:
        ValueError: if it has put nothing on.
    """
    record = record_of(model)
    if record is None:
        raise ValueError(
            "lora.attach has put no adapters on this model; lora.attach(model, LoRAConfig(...)) "
            "puts some on"
        )
    return record


def check_name(record: Attachment | None, adapter: str) -> None:
    """Refuse a name for a new adapter that is none, or taken.

    Raises:
        TypeError: if it is no string.
        ValueError: if it has other characters than it may, or there is an adapter of that name.
    """
    if not isinstance(adapter, str):
        raise TypeError(f"the name of an adapter is a string, not {adapter!r}")
    if not _NAME.fullmatch(adapter):
        raise ValueError(f"an adapter's name has letters, digits, - and _ only, unlike {adapter!r}")
    if record is not None and adapter in record.adapters:
        raise ValueError(
            f"the model has an adapter {adapter!r} already; give another name, or take that one "
            f"off first: lora.remove(model, {adapter!r})"
        )


def keep(model: Module, record: Attachment | None) -> None:
    """Remember what has been put on a model, or that nothing is left of it."""
    if record is None:
        del vars(model)[_RECORD]
        forget(model)
    else:
        setattr(model, _RECORD, record)


def adapted_layers(model: Module) -> list[tuple[str, AdaptedLayer]]:
    """The layers with adapters of a model, with their names.

    Raises:
        ValueError: if there are none.
    """
    _check_module(model)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, AdaptedLayer)]
    if not found:
        raise ValueError(
            "the model has no adapters; lora.attach(model, LoRAConfig(...)) puts some on"
        )
    return found


def layers_in_place(model: Module, record: Attachment) -> dict[str, AdaptedLayer]:
    """The layers that `attach` has placed, by name.

    Raises:
        ValueError: if one is no longer where it was put.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer)}
    gone = [name for name, layer in record.placed.items() if layers.get(name) is not layer]
    if gone:
        raise ValueError(
            f"the adapters of {', '.join(gone)} are no longer in the model, or not where they were "
            f"put; put the layers that lora.attach had placed there back first"
        )
    return layers


def restore_flags(flags: Iterable[tuple[Parameter, bool]]) -> None:
    """Let every parameter require a gradient, or none, as it did."""
    for parameter, flag in flags:
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)
