"""Convolutions, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.workload import OURS, Contender, Goal, Point, Run, Workload


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


WORKLOADS = {
    "conv2d": Workload(
        "forward and backward of convolutions",
        {OURS: Contender(_minigrad), "torch": Contender(_torch, ("torch",))},
        [Point(name, shapes) for name, shapes in POINTS.items()],
        [Goal("torch", dict.fromkeys([*POINTS][:2], 1.1))],
        steps=2,
    ),
}
