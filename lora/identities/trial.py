"""A copy of a LoRA layer to experiment on: its runs, and bounds on their rounding errors.

All runs have the same inputs, output gradients and random numbers, so that two runs can be
compared. numpy multiplies the reference, not the kernels that are checked.

Take a sum of products that is computed with k roundings of each term, in any order. Its error is at
most gamma(k) times the sum of the terms' absolute values. Let u be half the distance from 1 to the
next number, and L a number. The bound

    gamma(k) = exp(L sqrt(k) u + k u^2 / (1 - u)) - 1

is valid for one result with probability 1 - 2 exp(-L^2 (1 - u)^2 / 2), if the mean of rounding
errors is 0 (Higham and Mary, 2019). The bound (1 + u)^k - 1 is always valid. With L = 8 the first
bound fails once in 4e13 results.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora.frozen import Array
from lora.linear import LoRALayer
from minigrad import functional, ops
from minigrad.core.backward import grad
from minigrad.core.grad_mode import enable_grad, no_grad
from minigrad.core.tensor import Tensor
from minigrad.transforms.checkpoint import Draws

Forward = Callable[[Tensor], Tensor]
Use = tuple[Array, Array]  # an input of the layer, and the gradient of its output
Run = dict[str, Array]  # y, the outputs of the layer, and gradients of sum(G y) by A, B, x ...
Verdict = Literal["holds", "fails", "cannot tell"]

DOUBLE = np.dtype(np.float64)
FEW = 16  # roundings of one term outside of its sums: scale, bias, dropout, final additions
_SURE = 8.0  # the L of the formula


def gamma(roundings: int, dtype: np.dtype[Any]) -> float:
    """Bound the relative error after this many roundings in a dtype."""
    u = float(np.finfo(dtype).eps) / 2
    likely = _SURE * math.sqrt(roundings) * u + roundings * u * u / (1 - u)
    return math.expm1(min(likely, roundings * math.log1p(u)))


@dataclass(frozen=True)
class Agreement:
    """The agreement of two arrays that should be equal up to rounding."""

    deviation: float  # the difference at the element where difference / bound is largest
    bound: float  # the bound at this element
    # "fails" if a difference exceeds its bound; "cannot tell" if all compared numbers are smaller
    # than the bound, because then even a wrong identity would not fail
    verdict: Verdict

    @classmethod
    def of(cls, found: Array, expected: Array, bound: Array | float, evidence: Array) -> Agreement:
        """Compare two arrays; there is no verdict if all of `evidence` is below the bound."""
        if not found.size:
            return NOTHING
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        limit = np.broadcast_to(bound, difference.shape)
        if not np.isfinite(difference).all():
            decided = np.isfinite(expected).all() and np.isfinite(bound).all()
            return cls(math.nan, math.nan, "fails" if decided else "cannot tell")
        share = np.where(difference == 0, 0.0, difference / limit)
        worst = np.unravel_index(np.argmax(share), share.shape)
        verdict: Verdict = "holds"
        if share[worst] > 1:
            verdict = "fails"
        elif not (np.abs(evidence) > bound).any():
            verdict = "cannot tell"
        return cls(float(difference[worst]), float(limit[worst]), verdict)

    @classmethod
    def worst(cls, comparisons: Sequence[Agreement]) -> Agreement:
        """Choose the decisive one: a failure, else "cannot tell", else the nearest to its bound."""
        order = {"fails": 2, "cannot tell": 1, "holds": 0}
        return max(
            comparisons, key=lambda c: (order[c.verdict], c.deviation / c.bound if c.bound else 0.0)
        )


NOTHING = Agreement(0.0, 0.0, "cannot tell")


class LayerTrial:
    """A copy of a layer in one precision, with its inputs and output gradients.

    `uses` are the inputs of the original layer, which is not changed, with the gradients of its
    outputs. All runs begin with the states of random generators in `draws`.
    """

    def __init__(
        self, layer: LoRALayer, uses: Sequence[Use], dtype: np.dtype[Any], draws: Draws
    ) -> None:
        self.layer = copy.deepcopy(layer)
        self.layer.unmerge()
        self.layer.enabled = True
        # Keep the memory layout, which deepcopy may change, and which selects a kernel.
        self.layer.base_weight.data = np.array(layer.base_weight._data, order="K")
        if self.layer.lora_a.dtype != dtype:
            self.layer.astype(dtype)
        self.dtype = dtype
        self.uses = [(x.astype(dtype), g.astype(dtype)) for x, g in uses]
        self.draws = draws
        self.rows = sum(x[..., 0].size for x, _ in uses)
        self.x = stacked([x for x, _ in self.uses], self.layer.d_in)
        self.g = stacked([g for _, g in self.uses], self.layer.d_out)

    def set(self, a: Array, b: Array) -> None:
        """Assign A and B."""
        self.layer.lora_a, self.layer.lora_b = a, b

    def set_random(self) -> None:
        """Assign random A and B, whose update is about as large as the base output."""
        layer, rng = self.layer, np.random.default_rng(0)
        a = rng.standard_normal(layer.lora_a.shape) / np.sqrt(layer.d_in)
        b = rng.standard_normal(layer.lora_b.shape) / np.sqrt(layer.rank)
        x, norm = self.x.astype(np.float64), np.linalg.norm
        update = norm(x @ a.T @ b.T) * abs(layer.scale)
        base = norm(x @ layer.base_weight.data.T.astype(np.float64))
        if layer.bias is not None:
            base += norm(layer.bias.data.astype(np.float64)) * math.sqrt(self.rows)
        factor = np.sqrt((base or 1.0) / (update or 1.0))  # for A and B; its square may overflow
        dtype = layer.lora_a.dtype
        self.set((factor * a).astype(dtype), (factor * b).astype(dtype))

    def run(self, inputs: Mapping[str, Tensor], forward: Forward | None = None) -> Run:
        """Run the layer, or `forward` if given; differentiate with respect to x and `inputs`."""
        xs = [Tensor(x.copy(), requires_grad=True) for x, _ in self.uses]
        with enable_grad(), self.draws.put_back():
            outputs = [(forward or self.layer)(x) for x in xs]
        cotangents = [g for _, g in self.uses]
        gradients = grad(outputs, [*xs, *inputs.values()], cotangents, allow_unused=True)
        arrays = [gradient.data for gradient in gradients]
        found = dict(zip(inputs, arrays[len(xs) :], strict=True))
        found["x"] = stacked(arrays[: len(xs)], self.layer.d_in)
        found["y"] = stacked([y.data for y in outputs], self.layer.d_out)
        return found

    def trained(self, others: Mapping[str, Tensor] | None = None) -> Run:
        """Run the layer, and differentiate with respect to A, B, x and `others`."""
        a, b = (parameter.requires_grad_() for parameter in (self.layer.lora_a, self.layer.lora_b))
        return self.run({"A": a, "B": b, **(others or {})})

    def composed(self) -> Run:
        """Run x (W + s B A)^T + b as plain ops, with dA and dB from the gradient of the product."""
        layer = self.layer
        a, b, w = layer.lora_a.data, layer.lora_b.data, layer.base_weight.data
        bias = None if layer.bias is None else layer.bias.data
        product = layer.scale * (b @ a)
        dense = product if self.dropout else w + product
        weight = Tensor(dense.astype(w.dtype), requires_grad=True)

        def forward(x: Tensor) -> Tensor:
            if not self.dropout:
                return ops.linear(x, weight, bias)
            dropped = functional.dropout(x, layer.dropout, rng=layer.rng)
            return ops.linear(x, w, bias) + ops.linear(dropped, weight)

        found = self.run({"W": weight}, forward)
        dw = found.pop("W")
        return found | {"A": layer.scale * (b.T @ dw), "B": layer.scale * (dw @ a.T)}

    def plain(self, forward: Forward | None = None) -> Array:
        """Compute the outputs of the layer, or of `forward` if given, without gradients."""
        with no_grad(), self.draws.put_back():
            outputs = [(forward or self.layer)(Tensor(x.copy())).data for x, _ in self.uses]
        return stacked(outputs, self.layer.d_out)

    def base(self) -> Array:
        """Compute the outputs of the layer without its adapter."""
        weight, bias = self.layer.base_weight.detach(), self.layer.bias
        return self.plain(lambda x: ops.linear(x, weight, None if bias is None else bias.data))

    @property
    def dropout(self) -> bool:
        """Whether dropout is applied to the input of A."""
        return bool(self.layer.dropout and self.layer.training)

    @property
    def strength(self) -> float:
        """|s| times the factor of the elements that dropout keeps."""
        p: float = self.layer.dropout if self.dropout else 0.0
        return abs(float(self.layer.scale)) * (1 / (1 - p) if p < 1 else 0.0)

    def size(self, *factors: Array, scale: float = 1.0) -> Array:
        """Multiply the absolute values of matrices: rounding errors are relative to this product.

        Each element is at least the least normal number, because below it the error is absolute.
        This is so before and after the product with `scale`, because a kernel may multiply by it at
        any point.
        """
        tiny = float(np.finfo(self.dtype).tiny)
        product = np.abs(factors[0].astype(np.float64))
        least = np.zeros_like(product)
        for factor in factors[1:]:
            absolute = np.abs(factor.astype(np.float64))
            product, least = product @ absolute + tiny, least @ absolute + tiny
        return scale * product + (least if scale < 1 else 0.0)

    def sizes(self) -> dict[str, Array]:
        """Sum the absolute values of the terms of y, dA, dB and dx; errors are relative to them."""
        layer, size = self.layer, self.size
        a, b, w = layer.lora_a.data, layer.lora_b.data, layer.base_weight.data
        s = self.strength
        bias = 0.0 if layer.bias is None else np.abs(layer.bias.data)
        return {
            "y": size(self.x, w.T) + bias + size(self.x, a.T, b.T, scale=s),
            "A": size(b.T, self.g.T, self.x, scale=s),
            "B": size(self.g.T, self.x, a.T, scale=s),
            "x": size(self.g, w) + size(self.g, b, a, scale=s),
        }

    def fits(self) -> bool:
        """Return whether no intermediate number of y, dA, dB, dx or W + s B A overflows the dtype.

        Overflow is not an error of the layer, but would look like one.
        """
        a, b = self.layer.lora_a.data, self.layer.lora_b.data
        strength = max(self.strength, 1.0)  # as in `size`
        sizes = [self.size(*pair, scale=strength) for pair in ((self.x, a.T), (self.g, b), (b, a))]
        sizes += [np.abs(a), np.abs(b), *self.sizes().values()]
        largest = max(float(each.max(initial=0.0)) for each in sizes)
        return largest < float(np.finfo(self.dtype).max) / 2

    def bounds(self, sizes: Mapping[str, Array] | None = None, more: int = 0) -> dict[str, Array]:
        """Bound the errors of y, dA, dB and dx, with `more` roundings of each term than usual."""
        layer, sizes = self.layer, self.sizes() if sizes is None else sizes
        terms = {
            "y": layer.d_in,
            "A": layer.d_out + self.rows,
            "B": layer.d_in + self.rows,
            "x": layer.d_out,
        }
        more += layer.rank + FEW
        return {name: gamma(n + more, self.dtype) * sizes[name] for name, n in terms.items()}


def stacked(arrays: Sequence[Array], width: int) -> Array:
    """Stack all vectors as the rows of one matrix."""
    return np.concatenate([x.reshape(-1, width) for x in arrays])
