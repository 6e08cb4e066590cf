"""Plots of LoRA updates: where in a model they are, how large, and in how many directions.

They need matplotlib, which is imported by the first plot.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import joined
from lora.attachment.state import adapted_layers
from lora.frozen import Array
from lora.spectra import Spectral, block_diagonal, singular_values
from minigrad.nn import Module
from minigrad.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minigrad.viz.figure import Picture

__all__ = ["plot_change", "plot_factors", "plot_singular_values"]

_MOST_LINES = 8  # of more lines, the legend names only the first and last
_MOST_CELLS = 400  # with more cells, no cell shows its number
_MOST_SHOWN = 400  # rows and columns of a matrix; a larger matrix is shown in blocks
_MARKERS = "os^Dv<>P"
_SMALLEST = 1e-9  # relative to the largest singular value; smaller ones are rounding errors


@dataclass(frozen=True)
class LayerUpdate(Spectral):
    """The update dW of one layer: as in `Spectral`, with `base_norm`, the Frobenius norm of W.

    The rank is the rank of B A. For DoRA it is min(d_out, d_in).
    """

    base_norm: float

    @property
    def share(self) -> float:
        """|dW| / |W|; nan for W = 0."""
        return self.norm / self.base_norm if self.base_norm else math.nan


def updates(model: Module, adapter: str | None = None) -> list[LayerUpdate]:
    """Describe the update of each layer by one adapter, or by the sum of all active ones.

    The update of LoRA is never formed. DoRA multiplies every row by a factor, so its dW can have
    any rank, and is formed.
    """
    layers, found = changed_layers(model, adapter), []
    bar = progress_bar(layers, what="singular values", unit="layer", shown=True)
    for name, layer, names in bar:
        adapters = [layer.adapters[each] for each in names]
        if any(adapter.lora_magnitude is not None for adapter in adapters):
            update = layer.update_rows(slice(None), names)
            check_update_is_finite(name, update)
            rank, values = min(update.shape), np.linalg.svd(update, compute_uv=False)
        else:
            *factors, scale = joined(adapters)
            a, b = (factor._data.astype(np.float64) for factor in factors)
            b = block_diagonal(b, layer.weight.groups)
            rank = min(len(a), layer.d_out, layer.d_in)
            values = abs(scale) * singular_values(a, b)
        check_update_is_finite(name, values)
        label, norm = name or type(layer).__name__, math.sqrt(layer.weight.squares().sum())
        found.append(LayerUpdate(label, rank, tuple(values.tolist()), norm))
    return found


def changed_layers(
    model: Module, adapter: str | None
) -> list[tuple[str, AdaptedLayer, tuple[str, ...]]]:
    """List the layers that the adapter, or any active one, changes: name, layer, adapters."""
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


def check_update_is_finite(name: str, *parts: Array) -> None:
    """Raise a ValueError if one of these parts of a layer's update has NaN or Inf."""
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(
            f"the update of {name or 'the layer'} has NaN or Inf; train it inside of "
            f"minigrad.detect_anomaly() to see where that begins"
        )


def plot_singular_values(
    model: Module, adapter: str | None = None, path: str | os.PathLike[str] | None = None
) -> Picture:
    """Plot the singular values of the update of each layer, and its effective rank.

    The left panel has a line for each layer. It ends at the rank, because the other singular values
    of B A are 0; dW of DoRA can have any rank. The right panel compares the effective rank of each
    layer with its rank. The effective rank is exp of the entropy of the singular values as shares
    of their sum (Roy and Vetterli, The effective rank, 2007).

    To see the same of a fully fine-tuned model, let `lora.extract` make an adapter of the
    difference, with a rank as large as the layers are wide.

    Args:
        model: a model with adapters.
        adapter: the name of an adapter; None for the sum of all active ones.
        path: the file to save the picture in, such as a PNG, SVG or PDF; None for no file.

    Raises:
        ImportError: without matplotlib.
        TypeError: if the model is not a Module.
        ValueError: if the model has no such adapter, no adapter is active, all updates are 0, an
            update has NaN or Inf, or the suffix of the path is not that of a picture.
        OSError: if the file cannot be written; a FileNotFoundError if its folder does not exist.
    """
    from minigrad.viz.figure import BLUE, Picture, name_rows, open_frame

    found = updates(model, adapter)
    if not any(update.norm for update in found):
        raise ValueError(
            "every update is 0, as before the first step, so there is nothing to draw; train first"
        )
    figure = Picture(11, 2.2 + 0.28 * min(max(len(found), 9), 60), path)
    spectra, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_spectra(spectra, found)
    positions = range(len(found))
    effective = [update.effective_rank for update in found]
    ranks = [update.rank for update in found]
    bars.barh(positions, ranks, color="white", edgecolor="0.5", label="rank, at most")
    bars.barh(positions, effective, color=BLUE, height=0.5, label="effective rank")
    for position, (rank, value) in enumerate(zip(ranks, effective, strict=True)):
        bars.text(rank + 0.02 * max(ranks), position, f"{value:.1f}", va="center")
    name_rows(bars.yaxis, [update.name for update in found])
    bars.set_title("Effective rank", loc="left")
    bars.set(xlabel="directions", xlim=(0, 1.12 * max(ranks)), ylim=(len(found) - 0.4, -0.6))
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    open_frame(spectra, bars)
    used = f"{np.mean(effective):.1f} of {np.mean(ranks):.3g} directions"
    figure.suptitle(f"The updates use {used}, on average", weight="bold")
    return figure.saved()


