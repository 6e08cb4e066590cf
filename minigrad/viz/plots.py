"""Pictures of a training run: of its losses and metrics, and of the gradients of each layer."""

from __future__ import annotations

import math
import operator
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minigrad.checks import check_choice
from minigrad.core.observers import Observer
from minigrad.nn import Module, Parameter
from minigrad.optim import Optimizer, grad_norm
from minigrad.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minigrad.viz.figure import Picture

FAR = 1e3
"""A layer is marked if its gradient is this factor smaller or larger than the last layer's."""

_DRAWN = 1e-100, 1e100  # norms are clipped to this range, because axes are computed in float64
_LETTERS = 18  # the most letters in the name beside a panel
_COLUMNS = 400  # of the heat map; with more steps, a column shows the largest of several steps
_HEIGHTS = {"grad_norm": 1.0, "lr": 0.7}  # the heights of panels; those of others are 1.3
_NOT_METRICS = {"epoch", "loss", "lr", "grad_norm", "seconds"}  # columns that are not metrics

_UP, _DOWN = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"

Array = NDArray[np.float64]


@runtime_checkable
class Records(Protocol):
    """The records of a training run: the part of a `minigrad.History` that is needed here."""

    steps: list[dict[str, float]]
    epochs: list[dict[str, float]]

    def __getitem__(self, name: str) -> list[float]:
        """Return one column of the epochs."""


def plot_history(history: Records, path: str | os.PathLike[str] | None = None) -> Picture:
    """Draw the losses, each metric and the gradient norm by epoch, one panel below another.

    If a value is not finite, a cross at the top of its panel marks the epoch. The grey line in the
    background is the loss of each step. Losses have a logarithmic scale if all are positive. The
    learning rate is drawn too if it changes.

    Args:
        history: the records of a run.
        path: the file to save the picture in, such as a PNG, SVG or PDF; None for no file.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `history` is not a History.
        ValueError: if there are no epochs yet, or the path does not end like a picture's.
        OSError: if the file cannot be written.
    """
    from minigrad.viz.figure import Picture, open_frame, ticks_at_integers, without_middle

    if not isinstance(history, Records):
        raise TypeError(
            f"plot_history draws a History, such as `fit` returns and `trainer.history` is, not "
            f"{type(history).__name__}"
        )
    if not history.epochs:
        raise ValueError("there are no epochs to plot yet")
    names = dict.fromkeys(key for record in history.epochs for key in record)
    metrics = [n for n in names if n not in _NOT_METRICS and not n.startswith("validation_")]
    rates = {record["lr"] for record in history.epochs if "lr" in record}
    panels = metrics + ["grad_norm"] * ("grad_norm" in names) + ["lr"] * (len(rates) > 1)
    ratios = [2.0, *(_HEIGHTS.get(name, 1.3) for name in panels)]
    figure = Picture(7, 1.5 + 1.3 * sum(ratios), path)
    rows = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)
    losses, *others = rows[:, 0]
    _draw_losses(losses, history)
    for axes, name in zip(others, panels, strict=True):
        _draw_column(axes, history, name)
        if name in metrics:
            _draw_column(axes, history, f"validation_{name}")
        _mark_broken(axes, history, name)
        # If a panel has only one line, the line needs no name.
        named = list(axes.lines) if name in metrics else axes.lines[1:]
        if named:
            axes.legend(handles=named, loc="best", frameon=False)
        axes.set_ylabel(without_middle(name.replace("grad_norm", "gradient norm"), _LETTERS))
    figure.axes[-1].set_xlabel("epoch")
    ticks_at_integers(figure.axes[-1].xaxis)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    open_frame(*figure.axes)
    figure.align_ylabels()
    return figure.saved()


