"""Pooling, and norms of channels, of a batch of images, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, Contender, Goal, Point, Run, Workload

SHAPE = 32, 32, 28, 28  # batch, channels, height, width
GROUPS = 8
POOLING = {
    "max 2": lambda f, x: f.max_pool2d(x, 2),
    "max 3, 2, 1": lambda f, x: f.max_pool2d(x, 3, 2, 1),
    "avg 2": lambda f, x: f.avg_pool2d(x, 2),
    "avg 3, 2, 1": lambda f, x: f.avg_pool2d(x, 3, 2, 1),
    "adaptive avg 7": lambda f, x: f.adaptive_avg_pool2d(x, 7),
}
NORMS = {
    "training": lambda f, x, running, parameters: f.batch_norm(x, *running, *parameters, True),
    "evaluation": lambda f, x, running, parameters: f.batch_norm(x, *running, *parameters),
    "group norm": lambda f, x, running, parameters: f.group_norm(x, GROUPS, *parameters),
}
LEAST = {"training": 0.9}


def _draws(seed: int, *shapes: tuple[int, ...]) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _there_and_back(
    functions: Any, tensor: Callable[[NDArray[Any]], Any], leaf: Callable[[NDArray[Any]], Any],
    name: str,
) -> Run:  # fmt: skip
    """Forward and backward, for any library with PyTorch's names."""
    x, weight, bias = map(leaf, _draws(0, SHAPE, SHAPE[1:2], SHAPE[1:2]))
    running = tensor(np.zeros(SHAPE[1], np.float32)), tensor(np.ones(SHAPE[1], np.float32))

    def forward() -> Any:
        if name in POOLING:
            return POOLING[name](functions, x)
        return NORMS[name](functions, x, running, (weight, bias))

    arrives = tensor(_draws(1, tuple(forward().shape))[0])

    def run() -> Any:
        x.grad = weight.grad = bias.grad = None
        forward().backward(arrives)
        return x.grad

    return run


def _minigrad(name: str) -> Run:
    import minigrad as mg

    return _there_and_back(mg, mg.tensor, lambda x: mg.tensor(x, requires_grad=True), name)


def _torch(name: str) -> Run:
    import torch

    def leaf(x: NDArray[Any]) -> Any:
        return torch.from_numpy(x).requires_grad_()

    return _there_and_back(torch.nn.functional, torch.from_numpy, leaf, name)


CONTENDERS = {OURS: Contender(_minigrad), "torch": Contender(_torch, ("torch",))}
WORKLOADS = {
    "pooling": Workload(
        f"pooling of images {SHAPE}, forward and backward",
        CONTENDERS,
        [Point(name, name) for name in POOLING],
        [Goal("torch", 0.9)],
        seconds=0.1,
    ),
    "batch norm": Workload(
        f"norms of the channels of images {SHAPE}, forward and backward",
        CONTENDERS,
        [Point(name, name) for name in NORMS],
        [Goal("torch", LEAST)],
        seconds=0.1,
    ),
}
