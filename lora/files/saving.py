"""save: an adapter of a model, to a folder that PEFT can read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted import AdaptedLayer
from lora.adapter import DEFAULT
from lora.attachment.record import Attached, layers_in_place, required
from lora.files.config import CONFIG
from lora.files.describing import Update, configuration_of, tensors_of, updates_of, wholes_of
from lora.files.facts import Facts, LayerFacts, fingerprint, fingerprint_of_rows
from lora.files.folder import WEIGHTS
from lora.weight import Dense, Weight
from minigrad.io import TensorInfo, TensorWriter, replacing_together
from minigrad.io.tensor_info import check_dtype, from_stored, to_stored
from minigrad.nn import Module
from minigrad.tensor import Tensor

Array = NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""What tensors can be saved in."""


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
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"an adapter is saved in {', '.join(FLOATS)}, not in {dtype!r}")
    record = required(model)
    attached = record.get(adapter)
    in_place = layers_in_place(model, record)
    layers = {name: in_place[name] for name in attached.layers}
    updates = updates_of(layers, adapter)
    tensors = tensors_of(updates, wholes_of(model, record, adapter, updates))
    infos = [TensorInfo(k, dtype or each.dtype.name, each.shape) for k, each in tensors.items()]
    _check_finite(tensors, infos)
    config = configuration_of(model, attached, updates)
    config = replace(config, base_model_name_or_path=base_model)
    facts = _facts(attached, layers, updates, seed, progress)
    with replacing_together(folder, CONFIG) as stage:
        _write(stage / WEIGHTS, tensors, infos, facts)
        (stage / CONFIG).write_text(config.as_json(), encoding="utf-8")


def _write(
    path: Path, tensors: Mapping[str, Array], infos: Sequence[TensorInfo], facts: Facts
) -> None:
    with open(path, "wb") as file:
        writer = TensorWriter(file, infos, facts.metadata())
        for key, array in tensors.items():
            writer.write(key, array)
        writer.finish()


def _check_finite(tensors: Mapping[str, Array], infos: Iterable[TensorInfo]) -> None:
    """Refuse NaN and Inf, and what would become so."""
    broken, beyond = [], []
    for info in infos:
        array = tensors[info.name]
        check_dtype(info.dtype)
        if not np.isfinite(array).all():
            broken.append(info.name)
        elif not np.isfinite(from_stored(to_stored(array, info.dtype), info.dtype)).all():
            beyond.append(f"{info.name} in {info.dtype}")
    if broken:
        raise ValueError(
            f"{', '.join(broken)} would have NaN or Inf in the file; mend the adapter, or take an "
            f"earlier one"
        )
    if beyond:
        raise ValueError(f"{', '.join(beyond)} would be Inf; save in bfloat16 or float32")


def _facts(
    attached: Attached,
    layers: Mapping[str, AdaptedLayer],
    updates: Mapping[str, Update],
    seed: int | None,
    progress: bool,
) -> Facts:
    found = {
        name: LayerFacts(
            updates[name].scale,
            fingerprint_of(layer),
            "dense" if isinstance(layer.weight, Dense) else "nf4",
            float(updates[name].dropout),
        )
        for name, layer in with_bar(layers.items(), "hash of the base", progress)
    }
    gradient = attached.config is not None and attached.config.dora_norm_gradient
    return Facts(found, _version(), attached.seed if seed is None else seed, gradient)


def fingerprint_of(layer: AdaptedLayer) -> str:
    """Of the matrix of a layer as it is stored; of one in four bits, of what these stand for."""
    if isinstance(layer.base_weight, Tensor):
        return fingerprint(layer.base_weight._data)
    weight = layer.weight
    return fingerprint_of_rows(weight.shape, lambda: _rows(weight))


def _rows(weight: Weight) -> Iterable[Array]:
    return (weight.rows(strip) for strip in weight.strips())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("minigrad-lora")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def with_bar(items: Iterable[Any], what: str, shown: bool) -> Any:
    """The items, with a progress bar if they take longer than a moment."""
    from tqdm.auto import tqdm

    return tqdm(list(items), desc=what, leave=False, delay=1.0, disable=None if shown else True)
