"""The picture: a table of networks and kinds of digits, with examples and file sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.digits.data import KINDS, Rows
from examples.digits.report import Result, shares, shown

SHOWN = (2, 4, 5, 6, 7)  # the digits shown, one image of each
GOOD = 0.9  # accuracies above this are in bold
BAR = "#0B4F8A"


def draw(results: Sequence[Result], test: Mapping[str, Rows], out: str | Path) -> None:
    """Save the picture.

    Args:
        results: the result of each split.
        test: the digits to show.
        out: the file of the picture.
    """
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    figure.suptitle(
        "Full fine-tuning to new digits forgets the old ones. An adapter can be switched off",
        size="xx-large",
    )
    grid = figure.add_gridspec(2, 2, width_ratios=[2.9, 1], height_ratios=[0.7, 5])
    draw_digits(figure.add_subplot(grid[0, 0]), test)
    draw_accuracies(figure.add_subplot(grid[1, 0]), results)
    draw_sizes(figure.add_subplot(grid[1, 1]), results[0])
    figure.savefig(out, dpi=100)


def draw_digits(axes: Axes, test: Mapping[str, Rows]) -> None:
    """Draw some digits of each kind, above the column of the kind."""
    gap = 0.04
    width = (1 - 2 * gap) / len(SHOWN)
    side = 0.9 * width
    for column, kind in enumerate(KINDS):
        for i, digit in enumerate(SHOWN):
            image = test[kind].x[test[kind].y == digit][0].reshape(8, 8)
            left = column - 0.5 + gap + i * width + (width - side) / 2
            extent = (left, left + side, 0, side)
            axes.imshow(image, cmap="gray_r", vmin=-1, vmax=1, extent=extent)
            axes.add_patch(Rectangle((left, 0), side, side, fill=False, edgecolor="0.6"))
    axes.set(xlim=(-0.5, len(KINDS) - 0.5), ylim=(-0.01, side + 0.01), aspect="equal")
    axes.set_anchor("S")
    axes.axis("off")


def draw_accuracies(axes: Axes, results: Sequence[Result]) -> None:
    """Draw a cell for each network and kind, which is darker if the accuracy is higher."""
    names = list(results[0])
    values = np.array([[shares(results, n, k).mean() for k in KINDS] for n in names])
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row, name in enumerate(names):
        for column, kind in enumerate(KINDS):
            good = values[row, column] > GOOD
            axes.text(
                column,
                row,
                f"{shown(shares(results, name, kind)).replace('+-', '±')} %",
                ha="center",
                va="center",
                size="x-large",
                weight="bold" if good else "normal",
                color="white" if values[row, column] > 0.6 else "black",
            )
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(KINDS)), list(KINDS), size="x-large")
    axes.set_yticks(range(len(names)), names, size="large")
    splits = f"mean and standard deviation of {len(results)}" if len(results) > 1 else "one"
    axes.set_xlabel(
        f"test digits that are read correctly ({splits} random "
        f"split{'s' * (len(results) > 1)});\n"
        "the last row equals the first one, bit for bit"
    )
    axes.tick_params(length=0, which="both")
    axes.set_xticks(np.arange(len(KINDS) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.spines[:].set_visible(False)


def draw_sizes(axes: Axes, result: Result) -> None:
    """Draw the file size of each network; adapters do not include the base that they share."""
    sizes = np.array([network.size for network in result.values()]) / 1024
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes, height=0.5, color=BAR)
    for row, (size, network) in enumerate(zip(sizes, result.values(), strict=True)):
        inside = size > sizes.max() / 2
        text = f"{size:.0f} KiB; {network.trained:,}" if network.size else "nothing more"
        left = sizes.max() / 50 if inside else size + sizes.max() / 50
        axes.text(left, row, text, va="center", size="large", color="white" if inside else "black")
    axes.set(
        title="size of the file;\ntrained parameters",
        ylim=(len(sizes) - 0.5, -0.5),
        xlim=(0, 1.02 * sizes.max()),
        xlabel="KiB",
    )
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
