"""A GPT in one file: its engine, its model and its optimiser, trained on verse until it writes.

The model is written once, for three kinds of arrays. They contain the `Scalar`s of an engine in 40
lines, from walkthrough 1; or they are tensors of minigrad, with which it trains, because they give
the same gradients much faster; or, when the model writes, they contain plain numbers.

You will see what it writes before and after it has learned from 30 of Shakespeare's sonnets, and
its loss on 5 others. It takes a minute, and draws gpt_in_one_file.png.

    python -m examples.gpt_in_one_file
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import minigrad
from examples.charlm.counting import loss_of_pairs
from examples.charlm.texts import Alphabet, sonnets
from examples.command_line import Parser, check_out, run
from minigrad.progress import progress_bar

Codes = NDArray[np.int64]
Rng = np.random.Generator
Weights = dict[str, Any]  # arrays of numbers or of Scalars, or tensors

# The engine: a table, numbers that remember how they were computed, a backward pass
TABLE: dict[str, tuple[Callable[..., float], list[Callable[..., float]]]] = {
    "add": (lambda x, y: x + y, [lambda g, x, y, out: g, lambda g, x, y, out: g]),
    "multiply": (lambda x, y: x * y, [lambda g, x, y, out: g * y, lambda g, x, y, out: g * x]),
    "tanh": (math.tanh, [lambda g, x, out: g * (1 - out * out)]),
    "divide": (lambda x, y: x / y, [lambda g, x, y, out: g / y, lambda g, x, y, out: -g * out / y]),
    "exp": (math.exp, [lambda g, x, out: g * out]),
    "log": (math.log, [lambda g, x, out: g / x]),
    "sqrt": (math.sqrt, [lambda g, x, out: g / (2 * out)]),
}


class Scalar:
    """A number that remembers how it was computed."""

    def __init__(self, value: float, op: str | None = None, inputs: Sequence[Scalar] = ()) -> None:
        self.value, self.op, self.inputs, self.grad = value, op, inputs, 0.0

    def __add__(self, other: Any) -> Scalar:
        return call("add", self, other)

    def __mul__(self, other: Any) -> Scalar:
        return call("multiply", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Scalar:
        return call("divide", self, other)


def call(op: str, *inputs: Any) -> Scalar:
    inputs = [x if isinstance(x, Scalar) else Scalar(x) for x in inputs]  # type: ignore[assignment]
    return Scalar(TABLE[op][0](*[x.value for x in inputs]), op, inputs)


for name in ("tanh", "exp", "log", "sqrt"):  # np.exp calls the method exp of each object
    setattr(Scalar, name, lambda x, name=name: call(name, x))


def in_order(x: Scalar, order: list[Scalar], seen: set[Scalar]) -> list[Scalar]:
    """Append to `order` all numbers from which `x` was computed, and then `x`."""
    if x not in seen:
        seen.add(x)
        for source in x.inputs:
            in_order(source, order, seen)
        order.append(x)
    return order


def backward(end: Scalar) -> None:
    end.grad = 1.0
    for x in reversed(in_order(end, [], set())):
        values = [source.value for source in x.inputs]
        vjps = TABLE[x.op][1] if x.op else []
        for source, vjp in zip(x.inputs, vjps, strict=True):
            source.grad += vjp(x.grad, *values, x.value)


# The model, where `m` is the module that computes: numpy or minigrad
class Sizes(NamedTuple):
    """The hyperparameters of the model."""

    width: int = 64  # the length of the vector of each character
    heads: int = 4
    layers: int = 2
    context: int = 32  # the number of characters that it sees at once


def initial_weights(characters: int, sizes: Sizes, rng: Rng) -> Weights:
    """Draw the weights: a matrix with n rows has entries of size about 1 / sqrt(n)."""
    width = sizes.width
    shapes = {"characters": (characters, width), "positions": (sizes.context, width)}
    for layer in range(sizes.layers):
        for name in ("query", "key", "value", "joined"):
            shapes[f"{name}{layer}"] = (width, width)
        shapes |= {f"up{layer}": (width, 4 * width), f"down{layer}": (4 * width, width)}
    shapes["scores"] = (width, characters)
    weights = {k: rng.standard_normal(shape) / shape[0] ** 0.5 for k, shape in shapes.items()}
    weights["scores"] *= 0.1  # so that all characters begin with nearly the same probability
    return weights


def scores_of_next(m: ModuleType, weights: Weights, sizes: Sizes, codes: Codes) -> Any:
    """Return a score for each character to come next: (rows, length) to (rows, length, n)."""
    x = weights["characters"][codes] + weights["positions"][: codes.shape[1]]
    for layer in range(sizes.layers):
        x = x + attention(m, weights, sizes, layer, normalised(m, x))
        h = normalised(m, x) @ weights[f"up{layer}"]  # each position by itself
        x = x + (h * (m.tanh(h / 2) + 1) / 2) @ weights[f"down{layer}"]  # the activation is SiLU
    return normalised(m, x) @ weights["scores"]


def normalised(m: ModuleType, x: Any) -> Any:
    """Scale each vector so that the mean of its squares is 1 (RMSNorm)."""
    return x / m.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)


def attention(m: ModuleType, weights: Weights, sizes: Sizes, layer: int, x: Any) -> Any:
    """Let each position take a mean of the values at earlier positions and its own."""
    rows, length, width = x.shape
    split = (rows, length, sizes.heads, width // sizes.heads)
    q, k, v = (
        (x @ weights[f"{name}{layer}"]).reshape(split).swapaxes(1, 2)  # (rows, heads, length, d)
        for name in ("query", "key", "value")
    )
    # The scores are small, so no maximum is subtracted. The mask is 0 where a key is later.
    e = m.exp(q @ k.swapaxes(2, 3) / split[3] ** 0.5) * np.tri(length)
    means = e / e.sum(axis=-1, keepdims=True) @ v
    return means.swapaxes(1, 2).reshape(x.shape) @ weights[f"joined{layer}"]


def loss_of(m: ModuleType, weights: Weights, sizes: Sizes, rows: Codes) -> Any:
    """Return the mean of -log p over the characters of rows, except the first of each row."""
    e = m.exp(scores_of_next(m, weights, sizes, rows[:, :-1]))
    right = e.reshape(-1, e.shape[-1])[np.arange(rows[:, 1:].size), rows[:, 1:].reshape(-1)]
    return m.log(e.sum(axis=-1).reshape(-1) / right).mean()  # log(1 / p)


# Gradients on both engines, and Adam
def by_scalars(weights: Weights, sizes: Sizes, rows: Codes) -> tuple[float, Weights]:
    """Return the loss and its gradients, from the engine of this file."""
    leaves = {name: np.frompyfunc(Scalar, 1, 1)(array) for name, array in weights.items()}
    loss, limit = loss_of(np, leaves, sizes, rows), sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # `in_order` calls itself along the longest path
    backward(loss)
    sys.setrecursionlimit(limit)
    return loss.value, {k: np.vectorize(lambda x: x.grad)(leaf) for k, leaf in leaves.items()}


def by_arrays(weights: Weights, sizes: Sizes, rows: Codes) -> tuple[float, Weights]:
    """Return the loss and its gradients, from minigrad."""
    leaves: Weights = {k: minigrad.tensor(w, requires_grad=True) for k, w in weights.items()}
    loss = loss_of(minigrad, leaves, sizes, rows)
    loss.backward()
    return loss.item(), {name: leaf.grad.data for name, leaf in leaves.items()}


class Adam:
    """Steps of about the same size for each weight, against the mean of its last gradients."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.steps = weights, 0
        self.mean = {name: np.zeros_like(array) for name, array in weights.items()}
        self.square = {name: np.zeros_like(array) for name, array in weights.items()}

    def step(self, gradients: Weights, rate: float) -> None:
        """Change the weights, in place."""
        self.steps += 1
        for name, g in gradients.items():
            self.mean[name] += 0.1 * (g - self.mean[name])
            self.square[name] += 0.01 * (g * g - self.square[name])
            mean = self.mean[name] / (1 - 0.9**self.steps)  # both means began at 0
            square = self.square[name] / (1 - 0.99**self.steps)
            self.weights[name] -= rate * mean / (np.sqrt(square) + 1e-8)


