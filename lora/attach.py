"""Adapters on a whole model: put on, taken off, merged, folded in, switched off for a while.

`attach` puts a `LoRALayer` in the place of each targeted layer. The layer itself is kept aside,
untouched, and so is every `requires_grad` flag; `detach` puts all of it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.config import LoRAConfig
from lora.layer import LoRALayer
from minigrad.nn import Linear, Module, Parameter

_RECORD = "_lora_attachment"


@dataclass
class _Attachment:
    """What a model was before; no module itself, so that a walk over the model passes it by."""

    originals: dict[str, Linear]
    flags: list[tuple[Parameter, bool]]


@dataclass(frozen=True)
class Match:
    """One layer that got an adapter: its name, the pattern that found it, sizes and rank."""

    name: str
    pattern: str
    d_in: int
    d_out: int
    rank: int

    @property
    def added(self) -> int:
        """How many numbers the adapter trains."""
        return self.rank * (self.d_in + self.d_out)


@dataclass(frozen=True, repr=False)
class AttachReport:
    """What `attach` did: a line for each layer that matched, and the counts.

    Attributes:
        matches: the layers that got an adapter.
        trainable: how many numbers train now.
        total: how many numbers the model has, adapters included.
    """

    matches: tuple[Match, ...]
    trainable: int
    total: int

    @property
    def names(self) -> list[str]:
        """The names of the layers that got an adapter."""
        return [match.name for match in self.matches]

    def __repr__(self) -> str:
        rows = [("layer", "matched by", "d_in -> d_out", "rank", "trains")]
        rows += [
            (m.name, m.pattern, f"{m.d_in} -> {m.d_out}", str(m.rank), f"{m.added:,}")
            for m in self.matches
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        share = 100 * self.trainable / self.total
        lines.append(f"{self.trainable:,} of {self.total:,} numbers train ({share:.2f} %)")
        return "\n".join(line.rstrip() for line in lines)


def attach(
    model: Module, config: LoRAConfig, *, rng: np.random.Generator | None = None
) -> AttachReport:
    """Put an adapter on each layer that `config` targets, and freeze everything else.

    Args:
        model: changed in place: each targeted `Linear` gives its place to a `LoRALayer` around it.
        config: which layers, and what adapters.
        rng: where the A matrices are drawn from.

    Raises:
        ValueError: if a target matches nothing, a rank is too large for its layer, the model has
            adapters already, or is itself a single layer; the model is as it was then.
    """
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise ValueError("the model has adapters already; lora.detach(model) takes them off")
    if isinstance(model, Linear):
        raise ValueError(
            "the model is a single Linear, which no parent holds, so nothing can take its place; "
            "use LoRALayer.from_linear(model, rank, alpha)"
        )
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and type(module).forward is Linear.forward
    }
    found = config.matches(list(linears))
    originals = {name: linears[name] for name in found}
    layers: dict[str, LoRALayer] = {}
    for name, linear in originals.items():
        try:
            layers[name] = LoRALayer.from_linear(
                linear,
                config.rank,
                config.alpha,
                scaling=config.scaling,
                dropout=config.dropout,
                rng=rng,
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        layers[name].training = linear.training
        # The very parameters, now that the flags are ours to set: a weight that is tied to another
        # stays tied, also in a deep copy, and what is loaded or converted meets the layer itself.
        layers[name].base_weight, layers[name].bias = linear.weight, linear.bias
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.freeze()
    _replace(model, {id(originals[name]): layer for name, layer in layers.items()})
    setattr(model, _RECORD, _Attachment(originals, flags))
    return AttachReport(
        tuple(
            Match(name, pattern, layers[name].d_in, layers[name].d_out, layers[name].rank)
            for name, pattern in found.items()
        ),
        model.count_parameters(trainable_only=True),
        model.count_parameters(),
    )


def detach(model: Module) -> Module:
    """Take the adapters off and return the very model as it was, `requires_grad` flags included.

    Raises:
        ValueError: if `attach` has put none on.
    """
    record = vars(model).get(_RECORD)
    if record is None:
        raise ValueError(
            "there is nothing to detach: lora.attach has put no adapters on this model"
        )
    layers = dict(adapters(model))
    _check_in_place(record, layers)
    del vars(model)[_RECORD]
    for name, linear in record.originals.items():
        linear.training = layers[name].training
    _replace(model, {id(layers[name]): linear for name, linear in record.originals.items()})
    _restore_flags(record)
    return model


def fold(model: Module) -> Module:
    """Replace each adapter and its layer by one plain `Linear` of W + scale B A; return the model.

    W is let go of, unless someone else holds it. Flags are as they were before `attach`. A model
    that is itself a `LoRALayer` is not changed; its `Linear` is returned.

    Raises:
        ValueError: if there are no adapters.
    """
    layers = dict(adapters(model))
    record = vars(model).get(_RECORD)
    if record is not None:
        _check_in_place(record, layers)
    folded = {id(layer): layer.to_linear() for layer in layers.values()}
    if isinstance(model, LoRALayer):
        return folded[id(model)]
    for layer in layers.values():
        folded[id(layer)].training = layer.training
    if record is not None:
        del vars(model)[_RECORD]
        flags = {id(parameter): flag for parameter, flag in record.flags}
        for name, original in record.originals.items():
            linear = folded[id(layers[name])]
            linear.weight.requires_grad_(flags[id(original.weight)])
            if linear.bias is not None and original.bias is not None:
                linear.bias.requires_grad_(flags[id(original.bias)])
        _restore_flags(record)
    _replace(model, folded)
    return model


@contextmanager
def disabled(model: Module) -> Iterator[Module]:
    """Inside the block the model computes what it did without adapters, to the bit.

    Raises:
        ValueError: if there are no adapters.
    """
    before = [(layer, layer.enabled) for _, layer in adapters(model)]
    try:
        for layer, _ in before:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in before:
            layer.enabled = enabled


def adapters(model: Module) -> list[tuple[str, LoRALayer]]:
    """The adapters of a model, with the names of their layers.

    Raises:
        ValueError: if there are none.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, LoRALayer)]
    if not found:
        raise ValueError(
            "the model has no adapters; lora.attach(model, LoRAConfig(...)) puts some on"
        )
    return found


def _check_in_place(record: _Attachment, layers: Mapping[str, LoRALayer]) -> None:
    """Refuse to take off what is no longer where it was put."""
    gone = [name for name in record.originals if name not in layers]
    if gone:
        raise ValueError(
            f"the adapters of {', '.join(gone)} are no longer in the model; put the layers that "
            f"lora.attach had placed there back first"
        )


def _restore_flags(record: _Attachment) -> None:
    for parameter, flag in record.flags:
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def _replace(model: Module, new: Mapping[int, Module]) -> None:
    """Put modules in the place of others (which are given by id), wherever they are held."""
    for module in list(model.modules()):
        for name, value in vars(module).items():
            vars(module)[name] = _replaced(value, new)


def _replaced(value: Any, new: Mapping[int, Module]) -> Any:
    if isinstance(value, Module):
        return new.get(id(value), value)
    if isinstance(value, list):
        value[:] = [_replaced(item, new) for item in value]
    elif isinstance(value, dict):
        value.update({key: _replaced(item, new) for key, item in value.items()})
    elif isinstance(value, tuple):
        items = [_replaced(item, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
