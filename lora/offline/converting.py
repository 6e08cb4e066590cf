"""convert_adapter: convert an adapter from PEFT's folder to llama.cpp's GGUF file, and back.

A GGUF adapter has one alpha in its metadata, and for each weight NAME two tensors, NAME.lora_a
`(rank, d_in)` and NAME.lora_b `(d_out, rank)`. llama.cpp computes with the scale alpha / rank, or
with 1 if alpha is 0. With rsLoRA or an alpha pattern, PEFT's scales can differ from this. Then the
file gets the alpha of most layers, and B of the other layers is multiplied by the missing factor.
The rows of B have the same order as those of the weight in GGUF. A of an embedding is stored
transposed.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora.frozen import Array
from lora.offline.inspection import wrong_in
from lora.offline.model_folder import PathLike
from lora.peft.config import PeftConfig
from lora.peft.facts import Facts
from lora.peft.folder import AdapterFolder, check_no_model, check_tensors, write_folder
from lora.peft.keys import MAGNITUDE, A, B, by_key
from lora.text.architecture import ModelConfig, config_from_json, expected_shapes, model_json
from lora.text.gguf_file import GGUFFile, gguf_names, read_config, swap_heads
from minigrad.checks import check_problems
from minigrad.errors import named_errors
from minigrad.io import replacing
from minigrad.io.tensor_info import CODES, to_stored
from minigrad.packages import package
from minigrad.tables import counted

EMBEDDING = "model.embed_tokens"

_ALPHA, _INVOCATION = "adapter.lora.alpha", "adapter.alora.invocation_tokens"


@dataclass(frozen=True, repr=False)
class ConvertedAdapter:
    """The result of `convert_adapter`.

    Attributes:
        path: the file or the folder that was written.
        alpha: the alpha in the new metadata or configuration.
        layers: the layers with an update.
        multiplied: by name, the factor that multiplied B in layers with another alpha.
    """

    path: str
    alpha: float
    layers: tuple[str, ...]
    multiplied: Mapping[str, float]

    def __repr__(self) -> str:
        lines = [f"{name}: B was multiplied by {x:.6g}" for name, x in self.multiplied.items()]
        layers = counted(len(self.layers), "layer")
        written = f"written: {self.path} ({layers}, alpha {self.alpha:g})"
        return "\n".join([*lines, written])


@named_errors
def convert_adapter(
    adapter: PathLike, out: PathLike, base: PathLike, *, progress: bool = True
) -> ConvertedAdapter:
    """Convert a PEFT adapter to the GGUF file that llama.cpp reads, or a GGUF adapter to PEFT.

    Tensors keep their bits, unless B must be multiplied. In a GGUF file, float64 becomes float32.
    In a folder, tensors that GGUF stores in few bits become float32.

    Args:
        adapter: a folder that PEFT or `lora.save` wrote, or a GGUF file.
        out: a file that ends in .gguf; or if the adapter is a file, a folder.
        base: the language model of the adapter, a folder or a GGUF file; only its configuration is
            read.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if a file is missing.
        ImportError: if the package gguf is not installed.
        ValueError: if a file is invalid, the adapter does not fit the base, or `out` is the base, a
            model's folder or GGUF file, or of the wrong kind. Also if the other format cannot store
            the adapter: it has DoRA, biases, modules to save, PiSSA's first factors, or a number
            too large for its dtype.
        OSError: if the result cannot be written; the files at `out` are unchanged.
    """
    if not os.path.exists(adapter):
        raise FileNotFoundError(
            f"there is no adapter {os.fspath(adapter)!r}; name a folder or a GGUF file"
        )
    is_folder = Path(base).is_dir()
    config = config_from_json(model_json(base)) if is_folder else read_config(GGUFFile(base))
    is_file, target = Path(adapter).is_file(), Path(out)
    if target.resolve() == Path(base).resolve():
        raise ValueError(f"{os.fspath(out)!r} is the base; name another path, so that it stays")
    is_gguf = target.suffix == ".gguf" and not target.is_dir()
    if (is_gguf or target.is_file()) if is_file else not is_gguf:
        kind = "a folder" if is_file else "a file that ends in .gguf"
        raise ValueError(f"{os.fspath(out)!r} must be {kind}; name one")
    if is_file:
        check_no_model(out, base)
        return _to_folder(GGUFFile(adapter), out, config)
    if target.is_file() and _is_gguf_model(target):
        raise ValueError(
            f"{os.fspath(out)!r} is a GGUF file of a model, which the adapter would replace; name "
            f"another path, so that it stays"
        )
    with AdapterFolder(adapter) as files:
        return _to_gguf(files, out, config, progress)


def _is_gguf_model(path: Path) -> bool:
    """Return whether a file is GGUF, and not one of an adapter; a file that is cut off counts."""
    with open(path, "rb") as file, suppress(ValueError):
        return file.read(4) == b"GGUF" and not GGUFFile(path).is_adapter
    return True


def _kind(config: ModelConfig) -> str:
    """Return llama.cpp's name of an architecture."""
    return {"mistral": "llama"}.get(config.architecture, config.architecture)