# Training, writing, and the picture
def train(weights: Weights, sizes: Sizes, rows: Codes, steps: int, rng: Rng) -> Iterator[int]:
    """Train by Adam on 16 random rows in each step; yield the number of steps done so far."""
    adam = Adam(weights)
    for step in progress_bar(range(steps), what="training", unit="step", shown=True):
        yield step
        _, gradients = by_arrays(weights, sizes, rows[rng.integers(0, len(rows), 16)])
        adam.step(gradients, 5e-3 * (1 - step / steps))
    yield steps


def write(weights: Weights, sizes: Sizes, codes: Codes, seed: int = 1) -> Codes:
    """Continue a text by 500 characters, each drawn from the probabilities of the model."""
    rng = np.random.default_rng(seed)
    for _ in range(500):
        scores = scores_of_next(np, weights, sizes, codes[None, -sizes.context :])[0, -1]
        p = np.exp(scores / 0.7)  # a temperature below 1 makes likely characters likelier
        codes = np.append(codes, rng.choice(len(p), p=p / p.sum()))
    return codes


def main(quick: bool = False, out: str | Path = "gpt_in_one_file.png") -> list[list[float]]:
    """Train on verse, and return rows of the steps done, the loss, and the held-out loss."""
    check_out(out)
    sizes, steps, rng = Sizes(), 400 if quick else 1500, np.random.default_rng(0)
    alphabet = Alphabet(*sonnets())
    known, held_out = (alphabet.encode(text) for text in sonnets())
    rows, tests = (sliding_window_view(text, sizes.context + 1) for text in (known, held_out))
    weights, looks, texts = initial_weights(len(alphabet), sizes, rng), [], []
    for step in train(weights, sizes, rows, steps, rng):
        if step % (steps // 10) == 0:
            some = rows[:: 8 * sizes.context], tests[:: sizes.context]  # an eighth, and all
            looks.append([step, *(float(loss_of(np, weights, sizes, part)) for part in some)])
        if step in (0, steps):
            texts.append(alphabet.decode(write(weights, sizes, known[:1])))
    chance, pairs = math.log(len(alphabet)), loss_of_pairs(known, held_out, len(alphabet))
    written = f"Before:\n\n{texts[0]}\n\n\nAfter:\n\n{texts[1]}"
    print(f"{written}\n\nLoss {looks[-1][2]:.2f}, chance {chance:.2f}, table of pairs {pairs:.2f}")
    assert abs(looks[0][2] - chance) < 0.1
    assert looks[-1][2] < pairs - (0.05 if quick else 0.3)
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    for name, level in (("chance", chance), ("a table of pairs of characters", pairs)):
        left.axhline(level, color="black", linestyle=":")
        left.text(steps, level + 0.03, name, ha="right")
    left.plot(*np.transpose(looks)[[0, 1]], "s--", color="#D55E00", label="30 known sonnets")
    left.plot(*np.transpose(looks)[[0, 2]], "o-", color="#0072B2", label="5 held-out sonnets")
    left.set(title="A GPT learns verse", xlabel="steps", ylabel="loss, nats per character")
    left.legend(loc=(0.4, 0.7))
    right.text(0, 1, "\n".join(map(textwrap.fill, written.split("\n"))), va="top", parse_math=False)
    right.set_axis_off()
    figure.savefig(out, dpi=100)
    return looks


if __name__ == "__main__":
    run(main, Parser("gpt_in_one_file", __doc__))
