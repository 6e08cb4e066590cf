"""Newton's method against Adam: what the second derivative gains, and what it costs.

A gradient g says which direction is downhill, and the Hessian H says how the gradient changes along
a step. Newton's method solves H p = -g for its step p. It never computes H: the method of conjugate
gradients needs only products H v, and `minigrad.hvp` computes one for the price of a few gradients.

You will see the paths of both methods in a bent valley (Rosenbrock's function). On a real problem,
logistic regression on scikit-learn's breast-cancer data, you will see the loss above its minimum,
by step and by second. The demo asserts that both methods reach the minima, and that Newton's method
needs less than a twentieth of Adam's steps, and fewer derivatives and seconds. It takes twenty
seconds, and draws second_order.png.

    python -m examples.second_order
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import minigrad
from examples.command_line import Parser, check_out, run
from minigrad import Tensor
from minigrad.data import Standardizer
from minigrad.optim import Adam
from minigrad.progress import progress_bar

Array = NDArray[np.float64]
Loss = Callable[[Tensor], Tensor]

DECAY = 1e-5  # weight decay of the regression; a smaller one makes its curvatures differ more
GAP = 1e-8  # a descent has arrived when its loss is at most this far above the minimum
RATES = (0.1, 0.3, 1.0, 3.0)  # Adam's learning rates; the one that arrives first is shown
STYLES = {"Newton": ("#0072B2", "o-"), "Adam": ("#D55E00", "--")}


@dataclass
class Descent:
    """The path of one method, and what it cost.

    Attributes:
        name: the name of the method.
        points: the start, and the point after each step.
        gaps: the loss at each point, above the minimum.
        seconds: the processor time until each point; it does not count other programs.
        gradients: the number of gradients that were computed.
        products: the number of products H v that were computed.
    """

    name: str
    points: list[Array] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gradients: int = 0
    products: int = 0

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.points) - 1

    @property
    def arrived(self) -> bool:
        """Whether the loss is close enough to its minimum."""
        return self.gaps[-1] <= GAP

    def __str__(self) -> str:
        end = f"in {self.steps:,} steps" if self.arrived else f"not in {self.steps:,} steps"
        return (
            f"{self.name:18} {end:>20}, {self.gradients:6,} gradients, {self.products:3} products "
            f"H v, {self.seconds[-1]:6.3f} s"
        )


@dataclass(frozen=True)
class Result:
    """The descents of both methods, Newton first, in the valley and for the regression."""

    valley: tuple[Descent, Descent]
    regression: tuple[Descent, Descent]


def main(quick: bool = False, out: str | Path = "second_order.png") -> Result:
    """Minimise both functions with both methods, print the costs, and save the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    rates = RATES[1:2] if quick else RATES
    print("Rosenbrock's valley:")
    valley = compare(rosenbrock, np.array([-1.2, 1.0]), 0.0, rates)
    print("Logistic regression, 569 tumours, 30 features:")
    loss, start, minimum = regression(10 * DECAY if quick else DECAY)
    both = compare(loss, start, minimum, rates)
    for newton, adam in (valley, both):
        assert newton.arrived, "Newton's method should reach the minimum"
        assert adam.arrived, "Adam should reach the minimum with one of the rates"
        assert newton.steps * 20 < adam.steps
        assert newton.gradients + 3 * newton.products < adam.gradients
        assert newton.seconds[-1] < adam.seconds[-1]
    result = Result(valley, both)
    draw(result, out)
    print(f"The picture is in {out}")
    return result


# --------------------------------------------------------------------------------------------------
# The two methods
# --------------------------------------------------------------------------------------------------


def descend_by_newton(loss: Loss, start: Array, minimum: float, most: int = 100) -> Descent:
    """Minimise by Newton's method: one step would be enough if the function were quadratic."""
    descent = Descent("Newton")
    x, began = start, time.process_time()
    gradient_of = minigrad.value_and_grad(loss)
    while True:
        value, gradient = (result.numpy() for result in gradient_of(x))
        descent.gradients += 1
        note(descent, x, float(value) - minimum, began)
        if descent.arrived or descent.steps == most:
            return descent
        step = solve(loss, x, -gradient, descent)
        # The quadratic model is right only near x, so halve the step until the loss falls enough.
        share, slope = 1.0, float(gradient @ step)
        while loss(Tensor(x + share * step)).item() > value + 1e-4 * share * slope:
            share /= 2
        x = x + share * step


def solve(loss: Loss, x: Array, b: Array, descent: Descent) -> Array:
    """Solve H p = b by conjugate gradients, as exactly as a step needs.

    The iteration stops when the residual b - H p is below a limit, which is lower near the minimum.
    It also stops when the curvature is negative, because then the quadratic model has no minimum.
    """
    p, residual = np.zeros_like(b), b
    direction, squared = residual, float(residual @ residual)
    enough = min(1e-4, squared**0.5) * squared
    for _ in range(10 * b.size):
        product = minigrad.hvp(loss, x, direction).numpy()
        descent.products += 1
        curvature = float(direction @ product)
        if curvature <= 0:
            return p if p.any() else b
        rate = squared / curvature
        p = p + rate * direction
        residual = residual - rate * product
        before, squared = squared, float(residual @ residual)
        if squared <= enough:
            break
        direction = residual + squared / before * direction
    return p


