"""A CNN and an MLP learn to read digits in equal time, and are tested on shifted digits too.

They train in turns of ten steps. The network that has trained for less time gets the next turn,
until both have used their seconds. Kernels use one thread, and we count the processor time of this
thread, so the time of other programs does not count. Kernels are compiled before the training, and
the time of tests during the training does not count.

The MLP is the network of the rest of this demo. If an image moves, the result of a convolution
moves too, so what the CNN learns in one place helps in all places.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.digits.data import UPRIGHT, Labels, Rows, split
from examples.digits.report import Network, shares, shown, state_bytes
from examples.one_thread import one_thread
from minigrad import Trainer, cross_entropy, gelu, no_grad, relu, tensor
from minigrad.metrics import accuracy
from minigrad.nn import MLP, Conv2d, Flatten, Linear, MaxPool2d, Sequential
from minigrad.optim import Adam

DENSE, CNN = "MLP", "CNN"
SHIFTED = "shifted"  # by one pixel
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # rows and columns
BATCH_SIZE = 32
TURN = 10  # steps
TESTS = 25  # the number of tests during training, at equal distances in seconds
RATES = {DENSE: 1e-3, CNN: 4e-3}  # chosen with other splits than those of the demo

MODELS: dict[str, Callable[[np.random.Generator], Sequential]] = {
    DENSE: lambda rng: Sequential(Flatten(), MLP((64, 256, 256, 10), gelu, rng=rng)),
    CNN: lambda rng: Sequential(
        Conv2d(1, 16, 3, padding=1, rng=rng),
        relu,
        Conv2d(16, 32, 3, padding=1, rng=rng),
        relu,
        MaxPool2d(2),
        Flatten(),
        Linear(32 * 4 * 4, 10, rng=rng),
    ),
}

Images = NDArray[np.float32]  # (n, 1, 8, 8)


@dataclass(frozen=True)
class Reader(Network):
    """The measurements of a network that has trained for its seconds.

    Attributes:
        model: the network.
        seconds: how long it has trained.
        steps: the number of steps in this time.
        curve: the accuracy on the test digits during training, as pairs (seconds, accuracy).
        test: the test digits.
        answers: the digit that the network reads in each test image.
    """

    model: Sequential
    seconds: float
    steps: int
    curve: list[tuple[float, float]]
    test: Rows
    answers: Labels


Readers = dict[str, Reader]  # both networks of one split, by name


class Learner:
    """A network in training, which counts its seconds."""

    def __init__(self, name: str, rng: np.random.Generator, capture: bool) -> None:
        self.model, self.rate = MODELS[name](rng), RATES[name]
        self.optimizer = Adam(self.model.parameters(), lr=self.rate)
        self.trainer = Trainer(
            self.model,
            self.optimizer,
            cross_entropy,
            batch_size=BATCH_SIZE,
            progress=False,
            rng=rng,
            capture=capture,
        )
        self.seconds = 0.0
        self.curve: list[tuple[float, float]] = []

    def take_turn(self, x: Images, y: Labels, budget: float) -> None:
        """Train for some steps, with a rate that falls to 0 along half a cosine in the budget."""
        self.optimizer.lr = self.rate * (1 + np.cos(np.pi * self.seconds / budget)) / 2
        start = time.thread_time()
        self.trainer.fit((x, y), steps=TURN)
        self.seconds += time.thread_time() - start

    def scores(self, x: Images) -> NDArray[np.float32]:
        """Return the outputs of the network `(n, 10)`."""
        with no_grad():
            scores: NDArray[np.float32] = self.model(tensor(x)).numpy()
        return scores

    def measured(self, test: Rows) -> Reader:
        """Return the measurements, with the accuracy on these test digits."""
        x, y = images(test)
        upright = self.scores(x)
        moved = [accuracy(self.scores(shifted(x, *by)), y) for by in DIRECTIONS]
        return Reader(
            {UPRIGHT: accuracy(upright, y), SHIFTED: float(np.mean(moved))},
            trained=self.model.count_parameters(),
            size=state_bytes(self.model),
            model=self.model,
            seconds=self.seconds,
            steps=len(self.trainer.history.steps),
            curve=self.curve,
            test=test,
            answers=upright.argmax(axis=1),
        )


@one_thread()
def compile_kernels(capture: bool) -> dict[str, float]:
    """Return the seconds of each network's first turn, in which its kernels are compiled."""
    x, y = images(split(np.random.default_rng(0)).train[UPRIGHT])
    rest = len(x) % BATCH_SIZE  # the last batch of an epoch has another shape
    seconds = {}
    for name in MODELS:
        start = time.perf_counter()
        learner = Learner(name, np.random.default_rng(0), capture)
        learner.take_turn(x[: BATCH_SIZE + rest], y[: BATCH_SIZE + rest], budget=1.0)
        seconds[name] = time.perf_counter() - start
    return seconds


