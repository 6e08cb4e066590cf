"""What one version of the library computes, as JSON; `python -m tests.compare_versions` runs this.

    python -P probe.py SECTION OUT [FOLDER ...]

The driver runs this file once for each version, with PYTHONPATH set to the folder of that version.
It only uses names that are meant to stay: those in `__all__`, `minigrad.kernels.gemm.matmul`, the
table of cases, and the commands. A section is a generator of pairs `(row, findings)`. The findings
are a dictionary from what was looked at to what was found. The driver compares them one by one, so
they must not depend on time, on memory addresses or on the folder that the version lies in.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import runpy
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lora
import minigrad as mg
from minigrad import nn, optim
from minigrad.kernels.gemm import matmul
from tests.cases import CASES

Findings = dict[str, Any]
Rows = Iterator[tuple[str, Findings]]

FLOATS = (np.float32, np.float64)
THREADS = (1, 2)


def digest(*values: Any) -> str:
    """Return a digest of the bits of arrays or Tensors. All NaN count as one."""
    found = hashlib.sha256()
    for value in values:
        array = np.asarray(value.data if isinstance(value, mg.Tensor) else value)
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def digests(named: Any) -> str:
    """Return a digest of arrays and of their names, in the order of the names."""
    named = dict(named)
    return digest(np.frombuffer("\n".join(sorted(named)).encode(), np.uint8)) + digest(
        *(named[name] for name in sorted(named))
    )


def guarded(action: Callable[[], Findings]) -> Findings:
    """Return what an action finds, or the type of the error that it raises."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return action()
    except Exception as error:
        return {"raises": type(error).__name__}


def leaves_of(arrays: Any) -> list[mg.Tensor]:
    return [mg.Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]


def draws(rng: np.random.Generator, out: mg.Tensor) -> np.ndarray:
    return rng.standard_normal(out.shape).astype(out.dtype)


# --------------------------------------------------------------------------------------------------
# bits: outputs, gradients, training and merging
# --------------------------------------------------------------------------------------------------


def bits() -> Rows:
    """Yield digests of all that is computed, with one thread and with two."""
    for case in CASES:
        yield f"case {case}", in_all_settings(partial(bits_of_a_case, case))
    for name, (function, shapes) in LARGE.items():
        yield f"large {name}", in_all_settings(partial(bits_of_large_arrays, function, shapes))
    yield "kernel matmul", in_all_settings(bits_of_products)
    for name in OPTIMIZERS:
        yield f"optimizer {name}", in_all_settings(partial(bits_of_an_optimizer, name))
    for base in ("dense", "NF4"):
        for form in FORMS:
            for name in ("Adam", "SGD"):
                yield (
                    f"training of {form} on a {base} base with {name}",
                    in_all_settings(partial(bits_of_lora, base, form, name)),
                )
    for begin in ("gaussian", "kaiming", "orthogonal", "pissa", "pissa_niter_4"):
        yield f"beginning {begin}", in_all_settings(partial(bits_of_a_beginning, begin))
    yield "sums and differences of adapters", in_all_settings(bits_of_algebra)
    yield "transformer", in_all_settings(bits_of_a_transformer)


def in_all_settings(action: Callable[[Any], Findings]) -> Findings:
    """Return what an action finds in float32 and float64, with one thread and with two."""
    found: Findings = {}
    for threads in THREADS:
        mg.set_num_threads(threads)
        for dtype in FLOATS:
            mg.manual_seed(0)
            setting = f"{np.dtype(dtype)}, {threads} thread{'s' * (threads > 1)}"
            result = guarded(partial(action, dtype))
            found |= {f"{what} ({setting})": value for what, value in result.items()}
    return found


def bits_of_a_case(case: Any, dtype: Any) -> Findings:
    arrays = case.operands(dtype)
    return {"operands": digest(*arrays), **derivatives(case, arrays, case.order)}


def bits_of_large_arrays(function: Callable[..., Any], shapes: Any, dtype: Any) -> Findings:
    rng = np.random.default_rng(3)
    arrays = [rng.uniform(0.05, 2, shape).astype(dtype) for shape in shapes]
    found = derivatives(function, arrays, 2)
    turned = [x.T.copy().T for x in arrays]  # the same numbers, column by column
    return found | {f"{k}, turned": v for k, v in derivatives(function, turned, 1).items()}


def derivatives(function: Callable[..., Any], arrays: Any, order: int) -> Findings:
    """Return digests of a result, its gradients, and gradients of these, as far as `order`."""
    operands = leaves_of(arrays)
    leaves = [x for x in operands if x.requires_grad]
    out = function(*operands)
    found = {"output": digest(out)}
    if order:
        rng = np.random.default_rng(1)
        cotangent = draws(rng, out)
        plain = mg.grad(out, leaves, cotangent)
        found |= {f"gradient {i}": digest(g) for i, g in enumerate(plain)}
    if order == 2:
        again = mg.grad(function(*operands), leaves, cotangent, create_graph=True)
        found |= {f"recorded gradient {i}": digest(g) for i, g in enumerate(again)}
        total = sum((g * mg.Tensor(draws(rng, g))).sum() for g in again)
        if total.requires_grad:
            second = mg.grad(total, leaves, allow_unused=True)
            found |= {f"second gradient {i}": digest(g) for i, g in enumerate(second)}
    return found