def _draw_losses(axes: Axes, history: Records) -> None:
    from minigrad.viz.figure import INK

    if history.steps:
        # A step is drawn at its place in the epoch; the first epoch goes from 0 to 1.
        counts, done = Counter(step["epoch"] for step in history.steps), Counter[float]()
        epochs, losses = [], [step["loss"] for step in history.steps]
        for epoch in (step["epoch"] for step in history.steps):
            done[epoch] += 1
            epochs.append(epoch - 1 + done[epoch] / counts[epoch])
        axes.plot(epochs, losses, color="0.8", linewidth=0.8, label="each step", zorder=1)
    _draw_column(axes, history, "loss")
    _draw_column(axes, history, "validation_loss")
    if axes.dataLim.ymin > 0:
        axes.set_yscale("log")
    title = f"Training loss {history['loss'][0]:.4g} to {history['loss'][-1]:.4g}"
    known = [r for r in history.epochs if math.isfinite(r.get("validation_loss", math.nan))]
    if known:
        best = min(known, key=operator.itemgetter("validation_loss"))
        at = best["epoch"], best["validation_loss"]
        axes.plot(*at, "o", markersize=10, fillstyle="none", color=INK, label="best validation")
        title = f"Best validation loss {best['validation_loss']:.4g} at epoch {best['epoch']}"
    broken = _mark_broken(axes, history, "loss")
    if broken:
        first = f"Loss not finite first in epoch {broken[0]}"
        title = f"{first}; b{title[1:]}" if known else first
    axes.set(title=title, ylabel="loss")
    axes.legend(loc="best", frameon=False)


def _draw_column(axes: Axes, history: Records, name: str) -> None:
    """Draw one column of the epochs that have it; a value without a neighbour is a point."""
    from minigrad.viz.figure import INK, VERMILLION

    label, line, color = f"training {name}", "-", INK
    if name.startswith("validation_"):
        label, line, color = name.replace("_", " ", 1), "--", VERMILLION
    records = [record for record in history.epochs if name in record]
    if records:
        epochs, column = ([record[key] for record in records] for key in ("epoch", name))
        known = np.isfinite([math.nan, *column, math.nan])
        alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()
        marker = "o" if alone else ""
        axes.plot(epochs, column, line + marker, markevery=alone, color=color, label=label)


def _mark_broken(axes: Axes, history: Records, name: str) -> list[float]:
    """Mark and return the epochs where a column, or its validation column, is not finite."""
    from minigrad.viz.figure import INK

    both = [(r["epoch"], r.get(name, 0), r.get(f"validation_{name}", 0)) for r in history.epochs]
    broken = [epoch for epoch, *values in both if not all(map(math.isfinite, values))]
    if broken:
        top, at_top = [1.0] * len(broken), axes.get_xaxis_transform()  # at any scale
        axes.plot(broken, top, "x", color=INK, label="not finite", transform=at_top, clip_on=False)
    return broken


