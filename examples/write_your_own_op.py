"""Write an op of your own: its forward function, its VJPs, a check of them, and a use for the op.

The op is an activation, snake(x, a) = x + sin(a x)^2 / a. It rises like x and oscillates around x
with a frequency a that is learned (Ziyin, Hartwig and Ueda, 2020). The op needs a forward function
on arrays, and one VJP for each of x and a. `gradcheck` compares their first and second derivatives
with finite differences. You will see its report about a VJP in which one factor is missing. You
will also see a use for the op: a network with it learns both a trend and a season. Beyond the data,
its error is less than half of that of a network with tanh that was trained in the same way. It
takes ten seconds, and draws write_your_own_op.png.

    python -m examples.write_your_own_op
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import minigrad
from examples.command_line import Parser, check_out, run
from minigrad import Tensor, Trainer, gradcheck
from minigrad.diagnostics import GradcheckReport
from minigrad.metrics import rmse
from minigrad.nn import Linear, Module, Parameter, Sequential, Tanh
from minigrad.optim import Adam, CosineAnnealingLR

Array = NDArray[np.float32]

# --------------------------------------------------------------------------------------------------
# The op
# --------------------------------------------------------------------------------------------------


@minigrad.op
def snake(x: Any, a: Any) -> Any:
    """Compute x + sin(a x)^2 / a."""
    return x + np.sin(a * x) ** 2 / a


# A VJP turns g, the gradient with respect to the output, into the gradient with respect to an
# input. It is written with ops and plain operators, so it can itself be differentiated. If an input
# was broadcast, the engine sums the gradient over the broadcast axes.
snake.vjp("x", lambda g, x, a: g * (1 + minigrad.sin(2 * a * x)))
by_a = snake.vjp(
    "a", lambda g, x, a: g * (x * minigrad.sin(2 * a * x) - minigrad.sin(a * x) ** 2 / a) / a
)


@minigrad.op
def faulty(x: Any, a: Any) -> Any:
    """Compute the same function; in one of its VJPs, a factor `a` is missing."""
    return x + np.sin(a * x) ** 2 / a


faulty.vjp("x", lambda g, x, a: g * (1 + minigrad.sin(2 * x)))  # right only where a is 1
faulty.vjp("a", by_a)


# --------------------------------------------------------------------------------------------------
# Its use
# --------------------------------------------------------------------------------------------------

SPAN, SHOWN, NOISE = 3.0, 6.0, 0.1  # the data lie between -SPAN and SPAN


class Snake(Module):
    """The op as a layer, with a separate `a` for each of `width` features."""

    def __init__(self, width: int) -> None:
        self.a = Parameter(np.full(width, 3.0, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the op, with one `a` for each column of x."""
        return snake(x, self.a)


@dataclass(frozen=True)
class Result:
    """The results.

    Attributes:
        right: the report of gradcheck on the op.
        wrong: the report of gradcheck on the faulty op.
        curves: the predictions of the networks on `grid()`, by name.
        beyond: the error of these predictions outside the data (RMSE), by name.
    """

    right: GradcheckReport
    wrong: GradcheckReport
    curves: dict[str, Array]
    beyond: dict[str, float]


def main(quick: bool = False, out: str | Path = "write_your_own_op.png") -> Result:
    """Check the op and the faulty one, train with snake and with tanh, and save the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    x, a = np.array([[-1.5, 0.3, 2.0], [0.7, -0.2, 1.1]]), np.array([0.5, 1.0, 2.0])
    right, wrong = gradcheck(snake, [x, a]), gradcheck(faulty, [x, a])
    print(right, wrong, sep="\n\n", end="\n\n")
    assert right.verdict == "agree", "both VJPs and their derivatives are right"
    assert wrong.verdict == "disagree"
    assert {entry.operand for entry in wrong.wrong} == {"x"}, "the VJP for a is right"
    hidden = gradcheck(faulty, [x, np.ones(3)], order=1)
    assert hidden.verdict == "disagree", "it also checks other points than the given one"

    curves, beyond = {}, {}
    for name, activation in (("snake", Snake), ("tanh", lambda width: Tanh())):
        curves[name] = train(activation, epochs=100 if quick else 400)
        outside = np.abs(grid()) > SPAN
        beyond[name] = rmse(curves[name][outside], truth(grid())[outside])
        print(f"{name}: {beyond[name]:.3f} away from the truth where there were no data (RMSE)")
    assert beyond["snake"] < beyond["tanh"] / 2, "it should be closer to the truth beyond the data"
    result = Result(right, wrong, curves, beyond)
    draw(result, out)
    print(f"The picture is in {out}")
    return result


def truth(x: Array) -> Array:
    """Return the true function: a season on a trend."""
    season: Array = np.sin(3 * x)
    return season + 0.3 * x


def grid() -> Array:
    """Return the x at which the curves are drawn, inside and outside the data: `(n, 1)`."""
    return np.linspace(-SHOWN, SHOWN, 601, dtype=np.float32)[:, None]


def points(rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw the data: x, and the true function with noise."""
    x = rng.uniform(-SPAN, SPAN, (300, 1)).astype(np.float32)
    return x, truth(x) + NOISE * rng.standard_normal(x.shape, dtype=np.float32)