@one_thread()
def train_in_turns(rng: np.random.Generator, budget: float, capture: bool = False) -> Readers:
    """Train both networks on one split for `budget` seconds each, and test them."""
    digits = split(rng)
    train, test = digits.train[UPRIGHT], digits.test[UPRIGHT]
    (x, y), (x_test, y_test) = images(train), images(test)
    own = dict(zip(MODELS, rng.spawn(len(MODELS)), strict=True))
    learners = {name: Learner(name, own[name], capture) for name in MODELS}
    while (learner := min(learners.values(), key=lambda each: each.seconds)).seconds < budget:
        learner.take_turn(x, y, budget)
        if learner.seconds >= len(learner.curve) * budget / TESTS:
            learner.curve.append((learner.seconds, accuracy(learner.scores(x_test), y_test)))
    return {name: learner.measured(test) for name, learner in learners.items()}


def images(rows: Rows) -> tuple[Images, Labels]:
    """Return rows as images of one channel `(n, 1, 8, 8)`, with their labels."""
    return rows.x.reshape(-1, 1, 8, 8), rows.y


def shifted(x: Images, down: int, right: int) -> Images:
    """Return the images moved by at most one pixel; the pixels that come in are white."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    return np.ascontiguousarray(padded[..., 1 - down : 9 - down, 1 - right : 9 - right])


def gains(results: Sequence[Readers], kind: str) -> NDArray[np.float64]:
    """Return for each split how much higher the CNN's accuracy is than the MLP's."""
    return shares(results, CNN, kind) - shares(results, DENSE, kind)


def mean_gain(results: Sequence[Readers], kind: str) -> tuple[float, float]:
    """Return how much higher the CNN's mean accuracy is, and two standard errors of this mean."""
    gain = gains(results, kind)
    return gain.mean(), 2 * gain.std(ddof=1) / np.sqrt(len(gain))


def comparison(results: Sequence[Readers], budget: float) -> str:
    """Return a table with one line for each network, and one for the difference."""
    lines = [f"{'':10}{'steps':>8}{'trains':>10}{UPRIGHT:>15}{SHIFTED:>15}"]
    for name, first in results[0].items():
        steps = np.mean([result[name].steps for result in results])
        cells = [f"{shown(shares(results, name, kind)):>15}" for kind in (UPRIGHT, SHIFTED)]
        lines.append(f"{name:10}{steps:8,.0f}{first.trained:>10,}{''.join(cells)}")
    cells = [f"{shown(gains(results, kind)):>15}" for kind in (UPRIGHT, SHIFTED)]
    lines.append(f"{'difference':28}{''.join(cells)}")
    splits = f"{len(results)} random splits" if len(results) > 1 else "a random split"
    lines += [
        "",
        f"% of the test digits that are read correctly, {splits}, after {budget:g} s each on",
        "one core; as they are, and shifted by a pixel in each of four directions.",
    ]
    if len(results) == 1:
        lines += [
            f"One split does not show which network reads {UPRIGHT} digits better; several may,",
            "without --quick.",
        ]
    else:
        for kind in (UPRIGHT, SHIFTED):
            gain, margin = mean_gain(results, kind)
            which = "clear" if abs(gain) > margin else "inside the noise"
            by = f"{100 * gain:.1f} +- {100 * margin:.1f} points"
            lines.append(f"CNN against MLP, {kind}: {by} (two standard errors), {which}.")
    return "\n".join(lines)
