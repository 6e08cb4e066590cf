"""Convolutions, forward and backward, and a training step of a small convolutional network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload


class Shapes(NamedTuple):
    """Images, filters and options; the first layer of a model has images without a gradient."""

    images: tuple[int, int, int, int]
    filters: tuple[int, int, int, int]
    stride: int
    padding: int
    groups: int = 1
    is_first: bool = False


POINTS = {
    "16 -> 32 channels, 3 x 3, 28 x 28": Shapes((32, 16, 28, 28), (32, 16, 3, 3), 1, 1),
    "3 -> 16, 7 x 7, stride 2, 64 x 64": Shapes(
        (32, 3, 64, 64), (16, 3, 7, 7), 2, 3, is_first=True
    ),
    "64 -> 64, 3 x 3, 56 x 56": Shapes((8, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    "64 -> 128, 3 x 3, stride 2, 56 x 56": Shapes((8, 64, 56, 56), (128, 64, 3, 3), 2, 1),
    "128 -> 128, 3 x 3, 14 x 14": Shapes((16, 128, 14, 14), (128, 128, 3, 3), 1, 1),
    "32 channels by themselves, 28 x 28": Shapes((32, 32, 28, 28), (32, 1, 3, 3), 1, 1, 32),
    "64 -> 64, 1 x 1, 28 x 28": Shapes((16, 64, 28, 28), (64, 64, 1, 1), 1, 0),
    "1 -> 16, 3 x 3, 8 x 8": Shapes((64, 1, 8, 8), (16, 1, 3, 3), 1, 1, is_first=True),
}


def _run(convolve: Any, make: Any, s: Shapes) -> Run:
    """Return the derivatives of a convolution, with tensors that `make` makes of arrays."""
    rng = np.random.default_rng(0)
    sizes = zip(s.images[2:], s.filters[2:], strict=True)
    size = ((image + 2 * s.padding - kernel) // s.stride + 1 for image, kernel in sizes)
    shapes = s.images, s.filters, (s.filters[0],), (s.images[0], s.filters[0], *size)
    x, weight, bias, g = (make(rng.standard_normal(n).astype(np.float32)) for n in shapes)
    leaves = [weight, bias] if s.is_first else [weight, bias, x]
    for leaf in leaves:
        leaf.requires_grad = True

    def run() -> Any:
        for leaf in leaves:
            leaf.grad = None
        convolve(x, weight, bias, s.stride, s.padding, 1, s.groups).backward(g)
        return weight.grad

    return run


def _minigrad(s: Shapes) -> Run:
    import minigrad

    return _run(minigrad.conv2d, minigrad.tensor, s)


def _torch(s: Shapes) -> Run:
    import torch

    return _run(torch.nn.functional.conv2d, torch.from_numpy, s)


class Case(NamedTuple):
    """A training step on a batch of images of one channel, by a network that begins so wide."""

    batch: int
    size: int
    width: int

    @property
    def label(self) -> str:
        return f"{self.batch} images of {self.size} x {self.size}, {self.width} channels"


CASES = [Case(64, 8, 16), Case(64, 28, 16), Case(64, 28, 32)]
CLASSES = 10


def _step(case: Case, nn: Any, optim: Any, make: Any, cross_entropy: Any) -> Run:
    """Return a step of the same network in either library, whose names are the same."""
    rng, width, left = np.random.default_rng(0), case.width, case.size // 4
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * left * left, CLASSES),
    )
    weights = {
        name: make(0.1 * rng.standard_normal(tuple(p.shape), np.float32))
        for name, p in model.named_parameters()
    }
    model.load_state_dict({**model.state_dict(), **weights})
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    x = make(rng.standard_normal((case.batch, 1, case.size, case.size), np.float32))
    y = make(rng.integers(0, CLASSES, case.batch))

    def run() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def with_minigrad(case: Case) -> Run:
    import minigrad

    return _step(case, minigrad.nn, minigrad.optim, minigrad.tensor, minigrad.cross_entropy)


def with_torch(case: Case) -> Run:
    import torch

    f = torch.nn.functional
    return _step(case, torch.nn, torch.optim, torch.from_numpy, f.cross_entropy)


CONTENDERS = {OURS: Contender(with_minigrad), "torch": Contender(with_torch, ("torch",))}

WORKLOADS = {
    "cnn": Workload(
        "a training step with Adam of two convolutions with batch norm and pooling",
        CONTENDERS,
        [Point(case.label, case) for case in CASES],
        [Goal("torch", 1.0)],
        steps=4,
        tolerance=SAME_LOSS,
        seconds=0.5,
    ),
    "conv2d": Workload(
        "forward and backward of convolutions",
        {OURS: Contender(_minigrad), "torch": Contender(_torch, ("torch",))},
        [Point(name, shapes) for name, shapes in POINTS.items()],
        [Goal("torch", dict.fromkeys([*POINTS][:2], 1.1))],
        steps=2,
    ),
}
