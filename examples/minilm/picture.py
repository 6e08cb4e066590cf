"""The picture of `search`: the ranks of functions before and after, and how many are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

BETTER, WORSE, SAME = "#0072B2", "#D55E00", "#555555"
LINES = [("0.55", ":"), (WORSE, "--"), (BETTER, "-")]
DEPTH = 50  # the largest rank shown
GROUPS = {"1": 1, "2 to 5": 2, "6 to 20": 6, "21 to 100": 21, "above 100": 101}  # first ranks

Ranks = NDArray[np.int64]


def draw(ranks: Mapping[str, Ranks], out: str | Path) -> None:
    """Save the picture.

    Args:
        ranks: the ranks of the right heads, by search method; the last two are before and after.
        out: the file of the picture.
    """
    *_, before, after = ranks
    figure = Figure(figsize=(14, 6), layout="constrained")
    moves, curves = figure.subplots(1, 2)
    draw_moves(moves, ranks[before], ranks[after])
    moves.set(
        xlabel=f"rank of the right function before ({before})", ylabel=f"rank after ({after})"
    )
    draw_curves(curves, ranks)
    figure.savefig(out, dpi=120)


def draw_moves(axes: Axes, before: Ranks, after: Ranks) -> None:
    """Draw how many functions moved from each group of ranks to each other group."""
    firsts = list(GROUPS.values())
    groups = [np.searchsorted(firsts, ranks, side="right") - 1 for ranks in (before, after)]
    counts = np.zeros((len(GROUPS), len(GROUPS)), np.int64)
    np.add.at(counts, (groups[1], groups[0]), 1)
    for (row, column), count in np.ndenumerate(counts):
        color = BETTER if row < column else WORSE if row > column else SAME
        strength = float(np.sqrt(count / counts.max()))
        cell = Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=color, alpha=strength)
        axes.add_patch(cell)
        ink = "white" if strength > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink, size=14)
    rise, fall = int((after < before).sum()), int((after > before).sum())
    axes.set(
        title=f"Fine-tuning improves the rank of {rise} functions and worsens that of {fall}",
        xlim=(-0.5, len(GROUPS) - 0.5),
        ylim=(len(GROUPS) - 0.5, -0.5),
    )
    totals = [np.bincount(group, minlength=len(GROUPS)) for group in groups]
    for axis, total in zip((axes.xaxis, axes.yaxis), totals, strict=True):
        names = [f"{name}\n{n} functions" for name, n in zip(GROUPS, total, strict=True)]
        axis.set_ticks(range(len(GROUPS)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    kinds = {"better after": BETTER, "the same group of ranks": SAME, "worse after": WORSE}
    patches = [Patch(color=color, label=label) for label, color in kinds.items()]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False
    )


def draw_curves(axes: Axes, ranks: Mapping[str, Ranks]) -> None:
    """Draw the share of sentences whose function is among the first k, for each k."""
    ks = np.arange(1, DEPTH + 1)
    count = len(next(iter(ranks.values())))
    for (method, values), (color, line) in zip(ranks.items(), LINES, strict=True):
        shares = [(values <= k).mean() for k in ks]
        label = f"{method}: {shares[0]:.0%} at k = 1"
        axes.plot(ks, shares, line, color=color, linewidth=2.5, label=label)
    axes.set(
        title=f"The right function is among the first k of {count} (unseen packages)",
        xlabel="k",
        ylabel="share of the sentences",
        ylim=(0, 1),
        xscale="log",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