ONE = [(255, 769)]  # large enough for two threads, and no multiple of a vector's length
TWO = ONE * 2
WIDTH = 769
HEADS = [(3, 4, 70, 24)] * 3
PIXELS = np.random.default_rng(0).integers(WIDTH, size=255)
UNARY_OPS = (
    "abs cos cumsum elu erf exp expm1 gelu leaky_relu log log1p log_softmax logsumexp max mean "
    "normal_cdf reciprocal relu rsqrt sigmoid silu sin softmax softplus sqrt square std sum tanh "
    "tan var"
)
LARGE: dict[str, tuple[Callable[..., Any], Any]] = {
    name: (getattr(mg, name), ONE) for name in UNARY_OPS.split()
}
BINARY_OPS = "add divide huber l1 maximum mse multiply power subtract"
LARGE |= {name: (getattr(mg, name), TWO) for name in BINARY_OPS.split()}
LARGE |= {
    f"{name} of axis {axis}": (partial(getattr(mg, name), axis=axis), ONE)
    for name in ("sum", "mean", "max", "var", "softmax", "logsumexp", "sort")
    for axis in (0, 1)
}
LARGE |= {
    "binary_cross_entropy": (lambda x, y: mg.binary_cross_entropy_with_logits(x, 0.5 * y), TWO),
    "gelu of tanh": (lambda x: mg.gelu(x, approximate="tanh"), ONE),
    "row plus matrix": (mg.add, [(WIDTH,), ONE[0]]),
    "column times matrix": (mg.multiply, [(255, 1), ONE[0]]),
    "layer_norm": (lambda x, w, b: mg.layer_norm(x, WIDTH, w, b), [*ONE, (WIDTH,), (WIDTH,)]),
    "rms_norm": (lambda x, w: mg.rms_norm(x, WIDTH, w), [*ONE, (WIDTH,)]),
    "cross_entropy": (lambda x: mg.cross_entropy(x, PIXELS), ONE),
    "smoothed cross_entropy": (lambda x: mg.cross_entropy(x, PIXELS, label_smoothing=0.1), ONE),
    "embedding": (lambda w: mg.embedding(np.arange(3000) % 91, w), [(91, 65)]),
    "dropout": (lambda x: mg.dropout(x, 0.3, rng=np.random.default_rng(7)), ONE),
    "linear": (mg.linear, [(255, 300), (129, 300), (129,)]),
    "lora_linear": (
        lambda x, w, a, b: mg.lora_linear(x, w, a, b, scale=1.5),
        [(255, 300), (129, 300), (8, 300), (129, 8)],
    ),
    "matmul": (mg.matmul, [(255, 300), (300, 129)]),
    "stacks of matmul": (mg.matmul, [(5, 60, 70), (5, 70, 33)]),
    "einsum": (partial(mg.einsum, "bij,bkj->bik"), [(5, 60, 70), (5, 33, 70)]),
    "attention": (mg.scaled_dot_product_attention, HEADS),
    "causal attention": (partial(mg.scaled_dot_product_attention, is_causal=True), HEADS),
    "attention with dropout": (
        lambda q, k, v: mg.scaled_dot_product_attention(
            q, k, v, dropout_p=0.2, rng=np.random.default_rng(7)
        ),
        HEADS,
    ),
    "checkpoint": (lambda x, w: mg.checkpoint(lambda h: mg.tanh(h @ w), x), [(64, 80), (80, 80)]),
}


def bits_of_products(dtype: Any) -> Findings:
    """Products of many shapes, of arrays and of transposed ones, new and added to others."""
    rng = np.random.default_rng(0)
    found = {}
    for m, k, n in [
        (1, 300, 200), (7, 513, 33), (64, 64, 64), (100, 100, 100), (257, 1030, 129),
        (512, 768, 8), (512, 8, 768), (300, 4096, 16), (1, 2048, 2048), (16, 16, 4096),
    ]:  # fmt: skip
        x, y = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
        for name, left, right in (
            ("NN", x, y),
            ("NT", x, y.T.copy().T),
            ("TN", x.T.copy().T, y),
            ("every other", np.repeat(x, 2, 0)[::2], np.repeat(y, 2, 1)[:, ::2]),
        ):
            found[f"{m} x {k} x {n}, {name}"] = digest(matmul(left, right))
        out = rng.standard_normal((m, n)).astype(dtype)
        matmul(x, y, out=out, add=True)
        found[f"{m} x {k} x {n}, added"] = digest(out)
    x, y = (rng.standard_normal(s).astype(dtype) for s in ((3, 5, 60, 64), (5, 64, 33)))
    return found | {"stacks": digest(matmul(x, y))}


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": partial(optim.SGD, lr=0.1),
    "SGD with momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD with Nesterov's momentum": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adam with amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "AdamW": partial(optim.AdamW, lr=0.01),
}


def bits_of_an_optimizer(name: str, dtype: Any) -> Findings:
    """Ten steps with clipped gradients, a schedule and averages."""
    rng = np.random.default_rng(0)
    holder = nn.Module()
    for i, shape in enumerate([(300, 257), (257,), (3, 2)]):
        setattr(holder, f"p{i}", nn.Parameter(rng.standard_normal(shape).astype(dtype)))
    parameters = holder.parameters()
    optimizer = OPTIMIZERS[name](parameters)
    schedule = optim.CosineAnnealingLR(optimizer, 10)
    averages = optim.EMA(holder, 0.9)
    norms = []
    for _ in range(10):
        for parameter in parameters:
            parameter.grad = mg.Tensor(draws(rng, parameter))
        norms.append(optim.clip_grad_norm(parameters, 5.0))
        optimizer.step()
        schedule.step()
        averages.update()
    with averages.applied():
        averaged = digest(*parameters)
    return {"norms": digest(norms), "parameters": digest(*parameters), "averages": averaged}


FORMS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA with dropout": {"dropout": 0.2},
    "rsLoRA": {"scaling": "rslora", "bias": "lora_only"},
    "DoRA": {"use_dora": True},
    "rsLoRA with DoRA and dropout": {"scaling": "rslora", "use_dora": True, "dropout": 0.1},
}


