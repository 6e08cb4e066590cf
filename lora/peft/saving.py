"""save: an adapter of a model, to a folder that PEFT can read."""

from __future__ import annotations

import os
from dataclasses import replace

from lora.adapter import DEFAULT
from lora.attachment.state import attached_layers, required_attachment
from lora.frozen import DenseMatrix
from lora.peft.facts import Facts, LayerFacts, fingerprint_of
from lora.peft.folder import check_tensors, write_folder
from lora.peft.to_peft import config_of, full_parameters_of, tensors_of, updates_of
from minigrad import __version__
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
        model: the model with the adapter, which may be active or not.
        folder: made if it is not there.
        adapter: its name, which is not saved.
        dtype: the dtype to round the tensors to: float64, float32, float16 or bfloat16; None for
            their own.
        seed: the seed that A was drawn from, to note it; None for that of the generator that
            `attach` was given, or of the default one.
        base_model: the name of the base, for PEFT.
        progress: show a progress bar if it takes long.

    Raises:
        ValueError: if there is no such adapter or dtype, there is NaN or Inf in it, or would be in
            the dtype, a scale is 0, or PEFT could not tell the modules that were trained in full.
        OSError: if it cannot be written; the old files, if any, are as they were.
    """
    record = required_attachment(model)
    attached = record.get(adapter)
    in_place = attached_layers(model, record)
    layers = {name: in_place[name] for name in attached.layers}
    updates = updates_of(layers, adapter)
    tensors = tensors_of(updates, full_parameters_of(model, record, adapter, updates))
    check_tensors(tensors, dtype)  # before the hashes, which take longer
    config = config_of(model, attached, updates)
    config = replace(config, base_model_name_or_path=base_model)
    mixed = len({update.dropout for update in updates.values()}) > 1
    layer_facts = {
        name: LayerFacts(
            updates[name].scale,
            fingerprint_of(layer),
            "dense" if isinstance(layer.weight, DenseMatrix) else "nf4",
            float(updates[name].dropout) if mixed else None,
        )
        for name, layer in progress_bar(
            layers.items(), what="hash of the base", unit="layer", shown=progress
        )
    }
    gradient = attached.config is not None and attached.config.dora_norm_gradient
    seed = attached.seed if seed is None else seed
    write_folder(folder, config, tensors, Facts(layer_facts, __version__, seed, gradient), dtype)
