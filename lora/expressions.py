"""Expressions: regular expressions for names that match in linear time, without backtracking.

They have the syntax of Python's `re`, whose parser reads them. The matcher of `re` tries one
alternative after the other, and can take forever for `(a+)+b` or `.*.*.*.*b`. The matcher here
reads a name once, from its end to its beginning. It keeps the set of all positions from which the
rest of the expression matches (Thompson, 1968, "Regular expression search algorithm"). A set is an
integer: bit i means the position that is followed by i characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache, reduce
from itertools import groupby
from operator import or_
from re import _compiler, _parser  # type: ignore[attr-defined]  # old, and without annotations
from typing import Any

# The largest sizes of an expression:
LONGEST_EXPRESSION = 1 << 16  # characters
MOST_REPEATS = 100  # of `*`, `+`, `?` and `{m,n}`
_DEEPEST = 50  # levels of nested groups

_ALLOWED = re.IGNORECASE | re.DOTALL | re.VERBOSE | re.UNICODE


class Name:
    """A name, with sets of positions in it."""

    def __init__(self, name: str) -> None:
        self.text = name
        self.every = (2 << len(name)) - 1  # all positions
        self.start = 1 << len(name)  # the position before the first character
        self.end = 3 if name.endswith("\n") else 1  # the positions where `$` matches
        self.before: dict[str, int] = {}  # for each character, the positions before it
        for behind, character in enumerate(reversed(name), 1):
            self.before[character] = self.before.get(character, 0) | (1 << behind)

    def before_any(self, test: Test) -> int:
        """Return the positions before all characters that pass a test."""
        return reduce(or_, (bits for c, bits in self.before.items() if test(c)), 0)


Test = Callable[[str], bool]
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
        try:
            parsed = _parser.parse(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it is not a regular expression: {error}") from None
        self._repeats = 0
        self._step = self._sequence(parsed, re.RegexFlag(parsed.state.flags), 0, False)

    def matches(self, name: str) -> bool:
        """Tell whether the expression matches the entire name."""
        text = _name(name)
        return bool(self._step(1, text) & text.start)

    def _sequence(self, parts: Any, flags: re.RegexFlag, depth: int, repeated: bool) -> Step:
        """Return the step for a sequence of parts."""
        if depth > _DEEPEST:
            raise ValueError(f"it has groups in groups, more than {_DEEPEST} deep")
        if unknown := flags & ~_ALLOWED:
            raise ValueError(f"it sets {unknown!r}, and flags other than i, s and x are not read")
        steps: list[Step] = []
        is_exact = not flags & re.IGNORECASE
        # Literal characters in a row are one step, because most expressions are parts of names.
        for is_text, group in groupby(parts, lambda part: is_exact and str(part[0]) == "LITERAL"):
            if is_text:
                steps.append(_literal("".join(chr(value) for _, value in group)))
            else:
                steps += [self._part(part, flags, depth, repeated) for part in group]
        if len(steps) == 1:
            return steps[0]
        steps.reverse()

        def step(after: int, name: Name) -> int:
            for each in steps:
                if not after:
                    break
                after = each(after, name)
            return after

        return step

    def _part(self, part: Any, flags: re.RegexFlag, depth: int, repeated: bool) -> Step:
        """Return the step for one part of the parse tree."""
        if (test := _test(part, flags)) is not None:
            return lambda after, name: (after << 1) & name.before_any(test)
        op, value = str(part[0]), part[1]
        if op == "BRANCH":
            steps = [self._sequence(each, flags, depth + 1, repeated) for each in value[1]]
            return lambda after, name: reduce(or_, (step(after, name) for step in steps), 0)
        if op == "SUBPATTERN":
            _, added, removed, parts = value
            return self._sequence(parts, (flags | added) & ~removed, depth + 1, repeated)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):  # greedy or lazy
            least, most, parts = value
            return self._repeat(least, most, parts, flags, depth, repeated)
        if op in ("ASSERT", "ASSERT_NOT"):
            ahead, parts = value
            return self._assertion(ahead, parts, op == "ASSERT", flags, depth, repeated)
        if op == "AT":
            return _anchor(str(value))
        if op == "FAILURE":
            return lambda after, name: 0
        named = op.lower().replace("_", " ")
        raise ValueError(f"it has a part that is not supported ({named}); write it without")

    def _repeat(
        self, least: int, most: int, parts: Any, flags: re.RegexFlag, depth: int, repeated: bool
    ) -> Step:
        """Return the step for a part that is repeated `least` to `most` times."""
        self._repeats += 1
        if self._repeats > MOST_REPEATS:
            raise ValueError(f"it has more than {MOST_REPEATS} repeats")
        if repeated and most > 1:
            raise ValueError("it has a repeat in a repeat, as (a+)+ has; write it without")
        is_run = len(parts) == 1 and least <= 1 and most == _parser.MAXREPEAT
        if is_run and (test := _test(parts[0], flags)) is not None:
            return _run(test, least)
        step = self._sequence(parts, flags, depth + 1, repeated or most > 1)

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

    def _assertion(
        self, ahead: int, parts: Any, is_for: bool, flags: re.RegexFlag, depth: int, repeated: bool
    ) -> Step:
        """Return the step for a lookahead or lookbehind, positive or negative."""
        step, behind = self._sequence(parts, flags, depth + 1, repeated), 0
        if ahead < 0:
            behind, most = parts.getwidth()
            if behind != most:
                raise ValueError("it is not a regular expression: a look behind has one width")

        def steps(after: int, name: Name) -> int:
            found = step(name.every, name) >> behind
            return after & (found if is_for else ~found)

        return steps


def _test(part: Any, flags: re.RegexFlag) -> Test | None:
    """Return a test of one character if the part matches one character; else None."""
    if str(part[0]) not in ("ANY", "LITERAL", "NOT_LITERAL", "IN"):
        return None
    state = _parser.State()
    state.flags = flags
    matcher = _compiler.compile(_parser.SubPattern(state, [part]))
    return cache(lambda character: matcher.match(character) is not None)


def _literal(text: str) -> Step:
    """Return the step for literal characters."""
    backwards = text[::-1]

    def step(after: int, name: Name) -> int:
        if text not in name.text:
            return 0
        for character in backwards:
            after = (after << 1) & name.before[character]
        return after

    return step


def _run(test: Test, least: int) -> Step:
    """Return the step for a run of `least` (0 or 1) or more characters that pass a test."""

    def step(after: int, name: Name) -> int:
        allowed = name.before_any(test)
        first = (after << 1) & allowed
        # The carry of the addition runs through all allowed characters in a row.
        rest = ((first + allowed) ^ allowed) & allowed
        return first | rest | (0 if least else after)

    return step


def _anchor(kind: str) -> Step:
    """Return the step for an anchor, such as `^` or `$`, which matches a position."""
    if kind in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return lambda after, name: after & name.start
    if kind in ("AT_END", "AT_END_STRING"):
        return lambda after, name: after & (name.end if kind == "AT_END" else 1)

    def boundary(after: int, name: Name) -> int:
        words = name.before_any(lambda character: character.isalnum() or character == "_")
        edges = words ^ (words >> 1)
        return after & (edges if kind == "AT_BOUNDARY" else ~edges)

    return boundary


_name = lru_cache(maxsize=1 << 13)(Name)
expression = lru_cache(maxsize=1 << 14)(Expression)  # cached; errors are those of the class
