"""The picture: the losses during training, and docstrings of the model and of the authors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.docstrings.functions import Answer

AFTER = "#0B4F8A"
COLORS = "#B34700", AFTER, "black"  # the base, the adapted model and the authors
WIDTH, LINES = 80, 4  # the size of a text
WINDOW = 10  # the number of steps in the moving mean of the loss


Steps = Sequence[Mapping[str, float]]


def draw(
    steps: Steps,
    base_loss: float,
    plain: tuple[float, float],
    shown: Sequence[Answer],
    out: str | Path,
) -> None:
    """Save the picture.

    Args:
        steps: the records of the steps, with the losses on training and held-out functions.
        base_loss: the loss on held-out functions before the first step.
        plain: the shares of answers that are one plain sentence, before and after.
        shown: the answers to draw.
        out: the file of the picture.
    """
    before, after = plain
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    figure.suptitle(
        f"SmolLM2 learns to write docstrings from a function's head: one plain sentence in "
        f"{before:.0%} of its answers before, {after:.0%} after",
        size="x-large",
    )
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.35])  # type: ignore[misc]
    draw_losses(left.subplots(), steps, base_loss)
    for axes, answer in zip(right.subplots(len(shown), 1), shown, strict=True):
        draw_answer(axes, answer)
    figure.savefig(out, dpi=100)


def draw_losses(axes: Axes, steps: Steps, base_loss: float) -> None:
    """Draw the loss of each step, their moving mean, and the losses on held-out functions."""
    numbers = np.array([step["step"] for step in steps])
    losses = np.array([step["loss"] for step in steps])
    label = "functions to train on"
    (line,) = axes.plot(numbers, losses, color="0.8", linewidth=1)
    if len(losses) > WINDOW:
        mean = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")
        label += f", mean of {WINDOW} steps"
        (line,) = axes.plot(numbers[WINDOW - 1 :], mean, color="0.45", linewidth=2)
    line.set_label(label)
    judged = [(0.0, base_loss)]
    judged += [(s["step"], s["validation_loss"]) for s in steps if "validation_loss" in s]
    axes.plot(
        *zip(*judged, strict=True), "o--", color=AFTER, markersize=9, label="held-out packages"
    )
    for x, y in judged:
        axes.annotate(
            f"{y:.2f}", (x, y), (0, 9), textcoords="offset points", ha="center", color=AFTER
        )
    axes.set_title("Loss per token of the authors' docstrings", loc="left")
    axes.set(xlabel="steps", ylabel="nats per token")
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_answer(axes: Axes, answer: Answer) -> None:
    """Draw the docstrings of a function: by the model before and after, and by the authors."""
    function = answer.function
    axes.set_title(f"{function.head}   in {function.package}", loc="left", family="monospace")
    y = 0.93
    for (name, words), color in zip(answer.by_author().items(), COLORS, strict=True):
        lines = folded(words)
        for x, part, font in ((0.015, name, "sans-serif"), (0.12, "\n".join(lines), "monospace")):
            axes.text(
                x, y, part, color=color, family=font, size=9.5, va="top",
                transform=axes.transAxes, parse_math=False,
            )  # fmt: skip
        y -= 0.125 * len(lines) + 0.04
    axes.set(xticks=[], yticks=[])


def folded(words: str) -> list[str]:
    """Return the first lines of a text, with long lines folded; three dots replace the rest."""
    lines = [x for line in words.splitlines() for x in textwrap.wrap(line, WIDTH)] or ["(nothing)"]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
