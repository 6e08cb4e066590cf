"""Live comparison with PyTorch's optimisers: 20 steps with random options, in float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import optim

pytestmark = pytest.mark.peers

SHARE = {"momentum", "dampening", "alpha"}
OPTIONS = {
    "SGD": ["momentum", "weight_decay", "dampening", "maximize"],
    "Adam": ["eps", "weight_decay", "amsgrad", "maximize"],
    "AdamW": ["eps", "weight_decay", "amsgrad", "maximize"],
    "RMSprop": ["alpha", "eps", "weight_decay", "momentum", "centered", "maximize"],
    "Adagrad": ["lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize"],
}
FLAGS = {"amsgrad", "centered", "maximize"}


def drawn(rng, names):
    """The learning rate, and about half of the options."""
    options = {"lr": float(rng.uniform(0.01, 0.1))}
    for name in names:
        if rng.random() < 0.5:
            value = rng.uniform(0, 0.9 if name in SHARE else 0.1)
            options[name] = True if name in FLAGS else float(value)
    return options


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", OPTIONS)
def test_twenty_steps_are_those_of_pytorch(name, seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(shape) for shape in [(3, 4), (), (5,)]]
    ours = [minigrad.tensor(x, requires_grad=True) for x in start]
    theirs = [torch.tensor(x, requires_grad=True) for x in start]
    groups = [drawn(rng, OPTIONS[name]) for _ in range(2)]
    key = "initial_accumulator_value"  # which PyTorch reads from no group
    of_all = {key: groups[0][key]} if key in groups[0] else {}
    groups[1].pop(key, None)

    def optimizer_of(module, ps):
        parts = [{"params": ps[:2], **groups[0]}, {"params": ps[2:], **groups[1]}]
        return getattr(module, name)(parts, **of_all)

    pair = optimizer_of(optim, ours), optimizer_of(torch.optim, theirs)
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            gradient = rng.standard_normal(p.shape)
            p.grad, q.grad = minigrad.tensor(gradient), torch.tensor(gradient)
        for optimizer in pair:
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=1e-12)
