"""The identities of a LoRA layer, each computed on a copy of the layer that only it may change.

The layer computes y = x W^T + b + s (x A^T) B^T. Let X have a row for each input vector of the
layer, and G a row for each gradient of the loss with respect to y. Then the derivatives are

    dA = s B^T G^T X        dB = s G^T X A^T        dx = G (W + s B A)

All identities follow from these three equations, so they hold for every loss. Each check compares
two computations with the same X and G. With dropout, A multiplies X after dropout, and all runs
draw the same mask.
"""

from __future__ import annotations

import numpy as np

from lora.frozen import Array
from lora.identities.trial import DOUBLE, FEW, Agreement, LayerTrial, Run, gamma
from minigrad.nn import Parameter


def inner_products(trial: LayerTrial) -> Agreement:
    """Compare dA A^T with B^T dB, (rank, rank): both are s B^T G^T X A^T."""
    a, b = trial.layer.lora_a.data, trial.layer.lora_b.data
    found = trial.trained()
    size, bounds = trial.size, trial.bounds()
    left, right = found["A"] @ a.T, b.T @ found["B"]
    products = gamma(max(trial.layer.d_in, trial.layer.d_out) + FEW, trial.dtype)
    bound = size(bounds["A"], a.T) + size(b.T, bounds["B"])
    bound += products * (size(found["A"], a.T) + size(b.T, found["B"]))
    return Agreement.of(left, right, bound, left)


def change_of_basis(trial: LayerTrial) -> Agreement:
    """Check that (B C^-1, C A) gives the same y, and the gradients C^-T dA and dB C^T."""
    layer, size = trial.layer, trial.size
    a, b = layer.lora_a.data.copy(), layer.lora_b.data.copy()
    # C is neither diagonal nor orthogonal, and its inverse has no rounding error.
    powers = np.where(np.arange(layer.rank) % 2, 0.5, 2.0)
    steps = np.subtract.outer(np.arange(layer.rank), np.arange(layer.rank))
    c = powers[:, None] * np.where(steps == 0, 1.0, np.where(steps == 1, 0.5, 0.0))
    inverse = np.where(steps >= 0, (-0.5) ** np.maximum(steps, 0), 0.0) / powers
    before, base, sizes = trial.trained(), trial.base(), trial.sizes()
    trial.set(c @ a, b @ inverse)
    after = trial.trained()
    sizes["y"] = sizes["y"] + size(trial.x, a.T, c.T, inverse.T, b.T, scale=trial.strength)
    sizes["A"], sizes["B"] = size(inverse.T, sizes["A"]), size(sizes["B"], c.T)
    bounds = trial.bounds(sizes, 2 * layer.rank)  # computing C A and B C^-1 rounds too
    turned = {"y": before["y"], "A": inverse.T @ before["A"], "B": before["B"] @ c.T}
    return _compared(after, turned, bounds, base)


def composition(trial: LayerTrial) -> Agreement:
    """Compare y, dx, dA and dB with those of x (W + s B A)^T + b: dA = s B^T dW, dB = s dW A^T."""
    return _compared(trial.trained(), trial.composed(), trial.bounds(), trial.base())


def precision(trial: LayerTrial) -> Agreement:
    """Compare y, dx, dA and dB in the layer's precision with those in double precision."""
    wide = LayerTrial(trial.layer, trial.uses, DOUBLE, trial.draws)
    return _compared(trial.trained(), wide.trained(), trial.bounds(), wide.base())


def _compared(found: Run, right: Run, bounds: dict[str, Array], base: Array) -> Agreement:
    """Compare outputs and gradients of two runs, each with errors within the bounds."""
    evidence = right | {"y": right["y"] - base}
    names = ["y", *sorted(right.keys() - {"y"})]
    parts = [(found[name], right[name], 2 * bounds[name], evidence[name]) for name in names]
    return Agreement.worst([Agreement.of(*part) for part in parts])


def first_output(trial: LayerTrial) -> Agreement:
    """Check that at B = 0 the output equals the base's output in every bit, for any A."""
    a, none = trial.layer.lora_a.data.copy(), np.zeros_like(trial.layer.lora_b.data)
    trial.set(a, none)
    found, base = trial.trained()["y"], trial.base()
    trial.set(2 * a[:, ::-1], none)
    other = trial.trained()["y"]
    # If the base output is zero, nonzero x still shows that the update adds nothing.
    evidence = np.concatenate([base, trial.x], axis=1)
    return Agreement.worst(
        [Agreement.of(found, other, 0.0, a), Agreement.of(found, base, 0.0, evidence)]
    )


def first_gradients(trial: LayerTrial) -> Agreement:
    """Check that at B = 0, dA is exactly 0, and dB is not 0."""
    trial.set(trial.layer.lora_a.data, np.zeros_like(trial.layer.lora_b.data))
    found, right = trial.trained(), trial.composed()["B"]
    comparison = Agreement.of(found["A"], 0 * found["A"], 0.0, found["B"])
    if comparison.verdict != "fails" and not found["B"].any():
        # dB = 0 is wrong if the right value exceeds its rounding bound.
        missing = Agreement.of(found["B"], right, trial.bounds()["B"], right)
        return missing if missing.verdict == "fails" else comparison
    return comparison


def frozen_base(trial: LayerTrial) -> Agreement:
    """Check that no gradient reaches W and b, though both require one."""
    layer = trial.layer
    frozen: dict[str, Parameter] = {"W": layer.base_weight}
    frozen |= {} if layer.bias is None else {"b": layer.bias}
    for parameter in frozen.values():
        parameter.requires_grad_()
    found = trial.trained(frozen)
    trained = np.concatenate([found["A"].ravel(), found["B"].ravel()])
    parts = [Agreement.of(found[name], 0 * found[name], 0.0, trained) for name in frozen]
    return Agreement.worst(parts)


def merging(trial: LayerTrial) -> Agreement:
    """Check that merged and unmerged outputs agree."""
    trial.layer.eval()  # a merged weight has no dropout
    bound, base, before = 2 * trial.bounds()["y"], trial.base(), trial.plain()
    trial.layer.merge()
    return Agreement.of(trial.plain(), before, bound, before - base)


def unmerging(trial: LayerTrial) -> Agreement:
    """Check that merging and unmerging twice restores W, b, A, B and y in every bit."""
    layer = trial.layer.eval()
    parameters = [layer.base_weight, layer.lora_a, layer.lora_b]
    parameters += [] if layer.bias is None else [layer.bias]
    values, before = [parameter.data.copy() for parameter in parameters], trial.plain()
    for _ in range(2):
        layer.merge()
        evidence = layer.merged_weight().data - values[0]
        trial.plain()
        layer.unmerge()
    pairs = [*zip([p.data for p in parameters], values, strict=True), (trial.plain(), before)]
    return Agreement.worst([Agreement.of(*pair, 0.0, evidence) for pair in pairs])
