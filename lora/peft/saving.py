"""save: write an adapter of a model to a folder that PEFT can read.

PEFT's format cannot express all adapters. The others are converted, with equal outputs. A scale
that does not follow from alpha and the rank becomes an alpha, for single layers if necessary.
PiSSA's update s (B A - B_0 A_0) becomes one product of twice the rank on the original base. If only
some layers have a DoRA magnitude, each other layer gets the magnitude n, which changes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora.adapter import DEFAULT, UNMERGEABLE, Adapter, check_names
from lora.attachment import state
from lora.attachment.state import Attached, Attachment
from lora.config import Bias
from lora.embedding import LoRAEmbedding
from lora.frozen import Array
from lora.peft.config import PeftConfig
from lora.peft.facts import Facts, LayerFacts, fingerprint_of, form_of
from lora.peft.folder import check_can_be_folder, check_tensors, write_folder
from lora.peft.keys import MAGNITUDE, A, B, by_key, stored_shape
from lora.scaling import LoRAScaling
from minigrad.checks import check_count
from minigrad.errors import named_errors
from minigrad.nn import Module
from minigrad.progress import progress_bar

_SAME = 1e-12  # relative tolerance between alpha / rank and a scale, for rounding errors


@named_errors
def save(
    model: Module,
    folder: str | os.PathLike[str],
    adapter: str = DEFAULT,
    *,
    dtype: str | None = None,
    seed: int | None = None,
    base_model: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> None:
    """Write an adapter to a folder: `adapter_config.json` and `adapter_model.safetensors`.

    `lora.load` and PEFT can read it on the same base, with equal outputs. The two files appear
    together or not at all; other files in the folder stay. Besides PEFT's content, the metadata get
    the exact scale of each layer and a hash of its base weight (see `lora.peft.Facts`).

    If a model has a layer under two names, PEFT changes it under the first one only; and A has the
    dilation of a convolution here, but not in PEFT. So PEFT's outputs differ for such layers, and
    `lora.load` refuses PEFT's files for them.

    Args:
        model: the model with the adapter, which may be active or not.
        folder: the folder, created if it does not exist.
        adapter: the name of the adapter, which is not saved.
        dtype: the dtype that tensors are rounded to: float64, float32, float16 or bfloat16; None
            keeps their dtype.
        seed: the seed that A was drawn from, stored as a note; None for the seed of `attach`.
        base_model: the name or the path of the base, for PEFT.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if `model` is not a Module, or the name of the adapter is not a string.
        ValueError: if the adapter or the dtype is unknown, the path is empty, or the seed is not
            an integer of at least 0. Also if the adapter has NaN or Inf, or would have after
            rounding, a scale is 0, only other layers than a grouped convolution are DoRA, or PEFT
            could not find or read the modules that are trained in full.
        OSError: if the files cannot be written; old files, if any, are unchanged.
    """
    check_can_be_folder(folder)
    base_model = None if base_model is None else os.fspath(base_model)
    record = state.required_attachment(model)
    check_names([adapter], record.adapters)
    attached = record.adapters[adapter]
    seed = attached.seed if seed is None else check_count("seed", seed)
    in_place = state.attached_layers(model, record)
    layers = {name: in_place[name] for name in attached.layers}
    updates = {name: layer.adapters[adapter] for name, layer in layers.items()}
    has_magnitudes = any(update.lora_magnitude is not None for update in updates.values())
    parts: dict[str, dict[str, Array]] = {}
    for name, update in updates.items():
        if update.scale == 0:
            raise ValueError(
                f"{name}: the scale is 0, and a file cannot store such an update; assign another "
                f"to layer.scale"
            )
        a, b = (factor.data for factor in update.factors())
        own = {A: a, B: b if update.scale > 0 else -b}  # alpha is positive, so B gets the sign
        if update.lora_magnitude is not None:
            own[MAGNITUDE] = update.lora_magnitude.data
        elif has_magnitudes and update.groups > 1:
            raise ValueError(
                f"{name}: other layers of the adapter are DoRA, and a file has magnitudes for all "
                f"layers or for none; but {UNMERGEABLE}, so a convolution in groups has none. Save "
                f"it in an adapter of its own"
            )
        elif has_magnitudes:
            own[MAGNITUDE] = update.norms(layers[name].weight)
        shape = layers[name].base_weight.shape
        parts[name] = {
            key: x.reshape(stored_shape(key, x.shape, shape, update.groups))
            for key, x in own.items()
        }
    full = _full_parameters_of(model, record, attached)
    embeddings = [name for name, layer in layers.items() if isinstance(layer, LoRAEmbedding)]
    tensors = by_key(parts, full, embeddings)
    check_tensors(tensors, dtype)  # before the hashes, which take longer
    config = _config_of(model, attached, updates, parts)
    task = getattr(model, "task_type", None)
    config = replace(config, base_model_name_or_path=base_model, task_type=task)
    mixed = len({update.dropout for update in updates.values()}) > 1
    bar = progress_bar(layers.items(), what="hash of the base", unit="layer", shown=progress)
    layer_facts = {
        name: LayerFacts(
            abs(updates[name].scale),
            fingerprint_of(layer),
            form_of(layer),
            float(updates[name].dropout) if mixed else None,
        )
        for name, layer in bar
    }
    gradient = any(update.dora_norm_gradient for update in updates.values())
    facts = Facts(layer_facts, seed=seed, dora_norm_gradient=gradient)
    write_folder(folder, config, tensors, facts, dtype)


def _full_parameters_of(model: Module, record: Attachment, attached: Attached) -> dict[str, Array]:
    """Return the parameters and buffers that an adapter has in full, by their names in the model.

    A sum of adapters may have the biases of only some layers. PEFT's field `bias` is the same for
    all layers, so for the others the file gets the biases of the model.
    """
    found = {name: copy.own.data for copy in attached.copies for name in copy.names}
    bias = _bias_of(attached)
    every = [copy for each in record.adapters.values() for copy in each.copies]
    originals = {copy.name: copy.original for copy in every}
    for name, parameter in state.parameters_in_use(model) if bias != "none" else ():
        layer, _, last = name.rpartition(".")
        if last == "bias" and (bias == "all" or layer in attached.layers) and name not in found:
            found[name] = originals.get(name, parameter).data
    return found


def _bias_of(attached: Attached) -> Bias:
    """Return the value of the field `bias`: which biases are trained."""
    layers = {copy.name.rpartition(".")[0] for copy in attached.copies if copy.reason == "bias"}
    if not layers:
        return "none"
    if attached.config is not None:
        return attached.config.bias
    return "lora_only" if layers <= set(attached.layers) else "all"


def _config_of(
    model: Module,
    attached: Attached,
    updates: Mapping[str, Adapter],
    parts: Mapping[str, Mapping[str, Array]],
) -> PeftConfig:
    """Return the configuration, with the adapter's own patterns if PEFT matches them the same."""
    asked = attached.config
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name in state.layers_in(model))
    # The names of the modules of the model without adapters, and of lists and dicts of modules:
    # these are modules in PyTorch, so PEFT compares their names with the patterns too.
    parts_of = [n.split(".") for n in modules if n and not n.startswith(inside)]
    paths = (".".join(each[:i]) for each in parts_of for i in range(1, len(each) + 1))
    names = list(dict.fromkeys(paths))
    dropouts = {update.dropout for update in updates.values()}
    modes = {update.scaling for update in updates.values()}
    scaling = modes.pop() if len(modes) == 1 else LoRAScaling.STANDARD
    ranks = {name: len(each[A]) for name, each in parts.items()}
    scales = {name: abs(update.scale) for name, update in updates.items()}

    def plain(alpha: float) -> float:  # PEFT writes an integral alpha as an integer
        near = round(alpha)
        return near if math.isclose(near, alpha, rel_tol=_SAME) else float(alpha)

    alphas = {name: plain(scaling.alpha(scales[name], rank)) for name, rank in ranks.items()}
    config = PeftConfig.of_layers(
        ranks,
        alphas,
        names,
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        use_rslora=scaling is LoRAScaling.RSLORA,
        use_dora=any(MAGNITUDE in each for each in parts.values()),
        bias=_bias_of(attached),
        modules_to_save=_modules_to_save(modules, names, attached),
        init_lora_weights=asked.init if asked and asked.init in ("gaussian", "mica") else True,
    )
    kept = config.targets_among(names, ())
    if dropped := [name for name in updates if name not in kept]:
        raise ValueError(
            f"PEFT reads modules_to_save={list(config.modules_to_save)} as regular expressions, "
            f"and gives no update to a layer that they match, such as {', '.join(dropped)}; "
            f"rename the modules, or train these layers in full too"
        )
    if asked is None:
        return config

    def means_the_same(config: PeftConfig) -> bool:
        is_readable = isinstance(config.target_modules, tuple) or not config.layers_to_transform
        # () makes "all-linear" select nothing: in PEFT it depends on the model, so it is not kept.
        is_for_these = is_readable and config.targets_among(names, ()).keys() == updates.keys()
        return is_for_these and all(
            config.rank_of(name) == rank
            and math.isclose(config.scale_of(name), scales[name], rel_tol=_SAME)
            for name, rank in ranks.items()
        )

    targets: dict[str, Any] = {
        "target_modules": asked.targets,
        "exclude_modules": asked.exclude,
        "layers_to_transform": asked.layers_to_transform or (),
        "layers_pattern": asked.layers_pattern,
    }
    sizes: dict[str, Any] = {
        "r": asked.rank,
        "lora_alpha": plain(asked.alpha),
        "rank_pattern": asked.rank_pattern,
        "alpha_pattern": {key: plain(alpha) for key, alpha in asked.alpha_pattern.items()},
    }
    for chosen in (targets, sizes):
        changed = replace(config, **chosen)
        # The first match counts, and PEFT sorts the patterns when it saves them again.
        ordered = replace(
            changed,
            rank_pattern=dict(sorted(changed.rank_pattern.items())),
            alpha_pattern=dict(sorted(changed.alpha_pattern.items())),
        )
        if means_the_same(changed) and means_the_same(ordered):
            config = changed
    return config


