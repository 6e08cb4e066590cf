"""An adapter of a model in PEFT's format: a configuration, and tensors by key.

What the format cannot express is converted to what it can, with equal outputs. A scale that does
not follow from alpha and the rank becomes an alpha, by layer where it must. PiSSA's update, which
is a difference to its first factors, becomes one of twice the rank over the original base. A layer
without a magnitude, beside others with one, gets the magnitude that changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter
from lora.attachment.state import Attached, Attachment, parameters_in_use
from lora.config import Bias, LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.patterns import exact, exact_key
from lora.peft.config import PeftConfig
from lora.peft.folder import MAGNITUDE, A, B, key_of, key_of_parameter
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
        scaling: how s followed from alpha.
        dropout: the dropout of the inputs.
        is_embedding: whether the layer is an embedding.
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
        """Return the update that an adapter of a layer makes.

        Raises:
            ValueError: if the scale is 0 or not finite, which no alpha gives.
        """
        scale = float(adapter.scale)
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(
                f"{name}: the scale is {scale}, and a file cannot store such an update; assign "
                f"another to layer.scale"
            )
        a, b = (factor.data for factor in adapter.factors())
        if scale < 0:  # alpha is positive, so B gets the sign
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
        """The rank of B A."""
        return len(self.a)

    def alpha(self, scaling: LoRAScaling) -> float:
        """Return the alpha that gives the scale; an integer if it is one but for rounding."""
        alpha = scaling.alpha(self.scale, self.rank)
        near = round(alpha)
        if near and math.isclose(scaling.scale(near, self.rank), self.scale, rel_tol=_SAME):
            return near
        return alpha


def updates_of(layers: Mapping[str, AdaptedLayer], adapter: str) -> dict[str, Update]:
    """Return the updates of an adapter, by layer."""
    own = {name: layer.adapters[adapter] for name, layer in layers.items()}
    with_magnitude = any(each.lora_magnitude is not None for each in own.values())
    return {name: Update.of(name, layers[name], each, with_magnitude) for name, each in own.items()}


def full_parameters_of(
    model: Module, record: Attachment, adapter: str, updates: Mapping[str, Update]
) -> dict[str, Array]:
    """Return the parameters that an adapter trains in full, by their names in the model.

    A sum of adapters may have the biases of some layers only. PEFT's fields say the same of all
    layers, so the file gets the biases of the model for the others.
    """
    attached = record.adapters[adapter]
    found = {copy.name: copy.own.data for copy in attached.copies}
    bias = _bias_of(attached, updates)
    if bias != "none":
        every = [copy for each in record.adapters.values() for copy in each.copies]
        originals = {copy.name: copy.original for copy in every}
        for name, parameter in parameters_in_use(model):
            layer, _, last = name.rpartition(".")
            if last == "bias" and (bias == "all" or layer in updates) and name not in found:
                found[name] = originals.get(name, parameter).data
    return found


def tensors_of(updates: Mapping[str, Update], parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return all tensors of a file, by PEFT's keys."""
    found: dict[str, Array] = {}
    for name, update in updates.items():
        found[key_of(name, A, update.is_embedding)] = update.a
        found[key_of(name, B, update.is_embedding)] = update.b
        if update.magnitude is not None:
            found[key_of(name, MAGNITUDE, update.is_embedding)] = update.magnitude
    for name, value in parameters.items():
        found[key_of_parameter(name, name.rpartition(".")[0] in updates)] = value
    return found


