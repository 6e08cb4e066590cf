"""Optimiser steps over many parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, Contender, Goal, Point, Run, Workload

COUNT = 10_000_000
# 16 tensors of sizes that a network has, and the rest of the 10 million in the last.
MIXED = [64, 1_000, 65_536, 512, 262_144, 768, 589_824, 3_072, 1_048_576, 256]
MIXED += [2_359_296, 1_024, 1_572_864, 100, 2_000_000]
MIXED += [COUNT - sum(MIXED)]


def _arrays(sizes: list[int]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Parameters and their gradients. They begin at zero, so that all they hold later is steps."""
    rng = np.random.default_rng(0)
    return [(np.zeros(n, np.float32), rng.standard_normal(n, np.float32)) for n in sizes]


def _minigrad(sizes: list[int]) -> Run:
    import minigrad
    from minigrad import nn, optim

    parameters = []
    for value, gradient in _arrays(sizes):
        parameters.append(nn.Parameter(value))
        parameters[-1].grad = minigrad.tensor(gradient)
    optimizer = optim.Adam(parameters)

    def run() -> Any:
        optimizer.step()
        return parameters[-1].data

    return run


def _torch(sizes: list[int], **options: bool) -> Run:
    import torch

    parameters = []
    for value, gradient in _arrays(sizes):
        parameters.append(torch.nn.Parameter(torch.from_numpy(value)))
        parameters[-1].grad = torch.from_numpy(gradient)
    optimizer = torch.optim.Adam(parameters, **options)  # type: ignore[arg-type]

    def run() -> Any:
        optimizer.step()
        return parameters[-1].detach()

    return run


def _fused(sizes: list[int]) -> Run:
    return _torch(sizes, fused=True)


def _foreach(sizes: list[int]) -> Run:
    return _torch(sizes, foreach=True)


FUSED, FOREACH = "torch, fused", "torch, foreach"

WORKLOADS = {
    "adam": Workload(
        "a step of Adam over 10 million parameters",
        {
            OURS: Contender(_minigrad),
            FUSED: Contender(_fused, ("torch",)),
            FOREACH: Contender(_foreach, ("torch",)),
        },
        [Point(f"{len(MIXED)} tensors", MIXED), Point("1 tensor", [COUNT])],
        [Goal(FUSED, 1.0), Goal(FOREACH, 1.0)],
        steps=3,
    ),
}