def trained(
    form: dict[str, Any], *, base: str = "dense", name: str = "Adam", width: int = 24,
    dtype: Any = np.float32, steps: int = 20, seed: int = 0,
) -> tuple[Any, Any, list[float]]:  # fmt: skip
    """Return an MLP whose adapters have learned for some steps, a batch for it, and its losses."""
    rng = mg.manual_seed(seed)
    model = nn.MLP([width, width, width, 5], activation=mg.gelu, rng=rng, dtype=dtype)
    if base == "NF4":
        lora.quantize(model, progress=False)
    config = lora.LoRAConfig(**{"rank": 3, "alpha": 5.0, **form})
    lora.attach(model, config, rng=rng, progress=False)
    x = mg.Tensor(rng.standard_normal((2 * width, width)).astype(dtype))
    y = mg.Tensor(rng.standard_normal((2 * width, 5)).astype(dtype))
    return model, (x, y), train(model, (x, y), name, steps)


def train(model: Any, batch: Any, name: str = "Adam", steps: int = 20) -> list[float]:
    """Train for some steps, and return the losses."""
    optimizer = {
        "Adam": partial(optim.Adam, lr=0.01),
        "SGD": partial(optim.SGD, lr=0.05, momentum=0.9),
    }[name](model.trainable_parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mg.mse(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits_of_lora(base: str, form: str, name: str, dtype: Any) -> Findings:
    """Twenty steps of a small and of a wide model, and what merging makes of them."""
    found: Findings = {}
    for width in (24, 200):
        model, (x, _), losses = trained(FORMS[form], base=base, name=name, width=width, dtype=dtype)
        model.eval()
        with mg.no_grad():
            steps = {"losses": digest(losses), "state": digests(model.state_dict())}
            steps["output"] = digest(model(x))
            lora.merge(model, progress=False)
            steps["merged"] = digest(model(x))
            lora.unmerge(model)
            steps["unmerged"] = digests(model.state_dict()) + digest(model(x))
            with lora.disabled(model):
                steps["disabled"] = digest(model(x))
            folded = lora.fold(model)
            steps["folded"] = digests(folded.state_dict()) + digest(folded(x))
        found |= {f"{what}, width {width}": value for what, value in steps.items()}
    return found


def bits_of_a_beginning(begin: str, dtype: Any) -> Findings:
    model, (x, _), losses = trained({"init": begin, "rank": 4}, dtype=dtype, steps=0)
    found = {"state": digests(model.state_dict()), "output": digest(model(x))}
    losses = train(model, (x, mg.zeros(len(x), 5)), steps=3)
    return found | {"losses": digest(losses), "trained": digests(model.state_dict())}


def bits_of_algebra(dtype: Any) -> Findings:
    """Two adapters on one model, alone, together and combined; and one of a difference."""
    model, batch, _ = trained({"targets": ["layers.0", "layers.1"]}, dtype=dtype)
    more = lora.LoRAConfig(rank=2, targets=["layers.1", "layers.2"], modules_to_save=[])
    lora.attach(model, more, adapter="more", rng=np.random.default_rng(5), progress=False)
    train(model, batch)
    found = {}
    for names in (("default",), ("more",), ("default", "more")):
        lora.switch(model, *names)
        found[" and ".join(names)] = digest(model(batch[0]))
    lora.combine(model, ["default", "more"], [0.5, -2.0], "sum")
    lora.combine(model, ["default", "more"], [0.5, -2.0], "cut", rank=2)
    for name in ("sum", "cut"):
        lora.switch(model, name)
        found[name] = digest(model(batch[0]))
    lora.switch(model, "default")
    groups = lora.param_groups(model, lr=0.01, ratio=16.0, weight_decay=0.1)
    found["groups"] = str([(g["lr"], [p.shape for p in g["params"]]) for g in groups])
    found["penalty"] = digest(lora.penalty(model))
    base, other = (
        nn.MLP([12, 12, 3], rng=np.random.default_rng(seed), dtype=dtype) for seed in (0, 1)
    )
    lora.extract(base, other, 2, bias="all", progress=False)
    return found | {"extracted": digests(base.state_dict())}


def bits_of_a_transformer(dtype: Any) -> Findings:
    """Three steps of a small language model, whole and with adapters."""
    found = {}
    for kind in ("whole", "adapted"):
        model, loss = language_model(dtype)
        if kind == "adapted":
            config = lora.LoRAConfig(rank=2, targets=["attn", "0"], dropout=0.1)
            lora.attach(model, config, progress=False)
        optimizer = optim.AdamW(model.trainable_parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            optimizer.step()
        found[kind] = digest(value) + digests(model.state_dict())
    return found


def language_model(dtype: Any = np.float32) -> tuple[Any, Callable[[Any], Any]]:
    """Return a small transformer, and its loss as a function of the model."""
    rng = mg.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(40, 32, dtype=dtype, rng=rng),
        nn.TransformerBlock(32, 4, dropout=0.1, causal=True, dtype=dtype, rng=rng),
        nn.TransformerBlock(32, 4, norm="rms", bias=False, dtype=dtype, rng=rng),
        nn.Linear(32, 40, dtype=dtype, rng=rng),
    )
    tokens = np.random.default_rng(1).integers(40, size=(6, 21))
    targets = tokens[:, 1:].reshape(-1)
    return model, lambda m: mg.cross_entropy(m(tokens[:, :-1]).reshape(-1, 40), targets)


# --------------------------------------------------------------------------------------------------
# verdicts: what the instruments say
# --------------------------------------------------------------------------------------------------


def verdicts() -> Rows:
    """Yield what gradcheck, receipt, liveness and verify say."""
    mg.set_num_threads(2)
    for case in CASES:
        mg.manual_seed(0)
        if case.order:
            yield f"gradcheck {case}", guarded(partial(gradchecked, case, case))
        yield f"receipt {case}", guarded(partial(receipt_of_a_case, case))
    for name, (function, *arrays) in DOUBTFUL.items():
        yield f"gradcheck {name}", guarded(partial(gradchecked, None, function, arrays))
    for name in STEPS:
        yield f"receipt {name}", guarded(partial(receipt_of_a_step, name))
    for name in MODELS:
        yield f"liveness {name}", guarded(partial(liveness_of, name))
    for form in FORMS:
        yield f"verify {form}", guarded(partial(verified, form))


def gradchecked(case: Any, function: Callable[..., Any], arrays: Any = None) -> Findings:
    arrays = case.operands() if arrays is None else arrays
    order = case.order if case else 2
    return {"verdict": mg.gradcheck(function, arrays, order=order).verdict}


POINTS = np.linspace(-1.0, 1.0, 5)
DOUBTFUL: dict[str, Any] = {
    "a function with a part that is detached": (lambda x: x * x.detach(), POINTS),
    "a function with a detached slope": (lambda x: (x * x.detach() + x * x).sum(), POINTS),
    "a kink": (lambda x: mg.relu(x), POINTS),
    "a step": (lambda x: mg.floor(3 * x + 0.4) * x, POINTS),
    "random numbers": (lambda x: x * mg.randn(5), POINTS),
    "NaN": (lambda x: mg.log(x), POINTS),
    "a tie": (lambda x: x.max(), np.ones(3)),
    "a smooth function": (lambda x: mg.exp(mg.sin(x)), POINTS),
}


def figures(receipt: Any) -> Findings:
    """Return the FLOPs and bytes that a receipt says."""
    names = [
        f"{phase}_flops" for phase in ("forward", "recomputed", "backward", "skipped", "optimizer")
    ] + [
        f"{what}_bytes"
        for what in ("saved", "peak_saved", "kept", "input", "gradient", "optimizer")
    ]
    found = {name: getattr(receipt, name, "no such attribute") for name in names}
    return found | {"uncounted": sum(receipt.uncounted.values())}


def receipt_of_a_case(case: Any) -> Findings:
    operands = leaves_of(case.operands())
    with mg.receipt() as receipt:
        out = case(*operands)
        if case.order:
            mg.grad(out, [x for x in operands if x.requires_grad], np.ones_like(out.data))
    return figures(receipt)


STEPS = {
    f"a step of {kind} with {optimizer}": (kind, optimizer)
    for kind in (*FORMS, "LoRA in NF4", "a whole MLP", "a transformer", "a LoRA transformer")
    for optimizer in ("Adam", "SGD")
} | {"a step of a checkpointed MLP with Adam": ("checkpoint", "Adam")}


def receipt_of_a_step(name: str) -> Findings:
    kind, optimizer_name = STEPS[name]
    loss: Callable[[Any], Any]
    if "transformer" in kind:
        model, loss = language_model()
        if "LoRA" in kind:
            config = lora.LoRAConfig(rank=2, targets=["attn", "0"])
            lora.attach(model, config, progress=False)
    else:
        form, base = FORMS.get(kind, {}), "NF4" if "NF4" in kind else "dense"
        model, (x, y), _ = trained(form, base=base, steps=0)
        if kind in ("a whole MLP", "checkpoint"):
            model = lora.detach(model)
        if kind == "checkpoint":
            loss = lambda m: mg.mse(mg.checkpoint(m, x), y)
        else:
            loss = lambda m: mg.mse(m(x), y)
    make = {"Adam": optim.Adam, "SGD": partial(optim.SGD, momentum=0.9)}[optimizer_name]
    optimizer = make(model.trainable_parameters(), lr=0.01)
    with mg.receipt() as receipt:
        loss(model).backward()
        optimizer.step()
    return figures(receipt)


class Two(nn.Module):
    """Two layers and something in between."""

    def __init__(self, between: Callable[[Any], Any]) -> None:
        rng = np.random.default_rng(0)
        self.first = nn.Linear(3, 4, rng=rng)
        self.second = nn.Linear(4, 2, rng=rng)
        self.spare = nn.Linear(2, 2, rng=rng) if between is None else None
        self.between = between or mg.tanh

    def forward(self, x: Any) -> Any:
        return self.second(self.between(self.first(x)))


def without_recording(x: Any) -> Any:
    with mg.no_grad():
        return mg.tanh(x)


def adapted(between: Callable[[Any], Any], *, moved: bool = False, **options: Any) -> Any:
    """Two layers with adapters, where B is 0 unless it is `moved`."""
    model = Two(between)
    config = lora.LoRAConfig(rank=2, **options)
    lora.attach(model, config, rng=np.random.default_rng(1), progress=False)
    if moved:
        model.first.lora_b = np.ones((4, 2), np.float32)
        model.second.lora_b = np.ones((2, 2), np.float32)
    return model


def frozen_in_part() -> Any:
    model = Two(mg.tanh)
    model.first.freeze()
    return model


def with_one_adapter_frozen() -> Any:
    model = adapted(mg.tanh)
    model.first.lora_b.requires_grad_(False)
    return model


def with_a_stray_tensor() -> Any:
    model = Two(mg.tanh)
    model.first.scale = mg.Tensor(np.ones(2), requires_grad=True)
    return model


def merged() -> Any:
    model = adapted(mg.tanh, moved=True)
    lora.merge(model, progress=False)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "all live": lambda: Two(mg.tanh),
    "a layer that is not used": lambda: Two(None),
    "a frozen layer": frozen_in_part,
    "all frozen": lambda: Two(mg.tanh).freeze(),
    "detached": lambda: Two(lambda x: x.detach()),
    "without recording": lambda: Two(without_recording),
    "as a numpy array": lambda: Two(lambda x: mg.Tensor(np.tanh(x.detach().numpy()))),
    "times zero": lambda: Two(lambda x: 0 * x),
    "relu of what is below zero": lambda: Two(lambda x: mg.relu(x - 100)),
    "a logarithm of zero": lambda: Two(lambda x: mg.log(0 * x)),
    "floor": lambda: Two(mg.floor),
    "a checkpoint": lambda: Two(lambda x: mg.checkpoint(mg.tanh, x)),
    "a tensor that is not a parameter": with_a_stray_tensor,
    "LoRA with B = 0": lambda: adapted(mg.tanh),
    "LoRA with B moved": lambda: adapted(mg.tanh, moved=True),
    "LoRA and detached": lambda: adapted(lambda x: x.detach()),
    "LoRA of one layer": lambda: adapted(mg.tanh, targets=["second"]),
    "LoRA with a module trained whole": lambda: adapted(
        mg.tanh, targets=["first"], modules_to_save=["second"]
    ),
    "LoRA with biases": lambda: adapted(mg.tanh, bias="all"),
    "LoRA with B frozen at 0": with_one_adapter_frozen,
    "DoRA": lambda: adapted(mg.tanh, use_dora=True),
    "PiSSA": lambda: adapted(mg.tanh, init="pissa"),
    "merged": merged,
}


def liveness_of(name: str) -> Findings:
    rng = mg.manual_seed(0)
    batch = [mg.Tensor(rng.standard_normal((5, n)).astype(np.float32)) for n in (3, 2)]
    report = mg.liveness(MODELS[name](), mg.mse, tuple(batch))
    found = {f"parameter {r.name}": f"{r.state} {r.norm} {r.op}" for r in report.rows}
    found |= {
        f"adapter {row.name}": f"{row.trains} {row.rank_a} {row.rank_b} {row.rank_ba}"
        for row in report.adapters
    }
    return found | {"trains": report.trains, "strays": list(report.strays)}


def verified(form: str) -> Findings:
    found = {}
    for steps in (0, 3):
        model, batch, _ = trained(FORMS[form], steps=steps)
        report = lora.verify(model, mg.mse, batch)
        found[f"after {steps} steps"] = report.verdict
    return found


# --------------------------------------------------------------------------------------------------
# signatures: what can be called, and how
# --------------------------------------------------------------------------------------------------

MODULES = (
    "minigrad", "minigrad.nn", "minigrad.nn.init", "minigrad.optim", "minigrad.data", "minigrad.io",
    "minigrad.metrics", "minigrad.progress", "minigrad.diagnostics", "minigrad.viz", "lora",
    "lora.viz",
)  # fmt: skip
BINARY = "add sub mul truediv floordiv mod pow matmul"
OTHERS = (
    "neg pos abs invert and or xor eq ne lt le gt ge getitem setitem contains len iter bool float "
    "int index array call enter exit"
)
OPERATORS = {f"__{way}{name}__" for way in ("", "r", "i") for name in BINARY.split()}
OPERATORS |= {f"__{name}__" for name in OTHERS.split()}
COMMANDS = (
    "minigrad", "minigrad check", "minigrad warmup", "minigrad config", "lora", "lora inspect",
    "lora merge", "lora verify", "lora extract", "examples", "examples.lora_regression",
)  # fmt: skip


def signatures() -> Rows:
    """Yield how each public function, class and method is called, and what `--help` prints."""
    for place in MODULES:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            yield place, {"raises": type(error).__name__}
            continue
        for name in public_names(module):
            value = getattr(module, name)
            yield f"{place}.{name}", called(value)
            if inspect.isclass(value):
                for member, found in members(value):
                    is_static = isinstance(found, staticmethod)
                    yield f"{place}.{name}.{member}", called(found, is_method=not is_static)
    for command in COMMANDS:
        module_name, *arguments = command.split()
        status, text = run_command(module_name, *arguments, "--help")
        yield f"python -m {command}", {"--help": text, "exit status": status}


def public_names(module: Any) -> list[str]:
    """Return what a module says is public; without `__all__`, what is defined in it.

    A module may take its functions from another one, as long as that has the same last name.
    """
    if hasattr(module, "__all__"):
        return sorted(module.__all__)

    def last(name: str) -> str:
        return name.rpartition(".")[2]

    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and last(getattr(value, "__module__", None) or "") == last(module.__name__)
    )


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods, properties and operators of a class that are our own."""
    ours = [c for c in cls.__mro__ if c.__module__.partition(".")[0] in ("minigrad", "lora")]
    names = {name for each in ours for name in vars(each)}
    for name in sorted(names):
        if not name.startswith("_") or name in OPERATORS:
            yield name, inspect.getattr_static(cls, name)


def called(value: Any, is_method: bool = False) -> Findings:
    """Return how something is called. What annotations say is apart because it binds no caller.

    Nor does the name of a method's first parameter.
    """
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if not callable(value):
        return {"is": type(value).__name__ if inspect.ismodule(value) else "no function"}
    try:
        signature = inspect.signature(value)
    except ValueError:
        return {"is": type(value).__name__}
    empty = inspect.Parameter.empty
    parameters = list(signature.parameters.values())
    if is_method and parameters:
        parameters[0] = parameters[0].replace(name="self")
    plain = signature.replace(
        parameters=[
            p.replace(annotation=empty, default=p.default if p.default is empty else Default(p))
            for p in parameters
        ],
        return_annotation=inspect.Signature.empty,
    )
    annotations = [each.annotation for each in parameters] + [signature.return_annotation]
    return {
        "is called": str(plain),
        "annotations": ", ".join("" if a is empty else as_text(a) for a in annotations),
    }


class Default:
    """A default value, which prints without memory addresses and the modules it comes from."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        self.text = as_text(parameter.default)

    def __repr__(self) -> str:
        return self.text


