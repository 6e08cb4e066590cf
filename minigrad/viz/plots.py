"""plot_history and plot_gradients: pictures of a training run and of its gradients by layer."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from minigrad.viz.gradients import GradientRecorder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minigrad.viz.figure import Picture

FAR = 1e3
"""A layer whose gradient is so many times smaller or larger than the last layer's is marked."""

_LETTERS = 18  # beside a panel
_COLUMNS = 400  # of the heat map; of more steps, each column shows the largest of several
_HEIGHTS = {"grad_norm": 1.0, "lr": 0.7}  # of panels, and 1.3 of the others
_OF_ITS_OWN = {"epoch", "loss", "lr", "grad_norm", "seconds"}  # columns that are no metrics

_UP, _DOWN = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"

Array = NDArray[np.float64]


# --------------------------------------------------------------------------------------------------
# A training run
# --------------------------------------------------------------------------------------------------


@runtime_checkable
class Records(Protocol):
    """The records of a training run: a `minigrad.History`, which is built on this module."""

    steps: list[dict[str, float]]
    epochs: list[dict[str, float]]

    def __getitem__(self, name: str) -> list[float]:
        """Return one column of the epochs."""


def plot_history(history: Records, path: str | os.PathLike[str] | None = None) -> Picture:
    """Draw the losses, each metric and the gradient norm by epoch, below one another.

    The loss of each single step is a grey line behind. Losses are on a logarithmic scale if all are
    positive. The learning rate is drawn too if it changes.

    Args:
        history: the records of a run.
        path: the file to save the picture in, a PNG, SVG or PDF; None for no file.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if it is no History.
        ValueError: if there are no epochs yet, or the path is that of no picture.
    """
    from minigrad.viz.figure import (
        INK,
        VERMILLION,
        Picture,
        open_frame,
        shortened,
        ticks_at_integers,
    )

    if not isinstance(history, Records):
        raise TypeError(
            f"plot_history draws a History, such as `fit` returns and `trainer.history` is, not "
            f"{type(history).__name__}"
        )
    if not history.epochs:
        raise ValueError("there are no epochs to plot yet")
    names = dict.fromkeys(key for record in history.epochs for key in record)
    metrics = [n for n in names if n not in _OF_ITS_OWN and not n.startswith("validation_")]
    rates = {record["lr"] for record in history.epochs if "lr" in record}
    panels = [*metrics, "grad_norm", *(["lr"] if len(rates) > 1 else [])]
    ratios = [2.0, *(_HEIGHTS.get(name, 1.3) for name in panels)]
    figure = Picture(7, 1.5 + 1.3 * sum(ratios), path)
    losses, *others = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    _draw_losses(losses, history)
    for axes, name in zip(others, panels, strict=True):
        _draw_column(axes, history, name, f"training {name}", "-", INK)
        if name in metrics:
            validation = f"validation_{name}", f"validation {name}"
            _draw_column(axes, history, *validation, "--", VERMILLION)
            axes.legend(frameon=False)
        axes.set_ylabel(shortened(name.replace("grad_norm", "gradient norm"), _LETTERS))
    others[-1].set_xlabel("epoch")
    ticks_at_integers(others[-1].xaxis)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        open_frame(axes)
    figure.align_ylabels()
    return figure.saved()


def _draw_losses(axes: Axes, history: Records) -> None:
    from minigrad.viz.figure import INK, VERMILLION

    drawn = history["loss"]
    if history.steps:
        epochs, losses = _by_epoch(history)
        axes.plot(epochs, losses, color="0.8", linewidth=0.8, label="each step", zorder=1)
        drawn = drawn + losses
    _draw_column(axes, history, "loss", "training loss", "-", INK)
    title = f"Training loss {history['loss'][0]:.4g} to {history['loss'][-1]:.4g}"
    judged = [record for record in history.epochs if "validation_loss" in record]
    if judged:
        _draw_column(axes, history, "validation_loss", "validation loss", "--", VERMILLION)
        drawn = drawn + history["validation_loss"]
    known = [record for record in judged if math.isfinite(record["validation_loss"])]
    if known:
        best = min(known, key=operator.itemgetter("validation_loss"))
        at = best["epoch"], best["validation_loss"]
        axes.plot(*at, "o", markersize=10, fillstyle="none", color=INK, label="best validation")
        title = f"Best validation loss {best['validation_loss']:.4g} at epoch {best['epoch']}"
    broken = [record["epoch"] for record in history.epochs if not _is_finite(record)]
    if broken:
        (marks,) = axes.plot(broken, [1.0] * len(broken), "x", color=INK, label="not finite")
        marks.set(transform=axes.get_xaxis_transform(), clip_on=False)  # at the top, at any scale
        first = f"Loss not finite first in epoch {broken[0]}"
        title = f"{first}; b{title[1:]}" if known else first
    axes.set(title=title, ylabel="loss")
    if min((loss for loss in drawn if math.isfinite(loss)), default=0.0) > 0:
        axes.set_yscale("log")
    axes.legend(frameon=False)


