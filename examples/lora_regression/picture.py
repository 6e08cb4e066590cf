"""The picture: predictions to look at, how the error fell, where it ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.lora_regression.data import Task
from examples.lora_regression.report import FULL, LORA, NONE, Results, number

# The colours differ in lightness too, and each has a second sign: a line style, a hatch, a marker.
COLORS = {NONE: "#C0C0C0", FULL: "#D55E00", LORA: "#0B4F8A"}
LINES = {NONE: ":", FULL: "--", LORA: "-"}
HATCHES = {NONE: "", FULL: "//", LORA: ""}
MARKERS = {NONE: "x", FULL: "^", LORA: "o"}
SHOWN_IMAGES, SHOWN_ROWS = 5, 200


def draw(results: Results, task: Task, out: str | Path) -> None:
    """Save the picture."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    full, low = (results[way][0].cost.trainable for way in (FULL, LORA))
    title = f"Adapting to {task.new_group}: full fine-tuning trains {full:,} weights, LoRA {low:,}"
    figure.suptitle(title, size="xx-large")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05], wspace=0.05)  # type: ignore[misc]
    (draw_images if task.images else draw_scatter)(left.subplots(), results, task)
    curves, bars = right.subplots(2, 1)
    draw_curves(curves, results, task)
    draw_bars(bars, results, task)
    figure.savefig(out, dpi=120)


def draw_images(axes: Axes, results: Results, task: Task) -> None:
    """A row of half images that were given, and below them what each way makes of the rest."""
    first = {way: outcomes[0] for way, outcomes in results.items()}
    given, truth = first[NONE].given[:SHOWN_IMAGES], first[NONE].truth[:SHOWN_IMAGES]
    rows = {"given": np.full_like(truth, np.nan)}
    rows |= {way: outcome.prediction[:SHOWN_IMAGES] for way, outcome in first.items()}
    rows |= {"the truth": truth}
    for row, lower_halves in enumerate(rows.values()):
        for column, halves in enumerate(zip(given, lower_halves, strict=True)):
            image = np.concatenate(halves).reshape(8, 8)
            x, y = 10 * column, 10 * row
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=16, extent=(x, x + 8, y + 8, y))
            axes.plot([x, x + 8], [y + 4, y + 4], color="#56B4E9", linewidth=2)
    axes.set(
        title=f"Five {task.new_group} of the test set: from the upper half a network predicts\n"
        f"the lower half. It was pretrained on {task.old_group} only",
        xlim=(-1, 10 * SHOWN_IMAGES - 1),
        ylim=(10 * len(rows) - 1, -1),
        xticks=[],
    )
    axes.set_yticks([10 * row + 4 for row in range(len(rows))], list(rows), size="large")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_scatter(axes: Axes, results: Results, task: Task) -> None:
    """Predicted against true, for the test rows of the first seed."""
    for way, (outcome, *_) in results.items():
        pairs = outcome.truth[:SHOWN_ROWS], outcome.prediction[:SHOWN_ROWS]
        axes.scatter(*pairs, color=COLORS[way], marker=MARKERS[way], label=way)
    truth = results[NONE][0].truth[:SHOWN_ROWS]
    ends = [truth.min(), truth.max()]
    axes.plot(ends, ends, color="black", linewidth=1, label="a perfect prediction")
    axes.set(
        title="Predictions for test rows of the new group",
        xlabel=f"true {task.unit}",
        ylabel=f"predicted {task.unit}",
    )
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(axes: Axes, results: Results, task: Task) -> None:
    """The validation error during adaptation: the mean, and the range over the seeds."""
    start = [outcome.validation_rmse for outcome in results[NONE]]
    before = float(np.mean(start))
    axes.axhline(before, color=COLORS[NONE], linestyle=LINES[NONE], linewidth=3, label=NONE)
    for way in (FULL, LORA):
        curves = np.array(
            [[s, *o.cost.curve] for s, o in zip(start, results[way], strict=True)]
        )  # (seeds, 1 + epochs)
        epochs = np.arange(curves.shape[1])
        axes.plot(
            epochs, curves.mean(axis=0), LINES[way], color=COLORS[way], linewidth=2.5, label=way
        )
        lowest, highest = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(epochs, lowest, highest, color=COLORS[way], alpha=0.2)
    axes.set(
        title=f"The validation error while adapting: mean and range of {len(start)} seeds",
        xlabel="epoch of adaptation",
        ylabel=f"RMSE ({task.unit})",
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(axes: Axes, results: Results, task: Task) -> None:
    """The test error on both groups: the mean, and a dot for each seed."""
    new = [(way, way, [o.rmse for o in outcomes]) for way, outcomes in results.items()]
    old = [(way, way, [o.old_rmse for o in outcomes]) for way, outcomes in results.items()]
    # Without its update the network is the base, to the bit: the run has checked that.
    off = (NONE, "LoRA\nswitched\noff", [outcome.old_rmse for outcome in results[NONE]])
    bars = [*new, *old, off]
    places = [0, 1, 2, 4, 5, 6, 7]
    top = 1.3 * max(max(values) for _, _, values in bars)
    for place, (way, _, values) in zip(places, bars, strict=True):
        axes.bar(place, np.mean(values), color=COLORS[way], hatch=HATCHES[way], edgecolor="white")
        axes.plot([place] * len(values), values, "o", color="black", markersize=3)
        axes.text(place, max(values) + top / 50, number(float(np.mean(values))), ha="center")
    axes.set_xticks(places, [label.replace(" ", "\n") for _, label, _ in bars])
    axes.tick_params(axis="x", length=0)
    for middle, group in ((1, f"new: {task.new_group}"), (5.5, f"old: {task.old_group}")):
        axes.text(middle, top, group, ha="center", va="top", weight="bold")
    axes.set(
        title="The test error: adapting may harm the old group (a dot is one seed)",
        ylabel=f"RMSE ({task.unit})",
        ylim=(0, top),
    )
    axes.spines[["top", "right"]].set_visible(False)