def _misfits(shapes: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return the layers that the model does not have with these shapes of A and B."""
    wanted, problems = expected_shapes(config), []
    for name, (a, b) in shapes.items():
        shape = wanted.get(f"{name}.weight", ())
        shape = shape[::-1] if name == EMBEDDING else shape
        if len(shape) != 2:
            problems.append(f"another base: it has no matrix {name}.weight")
        elif len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != shape:
            problems.append(f"mis-shaped: A {a} and B {b} of {name} do not fit {shape}")
    return problems


def _to_gguf(
    files: AdapterFolder, out: PathLike, config: ModelConfig, progress: bool
) -> ConvertedAdapter:
    gguf, names, layers = package("gguf"), gguf_names(config), files.layers
    refused = [f"DoRA: {name}" for name, each in layers.items() if MAGNITUDE in each.keys]
    refused += [
        f"{'bias' if name.endswith('.bias') else 'modules_to_save'}: {name}"
        for name in files.whole
        if name.removesuffix(".weight") not in layers  # as PEFT may write of an embedding
    ]
    refused += ["PiSSA: init_lora_weights"] if files.config.init_lora_weights == "pissa" else []
    advice = "which a GGUF adapter cannot have; merge it with python -m lora merge"
    what = f"{os.fspath(files.path)!r} cannot become a GGUF adapter"
    check_problems(what, wrong_in(files, progress) + [f"{each}, {advice}" for each in refused])
    infos = {n: [files.tensors[each.keys[part]] for part in (A, B)] for n, each in layers.items()}
    shapes = {name: [info.shape for info in pair] for name, pair in infos.items()}
    check_problems(what, _misfits(shapes, config))
    alphas = {name: layer.scale * shapes[name][0][0] for name, layer in layers.items()}
    with np.errstate(over="ignore"):  # Inf is refused, or is unlike the common alpha
        rounded = {name: np.float32(alpha) for name, alpha in alphas.items()}
    alpha = Counter(rounded.values()).most_common(1)[0][0]
    if not 0 < alpha < math.inf:
        exact_alpha = next(alphas[name] for name in layers if rounded[name] == alpha)
        raise ValueError(
            f"{what}: most layers have alpha {exact_alpha:g}, and in GGUF it is a positive number "
            f"of float32; multiply B by a part of it, and divide alpha by the same"
        )
    # If an alpha equals the common one after rounding to float32, the bits of B do not change.
    factors = {n: each / float(alpha) for n, each in alphas.items() if rounded[n] != alpha}
    tensors: dict[str, tuple[Array, str]] = {}
    for name in layers:
        for part, info in zip((A, B), infos[name], strict=True):
            array = files.read(info.name)
            if part == B:
                array = array.astype(np.float64) * factors[name] if name in factors else array
                array = swap_heads(array, name, config, back=False)
            elif name == EMBEDDING:
                array = array.T
            dtype = "float32" if info.dtype == "float64" else info.dtype
            check_tensors({info.name: array}, dtype)
            tensors[f"{names[f'{name}.weight']}.{part}"] = to_stored(array, dtype), dtype
    with replacing(out) as file:
        writer = gguf.GGUFWriter(Path(file.name), _kind(config))
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32(_ALPHA, float(alpha))
        for key, (stored, dtype) in tensors.items():
            code = gguf.GGMLQuantizationType[CODES[dtype]]  # same names as in safetensors
            writer.add_tensor_info(key, stored.shape, stored.dtype, stored.nbytes, code)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        # The writer's own method writes a part of a tensor to a full disk, without an error.
        file.seek(0, os.SEEK_END)
        for stored, _ in tensors.values():
            file.write(bytes(-file.tell() % writer.data_alignment) + stored.tobytes())
        file.write(bytes(-file.tell() % writer.data_alignment))
    return ConvertedAdapter(os.fspath(out), float(alpha), tuple(layers), factors)


def _to_folder(file: GGUFFile, out: PathLike, config: ModelConfig) -> ConvertedAdapter:
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    problems = [
        f"{key} is {file.metadata.get(key)!r:.60}, not {value!r}"
        for key, value in {**wanted, "general.architecture": _kind(config)}.items()
        if file.metadata.get(key) != value
    ]
    what = f"{os.fspath(file.path)!r} cannot become a folder of PEFT's"
    if not file.is_adapter:  # its tensors would be many more problems
        check_problems(what, problems[:1])
    if _INVOCATION in file.metadata:
        problems.append(f"{_INVOCATION}: its update begins in the middle of a text")
    alpha = file.metadata.get(_ALPHA, 0.0)
    if not isinstance(alpha, float) or not 0 <= alpha < math.inf:
        problems.append(f"{_ALPHA} is {alpha!r:.60}")
    layers = {theirs: name.removesuffix(".weight") for name, theirs in gguf_names(config).items()}
    updates: dict[str, dict[str, Array]] = {}
    for key in file.tensors:
        stem, _, part = key.rpartition(".")
        if stem in layers and part in (A, B):
            array, name = file.read(key), layers[stem]
            is_turned = name == EMBEDDING and part == A
            updates.setdefault(name, {})[part] = array.T if is_turned else array
        else:
            problems.append(f"unexpected: {key:.200} is not a part of an update of the base")
    for name, parts in updates.items():
        problems += [f"{name} has no {part}" for part in sorted({A, B} - parts.keys())]
    pairs = {n: [parts[A].shape, parts[B].shape] for n, parts in updates.items() if len(parts) == 2}
    problems += _misfits(pairs, config) if updates else ["no tensors"]
    check_problems(what, problems)
    for name, parts in updates.items():
        parts[B] = swap_heads(parts[B], name, config, back=True)
    ranks = {name: len(parts[A]) for name, parts in updates.items()}
    alphas = {name: alpha or rank for name, rank in ranks.items()}  # without alpha, the scale is 1
    modules = [name.rpartition(".")[0] for name in expected_shapes(config)]
    made = PeftConfig.of_layers(ranks, alphas, modules, task_type="CAUSAL_LM")
    write_folder(out, made, by_key(updates, {}, [EMBEDDING]), Facts())
    return ConvertedAdapter(os.fspath(out), float(made.lora_alpha), tuple(updates), {})
