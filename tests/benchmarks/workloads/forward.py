"""Derivatives in a direction: J v and H v, and the memory that they take at depth 1,000."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, Contender, Point, Run, Workload

Array = NDArray[Any]
Case = tuple[int, int]  # width and batch

TWO_PASSES = "two backward passes"
DEPTH = 4
DEEP, WIDE = 1000, 4096
SAME_DERIVATIVE = 1e-5
SIZES = [
    Point(f"width {width}, batch {batch}", (width, batch))
    for width, batch in ((16, 32), (64, 64), (256, 64))
]


def _arrays(case: Case) -> tuple[list[Array], Array, Array]:
    """The weights of an MLP, a point and a direction."""
    width, batch = case
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    weights = [draw(width, width) / np.float32(width**0.5) for _ in range(DEPTH)]
    return weights, draw(batch, width), draw(batch, width)


def _mlp(library: Any, weights: list[Any]) -> Callable[[Any], Any]:
    """An MLP for any library with numpy's names."""

    def mlp(x: Any) -> Any:
        for weight in weights:
            x = library.tanh(library.matmul(x, weight))
        return x

    return mlp


def _loss(library: Any, weights: list[Any]) -> Callable[[Any], Any]:
    mlp = _mlp(library, weights)

    def loss(x: Any) -> Any:
        return (mlp(x) ** 2).sum()

    return loss


def _ours(case: Case, second: bool) -> Run:
    import minigrad
    from minigrad.transforms import hvp, jvp

    weights, x, v = _arrays(case)
    tensors = [minigrad.tensor(weight) for weight in weights]
    if second:
        loss = _loss(minigrad, tensors)
        return lambda: hvp(loss, x, v).numpy()
    mlp = _mlp(minigrad, tensors)
    return lambda: jvp(mlp, x, v)[1].numpy()


def _two_passes(case: Case, second: bool) -> Run:
    """By reverse mode alone: J v is the derivative by u of u^T J v, H v that of (df/dx)^T v."""
    import minigrad
    from minigrad.transforms import gradient, vjp

    weights, x, v = _arrays(case)
    tensors = [minigrad.tensor(weight) for weight in weights]
    if second:
        slopes = gradient(_loss(minigrad, tensors))
        return lambda: gradient(lambda x: (slopes(x) * v).sum())(x).numpy()
    mlp = _mlp(minigrad, tensors)

    def run() -> Any:
        value, pullback = vjp(mlp, x)
        u = minigrad.zeros_like(value)
        return gradient(lambda u: (pullback(u)[0] * v).sum())(u).detach().numpy()

    return run


def _torch(case: Case, second: bool) -> Run:
    import torch

    arrays, *others = _arrays(case)
    weights = [torch.from_numpy(array) for array in arrays]
    x, v = map(torch.from_numpy, others)
    if second:
        slopes = torch.func.grad(_loss(torch, weights))
        return lambda: torch.func.jvp(slopes, (x,), (v,))[1].numpy()
    return lambda: torch.func.jvp(_mlp(torch, weights), (x,), (v,))[1].numpy()


def _jax(case: Case, second: bool) -> Run:
    import jax
    import jax.numpy as jnp

    weights, x, v = _arrays(case)
    f = _mlp(jnp, [jnp.asarray(weight) for weight in weights])
    f = jax.grad(_loss(jnp, [jnp.asarray(weight) for weight in weights])) if second else f
    compiled = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,))[1])
    return lambda: np.asarray(compiled(x, v))


def _contenders(second: bool) -> dict[str, Contender]:
    return {
        OURS: Contender(lambda case: _ours(case, second)),
        TWO_PASSES: Contender(lambda case: _two_passes(case, second)),
        "torch": Contender(lambda case: _torch(case, second), ("torch",)),
        "jax": Contender(lambda case: _jax(case, second), ("jax",)),
    }


def _memory(second: bool, by_passes: bool, depth: int) -> Run:
    """The peak of memory of a chain of ops, over that of one of its arrays."""
    import minigrad
    from minigrad.transforms import gradient, hvp, jvp, vjp

    x = np.linspace(0.1, 0.9, WIDE)

    def chain(x: Any) -> Any:
        for _ in range(depth):
            x = minigrad.tanh(x) * 1.01
        return x

    def work() -> None:
        if second and by_passes:
            slopes = gradient(lambda x: chain(x).sum())
            gradient(lambda x: (slopes(x) * x.detach()).sum())(x)
        elif second:
            hvp(lambda x: chain(x).sum(), x, x)
        elif by_passes:
            _, pullback = vjp(chain, x)
            gradient(lambda u: (pullback(u)[0] * x).sum())(x)
        else:
            jvp(chain, x, x)

    def run() -> float:
        gc.collect()
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return run


DEPTHS = [Point(f"depth {depth:,}", depth) for depth in (10, 100, DEEP)]

WORKLOADS = {
    "jvp": Workload(
        f"J v of an MLP of {DEPTH} layers with tanh, in float32",
        _contenders(second=False),
        SIZES,
        tolerance=SAME_DERIVATIVE,
    ),
    "hvp": Workload(
        f"H v of the sum of squares of an MLP of {DEPTH} layers with tanh, in float32",
        _contenders(second=True),
        SIZES,
        tolerance=SAME_DERIVATIVE,
    ),
    **{
        f"{name} memory": Workload(
            f"peak memory of {name} through tanh(x) * 1.01 on {WIDE:,} numbers of float64",
            {
                OURS: Contender(lambda depth, second=second: _memory(second, False, depth)),
                TWO_PASSES: Contender(lambda depth, second=second: _memory(second, True, depth)),
            },
            DEPTHS,
            steps=0,
            rounds=1,
            unit="B",
        )
        for name, second in (("jvp", False), ("hvp", True))
    },
}
