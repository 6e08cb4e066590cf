"""Attach adapters to a model, choose the active ones, and remove them.

`attach` replaces each targeted layer by one with adapters. It stores the original layer, unchanged,
and every `requires_grad` flag, and `detach` restores them. A second `attach` under another name
adds another adapter on the same base, to the same layers or to others.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lora.adapter import DEFAULT, check_names
from lora.attachment import state
from lora.attachment.plan import Match, Plan
from lora.attachment.state import Attached, Attachment, FullCopy
from lora.attachment.targets import KINDS
from lora.config import LoRAConfig
from lora.frozen import TrainedCopy
from minigrad.core.tensor import Tensor
from minigrad.errors import named_errors
from minigrad.kernels.start import complete, interrupts_held_back
from minigrad.locks import renewed_in_child
from minigrad.nn import Buffer, Linear, Module
from minigrad.random import generator
from minigrad.tables import aligned

# `disabled` counts its blocks, and several threads may enter one.
_lock = renewed_in_child(sys.modules[__name__], "_lock", threading.Lock)


@dataclass(frozen=True, repr=False)
class AttachReport:
    """The report of `attach`: a line for each adapted layer, and the numbers of parameters.

    Attributes:
        matches: the layers that got an adapter.
        copies: the parameters that are trained in full, and the buffers of their modules.
        adapter: the name of the adapter.
        trainable: the number of parameters that train after `attach`.
        total: the number of all parameters, with adapters, copies and their originals, and
            elements of weights in few bits.
        emptied: the targets whose layers are all excluded.
    """

    matches: tuple[Match, ...]
    copies: tuple[FullCopy, ...]
    adapter: str
    trainable: int
    total: int
    emptied: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the layers that got an adapter."""
        return [match.name for match in self.matches]

    def __repr__(self) -> str:
        head = ("layer", "matched by", "d_in -> d_out", "rank", "trains", "")
        rows = []
        for m in self.matches:
            sizes = f"{m.d_in} -> {m.d_out}", str(m.rank), f"{m.added:,}"
            rows.append((m.name, m.pattern, *sizes, m.note))
        for c in self.copies:
            trains, note = f"{c.own.size:,}", "in full"
            if isinstance(c.own, Buffer):
                trains, note = "", "a buffer of its own"
            rows.append((c.name, c.reason, str(c.own.shape), "", trains, note))
        share = 100 * self.trainable / self.total
        total = f"{self.trainable:,} of {self.total:,} parameters train ({share:.2f} %)"
        notes = [f"{target}: all its layers are excluded" for target in self.emptied]
        return "\n".join([*aligned(head, rows), *notes, total])


