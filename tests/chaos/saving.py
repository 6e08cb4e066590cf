"""What is attacked: `main(COMMAND, FOLDER, OUT)` saves again and again, in a process of its own.

It writes what belongs to "old" and to "new" to `OUT` by turns. The two adapters have other ranks,
so that a mixture of their files shows.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import lora
import minigrad as mg
from lora.offline import extract_files, merge_files
from lora.peft import CONFIG, WEIGHTS, AdapterFolder
from minigrad.io import load_state, open_tensors, save_state

LAYERS, D_IN, D_OUT = 6, 64, 96
RANKS = {"old": 2, "new": 3}


def prepare(folder):
    """Write a base, two models trained on it, and the adapters that come nearest to these."""
    rng = np.random.default_rng(0)
    draw = partial(rng.standard_normal, dtype=np.float32)
    base = {f"layers.{i}.weight": draw((D_OUT, D_IN)) for i in range(LAYERS)}
    save_state(folder / "base.safetensors", base)
    for text, rank in RANKS.items():
        trained = {name: w + draw((D_OUT, rank)) @ draw((rank, D_IN)) for name, w in base.items()}
        save_state(folder / f"{text}.safetensors", trained)
        extract(folder, text, folder / text)


def extract(folder, text, out):
    base, trained = folder / "base.safetensors", folder / f"{text}.safetensors"
    extract_files(base, trained, out, RANKS[text], progress=False)


def merge(folder, text, out):
    merge_files(folder / "base.safetensors", folder / text, out, progress=False)


def adapted(folder, text):
    """A model with one of the two adapters."""
    model = mg.nn.Sequential(*(mg.nn.Linear(D_IN, D_OUT, bias=False) for _ in range(LAYERS)))
    state = load_state(folder / "base.safetensors")[0]
    holder = mg.nn.Module()
    holder.layers = model
    holder.load_state_dict(state)
    lora.load(holder, folder / text, progress=False)
    return holder


def action(command, folder):
    """A function of a text and a path that a command is."""
    if command == "save":
        models = {text: adapted(folder, text) for text in RANKS}
        return lambda text, out: lora.save(models[text], out, progress=False)
    return partial({"merge": merge, "extract": extract}[command], folder)


def ours(command, out):
    """What readers of ours find at a path: the ranks of an adapter, or a weight of a model."""
    if command == "merge":
        with open_tensors(out) as tensors:
            for file in tensors.files.values():
                file.check()
            return tensors.read("layers.0.weight").tobytes()
    with AdapterFolder(out) as files:
        ranks = {len(files.read(layer.keys["lora_a"])) for layer in files.layers.values()}
        return {files.config.r, *ranks}


def saved(command, run, text, out):
    """Run, and return what readers of ours find afterwards."""
    run(text, out)
    return ours(command, out)


def others(command, out):
    """What a reader finds that knows nothing of ours; None if there is no adapter to it."""
    if command == "merge":
        return load_file(out / "model.safetensors")["layers.0.weight"].tobytes()
    if not (out / CONFIG).is_file():
        return None
    tensors = load_file(out / WEIGHTS)
    ranks = {len(x) for key, x in tensors.items() if ".lora_A." in key}
    return {json.loads((out / CONFIG).read_text())["r"], *ranks}


def main(command, folder, out):
    run = action(command, Path(folder))
    run("old", Path(out))
    print("begun", flush=True)
    while True:
        for text in ("new", "old"):
            run(text, Path(out))
