"""The engine itself: many small ops, a deep graph, and a small model, where overhead is all."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload

Array = NDArray[Any]

TURNS = 20
DEEP = 100_000
SIZES = (64, 64, 64, 1)
BATCH = 64


def _small_array() -> Array:
    return (0.1 * np.random.default_rng(0).standard_normal((4, 4))).astype(np.float32)


def _leaf_minigrad() -> Any:
    import minigrad

    return minigrad.tensor(_small_array(), requires_grad=True)


def _leaf_torch() -> Any:
    import torch

    return torch.tensor(_small_array(), requires_grad=True)


def _chain(x: Any) -> Run:
    """For any library with PyTorch's names."""

    def run() -> Any:
        x.grad = None
        y = x
        for _ in range(TURNS):
            y = y * x + x
        y.sum().backward()
        return x.grad

    return run


def _chain_autograd(_: None) -> Run:
    import autograd
    import autograd.numpy as anp

    def loss(x: Any) -> Any:
        y = x
        for _ in range(TURNS):
            y = y * x + x
        return anp.sum(y)

    gradient = autograd.grad(loss)
    x = _small_array()
    return lambda: gradient(x)


def _deep(x: Any) -> Run:
    """For any library with PyTorch's names."""

    def run() -> Any:
        x.grad = None
        y = x
        for _ in range(DEEP):
            y = y + x
        y.sum().backward()
        return x.grad

    return run


def _memory(length: int) -> Run:
    """The bytes that a graph of `length` additions takes for each, once backward has freed it."""
    import minigrad

    x = minigrad.tensor(np.ones((4, 4), np.float32), requires_grad=True)

    def run() -> float:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            y = x
            for _ in range(length):
                y = y + x
            loss = y.sum()
            size, _ = tracemalloc.get_traced_memory()
            loss.backward()
            del y, loss
            x.grad = None
            left = gc.collect()
        finally:
            tracemalloc.stop()
            gc.enable()
        if left:
            raise RuntimeError(f"a graph of {length:,} ops left {left} objects in cycles")
        return size / length

    return run


def _mlp_arrays() -> tuple[list[tuple[Array, Array]], Array, Array]:
    """Weights and biases, the inputs and the targets."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    layers = [
        (draw(d_out, d_in, scale=d_in**-0.5), draw(d_out, scale=0.1))
        for d_in, d_out in itertools.pairwise(SIZES)
    ]
    return layers, draw(BATCH, SIZES[0]), draw(BATCH, SIZES[-1])


def _mlp_minigrad(_: None) -> Run:
    import minigrad
    from minigrad import nn, optim

    arrays, x_array, y_array = _mlp_arrays()
    model = nn.MLP(SIZES)
    for layer, (weight, bias) in zip(model.layers, arrays, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    x, y = minigrad.tensor(x_array), minigrad.tensor(y_array)

    def run() -> float:
        optimizer.zero_grad()
        loss = minigrad.mse(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def _mlp_torch(_: None) -> Run:
    import torch

    arrays, x_array, y_array = _mlp_arrays()
    parts: list[Any] = []
    for weight, bias in arrays:
        parts += [torch.nn.Linear(*weight.shape[::-1]), torch.nn.ReLU()]
        state = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
        parts[-2].load_state_dict(state)
    model = torch.nn.Sequential(*parts[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.from_numpy(x_array), torch.from_numpy(y_array)

    def run() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


WORKLOADS = {
    "chain": Workload(
        "y = y * x + x twenty times over a 4x4, sum, backward (41 ops)",
        {
            OURS: Contender(lambda _: _chain(_leaf_minigrad())),
            "torch": Contender(lambda _: _chain(_leaf_torch()), ("torch",)),
            "autograd": Contender(_chain_autograd, ("autograd",)),
        },
        goals=[Goal("torch", 1.35), Goal("autograd", 3.3)],
    ),
    "mlp": Workload(
        f"a training step of an MLP {'-'.join(map(str, SIZES))} at batch {BATCH} with Adam",
        {OURS: Contender(_mlp_minigrad), "torch": Contender(_mlp_torch, ("torch",))},
        goals=[Goal("torch", 1.5)],
        steps=10,
        tolerance=SAME_LOSS,
    ),
    "deep": Workload(
        "forward and backward through a chain of 100,000 additions of 4x4",
        {
            OURS: Contender(lambda _: _deep(_leaf_minigrad())),
            "torch": Contender(lambda _: _deep(_leaf_torch()), ("torch",)),
        },
    ),
    "memory": Workload(
        "of the graph of a chain of additions of 4x4, for each op; nothing is left for gc",
        {OURS: Contender(_memory)},
        [Point(f"{length:,} ops", length) for length in (1_000, 10_000, 100_000)],
        steps=0,
        rounds=1,
        unit="B",
    ),
}
