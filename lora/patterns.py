"""Patterns for names of layers: check them, and find the names that they match.

A pattern is a name, such as "q", which also matches every name that ends in ".q". One string
instead of a sequence is a regular expression for entire names. `find` matches the patterns of a
`LoRAConfig` and of a `PeftConfig`. For a `LoRAConfig`, a pattern that matches nothing is an error
with the nearest name, because a typing error would otherwise train nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from lora.expressions import expression
from minigrad.checks import LONGEST_LINE, nearest, shortened

V = TypeVar("V")

Patterns = str | Sequence[str]

ALL_LINEAR = "all-linear"

END_OF_NAME = r"(.*\.)?({})"
"""The format of an expression that matches an entire name, or its end after a dot."""

_NAMES = ("zxq", "07", "zxq.wv", "zx_q.07.Wv")  # only a pattern for any name matches all of these
_BUT = re.compile(r"\(\?<?!")  # in a pattern that means "any name except ..."


def check_patterns(role: str, patterns: Any) -> str | tuple[str, ...]:
    """Return patterns as one regular expression or as a tuple of names.

    A TypeError is raised if they are neither, and a ValueError if the regular expression is invalid
    or matches every name.
    """
    if isinstance(patterns, str):
        return patterns if patterns == ALL_LINEAR else _checked(role, patterns)
    if isinstance(patterns, Mapping) or not isinstance(patterns, Iterable):
        also = ", or one regular expression" if role in ("targets", "exclude") else ""
        raise TypeError(f"{role} are names{also}, not {patterns!r:.200}")
    names = tuple(patterns)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{role} are names, not {names!r:.200}")
    if ALL_LINEAR in names and role in ("targets", "exclude"):
        raise ValueError(f"{role}={ALL_LINEAR!r} stands by itself, not in a list of names")
    if "" in names:
        raise ValueError(f"{role} are names, and none may be empty: {names!r:.200}")
    return names


def check_several(role: str, names: Any) -> None:
    """Raise a TypeError if names are one string, because its letters would count as names."""
    if isinstance(names, str):
        raise TypeError(f"{role} are names, as in [{names!r}], not one string")


def check_table(role: str, table: Any) -> dict[str, Any]:
    """Return a copy of a mapping from regular expressions to values, all of which are checked."""
    if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
        raise TypeError(f"{role} is a dict with a pattern for each key, not {table!r:.200}")
    return {_checked(role, pattern, END_OF_NAME): value for pattern, value in table.items()}


def check_expression(pattern: str, within: str = "{}") -> None:
    """Raise a ValueError unless a pattern, by itself and in `within`, is a valid `Expression`."""
    expression(pattern)
    expression(within.format(pattern))


def _checked(role: str, pattern: str, within: str = "{}") -> str:
    """Return a pattern; raise an error if it is not a regular expression, or matches every name."""
    try:
        check_expression(pattern, within)
    except ValueError as error:
        raise ValueError(
            f"{role}={pattern!r:.200}: {error}; a list names layers as they are"
        ) from None
    is_for_any = all(expression(within.format(pattern)).matches(name) for name in _NAMES)
    if is_for_any and not _BUT.search(pattern):
        raise ValueError(
            f"{role}={pattern!r:.200} matches every name there can be; say which, or {ALL_LINEAR!r}"
        )
    return pattern


def find(
    role: str,
    patterns: Patterns,
    names: Iterable[str],
    groups: Mapping[str, Sequence[str]] | None = None,
    *,
    strict: bool = True,
    others: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Return the matching names, in their order, each with the first pattern that matches it.

    A name in `groups` means several names, such as an attention its projections. `role` is the
    parameter with the patterns, for messages. If `strict`, a ValueError is raised if a pattern
    matches no name. It lists all names, or of very many only their ends, and the nearest one. If a
    pattern is the name of one of the `others`, which are modules, it names the class.
    """
    names, groups = list(names), groups or {}
    matched = matches(patterns, names, groups)
    missed = [pattern for pattern, hits in matched.items() if not hits]
    if missed and strict:
        kind = " (a string is a regular expression for an entire name, a list names layers)"
        known = [*names, *groups, *([ALL_LINEAR] if role == "targets" else [])]
        unfit = {end: each for name, each in (others or {}).items() for end in ends_of(name)}
        for end in set().union(*map(ends_of, known)):  # of layers, which an expression may miss
            unfit.pop(end, None)
        hints = ", ".join(
            f"{miss!r} (of class {type(unfit[miss]).__name__}, which can have no adapter)"
            if miss in unfit
            else near(miss, known)
            for miss in missed
        )
        listed = ", ".join(names)
        if len(listed) > LONGEST_LINE:
            ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
            listed = f"those whose names end in {', '.join(ends)}"
        raise ValueError(
            f"{role} that match no layer: {hints}"
            f"{kind if isinstance(patterns, str) else ''}; the layers are "
            f"{shortened(listed, LONGEST_LINE) or 'none'}"
        )
    # In reverse, so that the first pattern that matches a name is the last one that it gets.
    first = {name: pattern for pattern, hits in reversed(matched.items()) for name in hits}
    return {name: first[name] for name in names if name in first}


def matches(
    patterns: Patterns, names: Iterable[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """List for each pattern the names that it matches, and those in the groups that it matches."""
    meant = {name: [name] for name in names}
    meant |= {group: [each for each in inside if each in meant] for group, inside in groups.items()}
    if isinstance(patterns, str):
        hits = [each for name in meant if is_any_match(patterns, name) for each in meant[name]]
        return {patterns: hits}
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for name, layers in meant.items():
        for pattern in ends_of(name) & found.keys():
            found[pattern] += layers
    return found


def near(miss: str, names: Iterable[str]) -> str:
    """Return an unknown name and the nearest known one, as text for a message."""
    ends = {name.rpartition(".")[2] for name in names} | set(names)
    return repr(miss) + ("" if miss in ends else nearest(miss, sorted(ends)))


def is_any_match(patterns: Patterns, name: str) -> bool:
    """Return whether a regular expression matches a name, or a pattern equals it or its end."""
    if isinstance(patterns, str):
        return expression(patterns).matches(name)
    return not ends_of(name).isdisjoint(patterns)


def ends_of(name: str) -> set[str]:
    """Return a name and its ends after a dot: all patterns that match it."""
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def is_inside(ends: Iterable[str], parameter: str) -> bool:
    """Return whether a parameter is inside of a module whose name ends in one of `ends`."""
    return any(f"{end}." in parameter for end in ends)


def is_glob_match(patterns: Iterable[str], name: str) -> bool:
    """Return whether one of some patterns with * matches a name, or its end after a dot."""
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)


def first_value(table: Mapping[str, V], name: str, default: V) -> V:
    """Return the value of the first expression that matches a name or its end; else `default`."""
    for pattern, value in table.items():
        if expression(END_OF_NAME.format(pattern)).matches(name):
            return value
    return default


def exact(names: Sequence[str], among: Iterable[str]) -> str | tuple[str, ...]:
    """Return patterns that match only `names`: the names, or an expression if these match more."""
    wanted = set(names)
    if all(name in wanted or not is_any_match(names, name) for name in among):
        return tuple(names)
    return f"({'|'.join(map(re.escape, names))})"


def exact_table(values: Mapping[str, V], usual: V) -> dict[str, V]:
    """Return a table for `first_value` of the values, by names, that are not the usual one.

    A key matches its name, but not longer ones that end in it.
    """
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}
