"""Options of optimisers for adapters: the rates of A and B, and a decay of their product.

    optimizer = AdamW(lora.param_groups(model, 1e-4, ratio=16, weight_decay=0.01))

Of a wide layer, A sums over all inputs, B over the rank only. So if both learn at one rate, that is
too slow for B or too fast for A, and a rate of B that is a multiple of A's does better (Hayou et
al., 2024, LoRA+).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora.attachment.state import adapted_layers
from lora.embedding import LoRAEmbedding
from minigrad import ops
from minigrad.checks import check_range
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.nn import Module, Parameter


def param_groups(
    model: Module, lr: float, *, ratio: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Divide all parameters that train into groups for an optimiser.

                              learning rate    weight decay
        B                     ratio lr         weight_decay / ratio
        A                     lr               0
        others, 2 or more axes    lr           weight_decay
        all others            lr               0

    The decay is one of the product, B A <- (1 - lr weight_decay) B A in each step: so B alone has
    to shrink. (Decaying both would shrink B A twice, and A for no reason where B is 0.) It draws a
    layer back to its base, with DoRA the direction alone. `AdamW` does it exactly, and `SGD`
    without momentum; with momentum it is spread over the following steps. `Adam` adds it to the
    gradient, where it is divided by the second moment, so that nothing decays; use `penalty` there.

    In an embedding A and B change roles: there A begins at zero, and the factor that begins at zero
    is the one that has to move. Where one of A and B is frozen, the other decays. Matrices that
    train in full decay as usual, towards zero. Magnitudes, biases and the gains of norms do not.

    PEFT's `create_loraplus_optimizer` has other rates: each parameter of one axis, such as a
    magnitude or a bias, learns at ratio lr too, and the factors of embeddings at
    `loraplus_lr_embedding`, which is 1e-6 unless it is given.

    Args:
        model: with adapters; what is frozen, such as those that are not active, is left out.
        lr: the learning rate of A.
        ratio: how much faster B learns. 16 is a usual start; harder tasks need more, together with
            a smaller lr.
        weight_decay: the factor of lr by which B A shrinks in a step.

    Raises:
        TypeError: if an option is no number.
        ValueError: if one is out of range, there are no adapters, nothing trains, or an adapter to
            be decayed is of PiSSA.
    """
    check_range("lr", lr, 0.0, np.inf)
    check_range("ratio", ratio, 0.0, np.inf)
    check_range("weight_decay", weight_decay, 0.0, np.inf)
    if ratio == 0:
        raise ValueError("ratio=0 would keep B from training; freeze it, or give a positive number")
    layers = adapted_layers(model)
    trained = model.trainable_parameters()
    if not trained:
        raise ValueError(
            "nothing of the model trains; lora.switch(model, name) lets an adapter be active"
        )
    options = {id(p): (lr, weight_decay if p.ndim > 1 else 0.0) for p in trained}
    pissa = []  # adapters that would decay
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


def penalty(model: Module) -> Tensor:
    """Compute the sum of |dW|^2 (Frobenius) over all layers and active adapters, for a loss.

        |s B A|^2 = s^2 sum((B^T B) * (A A^T))

    which takes products of `(rank, rank)` only, and has gradients of all orders. It keeps dW small
    with any optimiser, which a decay of A and B by themselves does not. dW of PiSSA is s (B A - B_0
    A_0), which is 0 at first to the bit. In DoRA it is the update of the direction, s B A, without
    the magnitude. A ValueError is raised if there are no adapters.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    total = Tensor(observed(np.zeros, (), layers[0].weight.dtype))
    for adapter in (layer.adapters[name] for layer in layers for name in layer.active):
        a, b = adapter.factors()
        inner = ops.matmul(ops.transpose(b), b) * ops.matmul(a, ops.transpose(a))
        total = total + inner.sum() * adapter.scale**2
    return total
