"""A LoRA training step of any model, with an adapter on each of its linear layers, and Adam.

All contenders begin with the same adapters, and must arrive at the same loss after some steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import Run

ALPHA_OVER_RANK = 2.0
LEARNING_RATE = 1e-3
BETAS = 0.9, 0.999
EPS = 1e-8

Array = NDArray[np.float32]
Adapter = tuple[Array, Array]  # A and B of one layer

Step = Callable[[Any, Any], Any]
"""A training step: it is given a batch and its target, and returns the loss."""

Change = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What makes a function faster, such as `torch.compile`."""


def unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a function as it is, for an eager step."""
    return function


def step_minigrad(model: Any, adapters: Sequence[Adapter], use_dora: bool = False) -> Step:
    """The adapters are in the order of the layers."""
    import lora
    from minigrad import mse, optim

    rank = len(adapters[0][0])
    config = lora.LoRAConfig(rank=rank, alpha=ALPHA_OVER_RANK * rank, use_dora=use_dora)
    lora.attach(model, config)
    layers = [module for module in model.modules() if isinstance(module, lora.LoRALayer)]
    for layer, (a, b) in zip(layers, adapters, strict=True):
        layer.lora_a, layer.lora_b = a, b
    optimizer = optim.Adam(model.trainable_parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS)

    def step(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        loss = mse(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    return step


def step_peft(
    model: Any,
    adapters: Mapping[str, Adapter],
    use_dora: bool = False,
    change: Change = unchanged,
) -> Step:
    """The adapters are by the name of the layer; `change` is given the loss and the update."""
    import torch
    from peft import LoraConfig, get_peft_model

    rank = len(next(iter(adapters.values()))[0])
    config = LoraConfig(
        r=rank,
        lora_alpha=int(ALPHA_OVER_RANK * rank),
        target_modules=list(adapters),
        use_dora=use_dora,
    )
    model = get_peft_model(model, config)
    state = {
        f"base_model.model.{name}.lora_{kind}.default.weight": torch.from_numpy(array)
        for name, pair in adapters.items()
        for kind, array in zip("AB", pair, strict=True)
    }
    if model.load_state_dict(state, strict=False).unexpected_keys:
        raise RuntimeError("PEFT calls its adapters by other names than these: " + ", ".join(state))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    loss_of = change(lambda x, target: torch.nn.functional.mse_loss(model(x), target))
    update = change(optimizer.step)

    def step(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(x, target)
        loss.backward()
        update()
        return loss

    return step


def step_jax(forward: Callable[[Any, Any, Any], Any], adapters: Any, base: Any) -> Step:
    """The whole step as one compiled function, which may write into the arrays of the last one.

    The forward is given the adapters, the base and x; the first two are of any structure.
    """
    import jax
    from jax import numpy as jnp

    def loss_of(adapters: Any, base: Any, x: Any, target: Any) -> Any:
        return jnp.mean((forward(adapters, base, x) - target) ** 2)

    def whole(state: Any, base: Any, x: Any, target: Any) -> Any:
        adapters, first, second, count = state
        loss, gradients = jax.value_and_grad(loss_of)(adapters, base, x, target)
        count = count + 1
        beta1, beta2 = BETAS
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradients)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, gradients)
        size, root = LEARNING_RATE / (1 - beta1**count), jnp.sqrt(1 - beta2**count)
        adapters = jax.tree.map(
            lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + EPS), adapters, first, second
        )
        return loss, (adapters, first, second, count)

    compiled = jax.jit(whole, donate_argnums=0)
    base, adapters = jax.tree.map(jnp.asarray, (base, adapters))
    zeros = jax.tree.map(jnp.zeros_like, adapters)
    state: Any = (adapters, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.float32))

    def step(x: Any, target: Any) -> Any:
        nonlocal state
        loss, state = compiled(state, base, x, target)
        jax.block_until_ready(state)
        return loss

    return step


def repeated(step: Step, x: Any, target: Any) -> Run:
    """The step on one batch, again and again; its loss is read each time."""
    return lambda: float(step(x, target).item())