def as_text(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    text = str(value) if isinstance(value, enum.Enum) else inspect.formatannotation(value)
    return re.sub(r"\b[a-zA-Z_]\w*\.(?=[a-zA-Z_])| at 0x[0-9a-f]+", "", text)


def run_command(module: str, *arguments: str) -> tuple[Any, str]:
    """Run `python -m module` in this process; return its exit status and what it has printed."""
    printed = io.StringIO()
    before, status = sys.argv, None
    sys.argv = [module, *arguments]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    except Exception as error:
        status = f"raises {type(error).__name__}"
    finally:
        sys.argv = before
    return status, printed.getvalue()


# --------------------------------------------------------------------------------------------------
# files: what the old version writes, and what either reads of it
# --------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, dict[str, Any]] = {
    **{form: {"form": options} for form, options in FORMS.items()},
    "LoRA in NF4": {"base": "NF4"},
    "PiSSA": {"form": {"init": "pissa"}},
    "ranks by pattern": {"form": {"rank_pattern": {"layers.1": 2}, "alpha_pattern": {"0": 3.0}}},
    "a module trained whole": {
        "form": {"targets": ["layers.0"], "modules_to_save": ["layers.2"], "bias": "all"}
    },
    "LoRA in float64": {"dtype": np.float64},
}
MOST_MOMENTS = 60


