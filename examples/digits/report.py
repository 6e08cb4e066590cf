"""What the demo measures: how many digits a network reads rightly, and what it takes to keep it."""

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
    """What a network is called that was fine-tuned in full to a kind of digits."""
    return f"fine-tuned to {kind}"


def adapted(kind: str) -> str:
    """What the base is called with the adapter for a kind of digits."""
    return f"base + adapter {kind!r}"


@dataclass(frozen=True)
class Network:
    """What is known of a network.

    Attributes:
        accuracy: the share of the digits of the test that it reads rightly, by kind.
        trained: how many numbers learned.
        size: the bytes in files of what it needs, beside the base if it has one.
    """

    accuracy: dict[str, float]
    trained: int
    size: int


Result = dict[str, Network]  # of one split, by what the network is called


def judged(
    scores: Mapping[str, NDArray[np.float32]], digits: Digits, trained: int = 0, size: int = 0
) -> Network:
    """What is known of a network that gives these scores."""
    right = {kind: accuracy(scores[kind], digits.test[kind].y) for kind in KINDS}
    return Network(right, trained, size)


def state_bytes(model: Module) -> int:
    """The bytes of all weights in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_state(path, model.state_dict())
        return path.stat().st_size


def adapter_bytes(model: Module, adapter: str) -> int:
    """The bytes of an adapter in its two files."""
    with tempfile.TemporaryDirectory() as folder:
        lora.save(model, folder, adapter)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def shares(results: Sequence[Result], name: str, kind: str) -> NDArray[np.float64]:
    """The accuracy of a network with each split."""
    return np.array([result[name].accuracy[kind] for result in results])


def table(results: Sequence[Result]) -> str:
    """One line for each network."""
    lines = [f"{'':26}" + "".join(f"{kind:>15}" for kind in KINDS) + f"{'trains':>10}{'bytes':>10}"]
    for name, network in results[0].items():
        cells = [f"{shown(shares(results, name, kind)):>15}" for kind in KINDS]
        lines.append(f"{name:26}" + "".join(cells) + f"{network.trained:>10,}{network.size:>10,}")
    splits = f"{len(results)} random splits" if len(results) > 1 else "a random split"
    return "\n".join([*lines, "", f"% of the test's digits that are read rightly, {splits}."])


def shown(values: NDArray[np.float64]) -> str:
    """Mean and standard deviation in per cent; the one value, if there is one."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
