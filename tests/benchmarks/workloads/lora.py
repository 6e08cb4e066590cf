"""LoRA, DoRA, and LoRA in NF4: a training step of an MLP, with an adapter on every linear layer.

All contenders begin with the same arrays, and must arrive at the same loss after some steps.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tests.benchmarks.lora_step import (
    ALPHA_OVER_RANK,
    Adapter,
    Array,
    Change,
    repeated,
    step_jax,
    step_minigrad,
    step_peft,
    unchanged,
)
from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload


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

    @property
    def adapters(self) -> list[Adapter]:
        return list(zip(self.a, self.b, strict=True))


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


def mlp_minigrad(case: Case, given: Arrays) -> Any:
    import lora
    import minigrad
    from minigrad import nn

    parts: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = nn.Linear(case.width, case.width)
        linear.load_state_dict({"weight": weight, "bias": bias})
        parts += [linear, minigrad.gelu]
    model = nn.Sequential(*parts[:-1])
    if case.base == "NF4":
        lora.quantize(model, double_quant=False)  # which others do with other codes of 8 bits
    return model


def mlp_torch(case: Case, given: Arrays) -> Any:
    import torch

    parts: list[Any] = []
    for weight, bias in zip(given.weights, given.biases, strict=True):
        linear = torch.nn.Linear(case.width, case.width)
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        parts += [in_nf4(linear) if case.base == "NF4" else linear, torch.nn.GELU()]
    return torch.nn.Sequential(*parts[:-1])


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


def mlp_jax(adapters: Any, base: Any, x: Any) -> Any:
    import jax

    for i, ((a, b), (weight, bias)) in enumerate(zip(adapters, base, strict=True)):
        x = jax.nn.gelu(x, approximate=False) if i else x
        x = x @ weight.T + bias + ALPHA_OVER_RANK * (x @ a.T) @ b.T
    return x


def with_minigrad(case: Case, change: Change = unchanged) -> Run:
    import minigrad

    given = arrays(case)
    step = step_minigrad(mlp_minigrad(case, given), given.adapters, case.update == "DoRA")
    return repeated(change(step), minigrad.tensor(given.x), minigrad.tensor(given.target))


def with_peft(case: Case, change: Change = unchanged) -> Run:
    import torch

    given = arrays(case)
    names = [str(i) for i in range(0, 2 * case.layers, 2)]
    adapters = dict(zip(names, given.adapters, strict=True))
    step = step_peft(mlp_torch(case, given), adapters, case.update == "DoRA", change)
    return repeated(step, torch.from_numpy(given.x), torch.from_numpy(given.target))


def with_jax(case: Case) -> Run:
    from jax import numpy as jnp

    given = arrays(case)
    base = list(zip(given.weights, given.biases, strict=True))
    step = step_jax(mlp_jax, given.adapters, base)
    return repeated(step, jnp.asarray(given.x), jnp.asarray(given.target))


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
