"""A layer with adapters as the certificate sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora.adapted import AdaptedLayer
from lora.adapter import Adapter
from lora.certificate.merging import BESIDES, Array, Merging, gamma, least_of, norms, upper
from lora.embedding import LoRAEmbedding
from lora.weight import Weight


def merging_of(name: str, layer: AdaptedLayer, names: Sequence[str]) -> Merging:
    """What merging these adapters of a layer does to it, beside the others that are active.

    Args:
        name: of the layer in its model.
        layer: not changed.
        names: of active adapters.
    """
    return merging_into(
        name,
        layer.weight,
        [layer.adapters[adapter] for adapter in layer.active],
        [layer.adapters[adapter] for adapter in names],
        bias=None if layer.bias is None else layer.bias._data,
        one_hot=isinstance(layer, LoRAEmbedding),
    )


def merging_into(
    name: str,
    weight: Weight,
    active: Sequence[Adapter],
    merged: Sequence[Adapter],
    *,
    bias: Array | None = None,
    one_hot: bool = False,
) -> Merging:
    """The same of a weight, however it is stored, without a layer around it.

    Args:
        name: of the layer.
        weight: W; of an embedding, the table transposed.
        active: the adapters that take part.
        merged: those of them that are to be merged.
        bias: b, or None.
        one_hot: whether it is an embedding.
    """
    parts = [_low_rank(name, weight, adapter, bias, one_hot) for adapter in active]
    found = _summed(parts, active)
    if any(adapter.lora_magnitude is not None for adapter in active):
        found = _with_dora(found, weight, active)
    ratios = [adapter.exact_ratio(weight) for adapter in merged]

    def update(rows: slice) -> Array:
        with np.errstate(all="ignore"):  # what overflows is told by the certificate
            parts = [
                adapter.update(weight, slice(None), rows, ratio).T
                if one_hot
                else adapter.update(weight, rows, slice(None), ratio)
                for adapter, ratio in zip(merged, ratios, strict=True)
            ]
            return sum(parts[1:], parts[0])

    return replace(found, update=update)


def _low_rank(
    name: str, weight: Weight, adapter: Adapter, bias: Array | None, one_hot: bool
) -> Merging:
    """As if the adapter were a plain update, and the only one."""
    a, b = (part._data.astype(np.float64) for part in adapter.factors())
    dtype, scale = adapter.lora_a.dtype, adapter.scale
    if not one_hot:
        return Merging.low_rank(name, weight.rows, a, b, scale, dtype=dtype, bias=bias)

    def looked_up(rows: slice) -> Array:
        return weight.rows(slice(None), rows).T

    return Merging.low_rank(name, looked_up, b.T, a.T, scale, dtype=dtype, one_hot=True)


def _summed(parts: Sequence[Merging], adapters: Sequence[Adapter]) -> Merging:
    """Of several at once. Plain ones may be one of all their ranks then, with each B times its s.

    What that product loses below the least normal number is multiplied by x A^T.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    spread = np.sum([part.spread for part in parts], axis=0)
    error: Any = sum(part.update_error for part in parts)
    error = error + gamma(len(parts), np.dtype(np.float64)) * spread
    peak = max(part.peak for part in parts)
    for adapter in adapters:
        a, b = (np.abs(part._data.astype(np.float64)) for part in adapter.factors())
        error = error + least_of(first.dtype) * (a.sum(axis=0) if first.one_hot else norms(a).sum())
        if abs(adapter.scale) * b.max(initial=0.0) > np.finfo(first.dtype).max:
            peak = math.inf
    ranks = sum(adapter.factors()[0].shape[0] for adapter in adapters[1:])
    return replace(
        first,
        update_error=upper(error, len(parts)),
        spread=upper(spread, len(parts)),
        roundings=first.roundings + ranks,
        underflows=upper(sum(part.underflows for part in parts), len(parts)),
        peak=peak,
    )


def _with_dora(plain: Merging, weight: Weight, adapters: Sequence[Adapter]) -> Merging:
    """With m / n as a factor of some, which is as exact as n.

    n^2 is a sum whose terms are as large as T = (|w| + |s| sum |b_k| |a_k|)^2, computed in the
    dtype of the layer; so m / n is off by gamma T / n^2, and an output of at most n |x| by
    gamma (m / n) (T / n) |x|.
    """
    size = np.sqrt(weight.squares())
    alone = len(adapters) == 1
    total, largest, peak = (np.zeros_like(size) if alone else size), 1.0, plain.peak
    lost, finfo = 0.0, np.finfo(plain.dtype)
    for adapter in adapters:
        a, b = (part._data.astype(np.float64) for part in adapter.factors())
        own = abs(adapter.scale) * (np.abs(b) @ norms(a))
        if adapter.lora_magnitude is None:
            total = total + own
            continue
        with np.errstate(over="ignore"):
            n = adapter.norms(weight).astype(np.float64)
        ratio = np.abs(adapter.lora_magnitude._data) / n
        peak = max(peak, float((size + own).max()))
        if not (np.isfinite(n) & (ratio <= finfo.max)).all():
            peak = math.inf
        if ratio.min() < finfo.tiny:  # it has few digits
            lost += least_of(plain.dtype) * float((size + own).max())
        total = total + ratio * (size + own) * (2 + (size + own) / n)
        total = total if alone else total + size
        largest = max(largest, float(ratio.max()))
    d_in = weight.shape[1]
    rank = sum(part._data.shape[0] for adapter in adapters for part in adapter.factors()[:1])
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
