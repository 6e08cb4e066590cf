"""Models, adapters and folders for the tests of `lora.peft` and `lora.offline`.

The folders in `fixtures/peft` were written by PEFT, by `tests.fixtures.make_peft`.
"""

import copy
import json
from pathlib import Path

import numpy as np

import lora
import minigrad as mg
from lora.peft import CONFIG
from minigrad.io import load_state, save_state
from minigrad.nn import Embedding, LayerNorm, Linear, Module
from tests.peers import lora_cases

FOLDERS = Path(__file__).parents[1] / "fixtures" / "peft"
RESULTS, KINDS = load_state(FOLDERS / "results.safetensors")

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

PREFIX = "base_model.model."


# ----------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------


def model_of(kind, dtype="float32"):
    """A model with the state that PEFT's had."""
    prefix = f"{kind}; "
    state = {k.removeprefix(prefix): v for k, v in RESULTS.items() if k.startswith(prefix)}
    model = lora_cases.MODELS[kind](dtype)
    model.load_state_dict({k: v for k, v in lora_cases.in_dtype(state, dtype).items() if k != "x"})
    return model


def inputs(kind, dtype="float32"):
    return lora_cases.in_dtype({"x": RESULTS[f"{kind}; x"]}, dtype)["x"]


def output(model, kind="mlp", dtype="float32"):
    with mg.no_grad():
        return model(mg.tensor(inputs(kind, dtype))).data


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


class Net(Module):
    """A model with a layer of each kind that files treat in a way of their own."""

    def __init__(self, rng, dtype=np.float32):
        self.embed = Embedding(11, 6, dtype=dtype, rng=rng)
        self.up = Linear(6, 8, dtype=dtype, rng=rng)
        self.norm = LayerNorm(8, dtype=dtype)
        self.square = Linear(8, 8, dtype=dtype, rng=rng)
        self.head = Linear(8, 3, dtype=dtype, rng=rng)

    def forward(self, x):
        return self.head(self.square(self.norm(self.up(self.embed(x)))))


def moved(model, rng, size=0.1):
    """Change what trains, as training would."""
    for parameter in model.trainable_parameters():
        step = size * rng.standard_normal(parameter.shape)
        parameter.data = parameter.data + step.astype(parameter.dtype)
    return model


def adapted(kind="mlp", dtype="float32", rng=None, **options):
    """A model of PEFT's with an adapter that has been trained, so to say."""
    options = {"rank": 3, "alpha": 6.0, "targets": ["layers.0", "layers.1"], **options}
    model = model_of(kind, dtype)
    lora.attach(model, lora.LoRAConfig(**options), rng=rng)
    return moved(model, np.random.default_rng(1), 0.2)


def adapted_copy(net, rng, **options):
    """A copy of a net with an adapter that does something."""
    made = copy.deepcopy(net)
    lora.attach(made, lora.LoRAConfig(**{"rank": 2, **options}), rng=rng)
    return moved(made, rng)


def two_adapters():
    """Two models whose adapters have tensors of the same shapes, and other values."""
    return [
        adapted(rng=np.random.default_rng(0)),
        adapted(rng=np.random.default_rng(0), alpha=5.0),
    ]


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


def base_of(net, folder):
    """A folder with the net in it."""
    folder.mkdir()
    save_state(folder / "model.safetensors", net.state_dict(), {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def snapshot(folder):
    """The content of every file in a folder, by its path."""
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def configure(folder, **fields):
    """Change fields of the configuration of an adapter."""
    (folder / CONFIG).write_text(json.dumps({**config_of(folder), **fields}))


def edit(path, change):
    """Change the tensors of a file: `change` returns others, or changes the dict it is given."""
    arrays, metadata = load_state(path)
    changed = change(arrays)
    save_state(path, arrays if changed is None else changed, metadata)


def without(*names):
    return lambda arrays: {k: x for k, x in arrays.items() if k not in names}


def replaced(name, value):
    return lambda arrays: {**arrays, name: value}
