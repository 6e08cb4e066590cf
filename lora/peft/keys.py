"""The keys by which PEFT names the tensors of an adapter, and the shapes of these tensors.

The key of a tensor is `base_model.model.<layer>.<part>`. The parts of an update are

    lora_A.weight, lora_B.weight            A (rank, d_in), B (d_out, rank) of a linear layer
    lora_embedding_A, lora_embedding_B      A (rank, count), B (d, rank) of an embedding
    lora_magnitude_vector                   m of DoRA

In a convolution, A consists of filters `(rank, C, h, w)`, and B and m have the axes of a 1 x 1
kernel: `(O, rank, 1, 1)` and `(1, O, 1, 1)`. If it is grouped, A has filters of all C channels, and
B is `(O, rank / groups, 1, 1)`.

Every other key is a parameter that was trained in full, or a buffer of such a module. The bias of a
layer with an update is named `<layer>.base_layer.bias`, the others as in the model. Before PEFT 0.6
all biases were named as in the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

V = TypeVar("V")
Shape = tuple[int, ...]

PREFIX = "base_model.model."
KEYS = f"{PREFIX}<layer>.lora_A.weight"  # the form of the keys of updates, for messages

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"

PARTS = {
    "lora_A.weight": (A, False),
    "lora_B.weight": (B, False),
    "lora_embedding_A": (A, True),
    "lora_embedding_B": (B, True),
    "lora_magnitude_vector": (MAGNITUDE, False),
}


_SPELLINGS = re.compile(
    r"\.(?:(lora_[AB])(?:\.default)?(\.weight)|(lora_embedding_[AB])(?:\.default)?"
    r"|(lora_magnitude_vector)(?:\.default)?(?:\.weight)?)$"
)
"""Matches the parts of keys as PEFT reads them, also from a state dict of its model."""


def usual(key: str) -> str:
    """Return the key that PEFT writes for a part of an update that another program has named.

    In a model of PEFT, the name of the adapter, "default", is in the middle of the part, and a
    magnitude vector has a `.weight`.
    """
    return _SPELLINGS.sub(r".\1\2\3\4", key)


def by_key(
    updates: Mapping[str, Mapping[str, V]], full: Mapping[str, V], embeddings: Collection[str]
) -> dict[str, V]:
    """Return the contents of an adapter by PEFT's keys.

    `updates` are given by the names of layer and part, and `full`, the parameters and buffers in
    full, by their names in the model. `embeddings` are the layers that are embeddings.
    """
    endings = {part: ending for ending, part in PARTS.items()}
    found = {}
    for layer, parts in updates.items():
        for part, value in parts.items():
            is_embedding = layer in embeddings and part != MAGNITUDE
            found[f"{PREFIX}{layer}.{endings[part, is_embedding]}"] = value
    for name, value in full.items():
        layer, _, last = name.rpartition(".")
        found[PREFIX + (f"{layer}.base_layer.{last}" if layer in updates else name)] = value
    return found


def stored_shape(part: str, shape: Shape, weight: Shape, groups: int) -> Shape:
    """Return the shape in a file of a part of an update, by its shape here and the weight's."""
    _, channels, *kernel = weight
    if not kernel:
        return shape
    ones = (1,) * len(kernel)
    filters = shape[0], channels * groups, *kernel
    return {A: filters, B: shape + ones, MAGNITUDE: (1, *shape, *ones)}[part]


def in_order(key: str) -> list[str | int]:
    """Return a sort key by which layers.2 comes before layers.10."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split("([0-9]+)", key))]


def parameter_of(key: str) -> str:
    """Return the name in the model of a parameter that was trained in full, by its key."""
    return key.removeprefix(PREFIX).replace(".base_layer.", ".")
