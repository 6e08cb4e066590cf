"""Weighted sums of adapters: a sum of adapters is an adapter again.

    dW = w_1 dW_1 + w_2 dW_2 + ...        dW_i = s_i B_i A_i

The sum is one product B A: A stacks A_1, A_2, ... below each other, and B stacks w_1 B_1, w_2 B_2,
... next to each other. So the sum is exact, and its rank is the sum of the ranks. It can also be
reduced to a smaller rank, with the least possible error (`lora.spectra`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter, check_names, stacked
from lora.attaching import deactivate
from lora.attachment import state
from lora.attachment.state import Attached, Attachment, FullCopy
from lora.frozen import copy_for_adapter
from lora.scaling import LoRAScaling, check_finite, check_size, limit_of_rank
from lora.spectra import Approximation
from minigrad.errors import named_errors
from minigrad.kernels.start import interrupts_held_back
from minigrad.nn import Module
from minigrad.tables import aligned

_COPY = "copy"


@dataclass(frozen=True)
class Combined:
    """The weighted sum in one layer.

    Attributes:
        name: the name of the layer.
        rank: the rank of the new adapter.
        ranks: the ranks of the terms; 2 r for PiSSA, whose update is a difference.
        error: the Frobenius norm of the part that the reduced rank leaves out.
        relative_error: the same as a share of the norm of the sum; 0 if the sum is 0.
        note: a remark, such as "copy".
    """

    name: str
    rank: int
    ranks: tuple[int, ...]
    error: float = 0.0
    relative_error: float = 0.0
    note: str = ""


@dataclass(frozen=True, repr=False)
class CombineReport:
    """The report of `combine`: a line for each layer, and the sum.

    Attributes:
        layers: the layers of the new adapter.
        copies: the parameters and buffers that the new adapter has in full.
        adapter: the name of the new adapter.
        terms: the names of the adapters in the sum, with their weights.
    """

    layers: tuple[Combined, ...]
    copies: tuple[FullCopy, ...]
    adapter: str
    terms: tuple[tuple[str, float], ...]

    def __repr__(self) -> str:
        head = ("layer", "rank", "ranks of the terms", "error", "relative", "")
        rows = []
        for row in self.layers:
            ranks = " + ".join(map(str, row.ranks)) or "none"
            errors = f"{row.error:.3g}", f"{row.relative_error:.3g}"
            rows.append((row.name, str(row.rank), ranks, *errors, row.note))
        rows += [(copy.name, "", "", "", "", "in full") for copy in self.copies]
        total = " + ".join(f"{weight:g} {name}" for name, weight in self.terms)
        return "\n".join([*aligned(head, rows), f"{self.adapter} = {total}"])


@named_errors
def combine(
    model: Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter: str,
    *,
    rank: int | None = None,
) -> CombineReport:
    """Make a new adapter whose update in every layer is w_1 dW_1 + w_2 dW_2 + ...

    The new adapter is not active, as in PEFT, and nothing else changes. When `lora.switch` makes it
    active, all of its parameters train. The order of the terms does not change a single bit. An
    adapter that is named twice counts with the sum of its weights, and is left out if this sum is
    0. If no term is left, the update is zero, with rank 1 (in each group of a convolution).

    Each layer sums the adapters that it has. If only one adapter is left in a layer, with weight 1
    and no larger rank than allowed, the layer gets a copy of it, also of DoRA or PiSSA. Otherwise
    the result is plain LoRA. Its scale and its dropout are those of the terms if they agree (and
    the scale is positive), or else 1 and 0.

    Biases and modules that are trained in full, and the buffers of these modules, are theta_0 + w_1
    (theta_1 - theta_0) + ..., where theta_0 is the original of the model.

    Args:
        model: the model with the adapters.
        adapters: the names of the adapters to sum.
        weights: a number for each adapter.
        adapter: a name for the new adapter.
        rank: the largest rank of the new adapter, which is then the best approximation in each
            layer; None for the exact sum, whose rank is the sum of ranks. Both are rounded to the
            dtype of the layer, which the errors of the report do not include. In a grouped
            convolution, the groups share the rank equally.

    Raises:
        TypeError: if the model is not a Module, a name is not a string, a weight is not a number,
            or the rank is not an integer; or if the adapters or weights are not lists.
        ValueError: if an adapter is unknown, none is given, the numbers of adapters and weights
            differ, a weight is not finite, the new name is taken or malformed, or the rank is not
            positive or less than the groups of a convolution; if there is NaN or Inf in an adapter
            or would be in the result, or a running variance would be negative; or if an adapter is
            DoRA and would not just be copied.
        RuntimeError: inside of `lora.disabled`.

    After an error nothing is changed.
    """
    attachment = state.required_attachment(model)
    attachment.check_enabled("adapters cannot be combined")
    terms = _terms(attachment, adapters, weights)
    state.check_name(attachment, adapter)
    if rank is not None:
        rank = check_size("rank", rank)
    layers = state.attached_layers(model, attachment)
    copies = _combined_copies(attachment, terms)
    updates: dict[str, Adapter] = {}
    rows = []
    for path, layer in layers.items():
        if present := [name for name in terms if path in attachment.adapters[name].layers]:
            own = {name: layer.adapters[name] for name in present}
            try:
                updates[path], row = _sum(path, layer, own, terms, rank)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            rows.append(row)
    is_copy = list(terms.values()) == [1.0] and all(row.note == _COPY for row in rows)
    config = attachment.adapters[next(iter(terms))].config if is_copy else None
    with interrupts_held_back():
        for path, update in updates.items():
            layers[path].add(adapter, update)
        attachment.adapters[adapter] = Attached(config, list(updates), copies)
        deactivate(attachment, adapter)
        attachment.swap_in(model, attachment.active)
    return CombineReport(tuple(rows), tuple(copies), adapter, tuple(terms.items()))


def _terms(attachment: Attachment, adapters: Any, weights: Any) -> dict[str, float]:
    """Return the total weight of each adapter, by sorted names; only all zeros stay as zeros."""
    if isinstance(adapters, str) or not isinstance(adapters, Sequence):
        raise TypeError(f"adapters are a list of names, as in ['a', 'b'], not {adapters!r:.60}")
    if not isinstance(weights, Iterable):
        raise TypeError(f"weights are a list with a number for each adapter, not {weights!r}")
    weights = list(weights)
    if not adapters:
        raise ValueError(
            f"there are no adapters to combine; the model has {list(attachment.adapters)}"
        )
    if len(adapters) != len(weights):
        raise ValueError(
            f"{len(adapters)} adapters and {len(weights)} weights; each adapter needs one"
        )
    found: dict[str, list[float]] = {}
    for name, weight in zip(adapters, weights, strict=True):
        check_names([name], attachment.adapters)
        found.setdefault(name, []).append(check_finite(f"the weight of {name!r}", weight))
    # fsum rounds once, and the names are sorted, so the order of the terms has no influence.
    try:
        totals = {name: math.fsum(found[name]) for name in sorted(found)}
    except OverflowError:
        raise ValueError(f"the sum of the weights of an adapter is not finite: {found}") from None
    return {name: total for name, total in totals.items() if total} or totals


def _sum(
    path: str,
    layer: AdaptedLayer,
    adapters: Mapping[str, Adapter],
    factors: Mapping[str, float],
    rank: int | None,
) -> tuple[Adapter, Combined]:
    """Compute the weighted sum of adapters in one layer, and its line in the report."""
    for name, adapter in adapters.items():
        if broken := [key for key, part in adapter.contents() if not np.isfinite(part._data).all()]:
            raise ValueError(
                f"{', '.join(broken)} of adapter {name!r} has NaN or Inf in it, and so would "
                f"the sum; mend it first, or leave that adapter out"
            )
    terms = [(factors[name], adapter) for name, adapter in adapters.items()]
    factor, first = terms[0]
    weight, groups = layer.weight, layer.weight.groups
    if rank is not None and rank < groups:
        raise ValueError(
            f"rank {rank} is too small for a convolution of {groups} groups, which need a rank of "
            f"1 each; give a rank of at least {groups}, or none for the exact sum"
        )
    if factor == 0:
        a, b = first.lora_a._data[:: first.rank // groups], first.lora_b._data[:, :1]
        # Either A or B is zero, but not both: with both, their gradients would stay zero.
        a, b = (a, np.zeros_like(b)) if a.any() else (a, b)
        return Adapter.of(weight, a, b, 1.0), Combined(path, groups, (), note="zero")
    ranks = tuple(adapter.update_rank for _, adapter in terms)
    if len(terms) == 1 and factor == 1 and (rank is None or ranks[0] <= rank):
        made = first.copy()
        return made, Combined(path, made.rank, ranks, note=_COPY)
    if dora := [n for n, adapter in adapters.items() if adapter.lora_magnitude is not None]:
        raise ValueError(
            f"adapter {', '.join(map(repr, dora))} is DoRA, whose update diag(m / n) (W + s B A) - "
            f"W has no low rank, so a sum with others, a multiple or a lower rank of it cannot be "
            f"an adapter exactly. Merge instead, and approximate: lora.fold a copy of the model "
            f"with these adapters active, and lora.extract from that and the base"
        )
    modes = {adapter.scaling for adapter in adapters.values()}
    drops = {adapter.dropout for adapter in adapters.values()}
    # One product has one scale: the common scale of the terms, or 1.
    scales = {adapter.scale for adapter in adapters.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    scale = scale if scale > 0 else 1.0
    pairs = [adapter.exact_factors() for _, adapter in terms]
    with np.errstate(over="ignore"):
        shares = [factor * (adapter.scale / scale) for factor, adapter in terms]
        scaled = [(a, share * b) for share, (a, b) in zip(shares, pairs, strict=True)]
        in_range = all(np.isfinite(b.astype(weight.dtype)).all() for _, b in scaled)
    a, b = stacked(scaled, groups)
    notes = ["no dropout, because the terms have different ones"] if len(drops) > 1 else []
    error = relative = 0.0
    most, formula = limit_of_rank(layer.d_out, layer.d_in, groups)
    if rank is not None and len(a) > rank and in_range:  # otherwise the sum is refused below
        best = Approximation.of_product(a, b, min(rank, most), groups)
        a, b, error = best.a, best.b, scale * best.error
        relative = best.relative_error
    elif len(a) > most:
        notes.append(f"rank above {formula}")
    options: dict[str, Any] = {
        "scaling": modes.pop() if len(modes) == 1 else LoRAScaling.STANDARD,
        "dropout": drops.pop() if len(drops) == 1 else 0.0,
    }
    made = Adapter.of(weight, a, b, scale, rng=first.rng, **options)
    if not all(np.isfinite(part._data).all() for part in made.trained()):
        raise ValueError(
            f"the sum is too large for {weight.dtype}; take smaller weights, or a float64 model"
        )
    return made, Combined(path, made.rank, ranks, error, relative, ", ".join(notes))


def _combined_copies(attachment: Attachment, terms: Mapping[str, float]) -> list[FullCopy]:
    """Compute the parameters and buffers in full: theta_0 + w_1 (theta_1 - theta_0) + ..."""
    copies: dict[int, list[tuple[float, FullCopy]]] = {}  # by the id of the original
    for name, weight in terms.items():
        for copy in attachment.adapters[name].copies:
            copies.setdefault(id(copy.original), []).append((weight, copy))
    found = []
    for listed in copies.values():
        copy, own = listed[0][1], [(weight, each.own._data) for weight, each in listed]
        if len(own) == 1 and own[0][0] == 1:
            moved = own[0][1]
        else:
            first = copy.original._data.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                total = sum((weight * (value - first) for weight, value in own), first)
                is_count = copy.original.dtype.kind != "f"  # a buffer that counts batches
                moved = (np.rint(total) if is_count else total).astype(copy.original.dtype)
        if not np.isfinite(moved).all():
            raise ValueError(
                f"{copy.name}, which is trained in full, would have NaN or Inf in it; mend the "
                f"adapters, or take smaller weights"
            )
        if copy.name.split(".")[-1] == "running_var" and (moved < 0).any():
            raise ValueError(
                f"{copy.name} would be below 0, which no variance is; take weights from 0 to 1"
            )
        found.append(replace(copy, own=copy_for_adapter(copy.original, moved)))
    return found