def write_files(folder: str) -> Rows:
    """Write files of all kinds, and yield digests of what should be read from them."""
    root = Path(folder)
    mg.set_num_threads(1)
    for name in TRAINERS:
        trainer, data = trainer_of(name)
        trainer.fit(data, epochs=2)
        trainer.save(root / f"{name}.safetensors")
        found = {"state": state_of(trainer)}
        trainer.fit(data, epochs=2)
        yield f"checkpoint {name}", found | {"after two more epochs": state_of(trainer)}
    arrays = all_dtypes()
    mg.io.save_state(root / "state.safetensors", arrays, {"key": "ä value"})
    yield "state", {"arrays": digests(arrays), "fact key": "ä value"}
    for name, options in ADAPTERS.items():
        model, (x, _), _ = trained(**{"form": {}, **options})
        lora.save(model, root / name, progress=False)
        lora.save(model, root / f"{name}, bfloat16", dtype="bfloat16", progress=False)
        if name != "PiSSA":  # which is saved as another adapter, whose product is the same
            state, output = digests(model.state_dict()), digest(model.eval()(x))
            yield f"adapter {name}", {"state": state, "output": output}
    write_bases(root)
    yield from run_commands(root, root / "done")
    for kind in KILLED:
        yield f"killed while saving {kind}", {"moments": killed_saves(kind, root)}


