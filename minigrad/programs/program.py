"""The program of a step: its lines, its source code, and its function."""

from __future__ import annotations

import linecache
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.checks import are_same
from minigrad.core.node import Node
from minigrad.programs.names import EARLIER, MARK, CaptureError, ValueNames
from minigrad.readonly import owner_of
from minigrad.versions import last_written

_WORD = re.compile(rf"{MARK}?\b[^\W\d]\w*")
_VALUE = re.compile(rf"{MARK}[a-z]\d+")
_MOST_REREAD = 3  # changes of elements without effect on a program, until they are not compared


@dataclass
class ProgramLine:
    """One line of a program."""

    section: str  # "forward", "backward" or "update"
    outs: str  # the left side of the assignment: a name, or a tuple of names
    expression: str  # the right side, usually a call
    has_effect: bool  # whether the line is needed even if its result is not used

    def __str__(self) -> str:
        outs = re.sub("_(, _){2,}", "*_", self.outs, count=1)
        return f"{outs} = {self.expression}" if outs else self.expression


class Program:
    """The program of a step for arguments of certain shapes.

    Args:
        names: the names of its values, and of the constants that it may use.
        lines: all lines of one recording; lines whose results are not used are left out.
        result: an expression for the result of the step.
    """

    function: Callable[..., Any]  # the function that the source defines, after `compile`
    changes_what_it_reads = False  # whether the step has changed what programs compare
    zeroed: set[Node]  # the leaves whose gradients from before the step are replaced or dropped

    def __init__(self, names: ValueNames, lines: Sequence[ProgramLine], result: str) -> None:
        self.surroundings = names.surroundings  # what the step reads besides its arguments
        self.calls, self.next_check, self._reread = 2, 10, 0
        kept = _needed(lines, result)
        texts = [*map(str, kept), result]
        new = names.final(texts)
        taken = {*names.arguments, *new.values()}
        counts = Counter[str]()

        def renamed(match: re.Match[str]) -> str:
            name, kind = match[0], match[0][1]
            while name not in new:
                counts[kind] += 1
                if (free := f"{kind}{counts[kind]}") not in taken:
                    new[name] = f"{MARK}{free}"
            return new[name]

        # The lines and the result; values are numbered in order of appearance.
        self.texts = [_VALUE.sub(renamed, text) for text in texts]
        comments = [
            _VALUE.sub(renamed, text)
            for text in names.comments()
            if new.keys() >= {*_VALUE.findall(text)}
        ]
        # A constant of a dropped line keeps its old name, which another one may have got.
        self._constants = {new[name]: x for name, x in names.space.items() if name in new}
        self.surroundings.leave_out(self._constants.values())
        self.namespace = {name.strip(MARK): value for name, value in self._constants.items()}
        body = [*comments, *self._body([line.section for line in kept])]
        head = f"def program({', '.join(names.arguments)}):"
        self.source = ("\n    ".join([head, *body]) + "\n").replace(MARK, "")

    def _body(self, sections: Sequence[str]) -> Iterator[str]:
        """List the lines with headings; each line deletes values that later lines do not use."""
        last = {name: i for i, text in enumerate(self.texts) for name in _VALUE.findall(text)}
        dead = defaultdict(list)
        for name, i in last.items():
            if name not in self._constants:
                dead[i].append(name)
        before = ""
        for i, (section, text) in enumerate(zip(sections, self.texts, strict=False)):
            if section != before:
                yield f"# {section}"
            before = section
            yield f"{text}; del {', '.join(dead[i])}" if i in dead else text
        yield f"return {self.texts[-1]}"

    def check_same(self, first: Program) -> None:
        """Raise a CaptureError unless an earlier recording has the same lines and constants."""
        when, last, old = "the second call", first.calls - 1, ""
        if last > 1:
            since = max(first.calls // 10, 2) + 1
            when, old = f"call {last + 1}", f"; calls {since} to {last} ran the old program"
        if self.texts != first.texts:
            pairs = zip([*first.texts, "(no line)"], [*self.texts, "(no line)"], strict=False)
            before, now = next((a, b) for a, b in pairs if a != b)
            raise CaptureError(
                f"capture: {when} does something else than the call before: first "
                f"{_shown(before)}, now {_shown(now)}{old}; choose by values with minigrad.where, "
                f"and pass what changes from call to call as an argument, a number as a Tensor"
            )
        for name, value in self._constants.items():
            known = first._constants.get(name)
            if _is_same(known, value) and not _is_written(known, value):
                continue
            what = f"of shape {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.60}"
            text = next(text for text in self.texts if name in _WORD.findall(text))
            raise CaptureError(
                f"capture: the step makes a constant, {what}, anew in each call, outside of ops, "
                f"for the line {_shown(text)}{old}; make it of Tensors by ops, or make it outside "
                f"of the step and pass it as an argument"
            )

    def is_same_with_other_elements(self, later: Program) -> bool:
        """Return whether a later recording has the same lines, and reads the same changed arrays.

        After a few such changes, these arrays are not compared before each run any more.
        """
        constants = later._constants
        is_same = self.texts == later.texts and all(
            _is_same(value, constants.get(name)) for name, value in self._constants.items()
        )
        if not is_same or not self.surroundings.accept_elements(constants.values()):
            return False
        self._reread += 1
        if self._reread == _MOST_REREAD:
            self.surroundings.leave_out(constants.values())
        return True

    def compile(self, zeroed: set[Node]) -> None:
        """Compile the source and define the function."""
        self.zeroed = zeroed
        self.surroundings.compare_all()
        filename = f"<captured step {id(self)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)  # for tracebacks
        weakref.finalize(self, linecache.cache.pop, filename, None)
        exec(compile(self.source, filename, "exec"), self.namespace)
        self.function = self.namespace["program"]
        for tensor in self.surroundings.tensors.values():
            if tensor.node is not None:
                tensor.node.in_program = True

    def zero_grad(self) -> bool:
        """Set all gradients to None; return False if the step itself does not zero one of them."""
        leaves = self.surroundings.with_gradients()
        if not self.zeroed.issuperset(leaves):
            return False
        for leaf in leaves:
            leaf.grad = None
        return True


def _needed(lines: Sequence[ProgramLine], result: str) -> list[ProgramLine]:
    """Return the lines that have an effect, and the lines whose values these or the result need."""
    needed = set(_VALUE.findall(result))
    kept: list[ProgramLine] = []
    for line in reversed(lines):
        if line.has_effect or needed & set(_VALUE.findall(line.outs)):
            kept.append(line)
            needed.update(_VALUE.findall(line.expression))
    all_sections, sections = ({line.section for line in each} for each in (lines, kept))
    if "backward" in all_sections - sections:
        raise CaptureError(
            "capture: nothing in the step uses its gradients, and they do not outlive it: no "
            "parameter that its optimiser steps has a gradient, perhaps because they are frozen, "
            "or no optimiser steps; step the optimiser in it, or return the gradients; to add up "
            "the gradients of several batches, pass all of them to one step"
        )
    if any(name.startswith(f"{MARK}{EARLIER}") for name in needed):
        raise CaptureError(
            "capture: the step adds to a gradient from an earlier one, or to zeros of "
            "zero_grad(set_to_none=False); begin it with optimizer.zero_grad(), or with "
            "model.zero_grad() if the optimiser does not have all parameters"
        )
    return kept[::-1]


def _shown(text: str) -> str:
    """Format a line for a message."""
    return f"{text.replace(MARK, ''):.150}".join("``")


def _is_written(a: Any, b: Any) -> bool:
    """Return whether two constants are arrays in other memory, and the step has written to it."""
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return arrays and owner_of(a) is not owner_of(b) and last_written(b) > 0


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two constants have the same bits."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()
    if isinstance(a, list) and isinstance(b, list):
        return are_same(a, b)
    if isinstance(a, tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, (float, np.generic)):
        return type(a) is type(b) and repr(a) == repr(b)  # NaN is not equal to itself
    return type(a) is type(b) and bool(a == b)
