"""LayerUpdate: how large the update of each layer of a model is, and in how many directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted import AdaptedLayer
from lora.adapter import joined
from lora.attachment.record import adapted_layers
from lora.factors import singular_values
from lora.spectrum import Spectral
from minigrad.core.grad_mode import no_grad
from minigrad.nn import Module
from minigrad.progress import progress_bar


@dataclass(frozen=True)
class LayerUpdate(Spectral):
    """The update dW of one layer.

    Attributes:
        name: of the layer.
        rank: that dW can have at most: that of B A, and with DoRA any.
        singular_values: of dW, descending, as many as the rank.
        base_norm: the Frobenius norm of W.
    """

    name: str
    rank: int
    singular_values: tuple[float, ...]
    base_norm: float

    @property
    def share(self) -> float:
        """|dW| / |W|; nan for W = 0."""
        return self.norm / self.base_norm if self.base_norm else math.nan


def updates(model: Module, adapter: str | None = None) -> list[LayerUpdate]:
    """Describe the update of each layer that an adapter changes.

    That of LoRA is never formed. DoRA changes every row by a factor, which has any rank: its update
    is formed whole.

    Args:
        model: with adapters.
        adapter: its name; None for the sum of all that are active.

    Raises:
        TypeError: if the model is no Module.
        ValueError: if it has no adapters, none of this name, or none that is active; or there is
            NaN or Inf in one.
    """
    layers = progress_bar(chosen(model, adapter), what="singular values", unit="layer", shown=True)
    return [_described(name, layer, names) for name, layer, names in layers]


def chosen(model: Module, adapter: str | None) -> list[tuple[str, AdaptedLayer, tuple[str, ...]]]:
    """The layers that are changed, each with its name and the names of its adapters.

    Raises:
        TypeError: as `updates`.
        ValueError: as `updates`.
    """
    layers = adapted_layers(model)
    if adapter is None:
        found = [(name, layer, layer.active) for name, layer in layers if layer.active]
    else:
        found = [(name, layer, (adapter,)) for name, layer in layers if adapter in layer.adapters]
    if not found:
        there = dict.fromkeys(name for _, layer in layers for name in layer.adapters)
        wanted = "no adapter is active" if adapter is None else f"there is no adapter {adapter!r}"
        raise ValueError(f"{wanted}; the model has {', '.join(map(repr, there))}")
    return found


def _described(name: str, layer: AdaptedLayer, names: tuple[str, ...]) -> LayerUpdate:
    adapters = [layer.adapters[each] for each in names]
    if any(adapter.lora_magnitude is not None for adapter in adapters):
        update = layer.update_rows(slice(None), names)
        rank = min(update.shape)
        finite = bool(np.isfinite(update).all())
        values = np.linalg.svd(update, compute_uv=False) if finite else np.array([math.nan])
    else:
        with no_grad():
            factor_a, factor_b, scale = joined(adapters)
        a, b = (factor._data.astype(np.float64) for factor in (factor_a, factor_b))
        rank = min(len(a), *layer.weight.shape)
        values = abs(scale) * singular_values(a, b)
    check_finite(name, values)
    base_norm = math.sqrt(layer.weight.squares().sum())
    return LayerUpdate(name or type(layer).__name__, rank, tuple(values.tolist()), base_norm)


def check_finite(name: str, *parts: NDArray[Any]) -> None:
    """Refuse an update of which nothing can be said or drawn.

    Raises:
        ValueError: if there is NaN or Inf in one of these parts of it.
    """
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(
            f"the update of {name or 'the layer'} has NaN or Inf; train it inside of "
            f"minigrad.detect_anomaly() to see where that begins"
        )
