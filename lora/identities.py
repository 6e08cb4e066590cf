"""The identities of a LoRA layer, each computed on one copy of it.

With y = x W^T + b + s (x A^T) B^T, G the gradient that arrives at y, and X, G with a row for each
vector that the layer was called on, the derivatives are

    dA = s B^T G^T X        dB = s G^T X A^T        dx = G (W + s B A)

All identities follow from these three, so they hold for every loss; what is compared is always two
ways to compute, from the same X and G. Matrices of the reference are multiplied by numpy, not by
the kernels that are checked. With dropout, X is what the mask left of it, on the way to A: all runs
draw the same mask.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.layer import LoRALayer
from lora.rounding import Array, Comparison, Rounding
from minigrad import functional, ops
from minigrad.engine import grad
from minigrad.mode import Observer, enable_grad, no_grad, observe
from minigrad.nn import Parameter
from minigrad.tensor import Tensor

Forward = Callable[[Tensor], Tensor]
Use = tuple[Array, Array]  # an input of the layer, and the gradient that arrived at its output

FEW = 16  # roundings of one term besides its sums: scale, bias, dropout, adding up


class Draws(Observer):
    """Remembers the generators that are drawn from, and lets every run draw the same."""

    def __init__(self) -> None:
        self._states: list[tuple[np.random.Generator, Any]] = []

    def on_random(self, generator: np.random.Generator) -> None:
        """Note where `generator` is before it is drawn from first."""
        if all(generator is not known for known, _ in self._states):
            self._states.append((generator, generator.bit_generator.state))

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Afterwards all generators are where they were before."""
        try:
            with observe(self):
                yield
        finally:
            for generator, state in self._states:
                generator.bit_generator.state = state


@dataclass(frozen=True)
class Run:
    """The outputs of a layer, and the gradients of sum(G y), by the names of what they are of."""

    y: Array
    gradients: dict[str, Array]


