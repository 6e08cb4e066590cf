"""What is trained with lora and with PEFT, and lora's side: models, adapters, curves.

A case is a model with adapters. `start` gives all numbers that both sides begin with; these are
float32's, so that they are the same in float64. `train` is our side, `tests.peers.peft` PEFT's.
"""

import copy
from dataclasses import dataclass

import numpy as np

import lora
import minigrad
from lora import LoRAConfig
from minigrad import nn
from minigrad.optim import Adam

STEPS = 50
LEARNING_RATE = 0.01

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of each loss of a curve
SAME = {"float32": 1e-6, "float64": 1e-12}  # of outputs with the same numbers


class Classifier(nn.Module):
    """The mean of the vectors of a sentence, and a linear classifier; token 0 is padding."""

    def __init__(self, dtype):
        self.embedding = nn.Embedding(20, 10, padding_idx=0, dtype=dtype)
        self.head = nn.Linear(10, 4, dtype=dtype)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(axis=-2))


class Transformer(nn.Module):
    """A block with causal attention, and a linear map of each vector."""

    def __init__(self, dtype):
        self.block = nn.TransformerBlock(12, 2, 20, causal=True, dtype=dtype)
        self.head = nn.Linear(12, 3, dtype=dtype)

    def forward(self, x):
        return self.head(self.block(x))


class Images(nn.Module):
    """Convolutions of images, and of their pixels as a sequence, and a linear classifier."""

    def __init__(self, dtype):
        self.conv = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1, dtype=dtype)
        self.pointwise = nn.Conv2d(6, 4, 1, bias=False, dtype=dtype)
        self.sequence = nn.Conv1d(4, 5, 3, padding="same", dtype=dtype)
        self.head = nn.Linear(5, 3, dtype=dtype)

    def forward(self, x):
        x = self.pointwise(minigrad.gelu(self.conv(x)))
        return self.head(self.sequence(x.reshape(*x.shape[:2], -1)).mean(axis=-1))


class Groups(nn.Module):
    """Convolutions in groups, of images and of their pixels as a sequence, and a classifier."""

    def __init__(self, dtype):
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, dtype=dtype)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False, dtype=dtype)
        self.pointwise = nn.Conv2d(6, 4, 1, dtype=dtype)
        self.sequence = nn.Conv1d(4, 6, 3, padding="same", groups=2, dtype=dtype)
        self.head = nn.Linear(6, 3, dtype=dtype)

    def forward(self, x):
        x = self.pointwise(self.depthwise(minigrad.gelu(self.conv(x))))
        x = minigrad.gelu(self.sequence(x.reshape(*x.shape[:2], -1)))
        return self.head(x.mean(axis=-1))


def mlp(dtype):
    return nn.MLP((6, 12, 12, 3), minigrad.gelu, dtype=dtype)


MODELS = {"mlp": mlp, "classifier": Classifier, "transformer": Transformer, "images": Images}
MODELS |= {"groups": Groups}
LOSSES = dict.fromkeys(MODELS, minigrad.mse) | {"classifier": minigrad.cross_entropy}


@dataclass(frozen=True)
class Case:
    """Adapters on a model, all of them active, in this order."""

    model: str
    adapters: dict[str, LoRAConfig]

    @property
    def is_mergeable(self):
        """Whether all updates can be merged; those of convolutions in groups cannot."""
        return self.model != "groups"


def one(model, targets, **options):
    """A case with a single adapter."""
    options = {"rank": 3, "alpha": 6.0, **options}
    return Case(model, {"default": LoRAConfig(targets=targets, **options)})


LAYERS = ["layers.0", "layers.1", "layers.2"]
TABLES = ["embedding", "head"]
CONVOLUTIONS = ["conv", "pointwise", "sequence", "head"]
GROUPED = ["conv", "depthwise", "sequence"]
SIX = {"rank": 6, "rank_pattern": {"pointwise": 2, "head": 3}}
QUERY_VALUE = ["q_proj", "v_proj"]

