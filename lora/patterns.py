"""Patterns for names of layers: what is one, and which names match it.

A pattern is a name, "q", which also stands for every name that ends in ".q"; or, where one string
is given in place of a sequence, a regular expression for whole names. A pattern that matches
nothing is an error with the nearest name to it: a typing error would otherwise train nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Patterns = str | Sequence[str]

ALL_LINEAR = "all-linear"

END_OF_NAME = r"(.*\.)?({})"  # of a name, or the whole of it, by an expression

_NAMES = ("zxq", "07", "zxq.wv", "zx_q.07.Wv")  # all of which only a pattern for any name matches
_BUT = re.compile(r"\(\?<?!")  # what a pattern has in it that says "any name but ..."


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
        _check_expression(role, pattern, END_OF_NAME)
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
        hits = [name for name in names if is_match(pattern, name, expression)]
        if expression and 0 < len(hits) == len(names) and _is_for_any(pattern):
            raise ValueError(
                f"{role}={pattern!r} matches every layer, as if it left none out; the layers are "
                f"{', '.join(names)}"
            )
        for group, members in groups.items():
            if is_match(pattern, group, expression):
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


def is_match(pattern: str, name: str, expression: bool) -> bool:
    """Tell whether a name matches: an expression the whole of it, a name its end as well."""
    if expression:
        return re.fullmatch(pattern, name) is not None
    return name == pattern or name.endswith(f".{pattern}")