def _modules_to_save(
    modules: Mapping[str, Module], names: Sequence[str], attached: Attached
) -> tuple[str, ...]:
    """Return patterns for the modules trained in full, which PEFT finds by the ends of their names.

    PEFT can read neither a list of modules in full, nor a module that is inside of another one that
    it reads in full.
    """
    copies = [copy for copy in attached.copies if copy.reason == "modules_to_save"]
    saved = dict.fromkeys(name for copy in copies for name in copy.names)

    def found_by(patterns: tuple[str, ...]) -> list[str]:
        return PeftConfig((), modules_to_save=patterns).saved_modules(names)

    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in saved))
    asked = attached.config.modules_to_save if attached.config is not None else ()
    first = tuple(asked) or owners
    for patterns in (first, _outermost(found_by(first)), owners):
        whole = found_by(patterns)
        readable = [name for name in _outermost(whole) if name in modules]
        found = {n for name in readable for n, _ in modules[name].named_state(name)}
        if found == saved.keys() and len(readable) == len(whole):
            return patterns
    raise ValueError(
        f"PEFT finds modules that are trained in full by the ends of their names, so "
        f"{', '.join(owners)} would mean {', '.join(whole)}; and it can read neither a list of "
        f"modules nor a module inside of another one; rename the modules, or train all of these"
    )


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that are not inside of another one."""
    inside = tuple(f"{name}." for name in names)
    return tuple(name for name in names if not name.startswith(inside))
