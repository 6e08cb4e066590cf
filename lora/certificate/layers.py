"""LayerMerge: one layer whose weight will be merged, and bounds on its rounding errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer, check_mergeable
from lora.adapter import Adapter
from lora.certificate.rounding import gamma, least_of, norms, upper
from lora.embedding import LoRAEmbedding
from lora.frozen import Array, FrozenMatrix

Rows = Callable[[slice], Array]

# Roundings of a term outside of its sums: s and the product with s (or s B, for several adapters),
# two for a quantised W, the bias, and the final additions.
OTHER_ROUNDINGS = 8


@dataclass(frozen=True)
class LayerMerge:
    """A layer whose weight W will become W + dW.

    The merged weight is `base(rows) + update(rows)`, added in float64 and rounded once, to its
    storage dtype. Without a merge, the layer computes x W^T + b and the update in its own dtype.

    A table of vectors (an embedding) is given as it is stored: W is `(count, d)`, and an input
    selects a row. With `one_hot`, a norm below is the largest absolute value of a row, and "per
    unit of |x|" means per element.
    """

    name: str  # the name of the layer
    shape: tuple[int, int]  # the shape of W, `(d_out, d_in)`
    dtype: np.dtype[Any]  # the dtype in which the layer computes without a merge
    base: Rows  # returns some rows of W in float64
    update: Rows  # returns some rows of dW in float64, as merging computes them
    # A bound on the norm of the rounding error of each row of dW, `(d_out,)`, or one number.
    update_error: Array | float
    # For each output, the sum of the absolute values of the terms that the update adds, per unit of
    # |x|: `(d_out,)`. Terms of x W^T are not included.
    spread: Array
    roundings: int  # the largest number of roundings of any term of x W^T, the bias and dW
    # For each output, the products of the update that may underflow: each counts as the absolute
    # value of the numbers that it is multiplied by later: `(d_out,)`, or one number. Products of
    # x W^T are not included.
    underflows: Array | float = 0.0
    peak: float = 0.0  # the largest intermediate number of the update, per unit of |x|
    bias: Array | None = None  # b, `(d_out,)`
    one_hot: bool = False  # whether an input selects a row of W instead of multiplying W


def merging_of(name: str, layer: AdaptedLayer, names: Sequence[str]) -> LayerMerge:
    """Describe the merge of some active adapters of a layer; the others stay unmerged.

    A TypeError is raised if the layer's dtype is not float16, float32 or float64, and a ValueError
    if it is a grouped convolution.
    """
    check_mergeable({name: layer})
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
    """Describe the merge of some of the active adapters into a weight, such as one in a file.

    The weight of an embedding (`one_hot`) is its transposed table. `active` are all adapters that
    the layer computes with before the merge, and `merged` at least one of them. A TypeError is
    raised if the dtype of an adapter is not float16, float32 or float64.
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
    # Describe each adapter as if it were plain LoRA and the only adapter; then correct for both.
    parts = [_with_lora(adapter, one_hot, **options) for adapter in active]
    found = parts[0] if len(parts) == 1 else _summed(parts, active)
    if any(adapter.lora_magnitude is not None for adapter in active):
        found = _with_dora(found, weight, active)
    return found


def _with_lora(adapter: Adapter, one_hot: bool, *, name: str, **options: Any) -> LayerMerge:
    """Describe dW = s B A, where the layer computes x W^T + b + s (x A^T) B^T unless merged.

    For a table, A below is the transpose of the adapter's B, and B the transpose of its A.
    """
    a, b = adapter.exact_factors()
    a, b = (b.T, a.T) if one_hot else (a, b)
    own, wide, s = adapter.lora_a.dtype, np.dtype(np.float64), abs(adapter.scale)
    if own not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{name or 'the layer'}: layers of float16, float32 and float64 can be certified, not "
            f"of {own}"
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
        roundings=(0 if one_hot else d_in) + rank + OTHER_ROUNDINGS,
        underflows=upper(rank + after, rank),
        peak=peak if s <= float(np.finfo(own).max) else math.inf,
        one_hot=one_hot,
        **options,
    )


def _summed(parts: Sequence[LayerMerge], adapters: Sequence[Adapter]) -> LayerMerge:
    """Describe the sum of several adapters, which a layer computes as one product of all ranks.

    In this product each B is multiplied by its s first. If s B underflows, x A^T multiplies the
    error.
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
    """Describe adapters some of which are DoRA, whose factor m / n has the rounding error of n.

    n^2 is a sum whose terms are at most T = (|w| + |s| sum |b_k| |a_k|)^2, computed in the dtype of
    the layer. So the relative error of m / n is gamma T / n^2, and the error of an output of at
    most n |x| is gamma (m / n) (T / n) |x|. If n^2 also has a relative error e < 1/2, the relative
    error of 1 / n is less than 2 e.
    """
    size = np.sqrt(weight.squares())
    alone = len(adapters) == 1
    total, largest, peak = (np.zeros_like(size) if alone else size), 1.0, plain.peak
    lost, finfo = 0.0, np.finfo(plain.dtype)
    projected = least_of(np.promote_types(plain.dtype, np.float32))  # the dtype of W A^T
    for adapter in adapters:
        a, b = adapter.exact_factors()
        own = abs(adapter.scale) * (np.abs(b) @ norms(a))
        summed = size + own
        if adapter.lora_magnitude is None:
            total = total + own
            continue
        with np.errstate(over="ignore"):
            n = adapter.norms(weight).astype(np.float64)
        ratio = np.abs(adapter.lora_magnitude._data) / n
        # The error of n^2 from underflow in W A^T, as a share of n^2.
        lost_squares = 2 * abs(adapter.scale) * np.abs(b).sum(axis=1) * weight.shape[1] * projected
        share = np.where(size > 0, lost_squares, 0.0) / np.square(n)
        lost += float((ratio * summed * 2 * share).max()) if share.max() < 0.5 else math.inf
        peak = max(peak, float(summed.max()))
        if not (np.isfinite(n) & (ratio <= finfo.max)).all():
            peak = math.inf
        if ratio.min() < finfo.tiny:  # a subnormal number has few digits
            lost += least_of(plain.dtype) * float(summed.max())
        total = total + ratio * summed * (2 + summed / n)
        total = total if alone else total + size
        largest = max(largest, float(ratio.max()))
    d_in, rank = weight.shape[1], sum(adapter.update_rank for adapter in adapters)
    roundings = d_in + rank + OTHER_ROUNDINGS * (len(adapters) + 1)
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