def read_files(folder: str) -> Rows:
    """Read what `write_files` has written, go on from there, and yield what comes of it."""
    root = Path(folder)
    mg.set_num_threads(1)
    for name in TRAINERS:
        yield f"checkpoint {name}", guarded(partial(read_checkpoint, root, name))
    yield "state", guarded(partial(read_state, root / "state.safetensors"))
    for name in ADAPTERS:
        yield f"adapter {name}", guarded(partial(read_adapter, root, name, ""))
        yield f"adapter {name}, bfloat16", guarded(partial(read_adapter, root, name, ", bfloat16"))
    for path in sorted((root / "done").iterdir()):
        read = read_peft if path.name == "extracted" else read_state
        yield f"written by a command: {path.name}", guarded(partial(read, path))
    yield from run_commands(root, Path(tempfile.mkdtemp(dir=root)))
    for kind in KILLED:
        for left in sorted((root / "killed" / kind).iterdir(), key=lambda path: int(path.name)):
            row = f"killed while saving {kind}, moment {left.name}"
            yield row, guarded(partial(after_a_kill, kind, left, root))


# Checkpoints

TRAINERS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda model: optim.AdamW(model.trainable_parameters(), lr=0.01),
    "SGD": lambda model: optim.SGD(model.trainable_parameters(), lr=0.05, momentum=0.9),
    "Adam with two groups": lambda model: optim.Adam(lora.param_groups(model, 0.01, ratio=4.0)),
}


def trainer_of(name: str, seed: int = 0) -> tuple[Any, Any]:
    """Return a trainer with all that may be in a checkpoint, and data to train on."""
    rng = mg.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 16, rng=rng), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 2, rng=rng)
    )
    if "groups" in name:
        lora.attach(model, lora.LoRAConfig(rank=2, dropout=0.1), rng=rng, progress=False)
    optimizer = TRAINERS[name](model)
    schedule = optim.WarmupCosineLR(optimizer, 3, 40) if name == "AdamW" else None
    trainer = mg.Trainer(
        model, optimizer, mg.mse, batch_size=8, accumulation_steps=2, clip_norm=0.5, patience=9,
        metrics=[mg.metrics.mae], scheduler=schedule, progress=False,
        ema=optim.EMA(model, 0.9) if name != "SGD" else None, rng=np.random.default_rng(seed),
    )  # fmt: skip
    draw = np.random.default_rng(2)
    x = draw.standard_normal((50, 6)).astype(np.float32)
    return trainer, (x, x[:, :2] * x[:, 2:4])


def state_of(trainer: Any) -> str:
    """Return a digest of all that a run holds but the seconds that its steps took."""
    model, optimizer = trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]
    records = [
        [value for key, value in sorted(record.items()) if key != "seconds"]
        for record in (*trainer.history.steps, *trainer.history.epochs)
    ]
    states = [v for s in optimizer.values() for _, v in sorted(s.items())]
    averages = trainer.ema.state_dict()["averages"] if trainer.ema else {}
    return digests(model) + digest(*states, *records) + digests(averages)


def read_checkpoint(root: Path, name: str) -> Findings:
    trainer, data = trainer_of(name, seed=1)
    trainer.load(root / f"{name}.safetensors")
    found = {"state": state_of(trainer)}
    trainer.fit(data, epochs=2)
    found["after two more epochs"] = state_of(trainer)
    trainer.restore_best()
    return found | {"best": digests(trainer.model.state_dict())}


