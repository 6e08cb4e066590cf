"""Two spirals, and the boundary that a small network learns to draw between them.

No straight line separates the spirals, and no curve of low degree does. A network with 4,417
parameters begins with a nearly straight line, bends it again and again, and ends with a boundary
that follows the gap. You will see four moments of the training, and the loss in between. The demo
asserts the accuracy on points that were not trained on. It takes five seconds, and draws
spirals.png.

    python -m examples.spirals
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import minigrad
from examples.command_line import Parser, check_out, run
from minigrad import History, Trainer
from minigrad.nn import MLP
from minigrad.optim import Adam

Array = NDArray[np.float32]

POINTS = 200  # of each spiral
TURNS = 2.25
NOISE = 0.12
REACH = 7.0  # the picture shows the region from -REACH to REACH
GRID = 201  # points along each side of the picture
COLORS, MARKERS = ("#0072B2", "#E69F00"), ("o", "^")
SHADES = ("#7FB3D5", "#CBE1EF", "#FBEBC8", "#F2C979")  # from the first to the second spiral


@dataclass(frozen=True)
class Moment:
    """The network after some epochs.

    Attributes:
        epoch: the number of epochs.
        accuracy: the share of the test points that are classified correctly.
        probability: the probability of the second spiral at each point of a grid `(GRID, GRID)`.
    """

    epoch: int
    accuracy: float
    probability: Array


@dataclass(frozen=True)
class Result:
    """The results: the moments in order, from the start of the training to its end."""

    moments: list[Moment]
    history: History


def main(quick: bool = False, out: str | Path = "spirals.png", capture: bool = False) -> Result:
    """Train the network, with captured steps or without, test it, and save the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    rng = np.random.default_rng(0)
    looks = (0, 50, 150, 250 if quick else 400)
    train, test = spirals(rng), spirals(rng)
    model = MLP([2, 64, 64, 1], minigrad.tanh, rng=rng)
    moments = [look(model, 0, test)]

    def look_at(trainer: Trainer) -> None:
        if len(trainer.history) in looks:
            moments.append(look(model, len(trainer.history), test))

    trainer = Trainer(
        model,
        Adam(model.parameters(), lr=0.003),
        minigrad.binary_cross_entropy_with_logits,
        batch_size=50,
        on_epoch=look_at,
        rng=rng,
        capture=capture,
    )
    history = trainer.fit(train, epochs=looks[-1])

    for moment in moments:
        print(f"after {moment.epoch:3} epochs: {moment.accuracy:6.1%} of the test points are right")
    assert moments[0].accuracy < 0.75, "before training it cannot know the spirals"
    assert moments[-1].accuracy > 0.97, "the boundary should follow the gap"
    result = Result(moments, history)
    draw(result, train, out)
    print(f"The picture is in {out}")
    return result


def spirals(rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw points of both spirals `(2 POINTS, 2)`, with labels `(2 POINTS, 1)`."""
    along = np.sqrt(rng.uniform(0.02, 1, (2, POINTS)))  # so that the density is the same everywhere
    angle = 2 * np.pi * TURNS * along + np.array([[0], [np.pi]])
    points = 6.2 * along * np.stack([np.cos(angle), np.sin(angle)])  # (2, spiral, POINTS)
    points += NOISE * rng.standard_normal(points.shape)
    labels = np.repeat([0.0, 1.0], POINTS)
    return points.reshape(2, -1).T.astype(np.float32), labels[:, None].astype(np.float32)


def look(model: MLP, epoch: int, test: tuple[Array, Array]) -> Moment:
    """Apply the network to the test points and to each point of the picture's grid."""
    axis = np.linspace(-REACH, REACH, GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)  # (GRID, GRID, 2), rows are y
    with minigrad.no_grad():
        right = (model(minigrad.tensor(test[0])) > 0).data == (test[1] > 0.5)
        probability = minigrad.sigmoid(model(minigrad.tensor(grid))).data[..., 0]
    return Moment(epoch, float(right.mean()), probability)


def draw(result: Result, train: tuple[Array, Array], out: str | Path) -> None:
    """Save the picture: the moments in a row, and below them the loss, with each moment marked."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(result.moments), height_ratios=(3, 1.5))
    for column, moment in enumerate(result.moments):
        draw_moment(figure.add_subplot(grid[0, column]), moment, *train)
    draw_loss(figure.add_subplot(grid[1, :]), result)
    figure.savefig(out, dpi=100)


def draw_moment(axes: Axes, moment: Moment, x: Array, y: Array) -> None:
    """Draw the points, the boundary, and how certain the network is on each side."""
    extent, levels = (-REACH, REACH, -REACH, REACH), [0, 0.1, 0.5, 0.9, 1]
    axes.contourf(moment.probability, levels, colors=SHADES, extent=extent)
    axes.contour(moment.probability, [0.5], colors="black", linewidths=1.5, extent=extent)
    for label, (color, marker) in enumerate(zip(COLORS, MARKERS, strict=True)):
        own = x[y[:, 0] == label]
        axes.plot(*own.T, marker, color=color, markersize=3.5, markeredgecolor="black", mew=0.3)
    name = "before training" if not moment.epoch else f"after {moment.epoch} epochs"
    axes.set_title(f"{name}: {moment.accuracy:.0%} correct")
    axes.set(aspect="equal", xticks=[], yticks=[])


def draw_loss(axes: Axes, result: Result) -> None:
    """Draw the loss of each epoch."""
    epochs, losses = result.history["epoch"], result.history["loss"]
    axes.plot(epochs, losses, color="black", linewidth=1.5)
    marked = [moment.epoch for moment in result.moments if moment.epoch]
    axes.plot(marked, [losses[epoch - 1] for epoch in marked], "o", color="black")
    axes.axhline(np.log(2), color="black", linestyle=":", linewidth=1)
    axes.text(epochs[-1], np.log(2), "guessing: log 2 ", ha="right", va="bottom")
    axes.set(xlabel="epoch", ylabel="training loss", xlim=(0, 1.01 * epochs[-1]), ylim=(0, 0.85))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    run(main, Parser("spirals", __doc__).with_capture())
