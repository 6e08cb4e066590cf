"""Merging the adapters of a whole model, and taking that back."""

from __future__ import annotations

from lora.attach import adapters
from minigrad.nn import Module


def merge(model: Module) -> list[str]:
    """Let every adapter of `model` compute with W + scale B A; return the names of their layers.

    The base weights stay beside the merged ones, so this takes memory; `lora.fold` does not keep
    them.

    Raises:
        ValueError: if there are no adapters.
    """
    found = adapters(model)
    for _, layer in found:
        layer.merge()
    return [name for name, _ in found]


def unmerge(model: Module) -> list[str]:
    """Let every adapter compute with W, A and B again; return the names of their layers.

    The base weights are those from before the merge to the bit: they were never written to.

    Raises:
        ValueError: if there are no adapters.
    """
    found = adapters(model)
    for _, layer in found:
        layer.unmerge()
    return [name for name, _ in found]