def draw_spectra(axes: Axes, found: Sequence[Spectral]) -> None:
    """Draw a line of singular values for each update, and mark the end of the largest rank.

    An update whose norm is not finite has no line; the legend says so. Of many updates, the legend
    names the first and the last.
    """
    from minigrad.viz.figure import SIZES, short_names, ticks_at_integers

    shades = SIZES(np.linspace(0, 0.8, len(found)))
    spectra = [update.singular_values if math.isfinite(update.norm) else () for update in found]
    top = max(map(max, filter(None, spectra)), default=0.0)
    for i, (update, spectrum, shade) in enumerate(zip(found, spectra, shades, strict=True)):
        values = [value for value in spectrum if value > _SMALLEST * top]
        look: Any = {"color": shade, "marker": _MARKERS[i % len(_MARKERS)], "markersize": 4}
        axes.plot(range(1, len(values) + 1), values, label=update.name, **look)
    rank = max(update.rank for update in found)
    axes.axvline(rank + 0.5, color="0.3", linestyle="--", linewidth=1)
    axes.text(rank + 0.5, 0.5, " rank", transform=axes.get_xaxis_transform())
    if top > 0:
        axes.set_yscale("log")
    ticks_at_integers(axes.xaxis)
    axes.set(xlabel="number of the singular value", ylabel="singular value of dW")
    axes.set_title("Singular values", loc="left")
    names = short_names([update.name for update in found])
    remarks = ["" if math.isfinite(update.norm) else ": not finite" for update in found]
    labelled = list(zip(axes.lines, map("".join, zip(names, remarks, strict=True)), strict=False))
    if len(labelled) > _MOST_LINES:
        labelled = [labelled[0], labelled[-1]]
    # loc="best" is the default too, but if it is given, matplotlib does not warn that it is slow.
    axes.legend(*zip(*labelled, strict=True), loc="best", frameon=False)


