"""Which layers a configuration means by PEFT's rules, which differ from those of `attach`.

A pattern that matches nothing is no error: a folder names what its model had, and its tensors say
what there must be. And `exact` gives patterns that mean the layers they are given, and no others.

Expressions are those of Python's `re`, as with PEFT. It has no limit of time, and one can be made
to take for ever, such as `(a+)+b`: of an adapter from nobody you know, read adapter_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lora.peft.config import PeftConfig

_ALL_LINEAR = "all-linear"


def rank_of(config: PeftConfig, name: str) -> int:
    """The rank in a layer."""
    found: int = _value(config.rank_pattern, name, config.r)
    return found


def alpha_of(config: PeftConfig, name: str) -> float:
    """The alpha in a layer."""
    return float(_value(config.alpha_pattern, name, config.lora_alpha))


def scale_of(config: PeftConfig, name: str) -> float:
    """What B A is multiplied by in a layer."""
    return config.scaling.scale(alpha_of(config, name), rank_of(config, name))


def _value(table: Mapping[str, Any], name: str, usual: Any) -> Any:
    """What the first pattern that matches says: a whole name, or the end of one after a dot."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


def targeted(config: PeftConfig, names: Iterable[str], linear: Collection[str]) -> dict[str, str]:
    """The layers that have updates, in order, and which of the patterns each was found by.

    Args:
        config: what is asked for.
        names: of all there are.
        linear: those that "all-linear" stands for.
    """
    found = {}
    for name in names:
        pattern = _target(config, name, linear)
        if pattern is not None and not _is_left_out(config, name):
            found[name] = pattern
    return found


def _target(config: PeftConfig, name: str, linear: Collection[str]) -> str | None:
    """The pattern that finds a name."""
    targets = config.target_modules
    if isinstance(targets, str):
        if targets.lower() == _ALL_LINEAR:
            return targets if name in linear else None
        return targets if re.fullmatch(targets, name) else None
    pattern = next((each for each in targets if ends(name, each)), None)
    if pattern is None or name in targets:  # a full name is found whatever its index
        return pattern if pattern is None or name not in targets else name
    if config.layers_to_transform and _index(config, name) not in config.layers_to_transform:
        return None
    return pattern


def _index(config: PeftConfig, name: str) -> int | None:
    """The index of its layer, as in "model.layers.3.q_proj"."""
    if not config.layers_pattern:
        match = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
        return int(match["index"]) if match else None
    for before in config.layers_pattern:
        match = re.match(rf"(?:^|.*?\.){before}\.(?P<index>\d+)\.", name)
        if match:
            return int(match["index"])
    return None


def _is_left_out(config: PeftConfig, name: str) -> bool:
    """Whether it is excluded, or part of a module that is trained whole."""
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        if re.fullmatch(excluded, name):
            return True
    elif any(ends(name, each) for each in excluded):
        return True
    return any(re.match(rf"(^|.*\.){each}($|\..*)", name) for each in config.modules_to_save)


def ends(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, or the end of it after a dot."""
    return name == pattern or name.endswith(f".{pattern}")


def saved_whole(config: PeftConfig, names: Iterable[str]) -> list[str]:
    """The modules that are trained whole: all whose names end so, after a dot or not."""
    return [name for name in names if name.endswith(config.modules_to_save)]


def is_saved_whole(config: PeftConfig, name: str) -> bool:
    """Whether a parameter is of a module that is trained whole."""
    parts = name.split(".")
    return bool(saved_whole(config, (".".join(parts[:i]) for i in range(1, len(parts)))))


def exact(names: Sequence[str], among: Iterable[str]) -> str | tuple[str, ...]:
    """`names` as patterns that find none else: as a list, or if that does not do, an expression."""
    wanted = set(names)
    if all(name in wanted or not any(ends(name, each) for each in names) for name in among):
        return tuple(names)
    return f"({'|'.join(map(re.escape, names))})"


def whole_name(name: str) -> str:
    """A key of a pattern table that stands for a name, and not for ends of others."""
    return f"^{re.escape(name)}"
