"""Two spirals, and the boundary that a small network draws between them, as it learns.

No straight line parts the spirals, nor any curve of low degree. A network of 4,417 numbers begins
with a nearly straight line, bends it again and again, and ends with a boundary that winds through
the gap. You will see four moments of that, and the loss in between; what is asserted is the
accuracy on points that were not trained on. It takes five seconds, and draws spirals.png.

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
REACH = 7.0  # from -REACH to REACH is what the picture shows
GRID = 201  # points along a side of it
COLORS, MARKERS = ("#0072B2", "#E69F00"), ("o", "^")
SHADES = ("#7FB3D5", "#CBE1EF", "#FBEBC8", "#F2C979")  # from surely the first to surely the second


@dataclass(frozen=True)
class Moment:
    """The network after some epochs.

    Attributes:
        epoch: how many.
        accuracy: the share of points right, of those that it does not train on.
        probability: of the second spiral, at each place of the picture `(GRID, GRID)`.
    """

    epoch: int
    accuracy: float
    probability: Array


@dataclass(frozen=True)
class Result:
    """What came of it: the moments in order, before training first and after it last."""

    moments: list[Moment]
    history: History


def main(quick: bool = False, out: str | Path = "spirals.png") -> Result:
    """Train the network, look at it at four moments, save the picture."""
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
    )
    history = trainer.fit(train, epochs=looks[-1])

    for moment in moments:
        print(f"after {moment.epoch:3} epochs: {moment.accuracy:6.1%} of the test points are right")
    assert moments[0].accuracy < 0.75, "before training it cannot know the spirals"
    assert moments[-1].accuracy > 0.97, "the boundary should wind through the gap"
    draw(Result(moments, history), train, out)
    return Result(moments, history)


def spirals(rng: np.random.Generator) -> tuple[Array, Array]:
    """Points of both spirals `(2 POINTS, 2)`, and to which each belongs `(2 POINTS, 1)`."""
    along = np.sqrt(rng.uniform(0.02, 1, (2, POINTS)))  # so that the outer turns are as dense
    angle = 2 * np.pi * TURNS * along + np.array([[0], [np.pi]])
    points = 6.2 * along * np.stack([np.cos(angle), np.sin(angle)])  # (2, spiral, POINTS)
    points += NOISE * rng.standard_normal(points.shape)
    labels = np.repeat([0.0, 1.0], POINTS)
    return points.reshape(2, -1).T.astype(np.float32), labels[:, None].astype(np.float32)


def look(model: MLP, epoch: int, test: tuple[Array, Array]) -> Moment:
    """Ask the network about the test points, and about each place of the picture."""
    axis = np.linspace(-REACH, REACH, GRID, dtype=np.float32)
    places = np.stack(np.meshgrid(axis, axis), axis=-1)  # (GRID, GRID, 2), rows are y
    with minigrad.no_grad():
        right = (model(minigrad.tensor(test[0])) > 0).data == (test[1] > 0.5)
        probability = minigrad.sigmoid(model(minigrad.tensor(places))).data[..., 0]
    return Moment(epoch, float(right.mean()), probability)


def draw(result: Result, train: tuple[Array, Array], out: str | Path) -> None:
    """Save the picture: the moments in a row, and the loss below with a mark at each."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(result.moments), height_ratios=(3, 1.5))
    for column, moment in enumerate(result.moments):
        draw_moment(figure.add_subplot(grid[0, column]), moment, *train)
    draw_loss(figure.add_subplot(grid[1, :]), result)
    figure.savefig(out, dpi=100)


def draw_moment(axes: Axes, moment: Moment, x: Array, y: Array) -> None:
    """The points, the boundary, and how sure the network is on either side."""
    extent, levels = (-REACH, REACH, -REACH, REACH), [0, 0.1, 0.5, 0.9, 1]
    axes.contourf(moment.probability, levels, colors=SHADES, extent=extent)
    axes.contour(moment.probability, [0.5], colors="black", linewidths=1.5, extent=extent)
    for label, (color, marker) in enumerate(zip(COLORS, MARKERS, strict=True)):
        own = x[y[:, 0] == label]
        axes.plot(*own.T, marker, color=color, markersize=3.5, markeredgecolor="black", mew=0.3)
    name = "before training" if not moment.epoch else f"after {moment.epoch} epochs"
    axes.set_title(f"{name}: {moment.accuracy:.0%} right")
    axes.set(aspect="equal", xticks=[], yticks=[])


def draw_loss(axes: Axes, result: Result) -> None:
    """The loss of each epoch."""
    epochs, losses = result.history["epoch"], result.history["loss"]
    axes.plot(epochs, losses, color="black", linewidth=1.5)
    marked = [moment.epoch for moment in result.moments if moment.epoch]
    axes.plot(marked, [losses[epoch - 1] for epoch in marked], "o", color="black")
    axes.axhline(np.log(2), color="black", linestyle=":", linewidth=1)
    axes.text(epochs[-1], np.log(2), "a coin ", ha="right", va="bottom")
    axes.set(xlabel="epoch", ylabel="training loss", xlim=(0, 1.01 * epochs[-1]), ylim=(0, 0.85))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    run(main, Parser("spirals", __doc__))