def plot_factors(
    model: Module,
    layer: str,
    adapter: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Picture:
    """Plot A, B and s B A of one layer as heat maps, arranged as in the product.

    B is at the left of s B A, and A above it. Each matrix has its own colour scale, from minus to
    plus its largest absolute value. If a matrix is larger than the picture, each dot shows the
    element of a block that is furthest from 0. DoRA's magnitude is not shown. With PiSSA, A and B
    are those of the complete update, s (B A - B_0 A_0), with twice the rank.

    Args:
        model: a model with adapters.
        layer: the name of the layer in the model.
        adapter: the name of an adapter; None for the active one.
        path: the file to save the picture in; None for no file.

    Errors are as in `plot_singular_values`, but the update may be 0. A ValueError is also raised if
    the layer does not have the adapter, or has several active ones.
    """
    from minigrad.viz.figure import Picture

    layers = {name: (adapted, names) for name, adapted, names in changed_layers(model, adapter)}
    if layer not in layers:
        raise ValueError(
            f"no adapter changes a layer {layer!r}; those that are changed: {', '.join(layers)}"
        )
    adapted, names = layers[layer]
    if len(names) > 1:
        raise ValueError(
            f"the adapters {', '.join(map(repr, names))} are active in {layer}; say which one to "
            f"draw: adapter={names[0]!r}"
        )
    chosen = adapted.adapters[names[0]]
    a, b = chosen.exact_factors()
    b = block_diagonal(b, chosen.groups)
    check_update_is_finite(layer, a, b)
    figure = Picture(9, 7.5, path)
    rank, d_out, d_in = len(a), adapted.d_out, adapted.d_in
    (corner, top), (left, middle) = figure.subplots(2, 2, width_ratios=(1, 3), height_ratios=(1, 3))
    corner.set_axis_off()
    what = f"dW = s B A\nrank {rank}, s = {chosen.scale:.4g}"
    signs = f"{what}\n\ndark: below 0\ngrey: 0\nlight: above 0"
    corner.text(0.5, 0.5, signs, ha="center", va="center", linespacing=1.4)
    change = chosen.scale * (b @ a)
    figure.suptitle(f"{layer}: |dW| = {np.linalg.norm(change):.3g}", weight="bold")
    _draw_matrix(top, a, f"A, {rank} x {d_in}")
    _draw_matrix(left, b, f"B, {d_out} x {rank}")
    _draw_matrix(middle, change, f"s B A, {d_out} x {d_in}")
    top.set_ylabel("direction")
    left.set(xlabel="direction", ylabel="output")
    middle.set_xlabel("input")
    return figure.saved()


def _draw_matrix(axes: Axes, matrix: Array, title: str) -> None:
    from minigrad.viz.figure import SIGNED, ticks_at_integers

    largest = float(np.max(np.abs(matrix), initial=0.0))
    rows, columns = matrix.shape
    for axis, count in enumerate(matrix.shape):  # reduce each block to its element furthest from 0
        blocks = min(count, _MOST_SHOWN)
        starts = np.arange(blocks) * count // blocks
        highest = np.maximum.reduceat(matrix, starts, axis)
        lowest = np.minimum.reduceat(matrix, starts, axis)
        matrix = np.where(highest > -lowest, highest, lowest)
    colours: Any = {"cmap": SIGNED, "vmin": -largest or -1, "vmax": largest or 1}
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(matrix, aspect="auto", interpolation="nearest", extent=extent, **colours)
    axes.set_title(f"{title}: all 0" if not largest else f"{title}\n±{largest:.2g} at most")
    ticks_at_integers(axes.xaxis, 5)
    ticks_at_integers(axes.yaxis, 5)


def plot_change(
    model: Module, adapter: str | None = None, path: str | os.PathLike[str] | None = None
) -> Picture:
    """Plot how much each layer of a model changes: |dW| / |W|, by depth and kind of layer.

    The depth of a layer is the first number in its name, and its kind is the part of the name after
    this number. The layer `blocks.3.attn.q_proj` has depth 3 and kind `attn.q_proj`. If two layers
    have the same depth and kind, as in an encoder and a decoder, the kinds are complete names, with
    * for the number.

    Arguments and errors are as in `plot_singular_values`, but all updates may be 0.
    """
    from minigrad.viz.figure import SIZES, Picture, name_rows

    found = updates(model, adapter)
    depths, kinds, shares = _by_depth_and_kind(found)
    figure = Picture(3.4 + 0.95 * max(len(kinds), 3), 2.4 + 0.34 * max(len(depths), 4), path)
    axes = figure.subplots()
    top = float(np.nanmax(shares, initial=0.0)) or 1.0
    colours = SIZES.with_extremes(bad="white")
    image = axes.imshow(100 * shares, cmap=colours, vmin=0, vmax=100 * top, aspect="auto")
    if shares.size <= _MOST_CELLS:
        for row, column in np.argwhere(~np.isnan(shares)):
            share = shares[row, column]
            ink = "white" if share < 0.5 * top else "black"
            axes.text(column, row, _percent(share), color=ink, ha="center", va="center")
    name_rows(axes.yaxis, depths)
    name_rows(axes.xaxis, kinds)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0 if max(map(len, kinds)) < 10 else 25)
    axes.set_ylabel("depth")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="|dW| / |W|  (%)", aspect=30)
    most = max(found, key=lambda update: update.share if update.share >= 0 else -1.0)
    title = f"{most.name} changes most, by {_percent(most.share)} %"
    if not most.share > 0:  # it is nan for a weight of zeros
        is_changed = any(update.norm for update in found)
        title = "Only weights that were 0 have changed" if is_changed else "Nothing has changed yet"
    figure.suptitle(title, weight="bold")
    return figure.saved()


def _percent(share: float) -> str:
    """Format a share in percent with three digits, or as an integer from 1000 % on."""
    return f"{100 * share:,.0f}" if share >= 10 else f"{100 * share:.3g}"


def _cell(name: str, is_whole: bool) -> tuple[int, str]:
    """Return the depth and the kind of a layer; a name without a number has depth -1.

    If `is_whole`, the kind is the complete name, with * for the number.
    """
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return -1, name
    before, after = parts[:at], parts[at + 1 :]
    kind = [*before, "*", *after] if is_whole else after or before
    return int(parts[at]), ".".join(kind) or "layer"


def _by_depth_and_kind(found: Sequence[LayerUpdate]) -> tuple[list[str], list[str], Array]:
    """Arrange the shares by depth and kind: `(depths, kinds)`, nan if no layer has both."""
    cells = [_cell(update.name, False) for update in found]
    if len(set(cells)) < len(cells):  # for example, those of an encoder and of a decoder
        cells = [_cell(update.name, True) for update in found]
    depths = sorted({depth for depth, _ in cells})
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    shares = np.full((len(depths), len(kinds)), np.nan)
    for update, (depth, kind) in zip(found, cells, strict=True):
        shares[depths.index(depth), kinds.index(kind)] = update.share
    return ["-" if depth < 0 else str(depth) for depth in depths], kinds, shares
