"""estimate: the memory and the time of a training run, before it begins."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.attachment.targets import targets_in
from lora.config import LoRAConfig
from lora.text.data import Batch
from minigrad.core.tensor import Tensor
from minigrad.nn import Embedding

_PROGRAM = 250_000_000  # bytes of Python, its packages and the compiled kernels
_PACKED = 512_000_000  # bytes of weights, at most, that are stored again as products read them
_SHARE = 0.6  # of the speed of a large matrix product, which a step reaches


@dataclass(frozen=True, repr=False)
class Estimate:
    """The memory and the time that training will take, in bytes and seconds.

    Attributes:
        weights: the base.
        adapters: A and B, their gradients and the two moments of the optimiser.
        activations: what the largest micro-batch saves for its backward pass.
        memory: the memory of the machine, None if the system does not say.
        seconds: the time of all steps.
        checkpointing: whether the activations are those of gradient checkpointing.
        largest: the rows and the tokens of the largest micro-batch.
    """

    weights: int
    adapters: int
    activations: int
    memory: int | None
    seconds: float
    checkpointing: bool
    largest: tuple[int, int]

    @property
    def total(self) -> int:
        """All bytes, with those of the program and of packed weights."""
        packed = min(self.weights, _PACKED)
        return self.weights + packed + self.adapters + self.activations + _PROGRAM

    @property
    def fits(self) -> bool:
        """Whether nine tenths of the machine's memory are enough, as far as that is known."""
        return self.memory is None or self.total <= 0.9 * self.memory

    def __repr__(self) -> str:
        parts = self.weights, self.adapters, self.activations, self.total
        weights, adapters, activations, total = (f"{part / 1e9:.2f} GB" for part in parts)
        of = "" if self.memory is None else f" of {self.memory / 1e9:.1f} GB"
        text = (
            f"memory: about {total}{of} (weights {weights}, adapters and optimiser {adapters}, "
            f"activations {activations})\ntime: about {_duration(self.seconds)}"
        )
        if self.fits:
            return text
        rows, length = self.largest
        advice = [] if self.checkpointing else ["checkpointing=True, which saves activations"]
        if rows > 1:
            advice.append(
                f"batch_size={max(1, rows // 4)} with {min(rows, 4)} times the accumulation_steps"
            )
        advice.append(f"max_length={max(length // 2, 1)}")
        advice.append("a base in fewer bits (lora.quantize)")
        return f"{text}\nthat does not fit; what helps: {'; '.join(advice)}"


def estimate(
    model: Any,
    config: LoRAConfig,
    batches: Sequence[Batch],
    steps: int = 1,
    accumulation_steps: int = 1,
    checkpointing: bool = False,
) -> Estimate:
    """Estimate what training takes, from the shapes of a model and of its micro-batches.

    A layer saves for each token the inputs of its norms and linear layers, queries, keys and
    values, and what is in the gated MLP: 4 h + 3 q + 2 k + 4 f numbers for hidden size h, queries
    and keys of q and k numbers, and intermediate size f. With gradient checkpointing all layers but
    one save their input only. A token takes 4 multiply-adds for each weight, two forwards and two
    backwards, and with checkpointing 6; the speed is that of a matrix product that is timed here.

    Args:
        model: a language model, without the adapters.
        config: the adapters that it will have.
        batches: the micro-batches.
        steps: the number of steps.
        accumulation_steps: the number of micro-batches of each.
        checkpointing: whether gradient checkpointing is on.
    """
    modules, sizes = dict(model.named_modules()), model.config
    # Matrices in four bits are no parameters.
    stored = [getattr(m, "base_weight", getattr(m, "weight", None)) for m in modules.values()]
    others = {id(w): w.nbytes for w in stored if w is not None and not isinstance(w, Tensor)}
    products = sum(
        int(np.prod(module.weight.shape))
        for module in modules.values()
        if hasattr(module, "weight")
        and len(module.weight.shape) == 2
        and not (isinstance(module, Embedding) and not sizes.tie_word_embeddings)
    )
    trained = sum(
        target.rank * sum(modules[target.name].weight.shape) for target in targets_in(model, config)
    )
    q, k = (n * sizes.head_dim for n in (sizes.num_attention_heads, sizes.num_key_value_heads))
    h, f, layers = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers
    of_layer = 4 * h + 3 * q + 2 * k + 4 * f
    per_token = layers * h + of_layer if checkpointing else layers * of_layer
    largest = max((ids.shape for ids, _ in batches), key=np.prod)
    tokens = sum(ids.size for ids, _ in batches) / len(batches) * accumulation_steps * steps
    return Estimate(
        sum(parameter._data.nbytes for parameter in model.parameters()) + sum(others.values()),
        4 * 4 * trained,  # float32
        4 * (per_token + 2 * h + 3 * f) * int(np.prod(largest)),
        _memory(),
        (6 if checkpointing else 4) * products * tokens / (_SHARE * _speed()),
        checkpointing,
        (int(largest[0]), int(largest[1])),
    )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None


def _speed() -> float:
    """Time a matrix product, and return its multiply-adds in a second, each counted as two."""
    a = np.ones((768, 768), np.float32)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    return 2 * float(len(a)) ** 3 / min(times)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(minutes)} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
