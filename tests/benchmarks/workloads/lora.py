"""LoRA, DoRA, and LoRA in NF4: a training step of an MLP, with an adapter on every linear layer.

All contenders begin with the same arrays, and must arrive at the same loss after some steps.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload

ALPHA_OVER_RANK = 2.0
LEARNING_RATE = 1e-3
BETAS = 0.9, 0.999
EPS = 1e-8

Array = NDArray[np.float32]


class Case(NamedTuple):
    """An MLP of `layers` Linears from `width` to `width` with gelu between them."""

    width: int
    layers: int
    batch: int
    rank: int
    update: Literal["LoRA", "DoRA"] = "LoRA"
    base: Literal["float32", "NF4"] = "float32"

    @property
    def label(self) -> str:
        return ", ".join(map(str, self[:4]))


class Arrays(NamedTuple):
    """What every contender is given; the weights are `(out, in)`, a list holds one a layer."""

    weights: list[Array]
    biases: list[Array]
    a: list[Array]
    b: list[Array]
    x: Array
    target: Array


def arrays(case: Case) -> Arrays:
    """The same arrays for everybody. B is not zero, else A would get no gradient at first."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    width, layers, batch, rank = case[:4]
    return Arrays(
        [draw(width, width, scale=width**-0.5) for _ in range(layers)],
        [draw(width, scale=0.1) for _ in range(layers)],
        [draw(rank, width, scale=width**-0.5) for _ in range(layers)],
        [draw(width, rank, scale=0.1) for _ in range(layers)],
        draw(batch, width),
        draw(batch, width),
    )


def with_minigrad(case: Case) -> Run:
    import lora
    import minigrad
    from minigrad import nn, optim

    given = arrays(case)
    parts: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = nn.Linear(case.width, case.width)
        linear.load_state_dict({"weight": weight, "bias": bias})
        parts += [linear, minigrad.gelu]
    model = nn.Sequential(*parts[:-1])
    if case.base == "NF4":
        lora.quantize(model, double_quant=False)  # which others do with other codes of 8 bits
    config = lora.LoRAConfig(
        rank=case.rank, alpha=ALPHA_OVER_RANK * case.rank, use_dora=case.update == "DoRA"
    )
    lora.attach(model, config)
    layers = [module for module in model.modules() if isinstance(module, lora.LoRALayer)]
    for layer, a, b in zip(layers, given.a, given.b, strict=True):
        layer.lora_a, layer.lora_b = a, b
    optimizer = optim.Adam(model.trainable_parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    x, target = minigrad.tensor(given.x), minigrad.tensor(given.target)

    def run() -> float:
        optimizer.zero_grad()
        loss = minigrad.mse(model(x), target)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def with_peft(case: Case) -> Run:
    import torch
    from peft import LoraConfig, get_peft_model

    given = arrays(case)
    parts: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = torch.nn.Linear(case.width, case.width)
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        parts += [in_nf4(linear) if case.base == "NF4" else linear, torch.nn.GELU()]
    names = [str(i) for i in range(0, 2 * case.layers, 2)]
    config = LoraConfig(
        r=case.rank,
        lora_alpha=int(ALPHA_OVER_RANK * case.rank),
        target_modules=names,
        use_dora=case.update == "DoRA",
    )
    model = get_peft_model(torch.nn.Sequential(*parts[:-1]), config)
    state = {
        f"base_model.model.{name}.lora_{kind}.default.weight": torch.from_numpy(array)
        for kind, given_arrays in (("A", given.a), ("B", given.b))
        for name, array in zip(names, given_arrays, strict=True)
    }
    if model.load_state_dict(state, strict=False).unexpected_keys:
        raise RuntimeError("PEFT calls its adapters by other names than these: " + ", ".join(state))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    x, target = torch.from_numpy(given.x), torch.from_numpy(given.target)

    def run() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def in_nf4(linear: Any) -> Any:
    """A layer of torch with its weight in four bits, by bitsandbytes."""
    import bitsandbytes
    import torch

    quantized = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        compute_dtype=torch.float32,
        compress_statistics=False,
        quant_type="nf4",
    )
    quantized.load_state_dict(linear.state_dict())
    return quantized.to("cpu")