@named_errors
def attach(
    model: Module,
    config: LoRAConfig,
    *,
    adapter: str = DEFAULT,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> AttachReport:
    """Attach an adapter to each layer that `config` targets, and freeze everything else.

    Afterwards only the new adapter is active; `lora.switch` activates others, or several.

    Args:
        model: the model, changed in place: each targeted layer is replaced by one with adapters,
            which shares its parameters.
        config: which layers get an adapter, and which kind.
        adapter: a name for the new adapter, of letters, digits, - and _.
        rng: the generator that draws A and B, and later dropout; None for the default generator.
        progress: show a progress bar if it takes long, as the singular vectors of PiSSA do.

    Raises:
        TypeError: if `model` is not a Module, `config` is not a LoRAConfig, the name is not a
            string, `rng` is not a generator, or a weight or a parameter to be trained in full is
            not of floats.
        ValueError: if a pattern matches nothing or has no effect, no layer is left, a rank is too
            large for its layer, odd with init="orthogonal", or not divisible by the groups of a
            convolution, a grouped convolution would get DoRA or an `init` other than "gaussian" and
            "kaiming", a weight is not finite, or a parameter to be trained in full is tied to
            another, is in few bits, or belongs to a layer with an adapter. Also if the name is
            taken or malformed, the model contains parameters that an adapter of another model
            trains in full, a layer cannot be replaced in the module around it, another adapter is
            merged, a target has adapters of another `attach`, with a part of the model, or the
            model is itself a single layer.
        RuntimeError: inside of `lora.disabled`.

    After an error the model is unchanged.
    """
    if not isinstance(model, Module) or not isinstance(config, LoRAConfig):
        raise TypeError(
            f"attach takes a Module and a LoRAConfig, not {type(model).__name__} and "
            f"{type(config).__name__}"
        )
    with planning(model, adapter, rng):
        plan = Plan(model, config, rng, progress=progress)
        return apply_plan(plan, adapter)


@contextmanager
def planning(model: Module, adapter: str, rng: np.random.Generator | None) -> Iterator[None]:
    """Put the originals of all full copies into the model while a block plans a new adapter.

    At its end, the block calls `apply_plan`. After an error in the block, the model is restored. An
    error is raised if the name of the adapter is invalid, or the model cannot get one.
    """
    attachment = state.attachment_of(model)
    state.check_name(attachment, adapter)
    if isinstance(model, tuple(KINDS)):
        by_hand = ", or use LoRALayer.from_linear(model, rank, alpha)"
        raise ValueError(
            f"the model is a single {type(model).__name__}, which has no parent, so nothing can "
            f"replace it; put it into a Sequential{by_hand if isinstance(model, Linear) else ''}"
        )
    if not attachment.adapters:
        state.check_own(model)
    attachment.check_enabled("adapters cannot be attached")
    state.check_copies_are_known(model)
    check_switch(model, attachment, (adapter,))
    generator(rng)  # raises an error if it is not a generator
    try:
        # The plan must copy the model's own parameters, not the copies of other adapters.
        attachment.swap_in(model, ())
        yield
    except BaseException:
        attachment = state.attachment_of(model)  # perhaps the one that the block has stored
        attachment.swap_in(model, attachment.active)
        raise


@interrupts_held_back()  # in the midst of the changes, the model could be neither used nor restored
def apply_plan(plan: Plan, adapter: str) -> AttachReport:
    """Carry out a checked plan, and make the new adapter the only active one."""
    model, attachment = plan.model, state.attachment_of(plan.model)
    state.store(model, attachment)
    # All other parameters are frozen, also those added to the model after the last adapter.
    layers = state.layers_in(model).values()
    updates = [update for layer in layers for update in layer.adapters.values()]
    known = {id(p) for p, _, _ in attachment.flags.known}
    known |= {id(part) for update in updates for _, part in update.contents()}
    new = [p for p in model.parameters() if id(p) not in known and not isinstance(p, TrainedCopy)]
    attachment.flags.freeze(new, state.state_names(model))
    attachment.replaced |= plan.replaced
    state.replace(model, {id(original): layer for original, layer in plan.replaced.values()})
    for name, update in plan.updates.items():
        plan.layers[name].add(adapter, update)
    attached = Attached(plan.config, list(plan.updates), plan.copies, seed=plan.seed)
    attachment.adapters[adapter] = attached
    activate(model, attachment, (adapter,))
    adapted = [layer.base_weight for layer in state.layers_in(model).values()]
    weights = [*adapted, *state.named_tensors(model).values()]
    in_few_bits = {id(w): w for w in weights if not isinstance(w, Tensor)}
    return AttachReport(
        tuple(plan.matches),
        tuple(plan.copies),
        adapter,
        model.count_parameters(trainable_only=True),
        model.count_parameters() + sum(math.prod(w.shape) for w in in_few_bits.values()),
        tuple(plan.emptied),
    )


@named_errors
def switch(model: Module, *names: str) -> Module:
    """Make these adapters active, and no others; return the model.

    The updates of several adapters add up. An inactive adapter does not train; its `requires_grad`
    flags are restored when it is active again. Without names, no adapter is active.

    Raises:
        TypeError: if `model` is not a Module, or a name is not a string.
        ValueError: if no adapter was attached, a name is unknown or repeated, a merged adapter
            would be switched off, or two adapters would train one parameter in full.
        RuntimeError: inside of `lora.disabled`.

    After an error nothing is changed.
    """
    attachment = state.required_attachment(model)
    attachment.check_enabled("adapters cannot be switched")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"switch takes names, as in switch(model, 'a', 'b'), not {name!r:.60}")
    check_names(names, attachment.adapters)
    check_switch(model, attachment, names)
    activate(model, attachment, names)
    return model


@named_errors
def active(model: Module) -> tuple[str, ...]:
    """Return the names of the active adapters; a ValueError is raised if none was attached."""
    return state.required_attachment(model).active


@named_errors
def adapters(model: Module) -> dict[str, LoRAConfig | None]:
    """Return the configuration of each adapter by name; None for a sum made by `lora.combine`.

    A ValueError is raised if no adapter was attached.
    """
    return {name: each.config for name, each in state.required_attachment(model).adapters.items()}


def check_switch(model: Module, attachment: Attachment, names: Sequence[str]) -> None:
    """Raise a ValueError if a merged adapter would be switched off, or two train one parameter."""
    for layer in state.attached_layers(model, attachment).values():
        layer.check_leaves_merged(names)
    owners: dict[int, str] = {}
    for name in names:
        for copy in attachment.adapters[name].copies if name in attachment.adapters else ():
            other = owners.setdefault(id(copy.original), name)
            if other != name:
                raise ValueError(
                    f"adapters {other!r} and {name!r} both train {copy.name} in full, and cannot "
                    f"be active together"
                )


