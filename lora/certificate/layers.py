"""LayerMerge: one layer whose weight is to be merged, and bounds on the rounding in its output.

`merging_of` describes a layer with adapters, `merging_into` adapters and a weight without a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer, label_of
from lora.adapter import Adapter
from lora.certificate.rounding import gamma, least_of, norms, upper
from lora.embedding import LoRAEmbedding
from lora.frozen import Array, FrozenMatrix

Rows = Callable[[slice], Array]

# Roundings of a term besides those of its sums: of s and of the product with it, or with B if there
# are several adapters; two of a quantised W; of the bias, and of adding up.
BESIDES = 8


@dataclass(frozen=True)
class LayerMerge:
    """A layer whose weight W is to become W + dW.

    The merged weight is `base(rows) + update(rows)`, added in float64 and rounded once, to the
    dtype that it is stored in. If not merged, the layer computes x W^T + b and the part of dW in
    its own dtype.

    A table of vectors (an embedding) is given as it is stored: W is `(count, d)`, an input picks a
    row. With `one_hot`, read "largest element" for a row's norm below, and "the element itself" for
    a unit of |x|.
    """

    name: str  # of the layer
    shape: tuple[int, int]  # of W, `(d_out, d_in)`
    dtype: np.dtype[Any]  # the dtype that the layer computes in without being merged
    base: Rows  # returns some rows of W in float64
    update: Rows  # returns some rows of dW in float64, as merging computes them
    # A bound on the norm of the rounding error of each row of dW, `(d_out,)`, or one number.
    update_error: Array | float
    # The sum of the absolute values of the terms that are computed for dW, per unit of |x|, at each
    # output: `(d_out,)`. Those of x W^T are not counted.
    spread: Array
    roundings: int  # the most of any term of x W^T, the bias and dW
    # The number of products that are computed for dW at each output, each times the absolute value
    # of all that it is multiplied by afterwards: `(d_out,)`, or one number. Those of x W^T are not
    # counted.
    underflows: Array | float = 0.0
    peak: float = 0.0  # the largest intermediate number of dW's part of the output, per unit of |x|
    bias: Array | None = None  # b, `(d_out,)`
    one_hot: bool = False  # whether an input picks a row of W instead of being multiplied by it


def merging_of(name: str, layer: AdaptedLayer, names: Sequence[str]) -> LayerMerge:
    """Describe the merging of some active adapters of a layer, beside the other active ones."""
    active, merged = ([layer.adapters[n] for n in each] for each in (layer.active, names))
    bias = None if layer.bias is None else layer.bias._data
    one_hot = isinstance(layer, LoRAEmbedding)
    return merging_into(name, layer.weight, active, merged, bias=bias, one_hot=one_hot)


def merging_into(
    name: str,
    weight: FrozenMatrix,
    active: Sequence[Adapter],
    merged: Sequence[Adapter],
    *,
    bias: Array | None = None,
    one_hot: bool = False,
) -> LayerMerge:
    """Describe the merging of some of the active adapters into a weight, without a layer around it.

    The weight of an embedding (`one_hot`) is its transposed table.
    """

    def base(rows: slice) -> Array:
        return weight.rows(slice(None), rows).T if one_hot else weight.rows(rows)

    ratios = [adapter.exact_ratio(weight) for adapter in merged]

    def update(rows: slice) -> Array:
        block = (slice(None), rows) if one_hot else (rows, slice(None))
        with np.errstate(all="ignore"):  # the certificate reports overflow
            pairs = zip(merged, ratios, strict=True)
            parts = [adapter.update(weight, *block, ratio) for adapter, ratio in pairs]
            total: Array = sum(parts[1:], parts[0])
        return total.T if one_hot else total

    options: Any = {"name": name, "base": base, "update": update, "bias": bias}
    # Each adapter as if it were LoRA, and the only one.
    parts = [_with_lora(adapter, one_hot, **options) for adapter in active]
    found = parts[0] if len(parts) == 1 else _summed(parts, active)
    if any(adapter.lora_magnitude is not None for adapter in active):
        found = _with_dora(found, weight, active)
    return found


def _with_lora(adapter: Adapter, one_hot: bool, *, name: str, **options: Any) -> LayerMerge:
    """Describe dW = s B A, where the layer computes x W^T + b + s (x A^T) B^T unless merged.

    Of a table, A is the transpose of the adapter's B, and B that of its A. A TypeError is raised if
    the dtype is not float16, float32 or float64.
    """
    a, b = adapter.exact_factors()
    a, b = (b.T, a.T) if one_hot else (a, b)
    own, wide, s = adapter.lora_a.dtype, np.dtype(np.float64), abs(adapter.scale)
    if own not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{label_of(name)}: layers of float16, float32 and float64 can be certified, not of "
            f"{own}"
        )
    rank, d_in = a.shape
    with np.errstate(all="ignore"):  # the certificate reports overflow
        sizes = np.abs(a).max(axis=1) if one_hot else norms(a)
        spread = upper(s * (np.abs(b) @ sizes), rank + d_in)
        lost = least_of(wide) * (s * rank + 1) * (1 if one_hot else math.sqrt(d_in))
        strength = np.abs(b).sum(axis=1)
        if s < float(np.finfo(own).tiny):  # s itself has few digits in the dtype of the layer
            lost = lost + least_of(own) * (np.abs(b) @ sizes)
        after = sizes.sum() if one_hot else (s * d_in + 1) * strength
        ahead = np.abs(b) if one_hot else sizes
        peak = float(upper(max(1.0, s) * np.max(ahead, initial=0.0), d_in))
    return LayerMerge(
        name=name,
        shape=(len(b), d_in),
        dtype=own,
        update_error=gamma(rank + 2, wide) * spread + lost,
        spread=spread,
        roundings=(0 if one_hot else d_in) + rank + BESIDES,
        underflows=upper(rank + after, rank),
        peak=peak if s <= float(np.finfo(own).max) else math.inf,
        one_hot=one_hot,
        **options,
    )


def _summed(parts: Sequence[LayerMerge], adapters: Sequence[Adapter]) -> LayerMerge:
    """Describe the sum of several adapters, which a layer computes as one product of all ranks.

    There each B is multiplied by its s. What that loses below the least normal number is multiplied
    by x A^T.
    """
    first = parts[0]
    spread = np.sum([part.spread for part in parts], axis=0)
    error: Any = sum(part.update_error for part in parts)
    error = error + gamma(len(parts), np.dtype(np.float64)) * spread
    peak = max(part.peak for part in parts)
    for adapter in adapters:
        a, b = map(np.abs, adapter.exact_factors())
        error = error + least_of(first.dtype) * (a.sum(axis=0) if first.one_hot else norms(a).sum())
        if abs(adapter.scale) * b.max(initial=0.0) > np.finfo(first.dtype).max:
            peak = math.inf
    return replace(
        first,
        update_error=upper(error, len(parts)),
        spread=upper(spread, len(parts)),
        roundings=first.roundings + sum(adapter.update_rank for adapter in adapters[1:]),
        underflows=upper(sum(part.underflows for part in parts), len(parts)),
        peak=peak,
    )


def _with_dora(plain: LayerMerge, weight: FrozenMatrix, adapters: Sequence[Adapter]) -> LayerMerge:
    """Describe adapters of which some are DoRA: their factor m / n is as exact as n.

    n^2 is a sum whose terms are as large as T = (|w| + |s| sum |b_k| |a_k|)^2, computed in the
    dtype of the layer; so m / n is off by gamma T / n^2, and an output of at most n |x| by
    gamma (m / n) (T / n) |x|. If n^2 is off by a share e < 1/2 besides, 1 / n is off by less than
    2 e of it.
    """
    size = np.sqrt(weight.squares())
    alone = len(adapters) == 1
    total, largest, peak = (np.zeros_like(size) if alone else size), 1.0, plain.peak
    lost, finfo = 0.0, np.finfo(plain.dtype)
    projected = least_of(np.promote_types(plain.dtype, np.float32))  # W A^T is computed in these
    for adapter in adapters:
        a, b = adapter.exact_factors()
        own = abs(adapter.scale) * (np.abs(b) @ norms(a))
        if adapter.lora_magnitude is None:
            total = total + own
            continue
        with np.errstate(over="ignore"):
            n = adapter.norms(weight).astype(np.float64)
        ratio = np.abs(adapter.lora_magnitude._data) / n
        # What W A^T loses in n^2 below the least normal number, as a share of n^2.
        lost_squares = 2 * abs(adapter.scale) * np.abs(b).sum(axis=1) * weight.shape[1] * projected
        share = np.where(size > 0, lost_squares, 0.0) / np.square(n)
        lost += float((ratio * (size + own) * 2 * share).max()) if share.max() < 0.5 else math.inf
        peak = max(peak, float((size + own).max()))
        if not (np.isfinite(n) & (ratio <= finfo.max)).all():
            peak = math.inf
        if ratio.min() < finfo.tiny:  # a subnormal number has few digits
            lost += least_of(plain.dtype) * float((size + own).max())
        total = total + ratio * (size + own) * (2 + (size + own) / n)
        total = total if alone else total + size
        largest = max(largest, float(ratio.max()))
    d_in, rank = weight.shape[1], sum(adapter.update_rank for adapter in adapters)
    roundings = d_in + rank + BESIDES * (len(adapters) + 1)
    spread = upper(np.maximum(total - size, 0.0), d_in + rank)
    if plain.one_hot:  # no element of a column is larger than the norms of its rows
        spread = np.full(plain.shape[0], float(spread.max()))
    wide = gamma(2 * roundings, np.dtype(np.float64))
    return replace(
        plain,
        spread=spread,
        roundings=roundings,
        update_error=wide * (spread + float(size.max())) + largest * plain.update_error + lost,
        underflows=largest * (plain.underflows + d_in + 2),
        peak=max(peak, largest * float((total + size).max())),
    )
