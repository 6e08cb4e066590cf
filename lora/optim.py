"""Optimiser options for adapters: learning rates of A and B (LoRA+), and weight decay of B A.

    optimizer = AdamW(lora.param_groups(model, 1e-4, ratio=16, weight_decay=0.01))

In a wide layer, A sums over all inputs, but B only over the rank. So one learning rate for both is
too small for B or too large for A. Training is better if the learning rate of B is a multiple of
A's (Hayou et al., 2024, LoRA+).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora.attachment.state import adapted_layers
from lora.embedding import LoRAEmbedding
from minigrad import functional, ops
from minigrad.checks import check_range
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.errors import named_errors
from minigrad.nn import Module, Parameter


@named_errors
def param_groups(
    model: Module, lr: float, *, ratio: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Divide all trainable parameters into groups for an optimiser (LoRA+, Hayou et al., 2024).

                              learning rate    weight decay
        B                     ratio lr         weight_decay / ratio
        A                     lr               0
        others, 2 or more axes    lr           weight_decay
        all others            lr               0

    The weight decay acts on the product: B A <- (1 - lr weight_decay) B A in each step. So only B
    must shrink. (Decaying both would shrink B A twice, and would shrink A even while B is 0.) The
    decay pulls a layer back to its base; with DoRA it acts only on the direction. `AdamW` and `SGD`
    without momentum do this exactly; momentum spreads the decay over the following steps. `Adam`
    adds the decay to the gradient and divides it by the second moment, so B A does not decay; use
    `penalty` there.

    In an embedding A and B change roles: there A begins at zero, and the larger learning rate
    belongs to the factor that begins at zero. If one of A and B is frozen, the other decays.
    Matrices that train in full decay as usual, towards zero. Magnitudes, biases and the gains of
    norms do not decay.

    PEFT's `create_loraplus_optimizer` has other learning rates. Each parameter with one axis, such
    as a magnitude or a bias, also learns at ratio lr. The factors of embeddings learn at
    `loraplus_lr_embedding`, by default 1e-6.

    Args:
        model: a model with adapters; frozen parameters, such as those of inactive adapters, are
            left out.
        lr: the learning rate of A.
        ratio: the learning rate of B divided by that of A. 16 is a usual first choice; harder tasks
            need more, together with a smaller lr.
        weight_decay: the factor of lr by which B A shrinks in a step.

    Raises:
        TypeError: if `model` is not a Module, or an option is not a number.
        ValueError: if an option is out of range, there are no adapters, nothing trains, or an
            adapter that would decay began as PiSSA.
    """
    check_range("lr", lr, 0.0, np.inf)
    check_range("ratio", ratio, 0.0, np.inf)
    check_range("weight_decay", weight_decay, 0.0, np.inf)
    if ratio == 0:
        raise ValueError("ratio=0 would keep B from training; freeze it, or give a positive number")
    if not np.isfinite([lr * ratio, weight_decay / ratio]).all():
        raise ValueError(
            f"lr={lr:g}, ratio={ratio:g} and weight_decay={weight_decay:g} give B an infinite "
            f"learning rate or decay"
        )
    layers = adapted_layers(model)
    trained = model.trainable_parameters()
    if not trained:
        raise ValueError(
            "nothing of the model trains; lora.switch(model, name) lets an adapter be active"
        )
    options = {id(p): (lr, weight_decay if p.ndim > 1 else 0.0) for p in trained}
    pissa = []  # layers with PiSSA whose B A would decay towards 0 instead of the first B_0 A_0
    for path, layer in layers:
        for name, adapter in layer.adapters.items():
            fast, slow = adapter.lora_b, adapter.lora_a
            if isinstance(layer, LoRAEmbedding):
                fast, slow = slow, fast
            decay = weight_decay
            for factor, speed in ((fast, ratio), (slow, 1.0)):
                if factor.requires_grad:
                    options[id(factor)] = lr * speed, decay / speed
                    decay = 0.0
            if adapter.start is not None and decay < weight_decay:
                pissa.append(f"{name!r} of {path}")
    if pissa:
        raise ValueError(
            f"weight_decay would draw the update of PiSSA, s (B A - B_0 A_0), to -s B_0 A_0; add "
            f"c * lora.penalty(model) to the loss instead. PiSSA is in {', '.join(pissa)}"
        )
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for parameter in trained:
        groups.setdefault(options[id(parameter)], []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]


@named_errors
def penalty(model: Module) -> Tensor:
    """Compute the sum of |dW|^2 (Frobenius) over all layers and active adapters, to add to a loss.

        |s B A|^2 = s^2 sum((B^T B) * (A A^T))

    The result has the shape `()`, and the dtype of the first layer. The formula needs only
    `(rank, rank)` matrices, and has gradients of all orders. The penalty keeps dW small with any
    optimiser; separate decays of A and B do not. For PiSSA, dW is s (B A - B_0 A_0), which is
    exactly 0 at first. For DoRA, it is the update of the direction, s B A, without the magnitude.
    For a grouped convolution, it is the sum over the groups.

    Raises:
        TypeError: if `model` is not a Module.
        ValueError: if there are no adapters.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    total = Tensor(observed(np.zeros, (), layers[0].weight.dtype))
    for adapter in (layer.adapters[name] for layer in layers for name in layer.active):
        a, b = adapter.factors()
        if adapter.groups > 1:
            a, b = (ops.reshape(x, (adapter.groups, -1, x.shape[1])) for x in (a, b))
        b_t, a_t = (functional.swapaxes(x, -1, -2) for x in (b, a))
        inner = ops.matmul(b_t, b) * ops.matmul(a, a_t)
        total = total + inner.sum() * adapter.scale**2
    return total
