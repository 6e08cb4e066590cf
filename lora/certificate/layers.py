"""A layer with adapters as the certificate sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora.adapted import AdaptedLayer
from lora.adapter import Adapter
from lora.certificate.merging import Array, Merging, gamma, norms, upper
from lora.embedding import LoRAEmbedding

_FEW = 8  # roundings for each adapter besides those of its sums


def merging_of(name: str, layer: AdaptedLayer, names: Sequence[str]) -> Merging:
    """What merging these adapters of a layer does to it, beside the others that are active.

    Args:
        name: of the layer in its model.
        layer: not changed.
        names: of active adapters.
    """
    merged = [layer.adapters[adapter] for adapter in names]
    active = [layer.adapters[adapter] for adapter in layer.active]
    plain = _low_rank(name, layer, active)
    if any(adapter.lora_magnitude is not None for adapter in active):
        plain = _with_dora(plain, layer, active)
    if len(merged) == len(active) and all(a.lora_magnitude is None for a in active):
        return plain
    ratios = {id(adapter): adapter.exact_ratio(layer.weight) for adapter in merged}

    def update(rows: slice) -> Array:
        parts = [
            adapter.update(layer.weight, slice(None), rows, ratios[id(adapter)]).T
            if isinstance(layer, LoRAEmbedding)
            else adapter.update(layer.weight, rows, slice(None), ratios[id(adapter)])
            for adapter in merged
        ]
        return sum(parts[1:], parts[0])

    return replace(plain, update=update)


def _low_rank(name: str, layer: AdaptedLayer, adapters: Sequence[Adapter]) -> Merging:
    """As if all were plain updates: they are one of all their ranks."""
    pairs = [[part._data.astype(np.float64) for part in a.factors()] for a in adapters]
    a = np.concatenate([a for a, _ in pairs])
    b = np.concatenate(
        [adapter.scale * b for adapter, (_, b) in zip(adapters, pairs, strict=True)], axis=1
    )
    dtype = adapters[0].lora_a.dtype
    if isinstance(layer, LoRAEmbedding):
        table = layer.base_weight._data

        def looked_up(rows: slice) -> Array:
            found: Array = table[rows].astype(np.float64)
            return found

        return Merging.low_rank(name, looked_up, b.T, a.T, 1.0, dtype=dtype, one_hot=True)
    bias = None if layer.bias is None else layer.bias._data
    return Merging.low_rank(name, layer.weight.rows, a, b, 1.0, dtype=dtype, bias=bias)


def _with_dora(plain: Merging, layer: AdaptedLayer, adapters: Sequence[Adapter]) -> Merging:
    """With m / n as a factor of some, which is as exact as n.

    n^2 is a sum whose terms are as large as T = (|w| + |s| sum |b_k| |a_k|)^2, computed in the
    dtype of the layer; so m / n is off by gamma T / n^2, and an output of at most n |x| by
    gamma (m / n) (T / n) |x|.
    """
    weight = layer.weight
    size = np.sqrt(weight.squares())
    alone = len(adapters) == 1
    total, largest = (np.zeros_like(size) if alone else size), 1.0
    for adapter in adapters:
        a, b = (part._data.astype(np.float64) for part in adapter.factors())
        own = abs(adapter.scale) * (np.abs(b) @ norms(a))
        if adapter.lora_magnitude is None:
            total = total + own
            continue
        n = adapter.norms(weight).astype(np.float64)
        ratio = np.abs(adapter.lora_magnitude._data) / n
        total = total + ratio * (size + own) * (2 + (size + own) / n)
        total = total if alone else total + size
        largest = max(largest, float(ratio.max()))
    d_in = weight.shape[1]
    rank = sum(part._data.shape[0] for adapter in adapters for part in adapter.factors()[:1])
    roundings = d_in + rank + _FEW * (len(adapters) + 1)
    spread = upper(np.maximum(total - size, 0.0), d_in + rank)
    if plain.one_hot:  # no element of a column is larger than the norms of its rows
        spread = np.full(plain.shape[0], float(spread.max(initial=0.0)))
    wide = gamma(2 * roundings, np.dtype(np.float64))
    return replace(
        plain,
        spread=spread,
        roundings=roundings,
        update_error=wide * (spread + float(size.max(initial=0.0))) + plain.update_error,
        underflows=largest * (plain.underflows + d_in + 2),
        peak=max(plain.peak, largest * float((total + size).max(initial=0.0))),
    )
