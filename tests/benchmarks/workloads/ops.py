"""Many functions of arrays, forward and backward, on a small and on a larger array.

One entry is written for both libraries: `m` has the functions of arrays, and `f` those of neural
networks, which are in another module of PyTorch. Where the names differ, the entry uses a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.benchmarks.workload import OURS, Contender, Goal, Point, Run, Workload

SIZES = {"64 x 256": (64, 256), "512 x 512": (512, 512)}

Function = Callable[[Any, Any, Any, Any, Any], Any]

OPS: dict[str, Function] = {
    "x + y": lambda m, f, x, y, i: x + y,
    "x * y": lambda m, f, x, y, i: x * y,
    "x / y": lambda m, f, x, y, i: x / y,
    "x * row": lambda m, f, x, y, i: x * y[0],
    "x * column": lambda m, f, x, y, i: x * y[:, :1],
    "x ** 3": lambda m, f, x, y, i: x**3,
    "maximum": lambda m, f, x, y, i: m.maximum(x, y),
    "where": lambda m, f, x, y, i: m.where(i > 100, x, y),
    "clip": lambda m, f, x, y, i: m.clip(x, -1, 1),
    "abs": lambda m, f, x, y, i: m.abs(x),
    "exp": lambda m, f, x, y, i: m.exp(x),
    "log": lambda m, f, x, y, i: m.log(y),
    "sqrt": lambda m, f, x, y, i: m.sqrt(y),
    "sin": lambda m, f, x, y, i: m.sin(x),
    "tanh": lambda m, f, x, y, i: m.tanh(x),
    "sigmoid": lambda m, f, x, y, i: m.sigmoid(x),
    "relu": lambda m, f, x, y, i: f.relu(x),
    "gelu": lambda m, f, x, y, i: f.gelu(x),
    "softplus": lambda m, f, x, y, i: f.softplus(x),
    "softmax": lambda m, f, x, y, i: f.softmax(x, -1),
    "softmax, axis 0": lambda m, f, x, y, i: f.softmax(x, 0),
    "log_softmax": lambda m, f, x, y, i: f.log_softmax(x, -1),
    "logsumexp": lambda m, f, x, y, i: m.logsumexp(x, -1),
    "sum": lambda m, f, x, y, i: x.sum(),
    "sum, axis 0": lambda m, f, x, y, i: x.sum(0),
    "sum, axis 1": lambda m, f, x, y, i: x.sum(1),
    "mean": lambda m, f, x, y, i: x.mean(),
    "cumsum": lambda m, f, x, y, i: m.cumsum(x, -1),
    "concatenate": lambda m, f, x, y, i: m.concatenate([x, y], 0),
    "stack": lambda m, f, x, y, i: m.stack([x, y], 0),
    "x.T": lambda m, f, x, y, i: x.T.reshape(-1),
    "x[:, ::2]": lambda m, f, x, y, i: x[:, ::2],
    "x[indices]": lambda m, f, x, y, i: x[i[:, 0] % len(x)],
    "gather": lambda m, f, x, y, i: m.gather(x, 1, i[:, :32]),
    "einsum": lambda m, f, x, y, i: m.einsum("ij,kj->ik", x, y),
    "layer_norm": lambda m, f, x, y, i: f.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda m, f, x, y, i: f.rms_norm(x, (x.shape[-1],)),
    "cross_entropy": lambda m, f, x, y, i: f.cross_entropy(x, i[:, 0]),
    "binary_cross_entropy_with_logits": lambda m, f, x, y, i: f.binary_cross_entropy_with_logits(
        x, (i > 100) * 1.0
    ),
}


def _prepare(case: tuple[str, tuple[int, int]], m: Any, f: Any, convert: Any) -> Run:
    """Return the forward and backward pass of one function; x and y require gradients."""
    name, shape = case
    rng = np.random.default_rng(0)
    x, y = (convert(rng.standard_normal(shape).astype(np.float32)) for _ in range(2))
    y = abs(y) + 0.1
    indices = convert(rng.integers(0, shape[1], shape))
    for leaf in x, y:
        leaf.requires_grad = True
    result = OPS[name](m, f, x, y, indices)
    arrives = convert(rng.standard_normal(tuple(result.shape)).astype(np.float32))

    def run() -> Any:
        x.grad = y.grad = None
        OPS[name](m, f, x, y, indices).backward(arrives)
        return (y if x.grad is None else x).grad

    return run


def _minigrad(case: tuple[str, tuple[int, int]]) -> Run:
    import minigrad as mg

    return _prepare(case, mg, mg, mg.tensor)


def _torch(case: tuple[str, tuple[int, int]]) -> Run:
    import torch

    return _prepare(case, torch, torch.nn.functional, torch.from_numpy)


WORKLOADS: Mapping[str, Workload] = {
    "ops": Workload(
        "functions of arrays, forward and backward",
        {OURS: Contender(_minigrad), "torch": Contender(_torch, ("torch",))},
        [Point(f"{name}, {size}", (name, s)) for name in OPS for size, s in SIZES.items()],
        [Goal("torch", mean=1.1)],
        seconds=0.05,
    ),
}
