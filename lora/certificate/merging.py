"""Merging: one layer as the certificate sees it, and the arithmetic of rounding errors.

A sum of products that is computed with n roundings on the way of each term, in any order, differs
from the exact one by at most gamma(n) times the sum of the terms' absolute values, and by what
products lose that are smaller than the least normal number: half of the least positive number each
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 2.1 and 3.1).

    gamma(n) = n u / (1 - n u)          u: half the distance from 1 to the next number

This is a bound for the worst case, where `lora.verify` asks what is likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lora.weight import strips
from minigrad import kernels

Array = NDArray[Any]
Rows = Callable[[slice], Array]

# Roundings of a term besides those of its sums: of s and of the product with it, or with B if there
# are several adapters; of a quantised W two; of the bias, and of adding up.
BESIDES = 8


@dataclass(frozen=True)
class Merging:
    """A layer whose weight W is to become W + dW.

    The merged weight is `base(rows) + update(rows)`, added in float64 and rounded once, to what it
    is stored in. A layer that is not merged computes x W^T + b and what dW adds, in its own dtype.

    A table of vectors (an embedding) is given as it is stored: W is `(count, d)`, an input picks a
    row. With `one_hot`, what is said below of a row's norm is said of its largest element, and of a
    unit of |x| of the element itself.

    `Merging.low_rank` makes one for LoRA's dW = s B A.

    Attributes:
        name: of the layer.
        shape: of W, `(d_out, d_in)`.
        dtype: that the layer computes in without being merged.
        base: some rows of W in float64.
        update: some rows of dW in float64, as merging computes them.
        update_error: the norm of what rounding may have changed in each row of dW, `(d_out,)`, or
            one number.
        spread: the sum of the absolute values of the terms that are computed for dW, per unit of
            |x|, at each output: `(d_out,)`. Those of x W^T are not counted.
        roundings: on the way of each term, of x W^T, the bias and dW, at most.
        underflows: how many products are computed for dW at each output, each times the absolute
            value of all that it is multiplied by afterwards: `(d_out,)`, or one number. Those of
            x W^T are not counted.
        peak: the largest number on the way to dW's part of the output, per unit of |x|.
        bias: b, `(d_out,)`, or None.
        one_hot: whether an input picks a row of W instead of being multiplied by it.

    Raises:
        TypeError: if the dtype is not float16, float32 or float64.
        ValueError: if W is no matrix, a shape does not go with it, a size is negative, or a table
            has a bias.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    base: Rows
    update: Rows
    update_error: Array | float
    spread: Array
    roundings: int
    underflows: Array | float = 0.0
    peak: float = 0.0
    bias: Array | None = None
    one_hot: bool = False

    def __post_init__(self) -> None:
        _check_float(self._label, self.dtype)
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(
                f"{self._label}: shape is that of a matrix (d_out, d_in), not {self.shape}"
            )
        if self.one_hot and self.bias is not None:
            raise ValueError(f"{self._label}: a table (one_hot) has no bias, but one was passed")
        d_out = self.shape[0]
        sizes: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
            "spread": (self.spread, [(d_out,)]),
            "bias": (self.bias, [(d_out,)]),
            "update_error": (self.update_error, [(), (d_out,)]),
            "underflows": (self.underflows, [(), (d_out,)]),
        }
        for name, (value, accepted) in sizes.items():
            if value is not None and np.shape(value) not in accepted:
                raise ValueError(
                    f"{self._label}: {name} has shape {np.shape(value)}; for a weight of shape "
                    f"{self.shape} it must be {' or '.join(map(str, accepted))}"
                )
        for name in ("update_error", "spread", "roundings", "underflows", "peak"):
            if np.any(np.asarray(getattr(self, name)) < 0):
                raise ValueError(f"{self._label}: {name} bounds a size, and cannot be negative")

    @classmethod
    def low_rank(
        cls,
        name: str,
        base: Rows,
        lora_a: Array,
        lora_b: Array,
        scale: float,
        *,
        dtype: DTypeLike,
        bias: Array | None = None,
        one_hot: bool = False,
    ) -> Merging:
        """The merging of dW = s B A, where x W^T + b + s (x A^T) B^T is computed otherwise.

        Args:
            name: of the layer.
            base: some rows of W in float64.
            lora_a: A, `(rank, d_in)`; of a table, B^T.
            lora_b: B, `(d_out, rank)`; of a table, A^T.
            scale: s.
            dtype: that the layer computes in.
            bias: b, `(d_out,)`, or None.
            one_hot: whether it is a table.

        Raises:
            TypeError: if the dtype is not float16, float32 or float64.
            ValueError: if shapes do not go together.
        """
        a, b = np.asarray(lora_a, np.float64), np.asarray(lora_b, np.float64)
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise ValueError(
                f"layer {name!r}: A of shape {a.shape} does not go with B of shape {b.shape}; "
                f"shapes are (rank, d_in) and (d_out, rank)"
            )
        own = _check_float(f"layer {name!r}", np.dtype(dtype))
        (rank, d_in), s = a.shape, abs(scale)

        def update(rows: slice) -> Array:
            with np.errstate(all="ignore"):  # what overflows is told by the certificate
                product = kernels.gemm.matmul(b[rows], a)
                product *= scale
            return product

        least, wide = least_of(np.dtype(np.float64)), np.dtype(np.float64)
        with np.errstate(all="ignore"):
            sizes = np.abs(a).max(axis=1) if one_hot else norms(a)
            spread = upper(s * (np.abs(b) @ sizes), rank + d_in)
            lost = least * (s * rank + 1) * (1 if one_hot else math.sqrt(d_in))
            strength = np.abs(b).sum(axis=1)
            if s < float(np.finfo(own).tiny):  # s itself has few digits in the dtype of the layer
                lost = lost + least_of(own) * (np.abs(b) @ sizes)
            after = sizes.sum() if one_hot else (s * d_in + 1) * strength
            ahead = np.abs(b) if one_hot else sizes
            peak = float(upper(max(1.0, s) * np.max(ahead, initial=0.0), d_in))
        return cls(
            name=name,
            shape=(len(b), d_in),
            dtype=own,
            base=base,
            update=update,
            update_error=gamma(rank + 2, wide) * spread + lost,
            spread=spread,
            roundings=(0 if one_hot else d_in) + rank + BESIDES,
            underflows=upper(rank + after, rank),
            peak=peak if s <= float(np.finfo(own).max) else math.inf,
            bias=bias,
            one_hot=one_hot,
        )

    @property
    def _label(self) -> str:
        return f"layer {self.name!r}" if self.name else "the layer"

    def strips(self) -> list[slice]:
        """The rows in parts of no more than some megabytes."""
        return strips(self.shape)

    def read(self, rows: slice) -> tuple[Array, Array]:
        """Some rows of W and of dW.

        Raises:
            TypeError: if they are not of float64.
            ValueError: if they have another shape.
        """
        right = (rows.stop - rows.start, self.shape[1])
        found = self.base(rows), self.update(rows)
        for name, value in zip(("base", "update"), found, strict=True):
            if value.dtype != np.float64:
                raise TypeError(
                    f"{self._label}: {name} must return float64, not {value.dtype}; convert it "
                    f"before anything is computed"
                )
            if value.shape != right:
                raise ValueError(
                    f"{self._label}: {name} of the rows {rows.start} to {rows.stop} has shape "
                    f"{value.shape}; it must be {right}"
                )
        return found


def _check_float(label: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Refuse a dtype whose roundings are not known."""
    if dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{label}: layers of float16, float32 and float64 can be certified, not of {dtype}"
        )
    return dtype


def gamma(roundings: int, dtype: np.dtype[Any]) -> float:
    """The relative error after so many roundings, infinite where it has no bound."""
    nu = roundings * float(np.finfo(dtype).eps) / 2
    return nu / (1 - nu) if nu < 1 else math.inf


def least_of(dtype: np.dtype[Any]) -> float:
    """The least positive number of a dtype."""
    return float(np.finfo(dtype).smallest_subnormal)


def norms(x: Array) -> Array:
    """The norm of each row, whatever the size of its elements: no square over- or underflows.

    Where a row is not finite it is a NaN.
    """
    largest = np.abs(x).max(axis=-1, initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x / np.where(largest > 0, largest, 1.0)[..., None]
        found: Array = largest * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
    return found


def upper(x: Any, roundings: int) -> Any:
    """No less than what x is the computed value of: a sum in float64 of nonnegative numbers."""
    raised = np.asarray(x) * (1 + (roundings + 8) * float(np.finfo(np.float64).eps))
    return np.where(raised > 0, np.nextafter(raised, np.inf), raised)
