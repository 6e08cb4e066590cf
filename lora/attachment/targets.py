"""Which layers a configuration means: patterns against names, and no pattern in vain.

A pattern is a name, "q", which also stands for every name that ends in ".q"; or, where one string
is given in place of a sequence, a regular expression for whole names. A pattern that matches
nothing is an error with the nearest name to it: a typing error would otherwise train nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora.config import LoRAConfig

Patterns = str | Sequence[str]

ALL_LINEAR = "all-linear"

_END = r"(.*\.)?({})"  # of a name, or the whole of it, by an expression

_NAMES = ("zxq", "07", "zxq.wv", "zx_q.07.Wv")  # all of which only a pattern for any name matches
_BUT = re.compile(r"\(\?<?!")  # what a pattern has in it that says "any name but ..."


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


def check_patterns(role: str, patterns: Any) -> str | tuple[str, ...]:
    """Patterns as one regular expression or a tuple of names.

    Raises:
        TypeError: if they are neither.
        ValueError: if the regular expression is none, or matches every name.
    """
    if isinstance(patterns, str):
        if patterns != ALL_LINEAR:
            _check_expression(role, patterns)
        return patterns
    if isinstance(patterns, Mapping) or not isinstance(patterns, Iterable):
        also = ", or one regular expression" if role in ("targets", "exclude") else ""
        raise TypeError(f"{role} are names{also}, not {patterns!r}")
    names = tuple(patterns)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{role} are names, not {names!r}")
    if ALL_LINEAR in names and role in ("targets", "exclude"):
        raise ValueError(f"{role}={ALL_LINEAR!r} stands by itself, not in a list of names")
    if "" in names:
        raise ValueError(f"{role} are names, and an empty one stands for nothing: {names!r}")
    return names


def check_table(role: str, table: Any) -> dict[str, Any]:
    """Regular expressions and what they stand for, as a dict of its own.

    Raises:
        TypeError: if it is no mapping from strings.
        ValueError: if one is no regular expression, or matches every name.
    """
    if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
        raise TypeError(f"{role} is a dict with a pattern for each key, not {table!r}")
    for pattern in table:
        _check_expression(role, pattern, _END)
    return dict(table)


def _check_expression(role: str, pattern: str, whole: str = "{}") -> None:
    """Refuse what is no expression, or one for any name; `whole` is that for a whole name."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{role}={pattern!r} is no regular expression: {error}; a list names layers as they are"
        ) from None
    if _is_for_any(whole.format(pattern)) and not _BUT.search(pattern):
        raise ValueError(
            f"{role}={pattern!r} matches every name there can be; for all linear layers say "
            f"{ALL_LINEAR!r}, else say which"
        )


def _is_for_any(pattern: str) -> bool:
    return all(re.fullmatch(pattern, name) for name in _NAMES)


def find(
    role: str, patterns: Patterns, names: Iterable[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Which of `names` match, in their order, and by which of the patterns each was found first.

    Args:
        role: what the patterns are called in a message.
        patterns: of names.
        names: of what there is.
        groups: names that stand for several, as that of an attention for its projections.

    Raises:
        ValueError: if a pattern matches none of them, with all names, and the nearest to a miss.
    """
    names = list(names)
    expression = isinstance(patterns, str)
    listed: Sequence[str] = [patterns] if isinstance(patterns, str) else patterns
    found: dict[str, str] = {}
    missed = []
    for pattern in listed:
        hits = [name for name in names if _is_match(pattern, name, expression)]
        if expression and 0 < len(hits) == len(names) and _is_for_any(pattern):
            raise ValueError(
                f"{role}={pattern!r} matches every layer, as if it left none out; the layers are "
                f"{', '.join(names)}"
            )
        for group, members in groups.items():
            if _is_match(pattern, group, expression):
                hits += [member for member in members if member in names]
        missed += [] if hits else [pattern]
        for name in hits:
            found.setdefault(name, pattern)
    if missed:
        kind = " (a string is a regular expression for a whole name, a list names layers)"
        hints = ", ".join(near(miss, [*names, *groups]) for miss in missed)
        raise ValueError(
            f"{role} that match no layer: {hints}"
            f"{kind if expression else ''}; the layers are {', '.join(names) or 'none'}"
        )
    return {name: found[name] for name in names if name in found}


def near(miss: str, names: Iterable[str]) -> str:
    """A name that is none, and the nearest that is one, for a message."""
    ends = {name.rpartition(".")[2] for name in names} | set(names)
    close = difflib.get_close_matches(miss, sorted(ends), n=1)
    return f"{miss!r} (did you mean {close[0]!r}?)" if close and close != [miss] else repr(miss)


def _is_match(pattern: str, name: str, expression: bool) -> bool:
    if expression:
        return re.fullmatch(pattern, name) is not None
    return name == pattern or name.endswith(f".{pattern}")


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
    return {p for p in config.targets if any(_is_match(p, name, False) for name in names)}


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
        hits = [name for name in names if re.fullmatch(_END.format(pattern), name)]
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