@interrupts_held_back()
def activate(model: Module, attachment: Attachment, names: Sequence[str]) -> None:
    """Make these adapters active, after `check_switch`."""
    for name in attachment.active:
        if name not in names:
            deactivate(attachment, name)
    for layer in attachment.layers.values():
        layer.use([name for name in names if name in layer.adapters])
    for name in names:
        if name not in attachment.active:
            state.restore_flags(attachment.adapters[name].flags)
    attachment.active = tuple(names)
    attachment.swap_in(model, names)


def deactivate(attachment: Attachment, name: str) -> None:
    """Freeze the parameters of an adapter, and store their flags until it is active again."""
    attached, layers = attachment.adapters[name], attachment.layers
    own: list[Tensor] = [copy.own for copy in attached.copies]
    for layer in attached.layers:
        if name in layers[layer].adapters:  # it may have been removed by hand
            own += layers[layer].adapters[name].trained()
    attached.flags = [(parameter, parameter.requires_grad) for parameter in own]
    state.restore_flags((parameter, False) for parameter in own)


@contextmanager
def disabled(model: Module) -> Iterator[Module]:
    """Turn all adapters off: inside the block the model computes the same bits as without them.

    They are off for all threads, until the last open block ends. Inside of the block, adapters
    cannot be attached, loaded, switched, combined, removed or folded, and the model cannot be
    copied: this raises a RuntimeError.

    Raises:
        TypeError: if `model` is not a Module.
        ValueError: if there are no adapters; or if `attach` was called with a larger model, and
            `model` contains parameters that an adapter trains in full.
    """
    layers = [layer for _, layer in state.adapted_layers(model)]
    attachments = state.attachments_in(model)
    state.check_copies_are_known(model)
    is_off = False

    def restore() -> None:
        if not is_off:
            return
        with _lock:
            for layer in layers:
                layer.resume()
            for part, attachment in attachments:
                attachment.disabled -= 1
                if attachment.disabled == 0:
                    attachment.swap_in(part, attachment.active)

    try:
        with interrupts_held_back(), _lock:
            for part, attachment in attachments:
                attachment.disabled += 1
                if attachment.disabled == 1:
                    attachment.swap_in(part, ())
            for layer in layers:
                layer.pause()
            is_off = True
        yield model
    finally:
        complete(restore)


@named_errors
@interrupts_held_back()
def detach(model: Module) -> Module:
    """Remove all adapters, restore the original layers and `requires_grad` flags; return the model.

    What the adapters have learned is lost, also if they are merged; `lora.fold` keeps it. Running
    statistics that training changed stay changed, unless an adapter has its own copy.

    Raises:
        TypeError: if `model` is not a Module.
        ValueError: if no adapter was attached, a layer with adapters was moved, or `attach` was
            also called with a larger model, and `model` contains parameters that an adapter of that
            one trains in full.
        RuntimeError: inside of `lora.disabled`.
    """
    attachment = state.required_attachment(model)
    attachment.check_enabled("adapters cannot be detached")
    state.check_copies_are_known(model)
    state.attached_layers(model, attachment)
    attachment.swap_in(model, ())
    state.store(model, None)
    _restore_originals(model, attachment, list(attachment.replaced))
    attachment.flags.restore(model)
    return model


@named_errors
@interrupts_held_back()
def remove(model: Module, adapter: str) -> Module:
    """Remove one adapter and its trained parameters; return the model.

    The originals of the parameters that it trained in full are restored, and so is each layer that
    has no other adapter. Removing the last adapter is the same as `detach`.

    Raises:
        TypeError: if `model` is not a Module, or the name is not a string.
        ValueError: if there is no such adapter, or it is merged; nothing is changed then.
        RuntimeError: inside of `lora.disabled`.
    """
    attachment = state.required_attachment(model)
    attachment.check_enabled("an adapter cannot be removed")
    check_names([adapter], attachment.adapters)
    state.check_copies_are_known(model)
    attached = attachment.adapters[adapter]
    layers = state.attached_layers(model, attachment)
    for layer in layers.values():
        layer.check_leaves_merged(layer.adapters.keys() - {adapter})
    if len(attachment.adapters) == 1:
        return detach(model)
    # Copies of other adapters leave the model here, and return after the layers are replaced.
    attachment.swap_in(model, ())
    attachment.active = tuple(name for name in attachment.active if name != adapter)
    del attachment.adapters[adapter]
    for name in attached.layers:
        if adapter in layers[name].adapters:  # it may have been removed by hand
            layers[name].remove(adapter)
    bare = [name for name in attached.layers if not layers[name].adapters]
    _restore_originals(model, attachment, bare)
    attachment.swap_in(model, attachment.active)
    return model


def _restore_originals(model: Module, attachment: Attachment, names: Sequence[str]) -> None:
    """Replace layers with adapters by their originals."""
    pairs = [attachment.replaced.pop(name) for name in names]
    for original, layer in pairs:
        original.training = layer.training
    state.replace(model, {id(layer): original for original, layer in pairs})
