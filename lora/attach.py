"""Adapters on a whole model: put on, and taken off.

`attach` puts a layer with adapters in the place of each targeted layer. The layer itself is kept
aside, untouched, and so is every `requires_grad` flag; `detach` puts all of it back. Attaching
again under another name gives the same layers, or others, another adapter on the same base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lora.adapted import AdaptedLayer
from lora.adapter import DEFAULT
from lora.attachment.plan import Plan
from lora.attachment.record import (
    Attached,
    Attachment,
    check_name,
    keep,
    layers_in_place,
    record_of,
    required,
    restore_flags,
)
from lora.attachment.report import AttachReport
from lora.config import LoRAConfig
from lora.surgery import replace
from lora.switch import activate, check_switch
from lora.variants.nf4 import NF4Linear
from minigrad.core.tensor import Tensor
from minigrad.nn import Embedding, Linear, Module
from minigrad.random import generator


def attach(
    model: Module,
    config: LoRAConfig,
    *,
    adapter: str = DEFAULT,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> AttachReport:
    """Put an adapter on each layer that `config` targets, and freeze everything else.

    The new adapter is the active one; `lora.switch` chooses others, or several.

    Args:
        model: changed in place: each targeted layer gives its place to one with adapters, which
            shares its parameters.
        config: which layers, and what adapters.
        adapter: a name for it.
        rng: where A and B are drawn from.
        progress: show a progress bar if it takes long, as the singular vectors of PiSSA do.

    Raises:
        TypeError: if there is no such module or configuration, or the name is no string.
        ValueError: if a pattern matches nothing, a rank is too large for its layer, a weight is not
            finite, a weight to be trained whole is tied to another, there is an adapter of that
            name, one is merged, or the model is itself a single layer; the model is as it was then.
    """
    if not isinstance(model, Module) or not isinstance(config, LoRAConfig):
        raise TypeError(
            f"attach takes a Module and a LoRAConfig, not {type(model).__name__} and "
            f"{type(config).__name__}"
        )
    return attach_planned(model, adapter, lambda: Plan(model, config, rng, progress=progress), rng)


def attach_planned(
    model: Module,
    adapter: str,
    plan_of: Callable[[], Plan],
    rng: np.random.Generator | None,
) -> AttachReport:
    """Plan on the model without its other adapters, and do it if there is no error.

    After one the generator is as it was, too.
    """
    check_place(model, adapter)
    record = record_of(model)
    draws = generator(rng).bit_generator
    state = draws.state
    if record is not None:
        # What the new adapter begins from, and what is kept aside, is the model without the others.
        record.let_in(model, ())
    try:
        plan = plan_of()
    except BaseException:
        draws.state = state
        if record is not None:
            record.let_in(model, record.active)
        raise
    return place(model, plan, adapter)


def place(model: Module, plan: Plan, adapter: str) -> AttachReport:
    """Do what has been planned and checked, and let the new adapter be the active one."""
    record = record_of(model)
    if record is None:
        record = Attachment({}, {}, [(p, p.requires_grad) for p in model.parameters()])
        model.freeze()
        keep(model, record)
    record.originals |= plan.originals
    record.placed |= plan.new
    replace(model, {id(plan.originals[name]): layer for name, layer in plan.new.items()})
    for name, update in plan.updates.items():
        plan.layers[name].add(adapter, update)
    record.adapters[adapter] = Attached(
        plan.config, list(plan.updates), plan.copies, seed=plan.seed
    )
    activate(model, record, (adapter,))
    return AttachReport(
        tuple(plan.matches),
        tuple(plan.copies),
        adapter,
        model.count_parameters(trainable_only=True),
        model.count_parameters() + _in_four_bits(model),
    )


def _in_four_bits(model: Module) -> int:
    """How many numbers of a model are in four bits, and so no parameters."""
    adapted = [m.base_weight for m in model.modules() if isinstance(m, AdaptedLayer)]
    plain = [m.weight for m in model.modules() if isinstance(m, NF4Linear)]
    weights = {id(w): w for w in [*adapted, *plain] if not isinstance(w, Tensor)}
    return sum(math.prod(weight.shape) for weight in weights.values())


def check_place(model: Module, adapter: str) -> None:
    """Refuse a name that is none or taken, and a model that can have no adapters now."""
    record = record_of(model)
    check_name(record, adapter)
    if isinstance(model, (Linear, Embedding, NF4Linear)):
        by_hand = ", or use LoRALayer.from_linear(model, rank, alpha)"
        raise ValueError(
            f"the model is a single {type(model).__name__}, which no parent holds, so nothing can "
            f"take its place; put it into a Sequential"
            f"{by_hand if isinstance(model, Linear) else ''}"
        )
    if record is None:
        strange = [name for name, m in model.named_modules() if isinstance(m, AdaptedLayer)]
        if strange:
            raise ValueError(
                f"{', '.join(strange)} have adapters already that lora.attach has not put there, "
                f"or has on a part of it; fold or detach them first"
            )
        return
    record.check_enabled("adapters cannot be attached")
    check_switch(model, record, (adapter,))


def detach(model: Module) -> Module:
    """Take all adapters off and return the very model as it was, `requires_grad` flags included.

    Raises:
        ValueError: if `attach` has put none on.
    """
    record = record_of(model)
    if record is None:
        raise ValueError(
            "there is nothing to detach: lora.attach has put no adapters on this model"
        )
    record.check_enabled("adapters cannot be detached")
    layers_in_place(model, record)
    record.let_in(model, ())
    keep(model, None)
    _unwrap(model, record, list(record.originals))
    restore_flags(record.flags)
    return model


def remove(model: Module, adapter: str) -> Module:
    """Take one adapter off, with all that it has learned; return the model.

    What it trained whole is as it was; a layer without another adapter is the original again. With
    the last adapter everything is taken off, as by `detach`.

    Raises:
        ValueError: if there is no such adapter, or it is merged; then nothing is changed.
    """
    record = required(model)
    record.check_enabled("an adapter cannot be removed")
    attached = record.get(adapter)
    layers = layers_in_place(model, record)
    for name in attached.layers:
        if adapter in layers[name].merged_adapters:
            raise ValueError(
                f"adapter {adapter!r} is merged, and what it has learned would stay in the merged "
                f"weights; call lora.unmerge(model) first"
            )
    if len(record.adapters) == 1:
        return detach(model)
    # What others train whole moves from layers that go to their originals.
    record.let_in(model, ())
    record.active = tuple(name for name in record.active if name != adapter)
    del record.adapters[adapter]
    for name in attached.layers:
        layers[name].remove(adapter)
    bare = [name for name in attached.layers if not layers[name].adapters]
    _unwrap(model, record, bare)
    record.let_in(model, record.active)
    return model


def _unwrap(model: Module, record: Attachment, names: Sequence[str]) -> None:
    """Put original layers back."""
    pairs = [(record.placed.pop(name), record.originals.pop(name)) for name in names]
    for layer, original in pairs:
        original.training = layer.training
    replace(model, {id(layer): original for layer, original in pairs})
