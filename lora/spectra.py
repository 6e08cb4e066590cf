"""Spectra: the singular values of an update, its effective rank, and the best low-rank factors.

    M = U S V^T   ->   B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T

B A is the nearest to M of all matrices of rank r in the Frobenius norm, and its distance is the
root of the sum of squares of the singular values that are left out (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted_layer import AdaptedLayer
from lora.adapter import joined
from lora.attachment.state import adapted_layers
from minigrad.core.grad_mode import no_grad
from minigrad.nn import Module
from minigrad.progress import progress_bar

Array = NDArray[Any]


@dataclass(frozen=True)
class Approximation:
    """The product B A that approximates a matrix M, `(d_out, d_in)`, in float64.

    Attributes:
        a: A, `(rank, d_in)`.
        b: B, `(d_out, rank)`.
        error: the Frobenius norm of M - B A.
        norm: the Frobenius norm of M.
    """

    a: Array
    b: Array
    error: float
    norm: float

    @property
    def relative_error(self) -> float:
        """The error as a share of the norm; 0 for M = 0."""
        return self.error / self.norm if self.norm else 0.0

    @property
    def energy(self) -> float:
        """The share of the squared norm of M that B A has."""
        return 1 - self.relative_error**2

    @classmethod
    def of_matrix(cls, m: Array, rank: int) -> Approximation:
        """Approximate M, at no more than the rank it can have."""
        return cls.of_decomposition(*np.linalg.svd(m, full_matrices=False), rank)

    @classmethod
    def of_product(cls, a: Array, b: Array, rank: int) -> Approximation:
        """Approximate B A without forming it: its factors are rotated to a core of their rank."""
        (left, upper), (right, lower) = np.linalg.qr(b), np.linalg.qr(a.T)
        u, s, vt = np.linalg.svd(upper @ lower.T, full_matrices=False)
        return cls.of_decomposition(left @ u, s, vt @ right.T, rank)

    @classmethod
    def of_decomposition(cls, u: Array, s: Array, vt: Array, rank: int) -> Approximation:
        """Approximate U S V^T, with S in descending order."""
        root = np.sqrt(s[:rank])
        # hypot, since the square of a small number may be 0, and that of a large one infinite.
        error, norm = math.hypot(*s[rank:]), math.hypot(*s)
        return cls(root[:, None] * vt[:rank], u[:, :rank] * root, error, norm)


def singular_values(a: Array, b: Array) -> Array:
    """Compute the singular values of B A, descending, as many as its rank can be.

    They are NaN if there is NaN or Inf in A or B.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(len(a), np.nan)
    (_, upper), (_, lower) = np.linalg.qr(b), np.linalg.qr(a.T)
    found: Array = np.linalg.svd(upper @ lower.T, compute_uv=False)
    return found


class Spectral:
    """Base of descriptions of an update dW that have these attributes.

    Attributes:
        name: of the layer.
        rank: the largest rank that dW can have.
        singular_values: of dW, descending; the ones that are left out are 0.
    """

    name: str
    rank: int
    singular_values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The Frobenius norm of dW."""
        return math.hypot(*self.singular_values)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values as shares of their sum: from 1 to the rank.

        0 for an update of 0 (Roy and Vetterli, The effective rank, 2007).
        """
        total = math.fsum(self.singular_values)
        if not total or not math.isfinite(total):
            return 0.0 if not total else math.nan
        shares = [value / total for value in self.singular_values if value]
        return math.exp(-math.fsum(share * math.log(share) for share in shares))


@dataclass(frozen=True)
class LayerUpdate(Spectral):
    """The update dW of one layer: what `Spectral` has, and `base_norm`, the Frobenius norm of W.

    Its rank is that of B A, or with DoRA the largest there is; there are as many singular values.
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

    The update of LoRA is never formed. DoRA changes every row by a factor, which can give dW any
    rank, so it is formed.

    Args:
        model: with adapters.
        adapter: its name; None for the sum of all that are active.

    Raises:
        TypeError: if the model is no Module.
        ValueError: if it has no adapters, none of this name, or none that is active; or there is
            NaN or Inf in one.
    """
    layers, found = changed_layers(model, adapter), []
    bar = progress_bar(layers, what="singular values", unit="layer", shown=True)
    for name, layer, names in bar:
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
        label, norm = name or type(layer).__name__, math.sqrt(layer.weight.squares().sum())
        found.append(LayerUpdate(label, rank, tuple(values.tolist()), norm))
    return found


def changed_layers(
    model: Module, adapter: str | None
) -> list[tuple[str, AdaptedLayer, tuple[str, ...]]]:
    """List the layers that are changed, each with its name and the names of its adapters.

    Raises the errors of `updates`, but for NaN and Inf.
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


def check_finite(name: str, *parts: Array) -> None:
    """Raise a ValueError if there is NaN or Inf in one of these parts of a layer's update."""
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(
            f"the update of {name or 'the layer'} has NaN or Inf; train it inside of "
            f"minigrad.detect_anomaly() to see where that begins"
        )
