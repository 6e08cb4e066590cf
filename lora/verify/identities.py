"""The identities of a LoRA layer, each computed on one copy of it.

With y = x W^T + b + s (x A^T) B^T, G the gradient that arrives at y, and X, G with a row for each
vector that the layer was called on, the derivatives are

    dA = s B^T G^T X        dB = s G^T X A^T        dx = G (W + s B A)

All identities follow from these three, so they hold for every loss; what is compared is always two
ways to compute, from the same X and G. With dropout, X is what the mask left of it, on the way to
A: all runs draw the same mask.
"""

from __future__ import annotations

import numpy as np

from lora.verify.rounding import Array, Comparison
from lora.verify.subject import FEW, Run, Subject
from minigrad.nn import Parameter


def inner_products(subject: Subject) -> Comparison:
    """dA A^T = B^T dB, (rank, rank): both are s B^T G^T X A^T."""
    a, b = subject.layer.lora_a.data, subject.layer.lora_b.data
    found = subject.trained().gradients
    size, bounds = subject.rounding.size, subject.bounds()
    left, right = found["A"] @ a.T, b.T @ found["B"]
    products = subject.rounding.gamma(max(subject.layer.d_in, subject.layer.d_out) + FEW)
    bound = size(bounds["A"], a.T) + size(b.T, bounds["B"])
    bound += products * (size(found["A"], a.T) + size(b.T, found["B"]))
    return Comparison.of(left, right, bound, left)


def change_of_basis(subject: Subject) -> Comparison:
    """Under (B C^-1, C A), y stays, dA becomes C^-T dA, and dB becomes dB C^T."""
    layer, size = subject.layer, subject.rounding.size
    a, b = layer.lora_a.data.copy(), layer.lora_b.data.copy()
    c, inverse = _basis(layer.rank)
    before, base, sizes = subject.trained(), subject.base(), subject.sizes()
    subject.set(c @ a, b @ inverse)
    after = subject.trained()
    subject.set(a, b)
    sizes["y"] = sizes["y"] + size(subject.x, a.T, c.T, inverse.T, b.T, scale=subject.strength)
    sizes["A"], sizes["B"] = size(inverse.T, sizes["A"]), size(sizes["B"], c.T)
    gamma, roundings = subject.rounding.gamma, subject.roundings()
    # Twice, for both sides have errors; C A and B C^-1 are sums themselves.
    bounds = {name: 2 * gamma(roundings[name] + 2 * layer.rank) * sizes[name] for name in "yAB"}
    turned = inverse.T @ before.gradients["A"], before.gradients["B"] @ c.T
    return Comparison.worst(
        [
            Comparison.of(after.y, before.y, bounds["y"], before.y - base),
            Comparison.of(after.gradients["A"], turned[0], bounds["A"], turned[0]),
            Comparison.of(after.gradients["B"], turned[1], bounds["B"], turned[1]),
        ]
    )


def _basis(rank: int) -> tuple[Array, Array]:
    """A matrix C that is neither diagonal nor orthogonal, and its inverse, to the last bit."""
    powers = np.where(np.arange(rank) % 2, 0.5, 2.0)
    steps = np.subtract.outer(np.arange(rank), np.arange(rank))
    lower = np.where(steps == 0, 1.0, np.where(steps == 1, 0.5, 0.0))
    inverse = np.where(steps >= 0, (-0.5) ** np.maximum(steps, 0), 0.0)
    return powers[:, None] * lower, inverse / powers


def composition(subject: Subject) -> Comparison:
    """y, dx, dA = s B^T dW and dB = s dW A^T, with dW of the dense x (W + s B A)^T + b."""
    return _compared(subject.trained(), subject.composed(), subject.bounds(), subject.base())


def precision(subject: Subject, wide: Subject) -> Comparison:
    """y, dx, dA and dB in the precision of the layer, and in double precision."""
    return _compared(subject.trained(), wide.trained(), subject.bounds(), wide.base())


def _compared(found: Run, right: Run, bounds: dict[str, Array], base: Array) -> Comparison:
    parts = [Comparison.of(found.y, right.y, 2 * bounds["y"], right.y - base)]
    for name in "ABx":
        gradient = right.gradients[name]
        parts.append(Comparison.of(found.gradients[name], gradient, 2 * bounds[name], gradient))
    return Comparison.worst(parts)


def first_output(subject: Subject) -> Comparison:
    """At B = 0 the output is that of the base, to the bit and for any A."""
    a, none = subject.layer.lora_a.data.copy(), np.zeros_like(subject.layer.lora_b.data)
    subject.set(a, none)
    found, base, bound = subject.trained().y, subject.base(), np.zeros(())
    subject.set(2 * a[:, ::-1], none)
    other = subject.trained().y
    return Comparison.worst(
        [
            Comparison.of(found, other, bound, a),
            # A base of zeros is one too: that nothing is added to it can be told by any x.
            Comparison.of(found, base, bound, np.concatenate([base, subject.x], axis=1)),
        ]
    )


def first_gradients(subject: Subject) -> Comparison:
    """At B = 0, dA is 0 exactly, and dB is not."""
    subject.set(subject.layer.lora_a.data, np.zeros_like(subject.layer.lora_b.data))
    found, right = subject.trained().gradients, subject.composed().gradients["B"]
    comparison = Comparison.of(found["A"], 0 * found["A"], np.zeros(()), found["B"])
    if comparison.verdict != "fails" and not found["B"].any():
        # A 0 is wrong where there should be a number, beyond what rounding makes of one.
        missing = Comparison.of(found["B"], right, subject.bounds()["B"], right)
        return missing if missing.verdict == "fails" else comparison
    return comparison


def frozen_base(subject: Subject) -> Comparison:
    """No gradient reaches W and b, though both ask for one."""
    layer = subject.layer
    frozen: dict[str, Parameter] = {"W": layer.base_weight} | (
        {} if layer.bias is None else {"b": layer.bias}
    )
    for parameter in (*frozen.values(), layer.lora_a, layer.lora_b):
        parameter.requires_grad_()
    found = subject.run({**frozen, "A": layer.lora_a, "B": layer.lora_b}).gradients
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    trained = np.concatenate([found["A"].ravel(), found["B"].ravel()])
    return Comparison.worst(
        [Comparison.of(found[name], 0 * found[name], np.zeros(()), trained) for name in frozen]
    )


def merging(subject: Subject) -> Comparison:
    """The outputs with the merged weight W + s B A are those without it."""
    subject.layer.eval()  # for what is dropped has no part in the merged weight
    bound, base, before = 2 * subject.bounds()["y"], subject.base(), subject.plain()
    subject.layer.merge()
    merged = subject.plain()
    subject.layer.unmerge()
    return Comparison.of(merged, before, bound, before - base)


def unmerging(subject: Subject) -> Comparison:
    """After merging and unmerging, twice, W, b, A, B and the outputs are as before, exactly."""
    layer = subject.layer.eval()
    held = [layer.base_weight, layer.lora_a, layer.lora_b]
    held += [] if layer.bias is None else [layer.bias]
    values, before = [parameter.data.copy() for parameter in held], subject.plain()
    for _ in range(2):
        layer.merge()
        told_by = layer.merged_weight().data - values[0]
        subject.plain()
        layer.unmerge()
    parts = [(parameter.data, value) for parameter, value in zip(held, values, strict=True)]
    parts.append((subject.plain(), before))
    return Comparison.worst(
        [Comparison.of(found, right, np.zeros(()), told_by) for found, right in parts]
    )