def _is_finite(record: Mapping[str, float]) -> bool:
    """Whether the losses of an epoch are finite."""
    return all(math.isfinite(record.get(name, 0.0)) for name in ("loss", "validation_loss"))


def _draw_column(
    axes: Axes, history: Records, name: str, label: str, line: str, color: str
) -> None:
    """Draw one column of the epochs that have it; a value without a neighbour is a point."""
    records = [record for record in history.epochs if name in record]
    if records:
        epochs, column = ([record[key] for record in records] for key in ("epoch", name))
        known = np.isfinite([math.nan, *column, math.nan])
        alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()
        marker = "o" if alone else ""
        axes.plot(epochs, column, line + marker, markevery=alone, color=color, label=label)


def _by_epoch(history: Records) -> tuple[list[float], list[float]]:
    """Return when each step was, in epochs, of which the first ends at 1; and its loss."""
    counts: dict[float, int] = {}
    for step in history.steps:
        counts[step["epoch"]] = counts.get(step["epoch"], 0) + 1
    done: dict[float, int] = {}
    epochs = []
    for step in history.steps:
        epoch = step["epoch"]
        done[epoch] = done.get(epoch, 0) + 1
        epochs.append(epoch - 1 + done[epoch] / counts[epoch])
    return epochs, [step["loss"] for step in history.steps]


# --------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------


def plot_gradients(
    gradients: GradientRecorder | Mapping[str, Sequence[float]],
    path: str | os.PathLike[str] | None = None,
) -> Picture:
    """Draw how large the gradient of each layer was: layer by step, and layer by layer.

    At the left a heat map, dark where the gradient is small and light where it is large. At the
    right each layer's median over the steps, and its range. A layer is marked with a triangle if
    its median is a thousand times smaller or larger than the last layer's, where the backward pass
    begins; or if its norm was not finite, or jumped to a thousand times its median.

    Args:
        gradients: a recorder, or norms by name and step as in `GradientRecorder.norms`.
        path: the file to save the picture in, a PNG, SVG or PDF; None for no file.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `gradients` is something else.
        ValueError: if there are no steps yet, or not equally many of each layer, or a norm is
            negative, or the path is that of no picture.
    """
    from minigrad.viz.figure import Picture, name_rows, open_frame

    names, norms = _checked(gradients)
    height = 2.0 + 0.3 * min(max(len(names), 6), 40)
    figure = Picture(11, height, path)
    heat, profile = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_heat(heat, norms)
    remarks = [_remark(norms, row) for row in range(len(names))]
    _draw_profile(profile, norms, remarks)
    name_rows(heat.yaxis, names)
    heat.set_ylim(len(names) - 0.5, -0.5)
    heat.set_ylabel("from the first layer to the last")
    open_frame(profile)
    what = gradients.by if isinstance(gradients, GradientRecorder) else "row"
    figure.suptitle(_headline(remarks, what), weight="bold")
    return figure.saved()


def _checked(gradients: Any) -> tuple[list[str], Array]:
    """Return the names, and the norms `(layers, steps)`."""
    columns = gradients.norms if isinstance(gradients, GradientRecorder) else gradients
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"plot_gradients draws a GradientRecorder, or a dict of norms by name, not "
            f"{type(gradients).__name__}"
        )
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the layers have different numbers of steps: {counts}")
    if not counts or not all(counts.values()):
        raise ValueError(
            "there are no steps to plot yet; train inside of `with minigrad.observe(recorder):`, "
            "or call recorder.record() after each backward()"
        )
    norms = np.array(list(columns.values()), np.float64)
    if (norms < 0).any():
        raise ValueError("a norm cannot be negative")
    return list(columns), norms


