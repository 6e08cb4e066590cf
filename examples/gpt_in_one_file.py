"""A GPT in one file: its engine, its model and its optimiser, trained on verse until it writes.

The model is written once, in the language of numpy's arrays. Its arrays may hold the numbers of an
engine in 40 lines, the one of walkthrough 1. They may be the tensors of minigrad, which gives the
same gradients about ten thousand times as fast. They may be plain numbers, to write a text.

You will see what the model writes before and after it is trained on 30 of Shakespeare's sonnets,
and its loss on 5 others, beside those of chance and of a table of pairs of characters. It takes a
minute, and draws gpt_in_one_file.png.

    python -m examples.gpt_in_one_file
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import minigrad
from examples.command_line import Parser, check_out, run

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Weights = dict[str, Any]  # arrays of numbers or of Scalars, or tensors

# --------------------------------------------------------------------------------------------------
# The engine: a table, numbers that remember how they were computed, a backward pass
# --------------------------------------------------------------------------------------------------

TABLE: dict[str, tuple[Callable[..., float], list[Callable[..., float]]]] = {
    "add": (lambda x, y: x + y, [lambda g, x, y, out: g, lambda g, x, y, out: g]),
    "multiply": (lambda x, y: x * y, [lambda g, x, y, out: g * y, lambda g, x, y, out: g * x]),
    "tanh": (math.tanh, [lambda g, x, out: g * (1 - out * out)]),
    "subtract": (lambda x, y: x - y, [lambda g, x, y, out: g, lambda g, x, y, out: -g]),
    "divide": (lambda x, y: x / y, [lambda g, x, y, out: g / y, lambda g, x, y, out: -g * out / y]),
    "exp": (math.exp, [lambda g, x, out: g * out]),
    "log": (math.log, [lambda g, x, out: g / x]),
    "sqrt": (math.sqrt, [lambda g, x, out: g / (2 * out)]),
}


class Scalar:
    """A number that remembers how it was computed."""

    def __init__(self, value: float, op: str = "", inputs: Sequence[Scalar] = ()) -> None:
        self.value, self.op, self.inputs, self.grad = value, op, inputs, 0.0

    def __add__(self, other: Scalar | float) -> Scalar:
        return call("add", self, other)

    def __mul__(self, other: Scalar | float) -> Scalar:
        return call("multiply", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: Scalar | float) -> Scalar:
        return call("subtract", self, other)

    def __truediv__(self, other: Scalar | float) -> Scalar:
        return call("divide", self, other)


def call(op: str, *inputs: Scalar | float) -> Scalar:
    inputs = [x if isinstance(x, Scalar) else Scalar(x) for x in inputs]
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
        rules = TABLE[x.op][1] if x.op else []
        for source, rule in zip(x.inputs, rules, strict=True):
            source.grad += rule(x.grad, *values, x.value)


# --------------------------------------------------------------------------------------------------
# The model, where `m` is the module that computes: numpy or minigrad
# --------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """The hyperparameters of the model."""

    width: int = 64  # the length of the vector of each character
    heads: int = 4
    layers: int = 2
    context: int = 32  # the number of characters that it sees at once


def initial_weights(characters: int, sizes: Sizes, rng: np.random.Generator) -> Weights:
    """Draw the weights: a matrix with n rows has entries of size about 1 / sqrt(n)."""
    width = sizes.width
    shapes = {"characters": (characters, width), "positions": (sizes.context, width)}
    for layer in range(sizes.layers):
        square = (width, width)
        shapes |= {f"{name}{layer}": square for name in ("query", "key", "value", "joined")}
        shapes |= {f"up{layer}": (width, 4 * width), f"down{layer}": (4 * width, width)}
    shapes["scores"] = (width, characters)
    return {name: rng.standard_normal(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}


def scores_of_next(m: ModuleType, weights: Weights, sizes: Sizes, codes: Codes) -> Any:
    """Return a score for each character to come next: (rows, length) to (rows, length, all)."""
    x = weights["characters"][codes] + weights["positions"][: codes.shape[1]]
    for layer in range(sizes.layers):
        x = x + attention(m, weights, sizes, layer, normalised(m, x))
        x = x + hidden_layer(m, weights, layer, normalised(m, x))
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


def hidden_layer(m: ModuleType, weights: Weights, layer: int, x: Any) -> Any:
    """Process each position by itself: a layer of neurons with the activation SiLU."""
    h = x @ weights[f"up{layer}"]
    return (h * (m.tanh(h / 2) + 1) / 2) @ weights[f"down{layer}"]


def loss_of(m: ModuleType, weights: Weights, sizes: Sizes, rows: Codes) -> Any:
    """Return the mean of -log p over all characters of some rows but the first of each."""
    scores = scores_of_next(m, weights, sizes, rows[:, :-1])
    scores = scores.reshape(-1, scores.shape[-1])
    right = scores[np.arange(len(scores)), rows[:, 1:].reshape(-1)]
    return (m.log(m.exp(scores).sum(axis=-1)) - right).mean()


# --------------------------------------------------------------------------------------------------
# Gradients on both engines, and Adam
# --------------------------------------------------------------------------------------------------


def by_scalars(weights: Weights, sizes: Sizes, rows: Codes) -> tuple[float, Weights]:
    """Return the loss and its gradients, from the engine of this file."""
    sys.setrecursionlimit(20_000)  # `in_order` calls itself along the longest path
    leaves = {name: np.frompyfunc(Scalar, 1, 1)(array) for name, array in weights.items()}
    loss = loss_of(np, leaves, sizes, rows)
    backward(loss)
    slope = np.vectorize(lambda x: x.grad, otypes=[float])
    return loss.value, {name: slope(leaf) for name, leaf in leaves.items()}


def by_arrays(weights: Weights, sizes: Sizes, rows: Codes) -> tuple[float, Weights]:
    """Return the loss and its gradients, from minigrad."""
    leaves = {k: minigrad.tensor(array, requires_grad=True) for k, array in weights.items()}
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


