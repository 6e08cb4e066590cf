"""Adapter: the low-rank update of one weight, and its trainable parameters.

The update of PiSSA, s (B A - B_0 A_0), is a product of rank 2 r. It is computed as
s ((B - B_0) A + B_0 (A - A_0)), so at first it is exactly 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np

from lora.frozen import Array, FrozenMatrix, LayerMatrix
from lora.patterns import near
from lora.scaling import LoRAScaling, check_alpha, check_finite, check_rank_divides, check_size
from lora.variants import dora
from lora.variants.inits import Factors, check_init, draw
from minigrad import kernels, ops
from minigrad.checks import check_probability
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.errors import named_errors
from minigrad.nn import Parameter
from minigrad.random import generator

DEFAULT = "default"
"""The name that parameter names leave out: `lora_a` instead of `default.lora_a`."""

UNMERGEABLE = (
    "a filter of a grouped convolution sees the channels of its own group, where A sees all of "
    "them, so W + s B A is no weight of the layer"
)
"""The reason why no update is merged into the weight of a grouped convolution."""

_COPIED_INTO = ("lora_a", "lora_b", "lora_magnitude")  # assigned in place


class Adapter:
    """The low-rank update dW of one weight W, and its trainable parameters.

        LoRA    dW = s B A                                (Hu et al., 2021, section 4.1)
        DoRA    dW = diag(m / n) (W + s B A) - W          (Liu et al., 2024, equation 5)

    n_j is the norm of row j of W + s B A. PiSSA has s (B A - B_0 A_0) instead of s B A, with the
    first factors A_0 and B_0 (Meng et al., 2024). For a convolution in groups, A and B have groups
    of rank / groups rows and d_out / groups rows, and instead of B A there are the products B_g A_g
    of each group, below each other, as in PEFT.

    Args:
        weight: W, `(d_out, d_in)`, whose values PiSSA and DoRA begin with.
        rank: the rank of B A, divisible by the groups of W.
        alpha, scaling, dropout, init, use_dora, dora_norm_gradient: as in `LoRAConfig`.
        begin: the first A and B, instead of values drawn by `init`.
        rng: the generator that draws A, B and dropout; None for the default generator.

    Attributes:
        lora_a: A, `(rank, d_in)`. An assignment to it, B or m copies the values.
        lora_b: B, `(d_out, rank / groups)`.
        lora_magnitude: m, `(d_out,)`, at first the norms of the rows of W; None without DoRA.
        scale: s, the factor of B A, a finite number, which may be assigned.
        alpha, scaling: the number and the formula from which the first scale was computed.
        start: A_0 and B_0 of PiSSA; None without it.

    Raises:
        TypeError: if the rank is not an integer, alpha or dropout is not a number, or `rng` is not
            a generator.
        ValueError: if the rank or alpha is not positive, `init` or `scaling` is unknown, the rank
            is odd with init="orthogonal" or too large for the weight with "pissa" or "mica", or
            dropout is not a probability. With groups, if they do not divide the rank, `init` is
            not "gaussian" or "kaiming", or `use_dora` is set.
    """

    lora_a: Any  # a Parameter; an assignment may be an array
    lora_b: Any
    lora_magnitude: Any
    scale: float

    @named_errors
    def __init__(
        self,
        weight: FrozenMatrix,
        rank: int,
        alpha: float,
        *,
        scaling: LoRAScaling = LoRAScaling.STANDARD,
        dropout: float = 0.0,
        init: str = "gaussian",
        use_dora: bool = False,
        dora_norm_gradient: bool = False,
        begin: Factors | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_size("rank", rank)
        check_alpha("alpha", alpha)
        check_init(init)
        self.dropout = dropout
        self.rng = None if rng is None else generator(rng)
        d_out, d_in = weight.shape[0], weight.shape[1] * weight.groups
        check_rank_divides(rank, d_out, d_in, weight.groups)
        check_goes_with_groups(weight.groups, init, use_dora)
        self.alpha = float(alpha)
        self.scaling = LoRAScaling(scaling)
        self.scale = self.scaling.scale(self.alpha, int(rank))
        first = begin or draw(init, weight, rank, self.scale, rng)
        self.init = init
        self.lora_a = Parameter(first.a, dtype=weight.dtype)
        self.lora_b = Parameter(first.b, init != "mica", dtype=weight.dtype)
        self.start: tuple[Parameter, Parameter] | None = None  # A_0 and B_0 of PiSSA
        if first.from_start:
            self.start = Parameter(self.lora_a, False), Parameter(self.lora_b, False)
        self.dora_norm_gradient = dora_norm_gradient
        self.lora_magnitude = (
            Parameter(self.norms(weight), dtype=weight.dtype) if use_dora else None
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dropout":
            check_probability(name, value)
        elif name == "scale":
            value = check_finite(name, value)
        # The same Parameter stays, so an optimiser that has it still trains the layer.
        present = vars(self).get(name, value) if name in _COPIED_INTO else value
        if present is value:
            object.__setattr__(self, name, value)
        elif present is None:
            raise AttributeError(
                f"the adapter does not use DoRA, so it has no {name} to copy into; it is made with "
                f"use_dora=True"
            )
        else:
            present.copy_(value)

    @classmethod
    @np.errstate(over="ignore")  # the callers refuse numbers beyond the dtype, which become Inf
    def of(
        cls,
        weight: FrozenMatrix,
        a: Array,
        b: Array,
        scale: float,
        *,
        magnitude: Array | None = None,
        scaling: LoRAScaling = LoRAScaling.STANDARD,
        **options: Any,
    ) -> Adapter:
        """Make an adapter with these A, B and scale; a magnitude makes it DoRA.

        Alpha follows from the scale and the rank; `options` are further arguments of the class. A
        ValueError is raised if the scale is not positive and finite.
        """
        alpha = scaling.alpha(scale, len(a))
        made = cls(weight, len(a), alpha, scaling=scaling, begin=Factors(a, b), **options)
        made.scale = scale  # alpha divided by the divisor may differ in the last bit
        if magnitude is not None:
            vars(made)["lora_magnitude"] = Parameter(magnitude, dtype=weight.dtype)
        return made

    def copy(self) -> Adapter:
        """Copy the adapter, with the same generator; A, B and the magnitude of the copy train."""
        made = copy(self)
        for key, part in self.contents():
            if key in vars(self):
                vars(made)[key] = Parameter(part._data)
        if self.start is not None:
            a, b = self.start
            made.start = Parameter(a._data, False), Parameter(b._data, False)
        return made

    @property
    def rank(self) -> int:
        """The rank of B A."""
        return len(self.lora_a._data)

    @property
    def groups(self) -> int:
        """The number of groups of B; more than 1 only in a grouped convolution."""
        return self.rank // int(self.lora_b.shape[1])

    @property
    def update_rank(self) -> int:
        """The rank of the complete update: with PiSSA, twice the rank of B A."""
        return self.rank * (1 if self.start is None else 2)

    def trained(self) -> list[Parameter]:
        """Return the parameters that train: A, B and, for DoRA, the magnitude."""
        magnitude = [] if self.lora_magnitude is None else [self.lora_magnitude]
        return [self.lora_a, self.lora_b, *magnitude]

    def contents(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters, trained or not, with their names."""
        yield "lora_a", self.lora_a
        yield "lora_b", self.lora_b
        yield from zip(("start_a", "start_b"), self.start or (), strict=False)
        if self.lora_magnitude is not None:
            yield "lora_magnitude", self.lora_magnitude

    def facts(self) -> list[str]:
        """Describe the adapter in short texts, for a `repr`."""
        facts = [f"rank={self.rank}", f"alpha={self.alpha:g}", f"scale={self.scale:.4g}"]
        facts += [f"dropout={self.dropout:g}"] if self.dropout else []
        facts += ["DoRA"] if self.lora_magnitude is not None else []
        facts += [self.init] if self.start is not None else []
        return facts

    def __repr__(self) -> str:
        sizes = [f"d_in={self.lora_a.shape[1]}", f"d_out={self.lora_b.shape[0]}"]
        return f"Adapter({', '.join([*self.facts(), *sizes])})"

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B of the complete update; with PiSSA they have twice the rank."""
        if self.start is None:
            return self.lora_a, self.lora_b
        a, b = (part.detach() for part in self.start)
        return (
            ops.concatenate([self.lora_a, self.lora_a - a]),
            ops.concatenate([self.lora_b - b, b], axis=1),
        )

    def exact_factors(self) -> tuple[Array, Array]:
        """Return A and B of the complete update in float64."""
        a, b = (factor._data.astype(np.float64) for factor in self.factors())
        return a, b

    def norms(self, weight: FrozenMatrix) -> Array:
        """Compute n, the norm of each row of W + s B A: `(d_out,)`."""
        a, b = (factor._data for factor in self.factors())
        return observed(dora.norms, weight, a, b, self.scale)

    def ratio(self, weight: LayerMatrix) -> Tensor:
        """Compute m / n, DoRA's factor of each output. At first it is exactly 1."""
        assert self.lora_magnitude is not None
        n: Any = self.norms(weight)
        if self.dora_norm_gradient:
            n = dora.norms_with_gradient(weight.matrix, *self.factors(), self.scale, n)
        return ops.divide(self.lora_magnitude, n)

    def exact_ratio(self, weight: FrozenMatrix) -> Array | None:
        """Compute m / n in float64 from the rows of W + s B A themselves; None without DoRA."""
        if self.lora_magnitude is None:
            return None
        n = np.zeros(weight.shape[0])
        for rows, columns in weight.blocks():
            formed = weight.rows(rows, columns) + self._product(rows, columns)
            n[rows] = np.hypot(n[rows], np.linalg.norm(formed, axis=1))
        found: Array = self.lora_magnitude._data / np.maximum(n, dora.least(self.lora_a.dtype))
        return found

    def update(
        self,
        weight: FrozenMatrix,
        rows: slice,
        columns: slice = slice(None),
        ratio: Array | None = None,
    ) -> Array:
        """Compute some rows and columns of dW in float64.

        For a part of the columns, DoRA needs the result of `exact_ratio`.
        """
        product = self._product(rows, columns)
        if self.lora_magnitude is None:
            return product
        base = weight.rows(rows, columns)
        product += base
        if ratio is None:
            n = np.maximum(np.linalg.norm(product, axis=1), dora.least(self.lora_a.dtype))
            product *= (self.lora_magnitude._data[rows] / n)[:, None]
        else:
            product *= ratio[rows, None]
        product -= base
        return product

    def _product(self, rows: slice, columns: slice = slice(None)) -> Array:
        """Compute some rows and columns of s B A in float64."""
        a, b = self.exact_factors()
        product = kernels.gemm.matmul(b[rows], a[:, columns])
        product *= self.scale
        return product


