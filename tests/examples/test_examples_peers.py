"""The demo of digits beside PyTorch and PEFT: the same split, start, batches and rates."""

import copy

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the examples need the `examples` extra")

import lora
import minigrad as mg
from examples.digits import demo
from examples.digits.data import KINDS, split
from examples.digits.report import adapted, tuned
from minigrad.data import batches

pytestmark = pytest.mark.peers

EPOCHS = 6  # as many as the quick form has


def network(weights):
    """The base in PyTorch, with these weights."""
    import torch

    class MLP(torch.nn.Module):
        def __init__(self):
            super().__init__()
            sizes = zip(demo.SIZES[:-1], demo.SIZES[1:], strict=True)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(*size) for size in sizes])

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = torch.nn.functional.gelu(layer(x))
            return self.layers[-1](x)

    model = MLP()
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    return model


def train(model, rows, lr, rng):
    """`demo.train` in PyTorch."""
    import torch

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    steps = EPOCHS * -(-len(rows.x) // demo.BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for x, y in batches(rows, demo.BATCH_SIZE, rng=rng):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y))
            loss.backward()
            optimizer.step()
            scheduler.step()


def accuracies(model, digits):
    """The share of each kind that is read rightly."""
    import torch

    with torch.no_grad():
        right = {k: model(torch.tensor(digits.test[k].x)).argmax(1).numpy() for k in KINDS}
    return {kind: (right[kind] == digits.test[kind].y).mean() for kind in KINDS}


def theirs(seed):
    """`demo.one_split` in PyTorch and PEFT: accuracies by network and kind.

    What is drawn is drawn by the same generator in the same order: the split, the weights, the
    batches, and A of each adapter.
    """
    import peft
    import torch

    rng = np.random.default_rng(seed)
    digits = split(rng)
    ours = mg.nn.MLP(demo.SIZES, activation=mg.gelu, rng=rng)
    base = network(ours.state_dict())
    train(base, digits.train["upright"], demo.FULL_RATE, rng)
    result = {"base": accuracies(base, digits)}
    for kind in demo.NEW:
        full = copy.deepcopy(base)
        train(full, digits.train[kind], demo.FULL_RATE, rng)
        result[tuned(kind)] = accuracies(full, digits)
    config = peft.LoraConfig(
        r=demo.CONFIG.rank, lora_alpha=demo.CONFIG.alpha, target_modules=list(demo.CONFIG.targets)
    )
    model = None
    for kind in demo.NEW:
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=kind)
        else:
            model.add_adapter(kind, config)
        model.set_adapter(kind)
        lora.attach(ours, demo.CONFIG, adapter=kind, rng=rng)
        drawn = ours.state_dict()
        for target in demo.CONFIG.targets:
            layer = model.base_model.model.get_submodule(target)
            layer.lora_A[kind].weight.data[:] = torch.tensor(drawn[f"{target}.{kind}.lora_a"])
        train(model, digits.train[kind], demo.LORA_RATE, rng)
        result[adapted(kind)] = accuracies(model, digits)
    with model.disable_adapter():
        result["both adapters off"] = accuracies(model, digits)
    return result


def test_digits_are_read_as_rightly_as_in_pytorch_and_peft():
    """What each network was trained for is compared; the rest hangs on how sums are rounded."""
    ours, peers = demo.one_split(np.random.default_rng(0), EPOCHS), theirs(0)
    assert ours.keys() == peers.keys()
    trained_for = {"base": "upright", "both adapters off": "upright"}
    trained_for |= {name(kind): kind for kind in demo.NEW for name in (tuned, adapted)}
    assert trained_for.keys() == ours.keys()
    for name, kind in trained_for.items():
        assert ours[name].accuracy[kind] > 0.9
        assert abs(ours[name].accuracy[kind] - peers[name][kind]) <= 0.01, name
