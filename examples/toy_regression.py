"""The smallest demo: a network with 4,353 parameters learns a sine from 200 noisy points.

You will see a picture of the points, of the true sine, and of the curve that the network learned.
You will also see the distance between the two curves, which is well below the noise of a point. It
takes two seconds, and draws toy_regression.png.

    python -m examples.toy_regression
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import minigrad
from examples.command_line import Parser, check_out, run
from minigrad.metrics import rmse
from minigrad.nn import MLP
from minigrad.optim import Adam

NOISE = 0.2


def main(quick: bool = False, out: str | Path = "toy_regression.png") -> float:
    """Fit the sine, save the picture, and return the root mean square error of the fitted curve.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    rng = np.random.default_rng(0)
    x = rng.uniform(-np.pi, np.pi, (200, 1)).astype(np.float32)
    y = np.sin(x) + NOISE * rng.standard_normal(x.shape).astype(np.float32)

    model = MLP((1, 64, 64, 1), minigrad.tanh, rng=rng)
    trainer = minigrad.Trainer(model, Adam(model.parameters(), lr=0.003), minigrad.mse, rng=rng)
    trainer.fit((x, y), epochs=100 if quick else 200)

    grid = np.linspace(-np.pi, np.pi, 201, dtype=np.float32)[:, None]
    fit = trainer.predict(grid)
    error = rmse(fit, np.sin(grid))
    noise = rmse(y, np.sin(x))
    print(f"The fit is {error:.3f} away from the sine (RMSE), and the points are {noise:.3f} away.")
    assert error < NOISE / 2, "the network should average out the noise, not learn it"

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, y, "o", color="0.7", markersize=4, label=f"200 points, noise {NOISE}")
    axes.plot(grid, np.sin(grid), "--", color="black", label="the true sine")
    axes.plot(grid, fit, color="#0072B2", linewidth=2.5, label="what the network learned")
    axes.set(title=f"The fit is {error:.3f} away from the sine (RMSE)", xlabel="x", ylabel="y")
    axes.legend()
    figure.savefig(out, dpi=150)
    print(f"The picture is in {out}")
    return error


if __name__ == "__main__":
    run(main, Parser("toy_regression", __doc__))