def _draw_heat(axes: Axes, norms: Array) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    from minigrad.viz.figure import INK, SIZES, VERMILLION, ticks_at_integers

    steps = norms.shape[1]
    width = -(-steps // _COLUMNS)
    # -1 stands for no gradient: any number in the same column replaces it.
    starts = np.arange(0, steps, width)
    shown = np.maximum.reduceat(np.where(np.isnan(norms), -1.0, norms), starts, axis=1)
    usual = shown[(shown > 0) & np.isfinite(shown)]
    low, high = (usual.min(), usual.max()) if usual.size else (0.1, 10.0)
    if high < FAR * low:  # or differences that mean nothing would fill the scale
        middle, reach = np.sqrt(low * high), np.sqrt(FAR)
        low, high = middle / reach, middle * reach
    colours = matplotlib.colormaps[SIZES].with_extremes(under="black", over=VERMILLION, bad="white")
    drawn = np.where(shown == -1, np.nan, np.where(shown == 0, low / 2, shown))
    image = axes.imshow(
        np.where(np.isinf(drawn), 2 * high, drawn),
        cmap=colours,
        norm=LogNorm(low, high),
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, len(starts) * width + 0.5, len(norms) - 0.5, -0.5),
    )
    rows, columns = np.nonzero(np.isinf(shown))
    middles = starts[columns] + (width + 1) / 2
    axes.plot(middles[:1000], rows[:1000], "x", color="white", markersize=5)
    signs = {
        "0": (shown == 0, Patch(facecolor="black")),
        "not finite": (np.isinf(shown), Patch(facecolor=VERMILLION, hatch="xx", edgecolor="white")),
        "no gradient": (shown == -1, Patch(facecolor="white", edgecolor=INK)),
    }
    found = [(patch, label) for label, (where, patch) in signs.items() if where.any()]
    if found:
        axes.legend(*zip(*found, strict=True), loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    else:
        axes.set_title("By layer and step")
    axes.set_xlabel("step" if width == 1 else f"step (a column is the largest of {width})")
    axes.set_xlim(0.5, steps + 0.5)
    ticks_at_integers(axes.xaxis)
    axes.figure.colorbar(image, ax=axes, location="left", label="norm", pad=0.02, aspect=30)


def _draw_profile(axes: Axes, norms: Array, remarks: Sequence[str]) -> None:
    from matplotlib.ticker import NullFormatter

    from minigrad.viz.figure import INK, VERMILLION

    middles = [_median(row) for row in norms]
    for y, row in enumerate(norms):
        usual = row[(row > 0) & np.isfinite(row)]
        if usual.size:
            axes.plot([usual.min(), usual.max()], [y] * 2, color="0.75", linewidth=6, zorder=1)
    drawn = [middle if middle > 0 else np.nan for middle in middles]
    axes.plot(drawn, range(len(norms)), "o-", color=INK, markersize=5, label="median")
    for y, (middle, remark) in enumerate(zip(middles, remarks, strict=True)):
        if remark:
            axes.annotate(
                remark,
                (1.02, y),
                xycoords=("axes fraction", "data"),
                color=VERMILLION,
                weight="bold",
                va="center",
                annotation_clip=False,
            )
            if middle > 0:
                axes.plot(middle, y, "D", color=VERMILLION, markersize=8)
    usual = norms[(norms > 0) & np.isfinite(norms)]
    if usual.size:
        # From one power of ten to another, so that some are labelled.
        ends = np.floor(np.log10(usual.min())), np.floor(np.log10(usual.max())) + 1
        axes.set(xscale="log", xlim=np.power(10.0, ends))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xticks([])
    axes.set(title="Median and range", xlabel="norm of the gradient")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def _median(row: Array) -> float:
    """Return the median of the finite norms; 0 if there are none."""
    usual = row[np.isfinite(row)]
    return float(np.median(usual)) if usual.size else 0.0


def _remark(norms: Array, row: int) -> str:
    """Say what is wrong with the gradient of a layer; nothing if it is sound."""
    own, middle = norms[row], _median(norms[row])
    if np.isnan(own).all():
        return "none"
    if np.isinf(own).any():
        return f"{_UP} not finite, step {np.argmax(np.isinf(own)) + 1}"
    if np.nanmax(own) == 0:
        return f"{_DOWN} always 0"
    last = next((m for m in (_median(other) for other in norms[::-1]) if m > 0), 0.0)
    if middle < last / FAR:
        return f"{_DOWN} {middle / last:.0e} of the last"
    if middle > last * FAR:
        return f"{_UP} {middle / last:.0e} of the last"
    if middle and np.nanmax(own) > FAR * middle:
        return f"{_UP} {np.nanmax(own) / middle:.0e} x, step {np.nanargmax(own) + 1}"
    return ""


def _headline(remarks: Sequence[str], what: str) -> str:
    """Say in a sentence what there is to see."""
    few = sum(remark.startswith(_DOWN) for remark in remarks)
    many = sum(remark.startswith(_UP) for remark in remarks)
    none = sum(remark == "none" for remark in remarks)
    parts = [
        f"{verb} in {count}"
        for verb, count in (("vanishes", few), ("explodes", many), ("is missing", none))
        if count
    ]
    if not parts:
        return f"The gradient neither vanishes nor explodes in any of {len(remarks)} {what}s"
    return f"The gradient {', '.join(parts)} of {len(remarks)} {what}s"
