"""An adapter of a model as PEFT can say it: a configuration, tensors by key, and facts.

What PEFT has no words for is put into those it has, with equal outputs. A scale that does not
follow from alpha and the rank becomes an alpha, by layer where it must. PiSSA's update, which is a
difference to its first factors, becomes one of twice the rank over the base as it is. A layer
without a magnitude, beside others with one, gets that which changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted import AdaptedLayer
from lora.adapter import Adapter
from lora.attachment.record import Attached, Attachment
from lora.config import Bias, LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.full_copies import in_place
from lora.peft.config import PeftConfig
from lora.peft.folder import MAGNITUDE, A, B, key_of, key_of_whole
from lora.peft.matching import (
    exact,
    rank_of,
    saved_whole,
    scale_of,
    targeted,
    whole_name,
)
from lora.scaling import LoRAScaling
from minigrad.nn import Module

Array = NDArray[Any]

_SAME = 1e-12  # relative: what alpha / rank may differ from a scale by, which is rounding


@dataclass(frozen=True)
class Update:
    """The update of one layer, s B A.

    Attributes:
        a, b: A and B.
        magnitude: m, or None.
        scale: s, positive.
        scaling: how it followed from alpha.
        dropout: of the inputs.
        is_embedding: whether the layer is one.
    """

    a: Array
    b: Array
    magnitude: Array | None
    scale: float
    scaling: LoRAScaling
    dropout: float
    is_embedding: bool

    @classmethod
    def of(cls, name: str, layer: AdaptedLayer, adapter: Adapter, with_magnitude: bool) -> Update:
        """That of an adapter.

        Raises:
            ValueError: if the scale is 0 or not finite, which alpha cannot say.
        """
        scale = float(adapter.scale)
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(
                f"{name}: the scale in force is {scale}, which is no update that a file can hold; "
                f"assign another to layer.scale"
            )
        a, b = (factor.data for factor in adapter.factors())
        if scale < 0:  # alpha is positive, so the sign is B's
            scale, b = -scale, -b
        magnitude = None
        if adapter.lora_magnitude is not None:
            magnitude = adapter.lora_magnitude.data
        elif with_magnitude:
            magnitude = adapter.norms(layer.weight)
        is_embedding = isinstance(layer, LoRAEmbedding)
        return cls(a, b, magnitude, scale, adapter.scaling, adapter.dropout, is_embedding)

    @property
    def rank(self) -> int:
        """Of B A."""
        return len(self.a)


def updates_of(layers: Mapping[str, AdaptedLayer], adapter: str) -> dict[str, Update]:
    """The updates of an adapter, by layer."""
    own = {name: layer.adapters[adapter] for name, layer in layers.items()}
    with_magnitude = any(each.lora_magnitude is not None for each in own.values())
    return {name: Update.of(name, layers[name], each, with_magnitude) for name, each in own.items()}


def wholes_of(
    model: Module, record: Attachment, adapter: str, updates: Mapping[str, Update]
) -> dict[str, Array]:
    """What an adapter trains whole, by its name in the model.

    A sum of adapters may have the biases of some layers only. PEFT's word for which ones is for all
    of them, so the others are those of the model.
    """
    attached = record.adapters[adapter]
    found = {copy.name: copy.own.data for copy in attached.copies}
    bias = bias_of(attached, updates)
    if bias != "none":
        every = [copy for each in record.adapters.values() for copy in each.copies]
        originals = {copy.name: copy.original for copy in every}
        for name, parameter in in_place(model):
            layer, _, last = name.rpartition(".")
            if last == "bias" and (bias == "all" or layer in updates) and name not in found:
                found[name] = originals.get(name, parameter).data
    return found


def tensors_of(updates: Mapping[str, Update], wholes: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors, by PEFT's keys."""
    found: dict[str, Array] = {}
    for name, update in updates.items():
        found[key_of(name, A, update.is_embedding)] = update.a
        found[key_of(name, B, update.is_embedding)] = update.b
        if update.magnitude is not None:
            found[key_of(name, MAGNITUDE, update.is_embedding)] = update.magnitude
    for name, value in wholes.items():
        found[key_of_whole(name, name.rpartition(".")[0] in updates)] = value
    return found


def configuration_of(
    model: Module, attached: Attached, updates: Mapping[str, Update]
) -> PeftConfig:
    """What `adapter_config.json` says of an adapter.

    The patterns it was made by are kept where they mean the same to PEFT, in this model.

    Raises:
        ValueError: if PEFT could not tell the modules that were trained whole from others.
    """
    asked = attached.config
    names = _names(model, updates)
    dropouts = {update.dropout for update in updates.values()}
    modes = {update.scaling for update in updates.values()}
    rslora = modes == {LoRAScaling.RSLORA}
    scaling = LoRAScaling.RSLORA if rslora else LoRAScaling.STANDARD
    ranks = {name: update.rank for name, update in updates.items()}
    alphas = {name: _alpha(update, scaling) for name, update in updates.items()}
    config = PeftConfig(
        exact(list(updates), names),
        r=_commonest(ranks.values()),
        lora_alpha=_commonest(alphas.values()),
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        use_rslora=rslora,
        use_dora=any(update.magnitude is not None for update in updates.values()),
        bias=bias_of(attached, updates),
        modules_to_save=_modules_to_save(model, attached, names),
        init_lora_weights=asked.init if asked is not None and asked.init == "gaussian" else True,
    )
    config = replace(
        config,
        rank_pattern={whole_name(n): v for n, v in ranks.items() if v != config.r},
        alpha_pattern={whole_name(n): v for n, v in alphas.items() if v != config.lora_alpha},
    )
    if asked is not None:
        config = _with_targets(config, asked, names, updates)
        config = _with_tables(config, asked, updates)
    return config


