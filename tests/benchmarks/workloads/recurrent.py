"""Recurrent layers, forward and backward, with the same parameters in each library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, Contender, Goal, Point, Run, Workload

Array = NDArray[Any]

SIZE, STEPS, BATCH = 64, 50, 32
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _state(kind: str) -> dict[str, Array]:
    """The parameters of a layer, by PyTorch's names, which are ours."""
    rng = np.random.default_rng(0)
    height, bound = GATES[kind] * SIZE, SIZE**-0.5
    shapes = {"weight_ih_l0": (height, SIZE), "weight_hh_l0": (height, SIZE)}
    shapes |= {"bias_ih_l0": (height,), "bias_hh_l0": (height,)}
    return {
        name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()
    }


def _sequences() -> tuple[Array, Array]:
    """A batch of sequences, and the gradient that arrives at the output."""
    x, arrives = np.random.default_rng(1).standard_normal((2, STEPS, BATCH, SIZE))
    return x.astype(np.float32), arrives.astype(np.float32)


def _run(layer: Any, x: Any, arrives: Any) -> Run:
    parameters = list(layer.parameters())

    def run() -> Any:
        for leaf in (x, *parameters):
            leaf.grad = None
        layer(x)[0].backward(arrives)
        return x.grad

    return run


def _minigrad(kind: str) -> Run:
    import minigrad
    from minigrad import nn

    x, arrives = _sequences()
    layer = getattr(nn, kind)(SIZE, SIZE)
    layer.load_state_dict(_state(kind))
    return _run(layer, minigrad.tensor(x, requires_grad=True), minigrad.tensor(arrives))


def _torch(kind: str) -> Run:
    import torch

    x, arrives = map(torch.from_numpy, _sequences())
    layer = getattr(torch.nn, kind)(SIZE, SIZE)
    layer.load_state_dict({name: torch.from_numpy(v) for name, v in _state(kind).items()})
    return _run(layer, x.requires_grad_(), arrives)


WORKLOADS = {
    "lstm": Workload(
        f"forward and backward of recurrent layers of {SIZE} over {STEPS} steps, batch {BATCH}",
        {OURS: Contender(_minigrad), "torch": Contender(_torch, ("torch",))},
        [Point(kind, kind) for kind in GATES],
        [Goal("torch", 1.1)],
        steps=2,
    ),
}