def train(activation: Callable[[int], Module], epochs: int) -> Array:
    """Train a network with this activation on the data, and return its predictions on `grid()`."""
    rng = np.random.default_rng(0)
    x, y = points(rng)
    width = 32
    model = Sequential(
        Linear(1, width, rng=rng),
        activation(width),
        Linear(width, width, rng=rng),
        activation(width),
        Linear(width, 1, rng=rng),
    )
    optimizer = Adam(model.parameters(), lr=0.02)
    batch_size = 32
    scheduler = CosineAnnealingLR(optimizer, epochs * -(-len(x) // batch_size))
    trainer = Trainer(
        model, optimizer, minigrad.mse, batch_size=batch_size, scheduler=scheduler, rng=rng
    )
    trainer.fit((x, y), epochs)
    return trainer.predict(grid())


# --------------------------------------------------------------------------------------------------
# The picture
# --------------------------------------------------------------------------------------------------


def draw(result: Result, out: str | Path) -> None:
    """Save the picture: the op, its slope from the right and from the faulty VJP, and the fits."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    axes_of = figure.subplot_mosaic([["op", "fit"], ["slope", "fit"]], width_ratios=(1, 1.75))
    draw_op(axes_of["op"])
    draw_slope(axes_of["slope"], result)
    draw_fit(axes_of["fit"], result)
    for axes in axes_of.values():
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=100)


def draw_op(axes: Axes) -> None:
    """Draw the function for some values of a."""
    x = np.linspace(-3, 3, 301)
    for a, line, color in ((0.5, ":", "0.5"), (1.0, "--", "#0072B2"), (3.0, "-", "black")):
        axes.plot(x, snake(x, a), line, color=color, label=f"a = {a:g}")
    axes.set(title="snake(x, a) = x + sin(a x)² / a", ylabel="value")
    axes.legend(loc="best", frameon=False)


def draw_slope(axes: Axes, result: Result) -> None:
    """Draw the derivative with respect to x at a = 2: from both VJPs, and from differences."""
    x, a, h = np.linspace(-3, 3, 301), 2.0, 1e-5
    for op, report, line, color in (
        (snake, result.right, "-", "black"),
        (faulty, result.wrong, "--", "#D55E00"),
    ):
        at = minigrad.tensor(x, requires_grad=True)
        slopes = minigrad.grad(op(at, a).sum(), at)
        axes.plot(x, slopes, line, color=color, label=f"{op.name}: {report.verdict}")
    some = x[::10]
    differences = (snake(some + h, a) - snake(some - h, a)) / (2 * h)
    axes.plot(some, differences, "o", color="#E69F00", markersize=4, label="by differences")
    axes.set(title="The slope at a = 2, and gradcheck's verdict", xlabel="x", ylim=(-0.1, 5))
    axes.set_ylabel("slope")
    axes.legend(frameon=False, loc="upper left")


def draw_fit(axes: Axes, result: Result) -> None:
    """Draw the data, the truth, and the predictions, inside and outside the data."""
    x = grid()
    axes.axvspan(-SPAN, SPAN, color="0.93", zorder=0)
    axes.text(0, 3.6, "data", ha="center", va="top")
    axes.plot(*points(np.random.default_rng(0)), "o", color="0.6", markersize=3)
    axes.plot(x, truth(x), color="black", linewidth=1, label="the truth")
    for name, line, color in (("tanh", "--", "#D55E00"), ("snake", "-", "#0072B2")):
        label = f"{name}: {result.beyond[name]:.2f} away, beyond the data"
        axes.plot(x, result.curves[name], line, color=color, linewidth=2.5, label=label)
    axes.set(title="A season on a trend: a network with the new op fits beyond the data too")
    axes.set(xlabel="x", ylabel="y", xlim=(-SHOWN, SHOWN), ylim=(-3.8, 3.8))
    axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    run(main, Parser("write_your_own_op", __doc__))