def config_of(model: Module, attached: Attached, updates: Mapping[str, Update]) -> PeftConfig:
    """Return the configuration of an adapter.

    It has the patterns that the adapter was made by, where they mean the same to PEFT in this
    model.

    Raises:
        ValueError: if PEFT could not tell the modules that were trained in full from others.
    """
    asked = attached.config
    adapted = [name for name, m in model.named_modules() if isinstance(m, AdaptedLayer)]
    inside = tuple(f"{name}." for name in {*adapted, *updates})
    # The modules of the model as it was without adapters.
    names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
    dropouts = {update.dropout for update in updates.values()}
    rslora = {update.scaling for update in updates.values()} == {LoRAScaling.RSLORA}
    scaling = LoRAScaling.RSLORA if rslora else LoRAScaling.STANDARD
    ranks = {name: update.rank for name, update in updates.items()}
    alphas = {name: update.alpha(scaling) for name, update in updates.items()}
    r, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config = PeftConfig(
        exact(list(updates), names),
        r=int(r),
        lora_alpha=alpha,
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        use_rslora=rslora,
        use_dora=any(update.magnitude is not None for update in updates.values()),
        rank_pattern={exact_key(n): value for n, value in ranks.items() if value != r},
        alpha_pattern={exact_key(n): value for n, value in alphas.items() if value != alpha},
        bias=_bias_of(attached, updates),
        modules_to_save=_modules_to_save(model, attached, names),
        init_lora_weights=asked.init if asked is not None and asked.init == "gaussian" else True,
    )
    if asked is not None:
        config = _with_targets(config, asked, names, updates)
        config = _with_tables(config, asked, updates)
    return config


def _bias_of(attached: Attached, updates: Mapping[str, Update]) -> Bias:
    """Return the value of the field `bias`: which biases are trained."""
    layers = {copy.name.rpartition(".")[0] for copy in attached.copies if copy.reason == "bias"}
    if not layers:
        return "none"
    if attached.config is not None:
        return attached.config.bias
    return "lora_only" if layers <= updates.keys() else "all"


def _modules_to_save(model: Module, attached: Attached, names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that are trained in full, as PEFT finds them: by the ends of names."""
    saved = [copy.name for copy in attached.copies if copy.reason == "modules_to_save"]
    if not saved:
        return ()
    asked = () if attached.config is None else tuple(attached.config.modules_to_save)
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in saved))
    modules = dict(model.named_modules())
    for patterns in (asked, owners) if asked else (owners,):
        found = {
            name
            for module in PeftConfig((), modules_to_save=patterns).saved_modules(names)
            for name, _ in modules[module].named_parameters(module)
        }
        if found == set(saved):
            return patterns
    raise ValueError(
        f"PEFT finds modules that are trained in full by the ends of their names, so it would not "
        f"train {', '.join(owners)} alone, but {', '.join(sorted(found - set(saved)))} too; "
        f"rename them in the model, or save the others too"
    )


def _with_targets(
    config: PeftConfig, asked: LoRAConfig, names: Sequence[str], updates: Mapping[str, Update]
) -> PeftConfig:
    """Return the configuration with the targets that were asked for, if these mean the same."""
    if asked.targets == "all-linear":  # which PEFT itself resolves, for its meaning varies
        return config
    layers = asked.layers_to_transform
    changed = replace(
        config,
        target_modules=asked.targets if isinstance(asked.targets, str) else tuple(asked.targets),
        exclude_modules=asked.exclude if isinstance(asked.exclude, str) else tuple(asked.exclude),
        layers_to_transform=() if layers is None else tuple(np.atleast_1d(layers).tolist()),
        layers_pattern=tuple(asked.layers_pattern),
    )
    if isinstance(changed.target_modules, str) and changed.layers_to_transform:
        return config
    return changed if changed.targets_among(names, ()).keys() == updates.keys() else config


def _with_tables(
    config: PeftConfig, asked: LoRAConfig, updates: Mapping[str, Update]
) -> PeftConfig:
    """Return the configuration with the ranks and alphas that were asked for, if they are right."""

    def plain(alpha: float) -> float:  # PEFT writes an integer where alpha is one
        return int(alpha) if float(alpha).is_integer() else float(alpha)

    changed = replace(
        config,
        r=asked.rank,
        lora_alpha=plain(asked.alpha),
        rank_pattern=dict(asked.rank_pattern),
        alpha_pattern={key: plain(alpha) for key, alpha in asked.alpha_pattern.items()},
    )
    # PEFT sorts the patterns when it saves them again, and the first that matches counts.
    ordered = replace(
        changed,
        rank_pattern=dict(sorted(changed.rank_pattern.items())),
        alpha_pattern=dict(sorted(changed.alpha_pattern.items())),
    )
    for name, update in updates.items():
        for each in (changed, ordered):
            same = math.isclose(each.scale_of(name), update.scale, rel_tol=_SAME)
            if each.rank_of(name) != update.rank or not same:
                return config
    return changed
