"""Targets: find the layers that a configuration selects; a pattern without effect is an error."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lora.adapted_layer import AdaptedLayer
from lora.config import LoRAConfig
from lora.convolution import LoRAConv
from lora.embedding import LoRAEmbedding
from lora.expressions import expression
from lora.linear import LoRALayer
from lora.patterns import ALL_LINEAR, END_OF_NAME, Patterns, find, first_value, matches, near
from lora.variants.narrow import BFloat16Embedding, BFloat16Linear, NF4Linear
from minigrad.nn import Conv1d, Conv2d, Embedding, Linear, Module, MultiHeadAttention

# The layers that can have an adapter, each with the layer with adapters that replaces it.
KINDS: dict[type[Module], type[AdaptedLayer]] = {
    **dict.fromkeys((Linear, NF4Linear, BFloat16Linear), LoRALayer),
    **dict.fromkeys((Embedding, BFloat16Embedding), LoRAEmbedding),
    **dict.fromkeys((Conv2d, Conv1d), LoRAConv),
}


@dataclass(frozen=True)
class Target:
    """A layer that will get an adapter."""

    name: str  # the name of the layer in the model
    pattern: str  # the first target pattern that matches it
    rank: int  # the rank of its update
    alpha: float  # the alpha of its update


def targets_in(model: Module, config: LoRAConfig) -> list[Target]:
    """List the layers of a model that `config` selects, in the order of the model."""
    modules = dict(model.named_modules())
    return select(config, candidates(modules), projections(modules), modules)


def candidates(modules: Mapping[str, Module]) -> dict[str, bool]:
    """Return the names of the layers that can have an adapter, each with whether it is linear."""
    found = {}
    for name, module in modules.items():
        kind = type(module) if isinstance(module, AdaptedLayer) else adapted_kind(module)
        if kind is not None:
            found[name] = not issubclass(kind, (LoRAEmbedding, LoRAConv))
    return found


def adapted_kind(module: Module) -> type[AdaptedLayer] | None:
    """Return the class of layer that replaces a module; None if it can have no adapter."""
    return next((adapted for kind, adapted in KINDS.items() if _is_plain(module, kind)), None)


def _is_plain(module: Module, kind: type[Module]) -> bool:
    """Return whether a module computes the same as a `kind`, and has no further state."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module).__call__ is kind.__call__
        and "forward" not in vars(module)
        and {name for name, _ in module.named_state()} <= {"weight", "bias"}
    )


def projections(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """List the names of the four projections of each `MultiHeadAttention`, by its name."""
    return {
        name: [f"{name}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, module in modules.items()
        if isinstance(module, MultiHeadAttention)
    }


def select(
    config: LoRAConfig,
    layers: Mapping[str, bool],
    groups: Mapping[str, Sequence[str]] | None = None,
    modules: Mapping[str, Module] | None = None,
) -> list[Target]:
    """Choose the layers that `config` selects, each with its rank and alpha.

    They are among `layers`, which says of each name whether "all-linear" means it. A name in
    `groups` means several layers. A ValueError is raised if a pattern, an index or an exclusion
    has no effect, or no layer is left. A pattern whose layers are all excluded is not an error.
    `modules` are all modules by name, for messages.
    """
    groups = groups or {}
    if config.targets != ALL_LINEAR:
        found = find("targets", config.targets, layers, groups, others=modules)
    elif not (found := {n: ALL_LINEAR for n, is_linear in layers.items() if is_linear}):
        raise ValueError('targets="all-linear", but there is no linear layer')
    if config.exclude:
        excluded = find("exclude", config.exclude, found, groups)
        found = {name: pattern for name, pattern in found.items() if name not in excluded}
    emptied = without_layers(config.targets, found, groups)
    if config.layers_to_transform is not None:
        indices = {name: layer_index(name, config.layers_pattern) for name in found}
        for before in config.layers_pattern:
            if all(layer_index(name, (before,)) is None for name in found):
                parts = {part for name in found for part in name.split(".")}
                raise ValueError(
                    f"layers_pattern: no target has an index after {near(before, parts)}; the "
                    f"targets are {', '.join(found)}"
                )
        wanted: Any = config.layers_to_transform
        known = sorted({index for index in indices.values() if index is not None})
        if missing := [index for index in wanted if index not in known]:
            there = f"no name has an index of layers: {', '.join(found)}"
            if known:
                there = f"their layers are {', '.join(map(str, known))}"
            raise ValueError(
                f"layers_to_transform: no target is in layer {', '.join(map(str, missing))}; "
                f"{there}"
            )
        found = {name: pattern for name, pattern in found.items() if indices[name] in wanted}
    in_vain = [p for p in without_layers(config.targets, found, groups) if p not in emptied]
    if not found or in_vain:
        raise ValueError(
            f"nothing is left of the targets {', '.join(map(repr, in_vain or emptied))} after "
            f"exclude={config.exclude!r} and layers_to_transform={config.layers_to_transform!r}"
        )
    ranks, alphas = config.rank_pattern, config.alpha_pattern
    _check_effects("rank_pattern", ranks, found)
    _check_effects("alpha_pattern", alphas, found)
    return [
        Target(n, p, first_value(ranks, n, config.rank), first_value(alphas, n, config.alpha))
        for n, p in found.items()
    ]


def without_layers(
    patterns: Patterns, names: Collection[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the patterns that match none of these names, and no group with one of them."""
    if isinstance(patterns, str):
        return [] if names else [patterns]
    return [pattern for pattern, hits in matches(patterns, names, groups).items() if not hits]


def layer_index(name: str, after: Sequence[str] = ()) -> int | None:
    """Return the first number in a dotted name, or the first after one of the parts `after`."""
    for before, part in pairwise(["", *name.split(".")]):
        if part.isdecimal() and (not after or before in after):
            return int(part)
    return None


def _check_effects(role: str, table: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise a ValueError if a pattern in a table matches no name, or is the first match of none."""
    left = set(names)
    for pattern in table:
        hits = {name for name in names if expression(END_OF_NAME.format(pattern)).matches(name)}
        if not hits:
            raise ValueError(
                f"{role} has a pattern that matches no target: {near(pattern, names)}; the "
                f"targets are {', '.join(names)}"
            )
        if left.isdisjoint(hits):
            raise ValueError(
                f"{role}: {pattern!r} comes after patterns that match all of its layers, and of "
                f"several the first counts; put it first, or leave it out"
            )
        left -= hits
