"""Expressions: regular expressions for names that match in linear time, without backtracking.

They have the syntax of Python's `re`, whose parser reads them. The matcher of `re` tries one
alternative after the other, and can take forever for `(a+)+b` or `.*.*.*.*b`. The matcher here
reads a name once, from its end to its beginning. It keeps the set of all positions from which the
rest of the expression matches (Thompson, 1968, "Regular expression search algorithm"). A set is an
integer: bit i means the position that is followed by i characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial, reduce
from operator import or_
from re import _compiler, _parser  # type: ignore[attr-defined]  # old, and without annotations
from typing import Any

# The largest sizes of an expression:
LONGEST_EXPRESSION = 1 << 16  # characters
MOST_REPEATS = 100  # of `*`, `+`, `?` and `{m,n}`


class Name:
    """A name, with sets of positions in it."""

    def __init__(self, name: str) -> None:
        self.text = name
        self.before: dict[str, int] = {}  # for each character, the positions before it
        for behind, character in enumerate(reversed(name), 1):
            self.before[character] = self.before.get(character, 0) | (1 << behind)
        self._known: dict[Find, int] = {}

    def positions(self, find: Find) -> int:
        """Return the positions where a pattern for one character, or for none, matches."""
        if find not in self._known:
            starts = (match.start() for match in find(self.text))
            self._known[find] = sum(1 << (len(self.text) - start) for start in starts)
        return self._known[find]


Find = Callable[[str], Iterable[re.Match[str]]]
Step = Callable[[int, Name], int]
"""A part of an expression: it maps the positions after its matches to the positions before."""


class Expression:
    """A regular expression that is matched without backtracking.

    A ValueError is raised if the text is not a regular expression, is too long, has too many
    repeats, or has nested repeats. It is also raised for constructs that need backtracking:
    references to groups, conditions, and atomic groups and possessive repeats.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST_EXPRESSION:
            raise ValueError(
                f"it has {len(text):,} characters, and {LONGEST_EXPRESSION:,} at most are read"
            )
        self._repeats = 0
        try:
            parsed = _parser.parse(text)
            _compiler.compile(parsed)  # refuses a look behind of several widths
            self._state = parsed.state
            self._step = self._sequence(parsed, False)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it is not a regular expression: {error}") from None

    def matches(self, name: str) -> bool:
        """Return whether the expression matches the entire name."""
        return bool(self._step(1, _name(name)) >> len(name) & 1)

    def _sequence(self, parts: Iterable[Any], repeated: bool) -> Step:
        """Return the step for a sequence of parts; `repeated` is True inside of a repeat."""
        steps = [self._part(op, value, repeated) for op, value in parts][::-1]
        # Most expressions are parts of names: a name without the longest part is rejected at once.
        text = "".join(chr(v) if self._is_literal(op) else "\n" for op, v in parts)
        longest = max(text.split("\n"), key=len)

        def step(after: int, name: Name) -> int:
            if longest not in name.text:
                return 0
            for each in steps:
                if not after:
                    break
                after = each(after, name)
            return after

        return step

    def _is_literal(self, op: Any) -> bool:
        """Return whether a part matches one character, given as it is, and no other."""
        return str(op) == "LITERAL" and not self._state.flags & re.IGNORECASE

    def _part(self, op: Any, value: Any, repeated: bool) -> Step:
        """Return the step for one part of the parse tree."""
        kind = str(op)
        if self._is_literal(op):
            character = chr(value)
            return lambda after, name: (after << 1) & name.before.get(character, 0)
        if kind in ("ANY", "LITERAL", "NOT_LITERAL", "IN", "AT", "FAILURE"):
            part = _compiler.compile(_parser.SubPattern(self._state, [(op, value)]))
            find = partial(part.finditer)  # the hash of a pattern itself takes long
            if kind in ("AT", "FAILURE"):  # an anchor, such as ^ or $; (?!), which never matches
                return lambda after, name: after & name.positions(find)
            return lambda after, name: (after << 1) & name.positions(find)
        if kind == "BRANCH":
            steps = [self._sequence(parts, repeated) for parts in value[1]]
            return lambda after, name: reduce(or_, (step(after, name) for step in steps), 0)
        if kind == "SUBPATTERN":
            _, added, removed, inner = value  # (?i:a) sets a flag for a part
            flags = self._state.flags
            self._state.flags = _compiler._combine_flags(flags, added, removed)
            step = self._sequence(inner, repeated)
            self._state.flags = flags
            return step
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):  # greedy or lazy
            least, most, parts = value
            return self._repeat(least, most, parts, repeated)
        if kind in ("ASSERT", "ASSERT_NOT"):  # a lookahead or a lookbehind
            behind = value[1].getwidth()[0] if value[0] < 0 else 0
            inside = self._sequence(value[1], repeated)

            def assertion(after: int, name: Name) -> int:
                found = inside((2 << len(name.text)) - 1, name) >> behind
                return after & (found if kind == "ASSERT" else ~found)

            return assertion
        named = kind.lower().replace("_", " ")
        raise ValueError(f"it has a part that is not supported ({named}); write it without")

    def _repeat(self, least: int, most: int, parts: Iterable[Any], repeated: bool) -> Step:
        """Return the step for a part that is repeated `least` to `most` times."""
        self._repeats += 1
        if self._repeats > MOST_REPEATS:
            raise ValueError(f"it has more than {MOST_REPEATS} repeats")
        if repeated and most > 1:
            raise ValueError("it has a repeat in a repeat, as (a+)+ has; write it without")
        step = self._sequence(parts, repeated or most > 1)

        def steps(after: int, name: Name) -> int:
            for _ in range(least):
                if (moved := step(after, name)) == after:
                    break
                after = moved
            found = after
            for _ in range(least, most):
                after = step(after, name) & ~found
                if not after:
                    break
                found |= after
            return found

        return steps


_name = lru_cache(maxsize=1 << 13)(Name)
expression = lru_cache(maxsize=1 << 14)(Expression)  # cached; errors are those of the class
