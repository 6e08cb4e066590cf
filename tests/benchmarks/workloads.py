"""What is measured: each workload with a function for every contender.

A contender's function imports what it needs, prepares, and returns what is to be timed.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Run = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """Work that several libraries can do.

    Attributes:
        title: what the work is.
        contenders: for each library, a function that prepares the work and returns it.
        wanted: the smallest acceptable time of a peer over ours.
        warm_up: calls after the first that are not timed.
        ours: which of the contenders is ours.
    """

    title: str
    contenders: Mapping[str, Callable[[], Run]]
    wanted: Mapping[str, float] = field(default_factory=dict)
    warm_up: int = 20
    ours: str = "minigrad"

    def available(self, contender: str) -> bool:
        """Whether the library is installed; peers need not be."""
        return contender == self.ours or importlib.util.find_spec(contender) is not None


def _small_array() -> np.ndarray[Any, Any]:
    return (0.1 * np.random.default_rng(0).standard_normal((4, 4))).astype(np.float32)


def _leaf_minigrad() -> Any:
    import minigrad

    return minigrad.tensor(_small_array(), requires_grad=True)


def _leaf_torch() -> Any:
    import torch

    return torch.tensor(_small_array(), requires_grad=True)


def _chain(x: Any) -> Run:
    """For any library with PyTorch's names."""

    def run() -> None:
        x.grad = None
        y = x
        for _ in range(20):
            y = y * x + x
        y.sum().backward()

    return run


def _deep(x: Any) -> Run:
    """For any library with PyTorch's names."""

    def run() -> None:
        x.grad = None
        y = x
        for _ in range(DEEP):
            y = y + x
        y.sum().backward()

    return run


def _chain_autograd() -> Run:
    import autograd
    import autograd.numpy as anp

    def loss(x: Any) -> Any:
        y = x
        for _ in range(20):
            y = y * x + x
        return anp.sum(y)

    gradient = autograd.grad(loss)
    x = _small_array()
    return lambda: gradient(x)


DEEP = 100_000
SIZES = (64, 64, 64, 1)
BATCH = 64


def _mlp_minigrad() -> Run:
    import minigrad
    from minigrad import nn, optim

    rng = np.random.default_rng(0)
    model = nn.MLP(SIZES, rng=rng)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    x, y = (minigrad.randn(BATCH, size, rng=rng) for size in (SIZES[0], SIZES[-1]))

    def run() -> None:
        optimizer.zero_grad()
        minigrad.mse(model(x), y).backward()
        optimizer.step()

    return run


def _mlp_torch() -> Run:
    import torch

    layers: list[Any] = []
    for d_in, d_out in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = torch.randn(BATCH, SIZES[0]), torch.randn(BATCH, SIZES[-1])

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    return run


# Of the character transformer in examples/: about a million parameters.
LETTERS, WIDTH, HEADS, DEPTH, ROWS, LENGTH = 85, 128, 4, 5, 8, 64


def _text() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, LETTERS, (2, ROWS, LENGTH))
    return before, after.reshape(-1)


def _transformer_minigrad() -> Run:
    import minigrad
    from minigrad import nn, optim

    letters, places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
    blocks = [nn.TransformerBlock(WIDTH, HEADS, causal=True) for _ in range(DEPTH)]
    end = nn.Sequential(*blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS))
    optimizer = optim.AdamW([p for m in (letters, places, end) for p in m.parameters()])
    text, after = _text()

    def run() -> None:
        optimizer.zero_grad()
        scores = end(letters(text) + places(np.arange(LENGTH)))
        minigrad.cross_entropy(scores.reshape(-1, LETTERS), after).backward()
        optimizer.step()

    return run


def _transformer_torch() -> Run:
    import torch
    from torch import nn

    letters, places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    blocks = nn.ModuleList(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **options) for _ in range(DEPTH)
    )
    end = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS))
    optimizer = torch.optim.AdamW(
        [p for m in (letters, places, blocks, end) for p in m.parameters()]
    )
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    text, after = map(torch.from_numpy, _text())

    def run() -> None:
        optimizer.zero_grad()
        x = letters(text) + places(torch.arange(LENGTH))
        for block in blocks:
            x = block(x, src_mask=mask, is_causal=True)
        nn.functional.cross_entropy(end(x).reshape(-1, LETTERS), after).backward()
        optimizer.step()

    return run


def _matmul(product: Callable[[Any, Any], Any], convert: Callable[[Any], Any]) -> Run:
    rng = np.random.default_rng(0)
    x, y = (convert(rng.standard_normal((512, 512)).astype(np.float32)) for _ in range(2))
    return lambda: product(x, y)


def _matmul_minigrad() -> Run:
    from minigrad.kernels import gemm

    return _matmul(gemm.matmul, np.asarray)


def _matmul_torch() -> Run:
    import torch

    return _matmul(torch.matmul, torch.from_numpy)


def _import(name: str) -> Callable[[], Run]:
    command = [sys.executable, "-c", f"import {name}"]
    return lambda: lambda: subprocess.run(command, check=True)


WORKLOADS = {
    "chain": Workload(
        "y = y * x + x twenty times over a 4x4, sum, backward (41 ops)",
        {
            "minigrad": lambda: _chain(_leaf_minigrad()),
            "torch": lambda: _chain(_leaf_torch()),
            "autograd": _chain_autograd,
        },
        {"torch": 1.35, "autograd": 3.3},
    ),
    "mlp": Workload(
        f"one training step of an MLP {'-'.join(map(str, SIZES))} at batch {BATCH} with Adam",
        {"minigrad": _mlp_minigrad, "torch": _mlp_torch},
        {"torch": 1.5},
    ),
    "transformer": Workload(
        f"one training step of a causal transformer of {DEPTH} blocks of width {WIDTH}, "
        f"{ROWS} x {LENGTH} characters, with AdamW",
        {"minigrad": _transformer_minigrad, "torch": _transformer_torch},
        warm_up=5,
    ),
    "deep": Workload(
        f"forward and backward through a chain of {DEEP:,} additions of 4x4",
        {"minigrad": lambda: _deep(_leaf_minigrad()), "torch": lambda: _deep(_leaf_torch())},
        warm_up=0,
    ),
    "matmul": Workload(
        "float32 product of 512x512 matrices",
        {
            "minigrad": _matmul_minigrad,
            "numpy": lambda: _matmul(np.matmul, np.asarray),
            "torch": _matmul_torch,
        },
        {"numpy": 0.33},
    ),
    "import": Workload(
        "a new process that imports the library",
        {"minigrad": _import("minigrad"), "torch": _import("torch")},
        warm_up=1,
    ),
}