def _names(model: Module, updates: Mapping[str, Update]) -> list[str]:
    """The modules of the model as it was without adapters."""
    adapted = [name for name, m in model.named_modules() if isinstance(m, AdaptedLayer)]
    inside = tuple(f"{name}." for name in {*adapted, *updates})
    return [name for name, _ in model.named_modules() if name and not name.startswith(inside)]


def _commonest(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


def _alpha(update: Update, scaling: LoRAScaling) -> float:
    """The alpha that the scale follows from; an integer if that is so but for rounding."""
    alpha = scaling.alpha(update.scale, update.rank)
    near = round(alpha)
    if near and math.isclose(scaling.scale(near, update.rank), update.scale, rel_tol=_SAME):
        return near
    return alpha


def bias_of(attached: Attached, updates: Mapping[str, Update]) -> Bias:
    """Whose biases are trained."""
    layers = {copy.name.rpartition(".")[0] for copy in attached.copies if copy.reason == "bias"}
    if not layers:
        return "none"
    if attached.config is not None:
        return attached.config.bias
    return "lora_only" if layers <= updates.keys() else "all"


def _modules_to_save(model: Module, attached: Attached, names: Sequence[str]) -> tuple[str, ...]:
    """The modules that are trained whole, as PEFT finds them: by the ends of names."""
    saved = [copy.name for copy in attached.copies if copy.reason == "modules_to_save"]
    if not saved:
        return ()
    asked = () if attached.config is None else tuple(attached.config.modules_to_save)
    holders = tuple(dict.fromkeys(name.rpartition(".")[0] for name in saved))
    for patterns in (asked, holders) if asked else (holders,):
        config = PeftConfig((), modules_to_save=patterns)
        found = {
            name
            for module in saved_whole(config, names)
            for name, _ in _module(model, module).named_parameters(module)
        }
        if found == set(saved):
            return patterns
    raise ValueError(
        f"PEFT finds modules that are trained whole by the ends of their names, so it would not "
        f"train {', '.join(holders)} alone, but {', '.join(sorted(found - set(saved)))} too; "
        f"rename them in the model, or save the others too"
    )


def _module(model: Module, name: str) -> Module:
    return next(module for each, module in model.named_modules() if each == name)


def _with_targets(
    config: PeftConfig, asked: LoRAConfig, names: Sequence[str], updates: Mapping[str, Update]
) -> PeftConfig:
    """The configuration with the targets that were asked for, if these mean the same."""
    if asked.targets == "all-linear":  # which PEFT itself resolves, for its meaning varies
        return config
    layers = asked.layers_to_transform
    kept = replace(
        config,
        target_modules=asked.targets if isinstance(asked.targets, str) else tuple(asked.targets),
        exclude_modules=asked.exclude if isinstance(asked.exclude, str) else tuple(asked.exclude),
        layers_to_transform=() if layers is None else tuple(np.atleast_1d(layers).tolist()),
        layers_pattern=tuple(asked.layers_pattern),
    )
    if isinstance(kept.target_modules, str) and kept.layers_to_transform:
        return config
    return kept if targeted(kept, names, ()).keys() == updates.keys() else config


def _with_tables(
    config: PeftConfig, asked: LoRAConfig, updates: Mapping[str, Update]
) -> PeftConfig:
    """The configuration with the ranks and alphas that were asked for, if these are in force."""
    kept = replace(
        config,
        r=asked.rank,
        lora_alpha=_plain(asked.alpha),
        rank_pattern=dict(asked.rank_pattern),
        alpha_pattern={key: _plain(alpha) for key, alpha in asked.alpha_pattern.items()},
    )
    # PEFT sorts the patterns when it saves them again, and the first that matches counts.
    ordered = replace(
        kept,
        rank_pattern=dict(sorted(kept.rank_pattern.items())),
        alpha_pattern=dict(sorted(kept.alpha_pattern.items())),
    )
    for name, update in updates.items():
        for each in (kept, ordered):
            scale = scale_of(each, name)
            same = math.isclose(scale, update.scale, rel_tol=_SAME)
            if rank_of(each, name) != update.rank or not same:
                return config
    return kept


def _plain(alpha: float) -> float:
    """An alpha, as an integer if it is one, as PEFT writes it."""
    return int(alpha) if float(alpha).is_integer() else float(alpha)
