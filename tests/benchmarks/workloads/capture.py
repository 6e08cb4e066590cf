"""Captured training steps: LoRA and Adam on an MLP, and on a causal transformer block.

The MLPs are those of `lora`. JAX and torch.compile compile the step, too; eager steps stand beside.
All contenders begin with the same arrays, and must arrive at the same loss after some steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.lora_step import (
    ALPHA_OVER_RANK,
    Adapter,
    Change,
    repeated,
    step_jax,
    step_minigrad,
    step_peft,
    unchanged,
)
from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload
from tests.benchmarks.workloads import lora
from tests.benchmarks.workloads.lora import CASES, JAX, PEFT, Case
from tests.benchmarks.workloads.neural import Size, batch_of, block_minigrad, block_weights

EAGER, COMPILED = "minigrad, eager", "torch.compile"
BLOCK = Size(64, 4, 1, 4, 32)
RANK = 4  # of the adapters of the block


def block_adapters(size: Size) -> dict[str, Adapter]:
    """A and B by the name of a layer. B is not zero, else A would get no gradient at first."""
    rng = np.random.default_rng(3)
    return {
        name.removesuffix(".weight"): (
            weight.shape[1] ** -0.5 * rng.standard_normal((RANK, weight.shape[1]), np.float32),
            0.1 * rng.standard_normal((len(weight), RANK), np.float32),
        )
        for name, weight in block_weights(size).items()
        if weight.ndim == 2
    }


def block_with_minigrad(size: Size, change: Change = unchanged) -> Run:
    import minigrad

    x, target = map(minigrad.tensor, batch_of(size))
    step = step_minigrad(block_minigrad(size), list(block_adapters(size).values()))
    return repeated(change(step), x, target)


def block_with_peft(size: Size, change: Change = unchanged) -> Run:
    import torch

    x, target = map(torch.from_numpy, batch_of(size))
    return repeated(step_peft(block_torch(size), block_adapters(size), change=change), x, target)


def block_torch(size: Size) -> Any:
    """The block with a Linear for each matrix: PEFT adapts no matrix of MultiheadAttention alone.

    The layers have our names.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812  # as everybody calls it

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            d = size.width
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            names = ("q_proj", "k_proj", "v_proj", "out_proj")
            self.attn = nn.ModuleDict({name: nn.Linear(d, d) for name in names})
            layers = nn.ModuleList([nn.Linear(d, 4 * d), nn.Linear(4 * d, d)])
            self.mlp = nn.ModuleDict({"layers": layers})

        def forward(self, x: Any) -> Any:
            normed = self.norm1(x)
            q, k, v = (
                self.attn[name](normed).unflatten(2, (size.heads, -1)).transpose(1, 2)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn["out_proj"](attended.transpose(1, 2).flatten(2))
            wide, narrow = self.mlp["layers"]
            return x + narrow(F.gelu(wide(self.norm2(x))))

    block = Block()
    block.load_state_dict({k: torch.from_numpy(array) for k, array in block_weights(size).items()})
    return block


def block_with_jax(size: Size) -> Run:
    import jax
    from jax import numpy as jnp

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * weight + bias

    def forward(adapters: Any, base: Any, x: Any) -> Any:
        def linear(name: str, x: Any) -> Any:
            a, b = adapters[name]
            update = ALPHA_OVER_RANK * (x @ a.T) @ b.T
            return x @ base[f"{name}.weight"].T + base[f"{name}.bias"] + update

        def heads(name: str, x: Any) -> Any:
            return linear(name, x).reshape(*x.shape[:2], size.heads, -1)

        normed = norm(x, base["norm1.weight"], base["norm1.bias"])
        q, k, v = (heads(f"attn.{name}_proj", normed) for name in "qkv")
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear("attn.out_proj", attended.reshape(x.shape))
        normed = norm(x, base["norm2.weight"], base["norm2.bias"])
        hidden = jax.nn.gelu(linear("mlp.layers.0", normed), approximate=False)
        return x + linear("mlp.layers.1", hidden)

    x, target = map(jnp.asarray, batch_of(size))
    return repeated(step_jax(forward, block_adapters(size), block_weights(size)), x, target)


def either(
    mlp: Callable[..., Run], block: Callable[..., Run], *change: Change
) -> Callable[[Case | Size], Run]:
    """The step of the model that a case is of."""
    return lambda case: (mlp if isinstance(case, Case) else block)(case, *change)


def captured(step: Callable[..., Any]) -> Callable[..., Any]:
    import minigrad

    return minigrad.capture(step)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    torch.compiler.reset()  # or it would compile the same lines for so many cases and no more
    return torch.compile(function)


LABELS = [*lora.LABELS, f"block {BLOCK.width}"]
CONTENDERS = {
    OURS: Contender(either(lora.with_minigrad, block_with_minigrad, captured)),
    EAGER: Contender(either(lora.with_minigrad, block_with_minigrad)),
    JAX: Contender(either(lora.with_jax, block_with_jax), ("jax",)),
    PEFT: Contender(either(lora.with_peft, block_with_peft), ("torch", "peft")),
    COMPILED: Contender(
        either(lora.with_peft, block_with_peft, compiled), ("torch", "peft"), compiles=True
    ),
}

WORKLOADS = {
    "capture": Workload(
        "a LoRA training step with Adam, captured: the MLPs of `lora` (width, layers, batch, "
        f"rank), and a causal transformer block of width {BLOCK.width}, {BLOCK.heads} heads, "
        f"{BLOCK.batch} x {BLOCK.length}, rank {RANK}",
        CONTENDERS,
        [Point(label, case) for label, case in zip(LABELS, [*CASES, BLOCK], strict=True)],
        [
            Goal(peer, dict(zip(LABELS, wanted, strict=True)))
            for peer, wanted in {
                JAX: (1.3, 1.15, 1.0, 1.0, 1.1, 0.85),
                PEFT: (10, 6, 1.9, 1.28, 1.15, 2.0),
                COMPILED: (6, 4, 1.5, 1.2, 1.1, 1.2),
            }.items()
        ],
        steps=10,
        tolerance=SAME_LOSS,
        seconds=0.3,
    ),
}