def check_names(names: Sequence[Any], known: Collection[str]) -> None:
    """Raise an error unless these are names of known adapters, each at most once."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the name of an adapter is a string, not {name!r}")
        if name not in known:
            there = ", ".join(map(repr, known)) or "none"
            raise ValueError(f"there is no adapter {near(name, known)}; the adapters are {there}")
    if len(set(names)) < len(names):
        raise ValueError(
            f"an adapter is named once or not at all, but the names are "
            f"{', '.join(map(repr, names))}"
        )


def check_goes_with_groups(groups: int, init: str, use_dora: bool) -> None:
    """Raise a ValueError if `init` or `use_dora` needs a product B A of the shape of W."""
    if groups > 1 and use_dora:
        raise ValueError(
            f"use_dora needs the norms of W + s B A, and {UNMERGEABLE}; PEFT's DoRA of such a "
            f"layer takes the norms of another product"
        )
    if groups > 1 and init not in ("gaussian", "kaiming"):
        raise ValueError(
            f"init={init!r} is for a single product B A, and the layer has one for each of its "
            f"{groups} groups, which begin as 'gaussian' or 'kaiming'"
        )


def joined(adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor, float]:
    """Return A, B and s whose product s B A is s_1 B_1 A_1 + ...; its rank is the sum of ranks."""
    if len(adapters) == 1:
        return *adapters[0].factors(), adapters[0].scale
    pairs = [adapter.factors() for adapter in adapters]
    scaled = [(a, b * adapter.scale) for (a, b), adapter in zip(pairs, adapters, strict=True)]
    return *stacked(scaled, adapters[0].groups), 1.0


def stacked(pairs: Sequence[tuple[Any, Any]], groups: int) -> tuple[Any, Any]:
    """Return A and B whose product is the sum of those of all pairs, arrays or tensors.

    The rows of each A are below those of the one before, in each group; the columns of each B are
    next to those of the one before.
    """
    a, b = [a for a, _ in pairs], ops.concatenate([b for _, b in pairs], axis=1)
    if groups == 1:
        return ops.concatenate(a), b
    parts = [ops.reshape(each, (groups, -1, each.shape[1])) for each in a]
    return ops.reshape(ops.concatenate(parts, axis=1), (-1, a[0].shape[1])), b
