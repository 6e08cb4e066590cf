"""The measurements: the accuracy of each network, and the bytes that its file needs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lora
from examples.digits.data import KINDS, Digits
from minigrad.io import save_state
from minigrad.metrics import accuracy
from minigrad.nn import Module

BASE, OFF = "base", "both adapters off"


def tuned(kind: str) -> str:
    """Return the name of a network that was fully fine-tuned to a kind of digits."""
    return f"fine-tuned to {kind}"


def adapted(kind: str) -> str:
    """Return the name of the base with the adapter for a kind of digits."""
    return f"base + adapter {kind!r}"


@dataclass(frozen=True)
class Network:
    """The measurements of a network.

    Attributes:
        accuracy: the share of the test digits that it reads correctly, by kind.
        trained: the number of trained parameters.
        size: the bytes of its file; for an adapter, without the base.
    """

    accuracy: dict[str, float]
    trained: int
    size: int


Result = dict[str, Network]  # the networks of one split, by name


def judged(
    scores: Mapping[str, NDArray[np.float32]], digits: Digits, trained: int = 0, size: int = 0
) -> Network:
    """Return the measurements of a network that computed these scores."""
    right = {kind: accuracy(scores[kind], digits.test[kind].y) for kind in KINDS}
    return Network(right, trained, size)


def state_bytes(model: Module) -> int:
    """Return the bytes of a file with all weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_state(path, model.state_dict())
        return path.stat().st_size


def adapter_bytes(model: Module, adapter: str) -> int:
    """Return the bytes of the two files of an adapter."""
    with tempfile.TemporaryDirectory() as folder:
        lora.save(model, folder, adapter)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def shares(results: Sequence[Mapping[str, Network]], name: str, kind: str) -> NDArray[np.float64]:
    """Return the accuracy of a network with each split."""
    return np.array([result[name].accuracy[kind] for result in results])


def table(results: Sequence[Result]) -> str:
    """Return a table with one line for each network."""
    lines = [f"{'':26}" + "".join(f"{kind:>15}" for kind in KINDS) + f"{'trains':>10}{'bytes':>10}"]
    for name, network in results[0].items():
        cells = [f"{shown(shares(results, name, kind)):>15}" for kind in KINDS]
        lines.append(f"{name:26}" + "".join(cells) + f"{network.trained:>10,}{network.size:>10,}")
    splits = f"{len(results)} random splits" if len(results) > 1 else "a random split"
    return "\n".join([*lines, "", f"% of the test digits that are read correctly, {splits}."])


def shown(values: NDArray[np.float64]) -> str:
    """Return mean and standard deviation in per cent, or the only value."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * values.mean():.1f} +- {100 * values.std(ddof=1):.1f}"
