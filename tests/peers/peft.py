"""PEFT's side of `tests.peers.lora_cases`: the same models by hand in PyTorch, and its adapters."""

import copy

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F  # noqa: N812  # its usual name

from tests.peers.lora_cases import LEARNING_RATE, STEPS, Curve, in_dtype


class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [(6, 12), (12, 12), (12, 3)]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(*size) for size in sizes])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 10, padding_idx=0)
        self.head = torch.nn.Linear(10, 4)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(dim=-2))


class Attention(torch.nn.Module):
    """Causal, with two heads."""

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, torch.nn.Linear(12, 12))

    def forward(self, x):
        q, k, v = (
            proj(x).unflatten(-1, (2, 6)).transpose(-2, -3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        future = torch.ones(x.shape[-2], x.shape[-2]).triu(1).bool()
        scores = (q @ k.transpose(-1, -2) / 6**0.5).masked_fill(future, -torch.inf)
        return self.out_proj((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class Feed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(12, 20), torch.nn.Linear(20, 12)])

    def forward(self, x):
        return self.layers[1](F.gelu(self.layers[0](x)))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(12), torch.nn.LayerNorm(12)
        self.attn, self.mlp = Attention(), Feed()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.block(x))


class Images(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, (3, 2), stride=2, padding=1)
        self.pointwise = torch.nn.Conv2d(6, 4, 1, bias=False)
        self.sequence = torch.nn.Conv1d(4, 5, 3, padding="same")
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x):
        x = self.pointwise(F.gelu(self.conv(x)))
        return self.head(self.sequence(x.flatten(2)).mean(-1))


class Groups(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
        self.depthwise = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.pointwise = torch.nn.Conv2d(6, 4, 1)
        self.sequence = torch.nn.Conv1d(4, 6, 3, padding="same", groups=2)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x):
        x = self.pointwise(self.depthwise(F.gelu(self.conv(x))))
        return self.head(F.gelu(self.sequence(x.flatten(2))).mean(-1))


MODELS = {"mlp": MLP, "classifier": Classifier, "transformer": Transformer, "images": Images}
MODELS |= {"groups": Groups}
LOSSES = dict.fromkeys(MODELS, F.mse_loss) | {"classifier": F.cross_entropy}


def translated(config, init=False):
    """PEFT's configuration for one of ours; `init` is what it calls the way that A and B begin."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        use_rslora=config.scaling.name == "RSLORA",
        use_dora=config.use_dora,
        lora_dropout=config.dropout,
        bias=config.bias,
        modules_to_save=list(config.modules_to_save) or None,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        init_lora_weights=init,
    )


def attached(case, state, dtype):
    """PEFT's model of a case, with this state before adapters are put on.

    PiSSA's beginning is PEFT's own in float32. It refuses float64, for which it is made here.
    """
    model = MODELS[case.model]().to(getattr(torch, dtype))
    model.load_state_dict({k: torch.tensor(v) for k, v in in_dtype(state, dtype).items()})
    factors = {}
    for name, config in case.adapters.items():
        own = config.init == "pissa" and dtype == "float32"
        if config.init == "pissa" and not own:
            for layer in config.targets:
                a, b = _split_off(model.get_submodule(layer), config)
                factors |= {f"{layer}.lora_a": a, f"{layer}.lora_b": b}
        theirs = translated(config, "pissa" if own else False)
        if name == "default":
            model = get_peft_model(model, theirs, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, theirs, autocast_adapter_dtype=False)
    model.base_model.set_adapter(list(case.adapters))
    give(model, factors)
    return model


@torch.no_grad()
def _split_off(layer, config):
    """A and B with the largest singular values of a weight, which are taken off it."""
    scale = config.alpha / config.rank
    u, s, v = np.linalg.svd(layer.weight.numpy(), full_matrices=False)
    root = np.sqrt(s[: config.rank] / scale)
    a, b = root[:, None] * v[: config.rank], u[:, : config.rank] * root
    layer.weight -= torch.tensor(scale * (b @ a))
    return a, b


@torch.no_grad()
def give(model, values):
    """Set parameters of adapters, given by our names."""
    for name, value in values.items():
        *path, kind = name.split(".")
        adapter = path.pop() if path[-1] in model.peft_config else "default"
        layer = model.base_model.model.get_submodule(".".join(path))
        own = parameter(layer, kind, adapter)
        own.copy_(torch.tensor(value).reshape(own.shape))  # filters, for the rows of a matrix


def parameter(layer, kind, adapter="default"):
    """A parameter of an adapter of PEFT's, by our name."""
    if kind == "lora_magnitude":
        return layer.lora_magnitude_vector[adapter].weight
    letter = kind[-1].upper()
    tables = getattr(layer, f"lora_embedding_{letter}")
    if adapter in tables:
        return tables[adapter]
    return getattr(layer, f"lora_{letter}")[adapter].weight


def train(case, given, state, values, dtype):
    """PEFT's side of `tests.peers.lora_cases.train`."""
    torch.set_num_threads(1)
    model = attached(case, state, dtype)
    give(model, in_dtype(values, dtype))
    given = in_dtype(given, dtype)
    x, target = torch.tensor(given["x"]), torch.tensor(given["target"])
    output = model(x).detach().numpy()
    merged = None
    if case.is_mergeable:
        merged = copy.deepcopy(model).merge_and_unload()(x).detach().numpy()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = LOSSES[case.model](model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with model.disable_adapter():
        disabled = model(x).detach().numpy()
    count = sum(p.numel() for p in trainable)
    return Curve(np.array(losses), output, merged, disabled, count)