# Tensors and adapters


def all_dtypes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
    arrays = {kind: (100 * rng.standard_normal((3, 4))).astype(kind) for kind in kinds}
    return arrays | {"scalar": np.array(2.5), "empty": np.zeros((0, 3)), "turned": np.eye(3, 2).T}


VERSION = re.compile(r'"version": "[^"]*", ')


def read_state(path: Path) -> Findings:
    """Read the tensors and the facts of a file, or of a folder of several."""
    with mg.io.open_tensors(path) as tensors:
        arrays = {name: tensors.read(name) for name in tensors.tensors}
        facts = {f"fact {k}": VERSION.sub("", text) for k, text in tensors.metadata.items()}
        return {"arrays": digests(arrays), **facts}


def read_adapter(root: Path, name: str, suffix: str) -> Findings:
    """Load an adapter over the same base, and train it further."""
    model, batch, _ = trained(**{"form": {}, **ADAPTERS[name], "steps": 0})
    model = lora.detach(model)
    lora.load(model, root / f"{name}{suffix}", rng=np.random.default_rng(0), progress=False)
    found = {"output": digest(model.eval()(batch[0])), "state": digests(model.state_dict())}
    with tempfile.TemporaryDirectory() as folder:
        lora.save(model, folder, progress=False)
        found |= {f"saved again: {what}": value for what, value in read_peft(folder).items()}
    train(model.train(), batch, steps=5)
    return found | {"after five more steps": digests(model.state_dict())}


def read_peft(folder: str | Path) -> Findings:
    """Read the two files of an adapter, without the library's knowledge of adapters."""
    configuration = json.loads((Path(folder) / "adapter_config.json").read_text())
    return read_state(Path(folder) / "adapter_model.safetensors") | {"config": configuration}


# Commands


def write_bases(root: Path) -> None:
    """Write a base, in one file and in shards, two adapters for it, and a model that differs."""
    model, _, _ = trained({}, steps=0)
    arrays = lora.detach(model).state_dict()
    mg.io.save_state(root / "base.safetensors", arrays)
    rng = np.random.default_rng(4)
    tuned = {name: x + 0.1 * rng.standard_normal(x.shape, x.dtype) for name, x in arrays.items()}
    mg.io.save_state(root / "tuned.safetensors", tuned)
    infos = [mg.io.TensorInfo(name, x.dtype.name, x.shape) for name, x in arrays.items()]
    shards = {"a.safetensors": infos[:3], "b.safetensors": infos[3:]}
    with mg.io.writing_set(root / "shards", shards, {"format": "pt"}) as writers:
        for name, array in arrays.items():
            writers[name].write(name, array)
    for version in (0, 1):
        adapted_model, _, _ = trained({"use_dora": version == 1}, steps=5 + version)
        lora.save(adapted_model, root / f"adapter{version}", progress=False)


