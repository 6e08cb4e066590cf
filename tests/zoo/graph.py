"""Faults of the engine: what is saved, where it stands in the graph, and who shares it."""

from __future__ import annotations

from functools import partial

import numpy as np

import lora
import minigrad
from minigrad.core import backward as engine
from minigrad.core import codegen, grad_mode
from minigrad.core.op import Op, replay
from minigrad.core.tensor import Tensor
from minigrad.transforms.checkpoint import DryRun
from tests.zoo.mutant import Mutant, edited, fault

_rng = np.random.default_rng(6)
normal = _rng.standard_normal


def two_passes(x: Tensor) -> Tensor:
    """The gradient of x w + x^2 w by w, as a function of x, in two passes."""
    w = Tensor(np.ones(x.shape), requires_grad=True)
    with minigrad.enable_grad():
        x = x if x.requires_grad else Tensor(x, requires_grad=True)
        (x * w).sum().backward(create_graph=True)
        (x * x * w).sum().backward(create_graph=True)
        x.grad = None
    assert w.grad is not None
    return w.grad


def adapted(a: Tensor) -> Tensor:
    """A LoRA layer at a fixed input, as a function of its A."""
    x, w, b = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate(SHAPES))
    layer = lora.LoRALayer(w, 3, 4, rank=2, alpha=3)
    layer.lora_b = b
    vars(layer.adapter)["lora_a"] = a
    return layer(x)  # type: ignore[no-any-return]


SHAPES = (2, 4), (3, 4), (3, 2)


MUTANTS: list[Mutant] = [
    # What is saved, and where it stands in the graph
    fault(
        "a saved input comes back as a constant",
        "wrong only at second order",
        partial(
            edited,
            Op.linked,
            (
                "linked.append(Tensor.at(value, parents[slot]))",
                "linked.append(Tensor.at(value, None))",
            ),
        ),
        lambda x: x * x,
        normal(3),
        order=2,
    ),
    fault(
        "a saved result comes back as a new leaf",
        "wrong only at second order",
        partial(
            edited,
            Op.linked,
            ("Tensor.at(value, node)", "Tensor(value, requires_grad=True)"),
        ),
        minigrad.exp,
        normal(3),
        order=2,
    ),
    fault(
        "a replay starts from new leaves",
        "wrong only at second order",
        partial(
            edited,
            replay,
            (
                "identity(Tensor.at(arguments[argnum], parents[argnum]))",
                "identity(Tensor(arguments[argnum], requires_grad=True))",
            ),
        ),
        minigrad.gelu,
        normal(3),
        order=2,
    ),
    fault(
        "every part of a concatenation gets the gradient of the first",
        "wrong place",
        partial(edited, codegen.on_sequence, ("*(i if value is", "*(0 if value is")),
        lambda x, y: minigrad.concatenate([x, y]),
        normal(3),
        normal(3),
    ),
    fault(
        "no_grad does not end",
        "cut graph",
        partial(
            edited,
            grad_mode.grad_mode.__exit__,
            ("mode.state = (before[-1], mode.state[1])", "pass"),
        ),
        lambda x: x * minigrad.no_grad()(lambda: x.detach() * 0 + 2)(),
        normal(3),
    ),
    fault(
        "a checkpoint forgets the tensors that it was not handed",
        "cut graph",
        partial(edited, DryRun.on_call, ("self.outside[node] = value", "pass")),
        lambda x, w: minigrad.checkpoint(lambda x: x * w, x),
        normal(3),
        normal(3),
        suite=("tests/minigrad/transforms/test_checkpoint.py",),
    ),
    # What is handed to the user
    fault(
        "a gradient shares memory with the cotangent",
        "aliasing",
        partial(edited, engine.take, ("return _copied(g)", "return Tensor(g)")),
        lambda x: x + 1.0,
        normal(3),
    ),
    fault(
        "a second pass is added to .grad as a constant",
        "cut graph",
        partial(
            edited,
            engine.accumulate,
            ("node.grad = node.grad + g", "node.grad = node.grad + g.detach()"),
        ),
        two_passes,
        normal(3),
        rows="test_higher_order.py",
    ),
    fault(
        "the adapter is left out of the graph",
        "cut graph",
        partial(
            edited,
            lora.adapter.joined,
            ("*adapters[0].factors()", "*(part.detach() for part in adapters[0].factors())"),
        ),
        adapted,
        normal((2, 4)),
        suite=("tests/lora/test_layer.py",),
    ),
]