class GradientRecorder(Observer):
    """Records how large the gradient of each layer of a model is at each step.

        recorder = GradientRecorder(model)
        with minigrad.observe(recorder):          # a Trainer, or a loop of your own
            trainer.fit((x, y), epochs=20)
        plot_gradients(recorder)

    In the block, each step of an optimiser is recorded, with the gradients that it uses: summed
    over the batches of a step, and after clipping. Without an optimiser, call `recorder.record()`
    after each `backward()` instead.

    Args:
        model: the model; parameters that are frozen at this time are left out.
        by: "layer" for the norm of all parameters of a module, "parameter" for that of each one.

    Attributes:
        by: "layer" or "parameter": what a row of the picture shows.
        norms: by name, in the order of the model, the Euclidean norm of the gradient at each step:
            nan if there was no gradient, and inf if the gradient contained NaN or Inf.

    Raises:
        TypeError: if the model is not a Module.
        ValueError: if `by` has another value, or no parameter requires a gradient.
    """

    def __init__(self, model: Module, by: Literal["layer", "parameter"] = "layer") -> None:
        if not isinstance(model, Module):
            raise TypeError(f"GradientRecorder watches a Module, not {model!r:.60}")
        check_choice("by", by, ("layer", "parameter"))
        self.by = by
        self._groups: dict[str, list[Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                layer = name.rpartition(".")[0] or type(model).__name__
                self._groups.setdefault(layer if by == "layer" else name, []).append(parameter)
        if not self._groups:
            raise ValueError("no parameter of the model requires a gradient; nothing to record")
        self.norms: dict[str, list[float]] = {name: [] for name in self._groups}

    def __len__(self) -> int:
        return len(next(iter(self.norms.values())))

    def __repr__(self) -> str:
        return f"GradientRecorder({len(self.norms)} {self.by}s, {len(self)} steps)"

    def record(self) -> None:
        """Record the current gradients as one step; call it after `backward()`."""
        self._record(self._groups)

    def _record(self, groups: Mapping[str, Sequence[Parameter]]) -> None:
        """Record the gradients of these parameters, by name, as one step."""
        for name, parameters in groups.items():
            norm = math.nan
            if any(parameter.grad is not None for parameter in parameters):
                norm = grad_norm(parameters)
                norm = norm if math.isfinite(norm) else math.inf
            self.norms[name].append(norm)

    def on_step(self, optimizer: Optimizer) -> None:
        """Record a step of an optimiser that trains some of the model's parameters."""
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        groups = self._groups.items()
        stepped = {name: [p for p in group if id(p) in ids] for name, group in groups}
        if any(stepped.values()):
            self._record(stepped)


def plot_gradients(
    gradients: GradientRecorder | Mapping[str, Sequence[float]],
    path: str | os.PathLike[str] | None = None,
) -> Picture:
    """Draw the size of the gradient of each layer, at each step and in summary.

    The left panel is a heat map: dark where the gradient is small and light where it is large. The
    right panel shows the median over the steps for each layer, and the range. A layer has a
    triangle if its median is a thousand times smaller or larger than that of the last layer with a
    median above 0, because the backward pass begins at the end; or if its norm was not finite, was
    always 0, or jumped to a thousand times its median. A layer that never had a gradient has the
    remark "none". With many layers, not all remarks are written, but a diamond marks the median of
    each of these layers, if it is drawn.

    Args:
        gradients: a recorder, or norms by name and step as in `GradientRecorder.norms`.
        path: the file to save the picture in, as for `plot_history`.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `gradients` is something else.
        ValueError: if there are no steps yet, layers have different numbers of steps, a norm is
            negative, or the path does not end like a picture's.
        OSError: if the file cannot be written.
    """
    from minigrad.viz.figure import Picture, name_rows, open_frame

    columns = gradients.norms if isinstance(gradients, GradientRecorder) else gradients
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"plot_gradients draws a GradientRecorder, or a dict of norms by name, not "
            f"{type(gradients).__name__}"
        )
    for name, column in columns.items():
        if not isinstance(name, str) or np.ndim(column) != 1:
            what = f"{column!r:.60} for {name!r:.40}"
            raise TypeError(f"plot_gradients draws a list of norms for each name, not {what}")
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
    figure = Picture(11, 2.0 + 0.3 * min(max(len(norms), 6), 40), path)
    heat, profile = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    finite = [row[np.isfinite(row)] for row in norms]
    medians = [float(np.median(row)) if row.size else 0.0 for row in finite]
    last = next((median for median in reversed(medians) if median > 0), 0.0)
    remarks = [_remark(*row, last) for row in zip(norms, medians, strict=True)]
    _draw_heat(heat, _within_scales(norms))
    _draw_profile(profile, _within_scales(norms), _within_scales(medians), remarks)
    name_rows(heat.yaxis, list(columns))
    heat.set_ylim(len(norms) - 0.5, -0.5)
    heat.set_ylabel("from the first layer to the last")
    open_frame(profile)
    faults = {
        "vanishes": sum(remark.startswith(_DOWN) for remark in remarks),
        "explodes": sum(remark.startswith(_UP) for remark in remarks),
        "is missing": remarks.count("none"),
    }
    found = ", ".join(f"{verb} in {count}" for verb, count in faults.items() if count)
    what = gradients.by if isinstance(gradients, GradientRecorder) else "row"
    which = f"{found or 'neither vanishes nor explodes in any'} of {counted(len(norms), what)}"
    figure.suptitle(f"The gradient {which}", weight="bold")
    return figure.saved()


def _within_scales(norms: ArrayLike) -> Array:
    """Clip norms to the range that can be drawn."""
    there = np.asarray(norms, np.float64)
    return np.where((there > 0) & np.isfinite(there), np.clip(there, *_DRAWN), there)


def _draw_heat(axes: Axes, norms: Array) -> None:
    from matplotlib.patches import Patch

    from minigrad.viz.figure import INK, SIZES, VERMILLION, ticks_at_integers

    steps = norms.shape[1]
    width = -(-steps // _COLUMNS)
    starts = np.arange(0, steps, width)
    shown = np.fmax.reduceat(norms, starts, axis=1)  # a number has priority over nan
    usual = shown[(shown > 0) & np.isfinite(shown)]
    low, high = (usual.min(), usual.max()) if usual.size else (0.1, 10.0)
    if high < FAR * low:  # otherwise unimportant differences would fill the scale
        middle, reach = np.sqrt(low) * np.sqrt(high), np.sqrt(FAR)
        low, high = middle / reach, middle * reach
    colours = SIZES.with_extremes(under="black", over=VERMILLION, bad="white")
    image = axes.imshow(
        np.select([shown == 0, np.isinf(shown)], [low / 2, 2 * high], shown),
        cmap=colours,
        norm="log",
        vmin=low,
        vmax=high,
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
        "no gradient": (np.isnan(shown), Patch(facecolor="white", edgecolor=INK)),
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


def _draw_profile(axes: Axes, norms: Array, medians: Array, remarks: Sequence[str]) -> None:
    from minigrad.viz.figure import INK, MOST_NAMES, VERMILLION

    drawn = np.where(medians > 0, medians, np.nan)
    axes.plot(drawn, range(len(norms)), "o-", color=INK, markersize=5, label="median")
    for y, row in enumerate(norms):
        usual = row[(row > 0) & np.isfinite(row)]
        if usual.size:
            axes.plot([usual.min(), usual.max()], [y] * 2, color="0.75", linewidth=6, zorder=1)
    odd = [y for y, remark in enumerate(remarks) if remark]
    axes.plot(drawn[odd], odd, "D", color=VERMILLION, markersize=8, label="faults")
    # Of remarks at the same place, only one is written; exploding gradients come first.
    least, written = -(-len(norms) // MOST_NAMES), list[int]()
    for y in sorted(odd, key=lambda y: not remarks[y].startswith(_UP)):
        if all(abs(y - other) >= least for other in written):
            written.append(y)
            beside = axes.text(1.02, y, remarks[y], color=VERMILLION, weight="bold", va="center")
            beside.set_transform(axes.get_yaxis_transform())  # x is a share of the width
    usual = norms[(norms > 0) & np.isfinite(norms)]
    if usual.size:
        # From a power of ten to another, so that some ticks have labels.
        ends = np.floor(np.log10(usual.min())), np.floor(np.log10(usual.max())) + 1
        axes.set(xscale="log", xlim=np.power(10.0, ends))
        axes.xaxis.set_minor_formatter("")  # no labels between powers of ten
    else:
        axes.set_xticks([])
    axes.set(title="Median and range", xlabel="norm of the gradient")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def _remark(norms: Array, median: float, last: float) -> str:
    """Describe the fault of a layer, if any; `last` is the last median above 0, or 0."""
    if np.isnan(norms).all():
        return "none"
    if np.isinf(norms).any():
        return f"{_UP} not finite, step {np.argmax(np.isinf(norms)) + 1}"
    largest = float(np.nanmax(norms))
    if largest == 0:
        return f"{_DOWN} always 0"
    if median < last / FAR:
        return f"{_DOWN} {median / last:.0e} of the last"
    if median > last * FAR:
        return f"{_UP} {median / last:.0e} of the last"
    if median and largest > FAR * median:
        return f"{_UP} {largest / median:.0e} x, step {np.nanargmax(norms) + 1}"
    return ""
