"""Adapters on a whole model: put on, and taken off.

`attach` puts a layer with adapters in the place of each targeted layer. The layer itself is kept
aside, untouched, and so is every `requires_grad` flag; `detach` puts all of it back. Attaching
again under another name gives the same layers, or others, another adapter on the same base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lora.adapted import DEFAULT, AdaptedLayer
from lora.adapter import Adapter
from lora.attachment import (
    Attached,
    Attachment,
    Copy,
    check_name,
    keep,
    layers_in_place,
    put_back,
    put_in,
    record_of,
    required,
    restore_flags,
)
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.layer import LoRALayer, check_rank_fits
from lora.replacing import places, replace
from lora.report import AttachReport, Match
from lora.switch import activate, check_switch
from lora.targets import Target, find, select
from minigrad.nn import Embedding, Linear, Module, MultiHeadAttention, Parameter


def attach(
    model: Module,
    config: LoRAConfig,
    *,
    adapter: str = DEFAULT,
    rng: np.random.Generator | None = None,
) -> AttachReport:
    """Put an adapter on each layer that `config` targets, and freeze everything else.

    The new adapter is the active one; `lora.switch` chooses others, or several.

    Args:
        model: changed in place: each targeted layer gives its place to one with adapters, which
            shares its parameters.
        config: which layers, and what adapters.
        adapter: a name for it.
        rng: where A and B are drawn from.

    Raises:
        TypeError: if there is no such module or configuration, or the name is no string.
        ValueError: if a pattern matches nothing, a rank is too large for its layer, a weight is not
            finite, a weight to be trained whole is tied to another, there is an adapter of that
            name, one is merged, or the model is itself a single layer; the model is as it was then.
    """
    if not isinstance(model, Module) or not isinstance(config, LoRAConfig):
        raise TypeError(
            f"attach takes a Module and a LoRAConfig, not {model!r:.60}, {config!r:.60}"
        )
    check_place(model, adapter)
    record = record_of(model)
    copies = [] if record is None else [c for n in record.active for c in record.adapters[n].copies]
    # What the new adapter begins from, and what is kept aside, is the model without the others.
    put_back(model, copies)
    try:
        plan = Plan(model, config, rng)
    except BaseException:
        put_in(model, copies)
        raise
    return place(model, plan, adapter)


def place(model: Module, plan: Plan, adapter: str) -> AttachReport:
    """Do what has been planned and checked, and let the new adapter be the active one."""
    record = record_of(model)
    if record is None:
        record = Attachment({}, [(p, p.requires_grad) for p in model.parameters()])
        model.freeze()
        keep(model, record)
    record.originals |= plan.originals
    replace(model, {id(plan.originals[name]): layer for name, layer in plan.new.items()})
    for name, update in plan.updates.items():
        plan.layers[name].add(adapter, update)
    record.adapters[adapter] = Attached(plan.config, list(plan.updates), plan.copies)
    activate(model, record, (adapter,))
    return AttachReport(
        tuple(plan.matches),
        tuple(plan.copies),
        adapter,
        model.count_parameters(trainable_only=True),
        model.count_parameters(),
    )


def check_place(model: Module, adapter: str) -> None:
    """Refuse a name that is none or taken, and a model that can have no adapters now."""
    record = record_of(model)
    check_name(record, adapter)
    if isinstance(model, (Linear, Embedding)):
        raise ValueError(
            f"the model is a single {type(model).__name__}, which no parent holds, so nothing can "
            f"take its place; put it into a Sequential, or use LoRALayer.from_linear(model, rank, "
            f"alpha)"
        )
    if record is None:
        if any(isinstance(module, AdaptedLayer) for module in model.modules()):
            raise ValueError(
                "the model has adapters already that lora.attach has not put there; fold or remove "
                "them first"
            )
        return
    record.check_enabled("adapters cannot be attached")
    check_switch(model, record, (adapter,))


class Plan:
    """All that an attachment consists of, made and checked before anything is changed.

    Attributes:
        config: what was asked for.
        originals: the layers that are to give their place to one with adapters.
        new: those with adapters that take it.
        layers: all that get the adapter, new or not.
        updates: the adapter of each of them.
        matches: a line of the report for each.
        copies: what is trained whole.
    """

    def __init__(
        self,
        model: Module,
        config: LoRAConfig,
        rng: np.random.Generator | None,
    ) -> None:
        self.config = config
        self._rng = rng
        modules = dict(model.named_modules())
        self.originals: dict[str, Module] = {}
        self.new: dict[str, AdaptedLayer] = {}
        self.layers: dict[str, AdaptedLayer] = {}
        self.updates: dict[str, Adapter] = {}
        self.matches: list[Match] = []
        held = places(model)
        for target in targets_in(model, config):
            module = modules[target.name]
            if not isinstance(module, AdaptedLayer):
                self.originals[target.name] = module
                module = self.new[target.name] = _around(module)
            self.layers[target.name] = module
            try:
                self.updates[target.name] = self._update(module, target)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{target.name}: {error}") from error
            self.matches.append(self._match(module, target, held))
        self.copies = _Copies(model, config, set(self.layers), held).made
        self._add_biases()

    def _update(self, layer: AdaptedLayer, target: Target) -> Adapter:
        check_rank_fits(target.rank, layer.d_out, layer.d_in)
        if not layer.weight.is_finite():
            raise ValueError("the weight has NaN or Inf in it; mend the model first")
        config, begin = self.config, None
        if isinstance(layer, LoRAEmbedding) and config.init in ("gaussian", "kaiming"):
            begin = layer.begin(target.rank, self._rng)
        return Adapter(
            layer.weight,
            target.rank,
            target.alpha,
            scaling=config.scaling,
            dropout=config.dropout,
            init=config.init,
            use_dora=config.use_dora,
            dora_norm_gradient=config.dora_norm_gradient,
            begin=begin,
            rng=self._rng,
        )

    def _match(self, layer: AdaptedLayer, target: Target, held: Mapping[int, list[str]]) -> Match:
        others = [n for n in held.get(id(layer.base_weight), []) if not _inside(n, target.name)]
        note = [f"tied to {', '.join(others)}"] if others else []
        return Match(
            target.name,
            target.pattern,
            layer.d_in,
            layer.d_out,
            target.rank,
            sum(part.size for part in self.updates[target.name].trained()),
            ", ".join([*layer.kind(), *note]),
        )

    def _add_biases(self) -> None:
        if self.config.bias == "none":
            return
        with_bias = [name for name, layer in self.layers.items() if layer.bias is not None]
        if not with_bias and not self.copies:
            raise ValueError(f"bias={self.config.bias!r}, but none of the layers has a bias")
        for i, match in enumerate(self.matches):
            bias = self.layers[match.name].bias
            if bias is not None:
                self.updates[match.name].lora_bias = Parameter(bias)
                self.matches[i] = match.with_bias(bias.size)


class _Copies:
    """What is trained whole: of `modules_to_save`, and with `bias="all"` the other biases."""

    def __init__(
        self,
        model: Module,
        config: LoRAConfig,
        targets: set[str],
        held: Mapping[int, list[str]],
    ) -> None:
        self._held = held
        self.made: list[Copy] = []
        adapted = targets | {n for n, m in model.named_modules() if isinstance(m, AdaptedLayer)}
        parameters = list(model.named_parameters())
        if config.modules_to_save:
            self._save_modules(model, config, adapted)
        if config.bias == "all":
            done = {id(copy.original) for copy in self.made}
            for name, parameter in parameters:
                owner, _, last = name.rpartition(".")
                if last == "bias" and owner not in adapted and id(parameter) not in done:
                    self._copy(name, parameter, "bias")

    def _save_modules(self, model: Module, config: LoRAConfig, adapted: set[str]) -> None:
        modules = {
            name: module
            for name, module in model.named_modules()
            if name and next(module.named_parameters(), None) is not None
        }
        found = find("modules_to_save", config.modules_to_save, modules, {})
        for name in found:
            for layer in sorted(adapted):
                if _inside(layer, name) or _inside(name, layer):
                    raise ValueError(
                        f"modules_to_save: {name} is to be trained whole, and {layer} has an "
                        f"adapter; leave one of them out"
                    )
        done: set[int] = set()
        for name in found:
            for key, parameter in modules[name].named_parameters(name):
                if id(parameter) in done:
                    continue
                done.add(id(parameter))
                others = [n for n in self._held[id(parameter)] if not _inside_any(n, found)]
                if others:
                    raise ValueError(
                        f"modules_to_save: {key} is tied to {', '.join(others)}, which would not "
                        f"follow; save the module that holds it too, or untie them"
                    )
                self._copy(key, parameter, "modules_to_save")

    def _copy(self, name: str, parameter: Parameter, reason: str) -> None:
        self.made.append(Copy(name, reason, parameter, Parameter(parameter)))


def targets_in(model: Module, config: LoRAConfig) -> list[Target]:
    """The layers of a model that `config` means, in its order."""
    modules = dict(model.named_modules())
    candidates = [name for name, module in modules.items() if _can_adapt(module)]
    linear = [n for n in candidates if not isinstance(modules[n], (Embedding, LoRAEmbedding))]
    groups = {
        name: [f"{name}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, module in modules.items()
        if isinstance(module, MultiHeadAttention)
    }
    targets = select(config, linear, [n for n in candidates if n not in linear], groups)
    return sorted(targets, key=lambda target: candidates.index(target.name))


def _can_adapt(module: Module) -> bool:
    """Whether a module is one of those, and computes what they do."""
    if isinstance(module, AdaptedLayer):
        return True
    return any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in (Linear, Embedding)
    )


def _around(module: Module) -> AdaptedLayer:
    if isinstance(module, Embedding):
        return LoRAEmbedding.around(module)
    assert isinstance(module, Linear)
    return LoRALayer.around(module)


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _inside_any(name: str, modules: Iterable[str]) -> bool:
    return any(_inside(name, module) for module in modules)


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
    layers = layers_in_place(model, record)
    for name in record.active:
        put_back(model, record.adapters[name].copies)
    keep(model, None)
    _unwrap(model, layers, record.originals)
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
    if adapter in record.active:
        put_back(model, attached.copies)
        record.active = tuple(name for name in record.active if name != adapter)
    del record.adapters[adapter]
    for name in attached.layers:
        layers[name].remove(adapter)
    bare = [name for name in attached.layers if not layers[name].adapters]
    _unwrap(model, layers, {name: record.originals.pop(name) for name in bare})
    return model


def _unwrap(
    model: Module, layers: Mapping[str, AdaptedLayer], originals: Mapping[str, Module]
) -> None:
    """Put original layers back."""
    for name, original in originals.items():
        original.training = layers[name].training
    replace(model, {id(layers[name]): original for name, original in originals.items()})