def descend_by_adam(
    loss: Loss, start: Array, minimum: float, lr: float, most: int = 8_000
) -> Descent:
    """Minimise by Adam: many cheap steps, whose lengths depend on all earlier gradients."""
    descent = Descent(f"Adam, lr {lr:g}")
    x = Tensor(start.copy(), requires_grad=True)
    optimizer = Adam([x], lr=lr)
    began = time.process_time()
    for _ in progress_bar(range(most + 1), what=descent.name, unit="step", shown=True):
        optimizer.zero_grad()
        value = loss(x)
        note(descent, x.detach().numpy().copy(), value.item() - minimum, began)
        if descent.arrived or descent.steps == most:
            break
        value.backward()
        descent.gradients += 1
        optimizer.step()
    return descent


def note(descent: Descent, x: Array, gap: float, began: float) -> None:
    """Add a point to a descent."""
    descent.points.append(x)
    descent.gaps.append(gap)
    descent.seconds.append(time.process_time() - began)


def compare(
    loss: Loss, start: Array, minimum: float, rates: Sequence[float]
) -> tuple[Descent, Descent]:
    """Return the descent of Newton's method, and the shortest one of Adam."""
    # Not timed, because first calls compile kernels.
    descend_by_newton(loss, start, minimum)
    descend_by_adam(loss, start, minimum, rates[0], most=1)
    newton = descend_by_newton(loss, start, minimum)
    descents = [descend_by_adam(loss, start, minimum, lr) for lr in rates]
    for descent in (newton, *descents):
        print(f"  {descent}")
    return newton, min(descents, key=lambda descent: (not descent.arrived, descent.steps))


# --------------------------------------------------------------------------------------------------
# Two functions
# --------------------------------------------------------------------------------------------------


def rosenbrock(x: Tensor) -> Tensor:
    """(1 - x)^2 + 100 (y - x^2)^2, 0 at (1, 1): a bent valley with steep sides and a flat floor."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def regression(decay: float) -> tuple[Loss, Array, float]:
    """Return the loss of a logistic regression, a start, and its minimum from scikit-learn."""
    data = load_breast_cancer()
    x = Standardizer.fit(data.data).transform(data.data)
    y = data.target[:, None].astype(np.float64)

    def loss(w: Tensor) -> Tensor:
        """Return the mean cross entropy plus a decay of all weights except the last, the bias."""
        logits = minigrad.reshape(x @ w[:-1] + w[-1], (-1, 1))
        entropy: Tensor = minigrad.binary_cross_entropy_with_logits(logits, y)
        return entropy + decay / 2 * (w[:-1] * w[:-1]).sum()

    model = LogisticRegression(C=1 / (len(x) * decay), tol=1e-12, max_iter=10_000)
    model.fit(x, data.target)
    best = np.append(model.coef_, model.intercept_)
    return loss, np.zeros(x.shape[1] + 1), loss(Tensor(best)).item()


# --------------------------------------------------------------------------------------------------
# The picture
# --------------------------------------------------------------------------------------------------


def draw(result: Result, out: str | Path) -> None:
    """Save the picture: the valley with both descents, and the loss by step and by second."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    valley, steps, seconds = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    draw_valley(valley, result.valley)
    newton, adam = result.regression
    for descent in (newton, adam):
        color, line = style(descent)
        label = f"{descent.name}: {descent.steps:,} steps"
        steps.plot(descent.gaps, line, color=color, markersize=4, label=label)
        label = f"{descent.name}: {descent.seconds[-1]:.2g} s"
        seconds.plot(descent.seconds, descent.gaps, line, color=color, markersize=4, label=label)
    for axes in (steps, seconds):
        axes.axhline(GAP, color="0.4", linestyle=":", linewidth=1)
        axes.set(yscale="log", ylim=(GAP / 10, 50))
        axes.legend(loc="upper right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    steps.set_xscale("symlog", linthresh=1)
    steps.set(xlabel="step", ylabel="loss above its minimum", xlim=(0, 1.2 * adam.steps))
    seconds.set(xlabel="seconds of the processor", xlim=(0, None))
    seconds.text(seconds.get_xlim()[1], GAP, "arrived ", ha="right", va="top")
    fewer = adam.steps / newton.steps, adam.seconds[-1] / newton.seconds[-1]
    for axes, times, unit in zip((steps, seconds), fewer, ("steps", "seconds"), strict=True):
        axes.set_title(f"Logistic regression: Newton takes\n{times:.0f} times fewer {unit}")
    figure.savefig(out, dpi=100)


def draw_valley(axes: Axes, descents: Sequence[Descent]) -> None:
    """Draw Rosenbrock's function as a map, and the descents on it."""
    x, y = np.meshgrid(np.linspace(-1.6, 1.4, 200), np.linspace(-0.7, 2.1, 200))
    height = np.log10(rosenbrock(Tensor(np.stack([x, y]))).numpy() + 1e-3)
    axes.contourf(x, y, height, levels=12, cmap="Greys", alpha=0.6)
    for descent in descents[::-1]:
        color, line = style(descent)
        points = np.array(descent.points).T
        label = f"{descent.name}: {descent.steps:,} steps"
        axes.plot(*points, line, color=color, markersize=4, linewidth=2, label=label)
    axes.plot(1, 1, "*", color="black", markersize=14)
    axes.annotate("minimum", (1, 1), xytext=(0.45, 1.05), ha="center")
    axes.set(title="Rosenbrock's valley", xlabel="x", ylabel="y")
    axes.legend(loc="upper center")


def style(descent: Descent) -> tuple[str, str]:
    """Return the colour and the line style of a method."""
    return STYLES[descent.name.partition(",")[0]]


if __name__ == "__main__":
    run(main, Parser("second_order", __doc__))
