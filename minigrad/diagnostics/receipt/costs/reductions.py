"""The costs of reductions, of normalisation and of losses."""

from __future__ import annotations

import math

from minigrad.diagnostics.receipt.costs.cost import (
    Call,
    Cost,
    Count,
    nothing,
    per_element,
    per_x,
    times_out,
)


def _argsort(call: Call) -> int:
    axis = call.option("axis")
    n = call.size("x") if axis is None or not call.shape("x") else call.shape("x")[axis]
    return call.size("x") * math.ceil(math.log2(n)) if n > 1 else 0  # comparisons


REDUCTIONS = {
    **{name: Cost(per_x(1)) for name in ("all", "any", "argmax", "argmin")},
    "argsort": Cost(_argsort),
    "cumprod": Cost(per_x(1), {"x": per_x(7)}),
    "cumsum": Cost(per_x(1), {"x": per_x(1)}),
    "logsumexp": Cost(per_x(4, 2), {"x": per_x(3)}),
    "max": Cost(per_x(1), {"x": per_x(3, 3)}),
    "min": Cost(per_x(1), {"x": per_x(3, 3)}),
    "prod": Cost(per_x(1), {"x": per_x(2, 4)}),
    "sum": Cost(per_x(1), {"x": nothing}),
    "softmax": per_element(5, x=4),
    "log_softmax": per_element(6, x=4),
}


def _means(call: Call) -> int:
    """How many means are taken: one for each row of what is normalised."""
    sizes = call.option("normalized_shape")
    return call.out // (math.prod(sizes) if isinstance(sizes, tuple) else sizes)


def _norm(standardise: Count, to_x: Count, **bias: Count) -> Cost:
    """x is standardised forward, and again backward, for the gradients of x and the weight."""
    return Cost(
        lambda c: standardise(c) + (c.has("weight") + c.has("bias")) * c.out,
        {
            "x": lambda c: to_x(c) + c.has("weight") * c.out,
            "weight": times_out(2),
            **bias,
        },
        shared=lambda c, needed: standardise(c) if {"x", "weight"} & set(needed) else 0,
    )


NORMALIZATION = {
    "layer_norm": _norm(
        lambda c: 5 * c.out + 4 * _means(c),
        lambda c: 7 * c.out + 2 * _means(c),
        bias=times_out(1),
    ),
    "rms_norm": _norm(lambda c: 3 * c.out + 3 * _means(c), lambda c: 5 * c.out + _means(c)),
}

# --------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------


def _label_loss(call: Call) -> int:
    n, classes = call.shape("logits")
    smoothed = n * (classes + 2) if call.option("smoothing") else 0
    mean = n + 1 if call.option("divisor") is not None else 0
    return n * (6 * classes + 3) + smoothed + mean


def _difference(call: Call) -> int:
    return 2 * call.size("prediction") + 1


LOSSES = {
    "squared_error": Cost(
        lambda c: 3 * c.size("prediction") + 1, {"prediction": _difference, "target": _difference}
    ),
    "label_loss": Cost(_label_loss, {"logits": lambda c: 4 * c.size("logits")}, own=("weights",)),
}
