"""What an optimiser knows of adapters: rates of the factors, and the decay of their product."""

import tracemalloc

import numpy as np
import pytest

import lora
import minigrad
from lora import LoRAConfig
from minigrad.nn import Linear, Module
from minigrad.optim import SGD, Adam, AdamW
from tests.lora.models import TOKENS, TokenNet, put_on


def made(rng, dtype=np.float64, **options):
    """A TokenNet with an adapter of random values on the table and on q."""
    net = TokenNet(rng, dtype)
    put_on(net, "default", rng, size=1.0, **{"targets": ["table", "q"], **options})
    return net


def options(net, groups):
    """The learning rate and the decay of each parameter by name; each is in one group."""
    names = {id(p): name for name, p in net.named_parameters()}
    listed = [
        (names[id(p)], (group["lr"], group["weight_decay"]))
        for group in groups
        for p in group["params"]
    ]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def product(layer):
    return layer.adapter.lora_b.data @ layer.adapter.lora_a.data


# ----------------------------------------------------------------------------------------------
# Groups
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
def test_each_parameter_that_trains_has_its_rate_and_its_decay(rng, use_dora):
    net = made(rng, bias="lora_only", modules_to_save=["head", "norm"], use_dora=use_dora)
    groups = lora.param_groups(net, 0.5, ratio=16, weight_decay=0.25)
    rest = (0.5, 0.0)
    magnitudes = {f"{layer}.lora_magnitude": rest for layer in ("table", "q") if use_dora}
    assert options(net, groups) == magnitudes | {
        "table.lora_a": (8.0, 0.25 / 16),
        "table.lora_b": rest,
        "q.lora_a": rest,
        "q.lora_b": (8.0, 0.25 / 16),
        "q.bias": rest,
        "norm.weight": rest,
        "norm.bias": rest,
        "head.weight": (0.5, 0.25),
        "head.bias": rest,
    }
    assert set(options(net, groups)) == {n for n, p in net.named_parameters() if p.requires_grad}
    for kind in (AdamW, SGD, Adam):
        kind(groups)


def test_by_default_all_have_one_rate_and_none_decays(rng):
    net = made(rng, modules_to_save=["head"])
    (group,) = lora.param_groups(net, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.trainable_parameters()]
    assert {key: value for key, value in group.items() if key != "params"} == {
        "lr": 0.1,
        "weight_decay": 0.0,
    }


def test_only_what_is_active_is_in_a_group(rng):
    net = made(rng)
    lora.attach(net, LoRAConfig(rank=1, targets=["q"]), adapter="second", rng=rng)
    assert set(options(net, lora.param_groups(net, 0.1))) == {"q.second.lora_a", "q.second.lora_b"}
    lora.switch(net, "default", "second")
    assert len(options(net, lora.param_groups(net, 0.1))) == 6
    lora.switch(net)
    with pytest.raises(ValueError, match=r"nothing of the model trains; lora\.switch"):
        lora.param_groups(net, 0.1)