def run_commands(root: Path, done: Path) -> Rows:
    """Run all commands of `python -m lora` on files in `root`, and write what they write to `done`.

    It yields what they print, and what is in the files that they have written.
    """
    done.mkdir(exist_ok=True)
    base, shards, tuned = (root / n for n in ("base.safetensors", "shards", "tuned.safetensors"))
    broken = root / "broken"
    shutil.copytree(root / "adapter0", broken, dirs_exist_ok=True)
    weights = (root / "adapter0" / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(weights[:-50])
    for name, arguments in {
        "inspect": ("inspect", root / "adapter1"),
        "inspect a broken adapter": ("inspect", broken),
        "verify": ("verify", root / "adapter0"),
        "verify with a base": ("verify", root / "adapter1", base),
        "verify with another base": ("verify", root / "adapter1", tuned),
        "verify a broken adapter": ("verify", broken),
        "merge": ("merge", base, root / "adapter0", done / "merged.safetensors"),
        "merge to float16": (
            "merge", base, root / "adapter1", done / "half.safetensors", "--dtype", "float16",
        ),
        "merge shards": ("merge", shards, root / "adapter1", done / "merged"),
        "merge into another base": ("merge", tuned, root / "adapter0", done / "no.safetensors"),
        "merge with a limit": (
            "merge", base, root / "adapter0", done / "no.safetensors", "--limit", "1e-12",
        ),
        "extract": (
            "extract", base, tuned, done / "extracted", "--rank", "3", "--bias", "all",
        ),
    }.items():  # fmt: skip
        command, *rest = arguments
        status, text = run_command("lora", command, "--json", *map(str, rest))
        for path, short in ((done, "DONE"), (root, "ROOT")):
            text = text.replace(str(path), short)
        found: Findings = {"exit status": status}
        try:
            printed = flat(json.loads(text))
            found |= {at: each for at, each in printed.items() if not at.endswith(".what")}
        except ValueError:
            found["prints an error"] = bool(text)  # as for `what` above, its words may change
        yield f"python -m lora {name}", found
    for path in sorted(done.iterdir()):
        read = read_peft if path.name == "extracted" else read_state
        yield f"a command writes {path.name}", read(path)


def flat(value: Any, at: str = "") -> Findings:
    """Return a tree of JSON as one dictionary from paths to leaves."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: Findings = {}
        for key, each in items:
            found |= flat(each, f"{at}.{key}")
        return found
    return {at.removeprefix("."): value}


# Saves that are killed


def save_checkpoint(folder: Path, version: int, root: Path) -> None:
    trainer, data = trainer_of("AdamW", seed=version)
    trainer.fit(data, epochs=1)
    trainer.save(folder / "run.safetensors")


def read_run(folder: Path, root: Path) -> str:
    trainer, _ = trainer_of("AdamW", seed=5)
    trainer.load(folder / "run.safetensors")
    return state_of(trainer)


def save_adapter(folder: Path, version: int, root: Path) -> None:
    model, _, _ = trained({}, steps=2 + version)
    lora.save(model, folder / "adapter", progress=False)


def read_saved(folder: Path, root: Path) -> str:
    model, _, _ = trained({}, steps=0)
    lora.load(model := lora.detach(model), folder / "adapter", progress=False)
    return digests(model.state_dict())


def save_merged(base: str, out: str, folder: Path, version: int, root: Path) -> None:
    adapter = root / f"adapter{version}"
    status, text = run_command("lora", "merge", str(root / base), str(adapter), str(folder / out))
    if status:
        raise RuntimeError(text)


def read_merged(out: str, folder: Path, root: Path) -> str:
    return str(read_state(folder / out))


KILLED: dict[str, tuple[Callable[..., None], Callable[..., str]]] = {
    "a checkpoint": (save_checkpoint, read_run),
    "an adapter": (save_adapter, read_saved),
    "a merged file": (
        partial(save_merged, "base.safetensors", "out.safetensors"),
        partial(read_merged, "out.safetensors"),
    ),
    "merged shards": (partial(save_merged, "shards", "out"), partial(read_merged, "out")),
}


def killed_saves(kind: str, root: Path) -> int:
    """Save over what is there, and be killed at each moment in turn; return how many there are."""
    save, _ = KILLED[kind]
    for moment in range(MOST_MOMENTS):
        folder = root / "killed" / kind / str(moment)
        folder.mkdir(parents=True)
        save(folder, 0, root)
        if not killed_at(moment, partial(save, folder, 1, root)):
            return moment
    raise RuntimeError(f"saving {kind} has more than {MOST_MOMENTS} moments")


def killed_at(moment: int, save: Callable[[], None]) -> bool:
    """Save in a child process that is killed at the given moment; return whether that came.

    A moment is a call of a function by which files come, go and reach the disk. One that is killed
    while it has a file written to the disk leaves half of it.
    """
    child = os.fork()
    if not child:
        left = moment

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal left
                if not left:
                    if function.__name__ == "fsync":
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return function(*args, **options)

            return call

        try:
            for name in ("fsync", "rename", "unlink", "replace", "rmdir", "mkdir", "chmod"):
                setattr(os, name, watched(getattr(os, name)))
            save()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"a save in a process of its own ended with the status {status}")
    return status == signal.SIGKILL


def after_a_kill(kind: str, left: Path, root: Path) -> Findings:
    """Read what a kill has left, and save again when it is two days old."""
    save, read = KILLED[kind]
    found: Findings = {"reads": read(left, root)}
    past = time.time() - 2 * 24 * 3600
    for path in (left, *left.rglob("*")):
        os.utime(path, (past, past))
    save(left, 1, root)
    names = [str(path.relative_to(left)) for path in left.rglob("*")]
    return found | {"reads after the next save": read(left, root), "files": sorted(names)}


# --------------------------------------------------------------------------------------------------
# speed
# --------------------------------------------------------------------------------------------------

SECONDS = 0.25  # for each work in a round


def speed() -> Rows:
    """Yield the seconds that a call of each work takes: the median of one round, on one thread."""
    mg.set_num_threads(1)
    for name, work in WORKS.items():
        run = work()
        for _ in range(5):
            run()
        times: list[float] = []
        end = time.perf_counter() + SECONDS
        while not times or time.perf_counter() < end:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        yield name, {"seconds": statistics.median(times)}


def chain() -> Callable[[], Any]:
    x = mg.tensor(0.1 * np.random.default_rng(0).standard_normal((4, 4)), requires_grad=True)

    def run() -> None:
        x.grad = None
        y = x
        for _ in range(20):
            y = y * x + x
        y.sum().backward()

    return run


def step_of(width: int, layers: int, rows: int, rank: int) -> Callable[[], Any]:
    """Return a training step of an MLP, with adapters on all layers if there is a rank."""
    rng = mg.manual_seed(0)
    model = nn.MLP([width] * (layers + 1), activation=mg.gelu, rng=rng)
    if rank:
        lora.attach(model, lora.LoRAConfig(rank=rank, alpha=2.0 * rank), progress=False)
    optimizer = optim.Adam(model.trainable_parameters(), lr=1e-4)
    x, y = (mg.Tensor(rng.standard_normal((rows, width), np.float32)) for _ in range(2))

    def run() -> None:
        optimizer.zero_grad()
        mg.mse(model(x), y).backward()
        optimizer.step()

    return run


WORKS: dict[str, Callable[[], Callable[[], Any]]] = {
    "41 ops on 4 x 4": chain,
    "MLP step, width 64": partial(step_of, 64, 3, 64, 0),
    "LoRA step, width 16": partial(step_of, 16, 2, 32, 4),
    "LoRA step, width 64": partial(step_of, 64, 3, 64, 4),
    "LoRA step, width 256": partial(step_of, 256, 4, 128, 8),
}


# --------------------------------------------------------------------------------------------------


SECTIONS: dict[str, Callable[..., Rows]] = {
    "bits": bits,
    "verdicts": verdicts,
    "signatures": signatures,
    "write files": write_files,
    "read files": read_files,
    "speed": speed,
}


def check_where_we_are() -> None:
    """Refuse to look at another version than that in the first folder of PYTHONPATH."""
    tree = Path(os.environ["PYTHONPATH"].partition(os.pathsep)[0]).resolve()
    for module in (mg, lora, sys.modules["tests.cases"]):
        assert module.__file__ is not None
        if tree not in Path(module.__file__).resolve().parents:
            sys.exit(f"{module.__name__} comes from {module.__file__}, and not from {tree}")


def main(section: str, out: str, *arguments: str) -> None:
    check_where_we_are()
    found = dict(SECTIONS[section](*arguments))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