def with_jax(case: Case) -> Run:
    """The whole step as one compiled function, which may write into the arrays of the last one."""
    import jax
    from jax import numpy as jnp

    def loss_of(adapters: Any, base: Any, x: Any, target: Any) -> Any:
        for i, ((a, b), (weight, bias)) in enumerate(zip(adapters, base, strict=True)):
            x = jax.nn.gelu(x, approximate=False) if i else x
            x = x @ weight.T + bias + ALPHA_OVER_RANK * (x @ a.T) @ b.T
        return jnp.mean((x - target) ** 2)

    def step(state: Any, base: Any, x: Any, target: Any) -> Any:
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

    given = arrays(case)
    compiled = jax.jit(step, donate_argnums=0)
    adapters = [tuple(map(jnp.asarray, pair)) for pair in zip(given.a, given.b, strict=True)]
    zeros = [tuple(map(jnp.zeros_like, pair)) for pair in adapters]
    state: Any = (adapters, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.float32))
    base = [tuple(map(jnp.asarray, p)) for p in zip(given.weights, given.biases, strict=True)]
    x, target = jnp.asarray(given.x), jnp.asarray(given.target)

    def run() -> float:
        nonlocal state
        loss, state = compiled(state, base, x, target)
        jax.block_until_ready(state)
        return float(loss)

    return run


PEFT, JAX = "torch + PEFT", "JAX"
CASES = [
    Case(16, 2, 32, 4),
    Case(64, 3, 64, 4),
    Case(256, 4, 128, 8),
    Case(768, 4, 256, 8),
    Case(1024, 4, 512, 16),
]
LABELS = [case.label for case in CASES]
CONTENDERS = {
    OURS: Contender(with_minigrad),
    PEFT: Contender(with_peft, ("torch", "peft")),
    JAX: Contender(with_jax, ("jax",)),
}


WIDE = [*CASES[2:], Case(4096, 2, 16, 8)]  # the last is a matter of reading the base


def beside(cases: Sequence[Case], **change: Any) -> list[Point]:
    """Each case as it is and changed, so that one run has what the change costs."""
    pairs = [(case, case._replace(**change)) for case in cases]
    what = operator.attrgetter(*change)
    return [Point(f"{case.label}, {what(case)}", case) for pair in pairs for case in pair]


WORKLOADS = {
    "lora": Workload(
        "a training step with Adam of an MLP with gelu, every Linear adapted "
        "(width, layers, batch, rank)",
        CONTENDERS,
        [Point(case.label, case) for case in CASES],
        [
            Goal(PEFT, dict(zip(LABELS, (3, 3, 2, 1.4, 1.25), strict=True)), threads=1),
            Goal(PEFT, dict(zip(LABELS, (3, 3, 3, 1.5, 1.4), strict=True)), threads=2),
            Goal(JAX, 1.0),
        ],
        steps=10,
        tolerance=SAME_LOSS,
        seconds=0.3,
    ),
    "dora": Workload(
        "a training step as in `lora`, with LoRA and with DoRA (width, layers, batch, rank)",
        {who: CONTENDERS[who] for who in (OURS, PEFT)},
        beside(CASES, update="DoRA"),
        steps=10,
        tolerance=SAME_LOSS,
        seconds=0.3,
    ),
    "nf4": Workload(
        "a training step as in `lora`, with a base in float32 and in NF4 (width, layers, batch, "
        "rank)",
        {
            OURS: Contender(with_minigrad),
            PEFT: Contender(with_peft, ("torch", "peft", "bitsandbytes")),
        },
        beside(WIDE, base="NF4"),
        [Goal(PEFT, 1.0)],
        steps=10,
        tolerance=SAME_LOSS,
        seconds=0.3,
    ),
}