def test_where_one_factor_is_frozen_the_other_decays(rng):
    net = made(rng)
    net.q.lora_b.requires_grad_(False)
    groups = lora.param_groups(net, 0.1, ratio=4, weight_decay=0.5)
    assert options(net, groups)["q.lora_a"] == (0.1, 0.5)


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("ratio", [1.0, 16.0, 0.5])
def test_a_step_without_a_gradient_shrinks_the_product_by_lr_times_the_decay(rng, kind, ratio):
    net = made(rng)
    lr, decay = 0.1, 0.3
    optimizer = kind(lora.param_groups(net, lr, ratio=ratio, weight_decay=decay))
    before = [product(net.table), product(net.q)]
    for step in range(1, 4):
        (net(TOKENS).sum() * 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        for layer, first in zip((net.table, net.q), before, strict=True):
            np.testing.assert_allclose(
                product(layer), (1 - lr * decay) ** step * first, rtol=1e-13, atol=1e-15
            )


def test_b_makes_steps_that_are_the_ratio_larger(rng):
    net = made(rng)
    before = {name: p.data.copy() for name, p in net.named_parameters()}
    optimizer = AdamW(lora.param_groups(net, 1e-3, ratio=16), eps=1e-30)
    (net(TOKENS) * rng.standard_normal((2, 3, 3))).sum().backward()
    optimizer.step()
    for name, speed in (("q.lora_b", 16), ("q.lora_a", 1), ("table.lora_a", 16)):
        step = abs(dict(net.named_parameters())[name].data - before[name]).max()
        # A first step of Adam is lr, but for eps beside the gradient.
        assert step == pytest.approx(1e-3 * speed, rel=1e-9)


def test_the_product_of_pissa_is_not_decayed(rng):
    net = made(rng, init="pissa")
    with pytest.raises(ValueError, match=r"lora\.penalty.*'default' of table, 'default' of q"):
        lora.param_groups(net, 0.1, weight_decay=0.1)
    assert lora.param_groups(net, 0.1, ratio=2)
    lora.attach(net, LoRAConfig(rank=1), adapter="plain")
    assert lora.param_groups(net, 0.1, weight_decay=0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be in"),
        ({"lr": np.nan}, ValueError, "lr must be in"),
        ({"lr": True}, TypeError, "lr must be a number"),
        ({"ratio": 0.0}, ValueError, "ratio=0 would keep B from training"),
        ({"ratio": np.inf}, ValueError, "ratio must be in"),
        ({"ratio": "2"}, TypeError, "ratio must be a number"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be in"),
    ],
)
def test_impossible_options_are_refused(rng, arguments, error, message):
    with pytest.raises(error, match=message):
        lora.param_groups(made(rng), **{"lr": 0.1, **arguments})


def test_a_model_without_adapters_has_neither_groups_nor_a_penalty(rng):
    for function in (lambda net: lora.param_groups(net, 0.1), lora.penalty):
        with pytest.raises(ValueError, match="the model has no adapters"):
            function(TokenNet(rng))


# ----------------------------------------------------------------------------------------------
# The penalty
# ----------------------------------------------------------------------------------------------


def dense(net, names):
    """The sum of |dW|^2 by its definition."""
    total = 0.0
    for layer in (net.table, net.q):
        for name in names:
            if name in layer.adapters:
                adapter = layer.adapters[name]
                change = minigrad.matmul(adapter.lora_b, adapter.lora_a)
                if adapter.start is not None:
                    change = change - minigrad.matmul(adapter.start[1], adapter.start[0])
                total = total + minigrad.square(change * adapter.scale).sum()
    return total


KINDS = [
    {},
    {"init": "pissa"},
    {"scaling": "rslora", "alpha": 3.0},
    {"use_dora": True},
    {"init": "orthogonal"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_the_squared_norm_of_the_updates(rng, kind):
    net = made(rng, **kind)
    lora.attach(net, LoRAConfig(rank=1, targets=["q"]), adapter="second", rng=rng)
    net.q.adapters["second"].lora_b = np.ones((4, 1))
    for names in (["default"], ["second"], ["default", "second"], []):
        lora.switch(net, *names)
        found = lora.penalty(net)
        assert found.shape == ()
        assert found.dtype == np.float64
        np.testing.assert_allclose(found.data, getattr(dense(net, names), "data", 0.0), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_penalty_are_those_of_the_definition(rng, kind):
    net = made(rng, **kind)
    parts = [f for layer in (net.table, net.q) for f in layer.adapter.trained()[:2]]
    found = minigrad.grad(lora.penalty(net), parts)
    right = minigrad.grad(dense(net, ["default"]), parts)
    for x, y in zip(found, right, strict=True):
        np.testing.assert_allclose(x.data, y.data, rtol=1e-9, atol=1e-9)


class Penalised(Module):
    def __init__(self, net):
        self.net = net

    def forward(self, x):
        return lora.penalty(self.net) * x


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_gradients_of_the_penalty_are_right_in_both_orders(rng, kind):
    net = made(rng, **kind)
    report = minigrad.gradcheck(Penalised(net), np.array(0.7), order=2, progress=False)
    assert report, report


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_penalty_of_pissa_is_zero_at_first_to_the_bit(rng, dtype):
    net = TokenNet(rng, dtype)
    lora.attach(net, LoRAConfig(rank=2, targets=["table", "q"], init="pissa"), rng=rng)
    penalty = lora.penalty(net)
    assert penalty.dtype == dtype
    assert penalty.item() == 0
    assert not any(g.data.any() for g in minigrad.grad(penalty, net.trainable_parameters()))


def test_no_matrix_of_the_size_of_the_weight_is_formed(rng):
    net = Module()
    net.wide = Linear(3000, 2000, rng=rng)
    lora.attach(net, LoRAConfig(rank=2), rng=rng)
    net.wide.lora_b = rng.standard_normal((2000, 2))
    lora.penalty(net).backward()
    tracemalloc.start()
    lora.penalty(net).backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 2000


@pytest.mark.parametrize("options", [{"ratio": 1e308}, {"ratio": 1e-320, "weight_decay": 0.1}])
def test_rates_of_b_are_finite(options):
    model = minigrad.nn.Sequential(minigrad.nn.Linear(3, 3))
    lora.attach(model, lora.LoRAConfig(rank=1))
    with pytest.raises(ValueError, match="give B an infinite learning rate or decay"):
        lora.param_groups(model, 1e3, **options)