class Subject:
    """A copy of a layer in one precision, and what the loss did with it.

    Args:
        layer: not changed.
        uses: what it was called on, and the gradients that arrived.
        dtype: the precision.
        draws: of all runs.
    """

    def __init__(
        self, layer: LoRALayer, uses: Sequence[Use], dtype: np.dtype[Any], draws: Draws
    ) -> None:
        self.layer = copy.deepcopy(layer)
        self.layer.unmerge()
        self.layer.enabled = True
        # In the order of its memory, which a kernel may depend on, and a copy does not keep.
        self.layer.base_weight.data = np.array(layer.base_weight._data, order="K")
        if self.layer.lora_a.dtype != dtype:
            self.layer.astype(dtype)
        self.rounding = Rounding.of(dtype)
        self.uses = [(x.astype(dtype), g.astype(dtype)) for x, g in uses]
        self.draws = draws
        self.rows = sum(x[..., 0].size for x, _ in uses)
        self.x = _stacked([x for x, _ in self.uses], self.layer.d_in)
        self.g = _stacked([g for _, g in self.uses], self.layer.d_out)

    # ----------------------------------------------------------------------------------------------
    # Runs
    # ----------------------------------------------------------------------------------------------

    def set(self, a: Array, b: Array) -> None:
        """Let the layer have these A and B."""
        self.layer.lora_a, self.layer.lora_b = a, b

    def run(self, inputs: Mapping[str, Tensor], forward: Forward | None = None) -> Run:
        """Run the layer, or `forward` in its place, and differentiate by x and by `inputs`."""
        forward = self.layer if forward is None else forward
        xs = [Tensor(x.copy(), requires_grad=True) for x, _ in self.uses]
        with enable_grad(), self.draws.alike():
            outputs = [forward(x) for x in xs]
        cotangents = [g for _, g in self.uses]
        gradients = grad(outputs, [*xs, *inputs.values()], cotangents, allow_unused=True)
        arrays = [gradient.data for gradient in gradients]
        found = dict(zip(inputs, arrays[len(xs) :], strict=True))
        found["x"] = _stacked(arrays[: len(xs)], self.layer.d_in)
        return Run(_stacked([y.data for y in outputs], self.layer.d_out), found)

    def trained(self) -> Run:
        """The layer as it is, differentiated by A, B and x."""
        parameters = {"A": self.layer.lora_a, "B": self.layer.lora_b}
        for parameter in parameters.values():
            parameter.requires_grad_()
        return self.run(parameters)

    def composed(self) -> Run:
        """x (W + s B A)^T + b as two plain ops, with dA and dB from the gradient of the product."""
        layer = self.layer
        a, b, w = layer.lora_a.data, layer.lora_b.data, layer.base_weight.data
        bias = None if layer.bias is None else layer.bias.data
        product = layer.scale * (b @ a)
        if self.dropout:
            dense = Tensor(product.astype(w.dtype), requires_grad=True)

            def forward(x: Tensor) -> Tensor:
                dropped = functional.dropout(x, layer.dropout, rng=layer.rng)
                return ops.linear(x, w, bias) + ops.linear(dropped, dense)
        else:
            dense = Tensor((w + product).astype(w.dtype), requires_grad=True)

            def forward(x: Tensor) -> Tensor:
                return ops.linear(x, dense, bias)

        run = self.run({"W": dense}, forward)
        dw = run.gradients.pop("W")
        run.gradients["A"] = layer.scale * (b.T @ dw)
        run.gradients["B"] = layer.scale * (dw @ a.T)
        return run

    def plain(self) -> Array:
        """The outputs without gradients."""
        with no_grad(), self.draws.alike():
            outputs = [self.layer(Tensor(x.copy())).data for x, _ in self.uses]
        return _stacked(outputs, self.layer.d_out)

    def base(self) -> Array:
        """The outputs of the layer that was adapted."""
        layer = self.layer
        bias = None if layer.bias is None else layer.bias.data
        outputs = [ops.linear(x, layer.base_weight.data, bias) for x, _ in self.uses]
        return _stacked([np.asarray(y) for y in outputs], layer.d_out)

    # ----------------------------------------------------------------------------------------------
    # Sizes of the terms
    # ----------------------------------------------------------------------------------------------

    @property
    def dropout(self) -> bool:
        """Whether elements of x are dropped on their way to A."""
        return bool(self.layer.dropout and self.layer.training)

    @property
    def strength(self) -> float:
        """|s|, and what dropout multiplies the elements by that it leaves."""
        p = self.layer.dropout if self.dropout else 0.0
        return abs(self.layer.scale) * (1 / (1 - p) if p < 1 else 0.0)

    def sizes(self) -> dict[str, Array]:
        """What an error in y, dA, dB or dx is relative to: the sum of absolute values of terms."""
        layer, size = self.layer, self.rounding.size
        a, b, w = layer.lora_a.data, layer.lora_b.data, layer.base_weight.data
        s = self.strength
        bias = 0.0 if layer.bias is None else np.abs(layer.bias.data)
        return {
            "y": size(self.x, w.T) + bias + s * size(self.x, a.T, b.T),
            "A": s * size(b.T, self.g.T, self.x),
            "B": s * size(self.g.T, self.x, a.T),
            "x": size(self.g, w) + s * size(self.g, b, a),
        }

    def roundings(self) -> dict[str, int]:
        """How many roundings there are on the way of each term of y, dA, dB and dx."""
        layer = self.layer
        return {
            "y": layer.d_in + layer.rank + FEW,
            "A": layer.d_out + self.rows + layer.rank + FEW,
            "B": layer.d_in + self.rows + layer.rank + FEW,
            "x": layer.d_out + layer.rank + FEW,
        }

    def bounds(self) -> dict[str, Array]:
        """How far y, dA, dB and dx may be from what is exact."""
        gamma, roundings = self.rounding.gamma, self.roundings()
        return {name: gamma(roundings[name]) * size for name, size in self.sizes().items()}


def _stacked(arrays: Sequence[Array], width: int) -> Array:
    """All vectors as the rows of one matrix."""
    return np.concatenate([x.reshape(-1, width) for x in arrays])


# --------------------------------------------------------------------------------------------------
# The identities
# --------------------------------------------------------------------------------------------------


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
    sizes["y"] = sizes["y"] + subject.strength * size(subject.x, a.T, c.T, inverse.T, b.T)
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
    """At B = 0 the output is that of the base, and to the bit the same for any A."""
    a, none = subject.layer.lora_a.data.copy(), np.zeros_like(subject.layer.lora_b.data)
    subject.set(a, none)
    found, base, bound = subject.trained().y, subject.base(), 2 * subject.bounds()["y"]
    subject.set(2 * a[:, ::-1], none)
    other = subject.trained().y
    return Comparison.worst(
        [
            Comparison.of(found, other, np.zeros(()), a),
            # Not to the bit: where W is packed, or x has few rows, sums go in another order.
            Comparison.of(found, base, bound, base),
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
    """After merging and unmerging, twice, W and the outputs are what they were, exactly."""
    layer = subject.layer.eval()
    weight, before = layer.base_weight.data.copy(), subject.plain()
    for _ in range(2):
        layer.merge()
        told_by = layer.merged_weight().data - weight
        subject.plain()
        layer.unmerge()
    parts = [(layer.base_weight.data, weight), (subject.plain(), before)]
    return Comparison.worst(
        [Comparison.of(found, right, np.zeros(()), told_by) for found, right in parts]
    )
