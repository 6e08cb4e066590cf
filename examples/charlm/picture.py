"""The picture: the losses during training, and the texts with and without the adapter."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.charlm.training import Curve, Measures

STYLES = {"manual": ("#D55E00", "--", "s"), "sonnets": ("#0B4F8A", "-", "o")}
WIDTH, LINES = 74, 13  # the size of a sample of text


def draw(
    pretraining: Curve, adapting: Curve, off: Measures, samples: tuple[str, str], out: str | Path
) -> None:
    """Save the picture.

    Args:
        pretraining: the losses while the base learned.
        adapting: the losses while the adapter learned.
        off: the losses when the adapter is switched off again.
        samples: the text of the base, and the text of the base with the adapter.
        out: the file of the picture.
    """
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    figure.suptitle(
        "With an adapter, a model of manuals writes verse; with it off, the base is unchanged",
        size="xx-large",
    )
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.3])  # type: ignore[misc]
    above, below = left.subplots(2, 1)
    draw_curve(above, pretraining, "The base learns from the manual")
    draw_curve(below, adapting, "The adapter learns from sonnets")
    draw_off(below, adapting.steps[-1], off)
    above, below = right.subplots(2, 1)
    draw_text(above, samples[0], "The base writes (the same with the adapter off):")
    draw_text(below, samples[1], "The base with the adapter writes:")
    figure.savefig(out, dpi=100)


def draw_curve(axes: Axes, curve: Curve, title: str) -> None:
    """Draw the losses on both texts."""
    for name, losses in curve.losses.items():
        color, line, marker = STYLES[name]
        axes.plot(
            curve.steps, losses, line, color=color, marker=marker, linewidth=2, label=f"the {name}"
        )
    axes.set_title(title, loc="left")
    axes.set(xlabel="steps", ylabel="nats per character")
    axes.legend(loc="best", frameon=False, title="on the held-out part of")
    axes.spines[["top", "right"]].set_visible(False)


def draw_off(axes: Axes, end: int, off: Measures) -> None:
    """Draw the losses with the adapter off, on a strip to the right of the curves."""
    for name, loss in off.items():
        color, _, marker = STYLES[name]
        axes.plot(1.12 * end, loss, marker, color=color, markersize=9)
    axes.axvspan(1.04 * end, 1.2 * end, color="0.92", zorder=0)
    axes.text(1.12 * end, 0.5, "off", ha="center", transform=axes.get_xaxis_transform())
    axes.set_xlim(right=1.2 * end)


def draw_text(axes: Axes, text: str, title: str) -> None:
    """Draw a sample in a monospaced font, with long lines folded."""
    lines = [
        piece
        for line in text.split("\n")
        for piece in textwrap.wrap(line, WIDTH, drop_whitespace=False) or [""]
    ]
    axes.text(
        0.015,
        0.965,
        "\n".join(lines[:LINES]),
        family="monospace",
        size=10,
        va="top",
        linespacing=1.35,
        transform=axes.transAxes,
        parse_math=False,
    )
    axes.set_title(title, loc="left")
    axes.set(xticks=[], yticks=[])
