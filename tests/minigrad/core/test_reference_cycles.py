"""Nothing is left for the garbage collector."""

import gc

import pytest

import minigrad
from minigrad import (
    grad,
    nn,
    optim,
)
from tests.minigrad.core.leaves import drawn, leaf


def train(model, optimizer):
    x, y = minigrad.randn(4, 3), minigrad.randn(4, 1)
    for _ in range(3):
        optimizer.zero_grad()
        minigrad.mse(model(x), y).backward()
        optimizer.step()


def walk_once_and_keep():
    x = leaf(1.0, 2.0)
    y = (x.exp() * x).sum()
    y.backward(retain_graph=True)


def second_derivative():
    x = leaf(1.0, 2.0)
    g = grad((x**3).tanh().sum(), x, create_graph=True)
    grad(g.sum(), x)


def forward_only():
    x = drawn(3, 3)
    minigrad.concatenate([x.softmax(), minigrad.gelu(x)])[[0, 0, 1]].max(axis=0)


def with_hooks():
    x = leaf(1.0)
    h = x * 2
    h.register_hook(lambda g: g * 2)
    h.retain_grad()
    h.backward()


def with_checkpoint():
    x, w = drawn(3), drawn(3, seed=1)
    minigrad.checkpoint(lambda x: (x * w).tanh(), x).sum().backward()


def with_tangents():
    x, v = drawn(3), drawn(3, seed=1)
    f = lambda x: minigrad.softmax(x).tanh() * minigrad.logsumexp(x)
    minigrad.jvp(lambda x: minigrad.jvp(f, x, v)[1] + minigrad.vjp(f, x).pullback(v)[0], x, v)
    minigrad.hvp(lambda x: f(x).sum(), x, v)
    minigrad.jacfwd(f)(x)


def left_by(work):
    """How many objects a second run leaves for the garbage collector."""
    gc.freeze()  # the collections look only at what the two runs make
    work()
    gc.collect()
    gc.disable()
    try:
        work()
        return gc.collect()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "work",
    [
        *(walk_once_and_keep, second_derivative, forward_only, with_hooks, with_checkpoint),
        with_tangents,
    ],
)
def test_nothing_is_left_for_the_garbage_collector(work):
    assert left_by(work) == 0


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.AdamW])
def test_training_leaves_nothing_for_the_garbage_collector(optimizer):
    model = nn.MLP([3, 4, 1])
    optimizer = optimizer(model.parameters(), lr=0.01)
    assert left_by(lambda: train(model, optimizer)) == 0
