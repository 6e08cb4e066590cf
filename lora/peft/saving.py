"""save: an adapter of a model, to a folder that PEFT can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from lora.adapted import AdaptedLayer
from lora.adapter import DEFAULT
from lora.attachment.record import Attached, layers_in_place, required
from lora.peft.facts import Facts, LayerFacts, version
from lora.peft.fingerprint import fingerprint_of
from lora.peft.to_peft import Update, configuration_of, tensors_of, updates_of, wholes_of
from lora.peft.writing import check_tensors, write_folder
from lora.weight import Dense
from minigrad.nn import Module
from minigrad.progress import progress_bar


def save(
    model: Module,
    folder: str | os.PathLike[str],
    adapter: str = DEFAULT,
    *,
    dtype: str | None = None,
    seed: int | None = None,
    base_model: str | None = None,
    progress: bool = True,
) -> None:
    """Write an adapter to a folder: `adapter_config.json` and `adapter_model.safetensors`.

    `lora.load` reads it back, and so does PEFT over the same base, with equal outputs. The two
    files appear together or not at all; others in the folder stay. An adapter that began as PiSSA
    is saved as the plain one of twice the rank that it is over the base.

    Args:
        model: with the adapter, active or not.
        folder: made if it is not there.
        adapter: its name, which is not saved.
        dtype: to round the tensors to: float64, float32, float16 or bfloat16; None for their own.
        seed: what A was drawn from, to note it; None for that of the generator that `attach` was
            given, or of the default one.
        base_model: what the base is called, for PEFT.
        progress: show a progress bar if it takes long.

    Raises:
        ValueError: if there is no such adapter or dtype, there is NaN or Inf in it, or would be in
            the dtype, a scale is 0, or PEFT could not tell the modules that were trained whole.
        OSError: if it cannot be written; the old files, if any, are as they were.
    """
    record = required(model)
    attached = record.get(adapter)
    in_place = layers_in_place(model, record)
    layers = {name: in_place[name] for name in attached.layers}
    updates = updates_of(layers, adapter)
    tensors = tensors_of(updates, wholes_of(model, record, adapter, updates))
    check_tensors(tensors, dtype)
    config = configuration_of(model, attached, updates)
    config = replace(config, base_model_name_or_path=base_model)
    facts = _facts(attached, layers, updates, seed, progress)
    write_folder(folder, config, tensors, facts, dtype)


def _facts(
    attached: Attached,
    layers: Mapping[str, AdaptedLayer],
    updates: Mapping[str, Update],
    seed: int | None,
    progress: bool,
) -> Facts:
    mixed = len({update.dropout for update in updates.values()}) > 1
    found = {
        name: LayerFacts(
            updates[name].scale,
            fingerprint_of(layer),
            "dense" if isinstance(layer.weight, Dense) else "nf4",
            float(updates[name].dropout) if mixed else None,
        )
        for name, layer in progress_bar(
            layers.items(), what="hash of the base", unit="layer", shown=progress
        )
    }
    gradient = attached.config is not None and attached.config.dora_norm_gradient
    return Facts(found, version(), attached.seed if seed is None else seed, gradient)