CASES = {
    "LoRA": one("mlp", LAYERS),
    "rsLoRA": one("mlp", LAYERS, scaling="rslora"),
    "DoRA": one("mlp", LAYERS, use_dora=True),
    "DoRA, rsLoRA": one("mlp", LAYERS, use_dora=True, scaling="rslora"),
    "PiSSA": one("mlp", LAYERS, init="pissa"),
    "DoRA of PiSSA": one("mlp", LAYERS, init="pissa", use_dora=True),
    "bias of the layers": one("mlp", LAYERS[:2], bias="lora_only"),
    "all biases": one("mlp", LAYERS[:2], bias="all"),
    "modules to save": one("mlp", LAYERS[:2], modules_to_save=["layers.2"]),
    "patterns": one(
        "mlp",
        LAYERS,
        rank_pattern={"layers.0": 5, "2": 1},
        alpha_pattern={"layers.[01]": 4.0},
    ),
    "two adapters": Case(
        "mlp",
        {
            "default": LoRAConfig(rank=3, alpha=6.0, targets=LAYERS),
            "other": LoRAConfig(rank=2, alpha=3.0, targets=LAYERS[1:], scaling="rslora"),
        },
    ),
    "DoRA and LoRA": Case(
        "mlp",
        {
            "default": LoRAConfig(rank=3, alpha=6.0, targets=LAYERS, use_dora=True),
            "other": LoRAConfig(rank=2, alpha=3.0, targets=LAYERS),
        },
    ),
    "embedding": one("classifier", TABLES),
    "embedding, rsLoRA": one("classifier", TABLES, scaling="rslora"),
    "embedding, DoRA": one("classifier", TABLES, use_dora=True),
    "embedding, head to save": one("classifier", ["embedding"], modules_to_save=["head"]),
    "convolutions": one("images", CONVOLUTIONS),
    "convolutions, DoRA, rsLoRA": one("images", CONVOLUTIONS, use_dora=True, scaling="rslora"),
    "convolutions, biases": one("images", ["conv", "sequence"], bias="lora_only"),
    "groups": one("groups", [*GROUPED, "pointwise", "head"], **SIX),
    "groups, rsLoRA, biases": one(
        "groups",
        [*GROUPED, "head"],
        rank=6,
        rank_pattern={"head": 2},
        scaling="rslora",
        bias="lora_only",
    ),
    "groups, two adapters": Case(
        "groups",
        {
            "default": LoRAConfig(rank=6, alpha=6.0, targets=GROUPED),
            "other": LoRAConfig(rank=2, alpha=3.0, targets=["conv", "sequence", "head"]),
        },
    ),
    "attention": one("transformer", QUERY_VALUE),
    "attention, DoRA": one("transformer", QUERY_VALUE, use_dora=True),
    "attention, all biases": one("transformer", QUERY_VALUE, bias="all"),
    "transformer": one(
        "transformer", [*QUERY_VALUE, "k_proj", "out_proj", "mlp.layers.0", "mlp.layers.1", "head"]
    ),
}


@dataclass
class Curve:
    """What one side has computed.

    Attributes:
        losses: before each step.
        output: before the first.
        merged: then too, of a copy with everything merged into plain layers; None if the case is
            not mergeable.
        disabled: after the last, without adapters.
        count: how many numbers train.
    """

    losses: np.ndarray
    output: np.ndarray
    merged: np.ndarray | None
    disabled: np.ndarray
    count: int


def data(model):
    """x and the target. The first sentence ends in padding."""
    rng = np.random.default_rng(0)
    if model == "classifier":
        tokens, target = rng.integers(1, 20, (8, 5)), rng.integers(0, 4, 8)
        tokens[0, 3:] = 0
        return {"x": tokens, "target": target}
    shapes = {"transformer": ((4, 5, 12), (4, 5, 3)), "images": ((4, 3, 7, 8), (4, 3))}
    shapes |= {"groups": ((4, 4, 7, 8), (4, 3))}
    x, target = shapes.get(model, ((8, 6), (8, 3)))
    return {"x": _draw(rng, x), "target": _draw(rng, target)}


def base(model):
    """The state of a model without adapters."""
    rng = np.random.default_rng(1)
    state = MODELS[model](np.float32).state_dict()
    return {
        name: _draw(rng, value.shape, value.shape[-1] ** -0.5 if value.ndim == 2 else 0.3)
        for name, value in state.items()
    }


def start(case):
    """What the adapters begin with, by our names. With B = 0, A would get no gradient at first.

    PiSSA's A and B follow from the weight.
    """
    rng = np.random.default_rng(2)
    pissa = any(config.init == "pissa" for config in case.adapters.values())
    found = {}
    for name, parameter in attached(case, base(case.model), np.float32).named_parameters():
        kind = name.rpartition(".")[2]
        if kind == "lora_magnitude":
            found[name] = (1 + _draw(rng, parameter.shape, 0.1)) * parameter.data
        elif kind in ("lora_a", "lora_b") and not pissa:
            found[name] = _draw(rng, parameter.shape, 0.3)
    return found


def _draw(rng, shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def in_dtype(arrays, dtype):
    """Arrays of floats in this dtype; others as they are."""
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in arrays.items()}


def attached(case, state, dtype):
    """The model of a case, with this state before adapters are put on."""
    model = MODELS[case.model](dtype)
    model.load_state_dict(in_dtype(state, dtype))
    for name, config in case.adapters.items():
        lora.attach(model, config, adapter=name)
    lora.switch(model, *case.adapters)
    return model


def train(case, given, state, values, dtype):
    """Our side: `STEPS` steps from these data, this state of the base, and of the adapters."""
    model = attached(case, state, dtype)
    model.load_state_dict(model.state_dict() | in_dtype(values, dtype))
    given = in_dtype(given, dtype)
    x, target = minigrad.tensor(given["x"]), minigrad.tensor(given["target"])
    output = model(x).data
    merged = lora.fold(copy.deepcopy(model))(x).data if case.is_mergeable else None
    optimizer = Adam(model.trainable_parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = LOSSES[case.model](model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with lora.disabled(model):
        disabled = model(x).data
    count = model.count_parameters(trainable_only=True)
    return Curve(np.array(losses), output, merged, disabled, count)


def relative(ours, theirs):
    """The largest difference of two arrays, relative to the largest number in them."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def of_losses(ours, theirs):
    """The largest relative difference of two losses of the same step."""
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
