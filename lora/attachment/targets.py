"""Targets: the layers that a configuration means, and no pattern in vain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lora.config import LoRAConfig
from lora.patterns import ALL_LINEAR, END_OF_NAME, find, is_match, near


@dataclass(frozen=True)
class Target:
    """A layer that is to get an adapter.

    Attributes:
        name: its name in the model.
        pattern: which of the targets found it first.
        rank: of its update.
        alpha: of its update.
    """

    name: str
    pattern: str
    rank: int
    alpha: float


def select(
    config: LoRAConfig,
    linear: Iterable[str],
    other: Iterable[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Target]:
    """The layers that `config` means, each with its rank and alpha, in the order of the model.

    Args:
        config: the patterns.
        linear: the names of the linear layers.
        other: those of other layers that can have an adapter; "all-linear" leaves them out.
        groups: names that stand for several.

    Raises:
        ValueError: if a pattern, an index or an exclusion is in vain, or nothing is left.
    """
    linear, groups = list(linear), groups or {}
    names = [*linear, *other]
    if config.targets == ALL_LINEAR:
        if not linear:
            raise ValueError('targets="all-linear", but there is no linear layer')
        found = dict.fromkeys(linear, ALL_LINEAR)
    else:
        found = find("targets", config.targets, names, groups)
    if config.exclude:
        excluded = find("exclude", config.exclude, found, groups)
        found = {name: pattern for name, pattern in found.items() if name not in excluded}
    if config.layers_to_transform is not None:
        found = _in_layers(config, found)
    listed = (config.targets,) if isinstance(config.targets, str) else config.targets
    in_vain = [pattern for pattern in listed if pattern not in _all_patterns(config, found, groups)]
    if not found or in_vain:
        raise ValueError(
            f"nothing is left of the targets {', '.join(map(repr, in_vain or listed))} after "
            f"exclude={config.exclude!r} and layers_to_transform={config.layers_to_transform!r}"
        )
    ranks = _values("rank_pattern", config.rank_pattern, found)
    alphas = _values("alpha_pattern", config.alpha_pattern, found)
    return [
        Target(name, pattern, ranks.get(name, config.rank), alphas.get(name, config.alpha))
        for name, pattern in found.items()
    ]


def _all_patterns(
    config: LoRAConfig, found: Mapping[str, str], groups: Mapping[str, Sequence[str]]
) -> set[str]:
    """The patterns that match one of the layers that are left, if not as the first."""
    if isinstance(config.targets, str):
        return {config.targets} if found else set()
    names = [*found, *(group for group, members in groups.items() if set(members) & set(found))]
    return {p for p in config.targets if any(is_match(p, name, False) for name in names)}


def _in_layers(config: LoRAConfig, found: Mapping[str, str]) -> dict[str, str]:
    wanted = config.layers_to_transform
    assert isinstance(wanted, tuple)
    indices = {name: layer_index(name, tuple(config.layers_pattern)) for name in found}
    for before in config.layers_pattern:
        if all(layer_index(name, (before,)) is None for name in found):
            parts = {part for name in found for part in name.split(".")}
            raise ValueError(
                f"layers_pattern: no target has an index after {near(before, parts)}; the targets "
                f"are {', '.join(found)}"
            )
    missing = [index for index in wanted if index not in indices.values()]
    if missing:
        known = sorted({index for index in indices.values() if index is not None})
        raise ValueError(
            f"layers_to_transform: no target is in layer {', '.join(map(str, missing))}; "
            + (
                f"their layers are {', '.join(map(str, known))}"
                if known
                else f"no name has an index of layers: {', '.join(found)}"
            )
        )
    return {name: pattern for name, pattern in found.items() if indices[name] in wanted}


def layer_index(name: str, after: Sequence[str] = ()) -> int | None:
    """The first number in a dotted name, or the first after one of the parts `after`."""
    for before, part in pairwise(["", *name.split(".")]):
        if part.isdecimal() and (not after or before in after):
            return int(part)
    return None


def _values(role: str, table: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What the first matching pattern says of each name. A pattern may match the end of a name.

    Raises:
        ValueError: if a pattern matches none, or is the first for none.
    """
    names = list(names)
    values: dict[str, Any] = {}
    for pattern, value in table.items():
        hits = [name for name in names if re.fullmatch(END_OF_NAME.format(pattern), name)]
        if not hits:
            raise ValueError(
                f"{role} has a pattern that matches no target: {near(pattern, names)}; the "
                f"targets are {', '.join(names)}"
            )
        if values.keys() >= set(hits):
            raise ValueError(
                f"{role}: {pattern!r} comes after patterns that match all of its layers, and of "
                f"several the first counts; put it first, or leave it out"
            )
        for name in hits:
            values.setdefault(name, value)
    return values
