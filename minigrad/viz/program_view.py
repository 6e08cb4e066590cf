"""The program of a captured step for a page, and which of its lines runs which VJP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.programs import Captured
from minigrad.viz.graph_view import Link

_SECTIONS = "forward", "backward", "update"  # each section begins with a line that is a comment
_STEP = re.compile(r"\.step_group\(\w+, (\w+), \[(.*)\]\)")  # the parameters and their gradients


class ProgramView:
    """The program of a captured step; a CaptureError if the step has no program yet."""

    def __init__(self, captured: Captured[..., Any]) -> None:
        if not isinstance(captured, Captured):
            raise TypeError(
                f"explore: program must be what minigrad.capture() gives, not {captured!r:.60}"
            )
        self._space = captured.namespace
        names = {id(v): name for name, v in self._space.items() if isinstance(v, np.ndarray)}
        self.arrays = list(names.values())  # parameters and other arrays that exist before the step
        gradients: dict[str, str] = {}  # the names of parameters by those of their gradients
        for parameters, listed in _STEP.findall(captured.source):
            pairs = zip(self._space[parameters], listed.split(", "), strict=True)
            gradients |= {g: names.get(id(tensor._data), "a parameter") for tensor, g in pairs}
        self.lines: list[list[str]] = []  # section, text, and a remark, which may be ""
        section = ""
        for text in captured.source.splitlines():
            if text.startswith("    # ") and text[6:] in _SECTIONS:
                section = text[6:]
            elif text.startswith("    return "):
                section = ""
            left, assigns, _ = text.partition(" = ")
            outs = re.findall(r"\w+", left) if assigns else []
            of = [gradients[name] for name in outs if name in gradients]
            self.lines.append([section, text, f"gradient of {', '.join(of)}" if of else ""])

    def lines_of(self, steps: Sequence[Sequence[Link]]) -> dict[Link, int]:
        """Return the line that runs the VJP of each link; each step has the links of one VJP.

        A VJP has no line if it passes on the gradient unchanged, or if its result is not used. If
        it is then unclear which line runs which VJP, the result is empty.
        """
        vjps = [links[0].edge[2] for links in steps]
        known = [None if vjp is None else vjp.derivative for vjp in vjps]
        lines, called = [], []
        for line, (_, text, _) in enumerate(self.lines):
            for name in re.findall(r"\w+(?=\()", text):
                function = self._space.get(name)
                if function is not None and any(function is each for each in known):
                    lines.append(line)
                    called.append(function)
        first, last = positions_of(called, known), positions_of(called[::-1], known[::-1])
        if first is None or last is None or first != [len(known) - 1 - at for at in last[::-1]]:
            return {}
        return {link: line for at, line in zip(first, lines, strict=True) for link in steps[at]}


def positions_of(some: Sequence[Any], every: Sequence[Any]) -> list[int] | None:
    """Return the first positions of the elements of `some` in `every`, in order, or None."""
    rest = enumerate(every)
    found = [next((at for at, each in rest if each is one), -1) for one in some]
    return None if -1 in found else found
