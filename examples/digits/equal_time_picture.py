"""The picture of a CNN and an MLP: filters, accuracy against seconds, and what both misread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from examples.digits.data import UPRIGHT
from examples.digits.equal_time import CNN, DENSE, SHIFTED, Reader, Readers, gains, images
from examples.digits.report import shares, shown
from minigrad import no_grad, tensor
from minigrad.nn import Conv2d

SEEN = 3  # the digit whose feature maps are shown
MISREAD = 20  # the largest number of digits shown for each network
COLORS = {DENSE: "#D55E00", CNN: "#0B4F8A"}


def draw_readers(results: Sequence[Readers], out: str | Path) -> None:
    """Save the picture of the networks of all splits in the file `out`.

    Single digits come from one split, the one with the median difference.
    """
    median = sorted(results, key=lambda each: gains([each], UPRIGHT)[0])[len(results) // 2]
    figure = Figure(figsize=(12, 6.8), layout="constrained")
    figure.suptitle("A CNN and an MLP train for the same time. The CNN reads more", size="xx-large")
    grid = figure.add_gridspec(2, 3, width_ratios=[2.2, 1.6, 3.4], height_ratios=[1, 2.2])
    draw_features(figure.add_subplot(grid[0, :]), median[CNN])
    draw_curves(figure.add_subplot(grid[1, 0]), results)
    draw_accuracies(figure.add_subplot(grid[1, 1]), results)
    draw_misread(figure.add_subplot(grid[1, 2]), median)
    figure.savefig(out, dpi=100)


def draw_features(axes: Axes, reader: Reader) -> None:
    """Draw a digit, and the weights and the feature map of each filter of the first layer."""
    convolution, activation, *_ = reader.model
    assert isinstance(convolution, Conv2d)
    digit = images(reader.test)[0][reader.test.y == SEEN][:1]
    with no_grad():
        maps = activation(convolution(tensor(digit))).numpy()[0]
    filters = convolution.weight.data[:, 0]
    largest, brightest = float(abs(filters).max()), float(maps.max())
    draw_image(axes, digit[0, 0], 0, 0, 2.1, -1, 1)
    for i, (weights, features) in enumerate(zip(filters, maps, strict=True)):
        left = 2.7 + 1.1 * i
        draw_image(axes, weights, left + 0.15, 1.3, 0.7, -largest, largest, "RdBu")
        draw_image(axes, features, left, 0, 1, 0, brightest)
    axes.text(1.05, 2.15, "a test digit", ha="center", va="bottom", size="large")
    text = "the 16 learned filters of 3 x 3 (red is negative), and below each what it sees"
    axes.text(2.7, 2.15, text, va="bottom", size="large")
    axes.set(xlim=(-0.05, 2.7 + 1.1 * len(filters)), ylim=(-0.05, 2.5), aspect="equal")
    axes.axis("off")


def draw_image(
    axes: Axes, pixels: NDArray[np.float32], left: float, bottom: float, side: float,
    low: float, high: float, colors: str = "gray_r",
) -> None:  # fmt: skip
    """Draw an image as a square with a thin frame."""
    extent = (left, left + side, bottom, bottom + side)
    axes.imshow(pixels, cmap=colors, vmin=low, vmax=high, extent=extent)
    axes.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor="0.6"))


def draw_curves(axes: Axes, results: Sequence[Readers]) -> None:
    """Draw the accuracy of both networks against seconds: each split, and the mean."""
    seconds = np.linspace(0, max(r.seconds for r in results[0].values()), 100)[1:]
    for name, color in COLORS.items():
        curves = [np.array(result[name].curve).T for result in results]
        along = 100 * np.array([np.interp(seconds, *curve) for curve in curves])
        axes.plot(seconds, along.T, color=color, linewidth=0.6, alpha=0.4)
        axes.plot(seconds, along.mean(axis=0), color=color, linewidth=2.2, label=name)
    axes.set(
        title="accuracy while they train", xlabel="seconds of training, on one core",
        ylabel="% of the test digits", xlim=(0, seconds[-1]), ylim=(90, 100),
    )  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize="large")
    axes.spines[["top", "right"]].set_visible(False)


def draw_accuracies(axes: Axes, results: Sequence[Readers]) -> None:
    """Draw the accuracies on the test digits as they are, and shifted."""
    for i, (name, color) in enumerate(COLORS.items()):
        for column, kind in enumerate((UPRIGHT, SHIFTED)):
            values = shares(results, name, kind)
            place = column + 0.42 * (i - 0.5)
            axes.bar(place, 100 * values.mean(), width=0.4, color=color)
            text = shown(values).replace(" +- ", "\n± ")
            axes.text(place, 100 * values.mean() + 1, text, ha="center", va="bottom")
    axes.set(title="at the end", ylim=(0, 115), yticks=[0, 50, 100])
    axes.set_xticks([0, 1], ["test digits", "shifted\nby a pixel"], size="large")
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw_misread(axes: Axes, readers: Readers) -> None:
    """Draw the test digits of a split that each network misreads."""
    columns, block, test = MISREAD // 2, 3.9, readers[CNN].test
    for i, (name, color) in enumerate(COLORS.items()):
        wrong = np.flatnonzero(readers[name].answers != test.y)
        top = -block * i
        for place, index in enumerate(wrong[:MISREAD]):
            left, bottom = 1.1 * (place % columns), top - 1 - 1.5 * (place // columns)
            draw_image(axes, test.x[index].reshape(8, 8), left, bottom, 0.95, -1, 1)
            text = f"{test.y[index]} → {readers[name].answers[index]}"
            axes.text(left + 0.475, bottom - 0.05, text, ha="center", va="top")
        some = f" ({MISREAD} of them)" if len(wrong) > MISREAD else ""
        text = f"The {name} misreads {len(wrong)} of {len(test.y)} test digits{some}"
        axes.text(0, top + 0.1, text, color=color, size="large", va="bottom")
    text = "9 → 1 is a nine that is read as a one. (This is the split\nwith the median difference.)"
    axes.text(0, 0.7 - 2 * block, text, va="top")
    axes.set(xlim=(-0.05, 1.1 * columns), ylim=(0.3 - 2 * block, 0.7), aspect="equal")
    axes.axis("off")
