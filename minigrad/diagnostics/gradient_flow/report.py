"""The report of `liveness`: rows, tables to print, and one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from minigrad.diagnostics.recorder import SourceLine
from minigrad.tables import aligned, as_html, counted, paragraph

State = Literal["live", "zero by construction", "zero", "not finite", "cut", "unused", "frozen"]

MOST_ROWS = 12  # the most rows with the same state or verdict that are printed
MOST_FROZEN = 3

_REMEDIES: dict[State, str] = {
    "zero": "change what makes it zero, or freeze it with requires_grad_(False)",
    "not finite": "run the step under minigrad.detect_anomaly(), which names the op that made it",
    "cut": "let the gradient through there, or freeze it with requires_grad_(False)",
    "unused": "let the forward pass use it, or freeze it with requires_grad_(False)",
}


@dataclass(frozen=True)
class ParameterRow:
    """The effect of a step on one parameter."""

    name: str  # the parameter's name, from `named_parameters`
    shape: tuple[int, ...]
    size: int
    state: State  # one of the states that `liveness` explains
    norm: float | None = None  # the Euclidean norm of its gradient; None if it gets none
    reason: str = ""  # why it is in this state, in words; empty for a live or frozen parameter
    op: str | None = None  # the op or method where its path to the loss, or the gradient's, ends
    origin: SourceLine | None = None  # the user's line that called `op`, or None

    @property
    def trains(self) -> bool:
        """Whether training changes the parameter, in this step or in a later one."""
        return self.state in ("live", "zero by construction")

    @property
    def why(self) -> str:
        """The reason, with the user's line."""
        return f"{self.reason}, at {self.origin}" if self.origin else self.reason


@dataclass(frozen=True)
class PartRow:
    """The effect of a step on a part of a model that explains itself, such as a LoRA adapter.

    Each kind of part has a subclass with its own facts.
    """

    # The name of its module, as in `named_modules`, and the part's own if the module has several.
    name: str
    trains: bool  # whether training changes the part
    verdict: str  # whether it trains, in words, with the reason

    kind: ClassVar[str] = "part"  # what to call such a part
    # In words: the parameters that must require a gradient so that such parts train.
    to_train: ClassVar[str] = "those that are to train, or model.freeze(False)"

    def facts(self) -> dict[str, str]:
        """Return cells of the table, by the titles of their columns."""
        return {}


@dataclass(frozen=True, repr=False)
class LivenessReport:
    """The parameters that a step trains; true only if all that require a gradient train.

    Attributes:
        loss: the value of the loss.
        rows: one row for each parameter, in the order of `named_parameters`.
        adapters: one row for each part of the model that explains itself, such as a LoRA adapter.
        strays: names of Tensors that require a gradient but are not Parameters, and so have no row.
        outside: the number of other tensors that require a gradient, on which the loss depends.
    """

    loss: float
    rows: tuple[ParameterRow, ...]
    adapters: tuple[PartRow, ...] = ()
    strays: tuple[str, ...] = ()
    outside: int = 0

    @property
    def trains(self) -> bool:
        """Whether some parameter requires a gradient, and all that do train."""
        required = [row for row in self.rows if row.state != "frozen"]
        return bool(required) and all(row.trains for row in required)

    def __bool__(self) -> bool:
        return self.trains

    def __getitem__(self, name: str) -> ParameterRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no parameter {name!r}; there are {', '.join(r.name for r in self.rows)}")

    @property
    def verdict(self) -> str:
        """One sentence that says that the model trains, or why not and what to do."""
        kinds = {type(part) for part in self.adapters}
        kind = kinds.pop() if len(kinds) == 1 else PartRow
        what = f"This {kind.kind}" if len(self.adapters) == 1 else "This model"
        if len(self.adapters) > 1:
            what = f"This model, with {len(self.adapters)} {kind.kind}s,"
        required = [row for row in self.rows if row.state != "frozen"]
        if not required:
            return (
                f"{what} does not train: no parameter requires a gradient; call requires_grad_() "
                f"on {kind.to_train}."
            )
        dead = [row for row in required if not row.trains]
        if not dead:
            later = sum(row.state != "live" for row in required)
            live = len(required) - later
            text = f"{what} trains: {live} parameter{' gets' if live == 1 else 's get'} a gradient"
            return f"{text}, and {later} more will after a step." if later else f"{text}."
        first = dead[0]
        of_it = first.state in ("zero", "not finite")
        subject = f"The gradient of {first.name}" if of_it else first.name
        remedy = "" if ": " in first.reason else f"; {_REMEDIES[first.state]}"
        return (
            f"{what} does not train: {len(dead)} of {len(required)} parameters that require a "
            f"gradient get none that moves them. {subject} is {first.state}: {first.why}{remedy}."
        )

    def __repr__(self) -> str:
        (title, head, cells), *others = self._tables()
        lines = [title, *aligned(head, cells)]
        for _, head, cells in others:
            lines += ["", *aligned(head, cells)]
        return "\n".join([*lines, "", self.verdict, *self._notes()])

    def _repr_html_(self) -> str:
        tables = [as_html(*table) for table in self._tables()]
        return "\n".join([*tables, paragraph([self.verdict, *self._notes()])])

    def _tables(self) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
        """Yield the title, the head and the cells of each table: parameters, then parts by kind.

        If many parameters have the same state, or many parts the same verdict, the first are shown.
        """
        frozen = sum(row.state == "frozen" for row in self.rows)
        cells: list[tuple[str, ...]] = []
        shown: Counter[State] = Counter()
        left: dict[State, list[ParameterRow]] = {}
        line: SourceLine | None = None  # the line of the row before, which is not repeated
        for row in self.rows:
            most = 0 if row.state == "frozen" and frozen > MOST_FROZEN else MOST_ROWS
            if shown[row.state] == most:
                left.setdefault(row.state, []).append(row)
                continue
            shown[row.state] += 1
            norm = "" if row.norm is None else f"{row.norm:.3g}"
            cells.append((row.name, str(row.shape), row.state, norm, row.reason))
            if row.origin and not row.trains and row.origin != line:
                cells.append(("", "", "", "", f"  {row.origin}"))
            line = row.origin
        for state, rest in left.items():
            more = "" if state == "frozen" else "more "
            size = sum(row.size for row in rest)
            cells.append((f"... {len(rest)} {more}{state}, {size:,} numbers",))
        head = ("parameter", "shape", "state", "|gradient|", "why")
        yield f"liveness: loss {self.loss:.6g}", head, cells
        for kind in dict.fromkeys(type(part) for part in self.adapters):
            parts = [part for part in self.adapters if type(part) is kind]
            cells = []
            count: Counter[str] = Counter()
            for part in parts:
                count[part.verdict] += 1
                if count[part.verdict] <= MOST_ROWS:
                    cells.append((part.name or "(the model)", *part.facts().values(), part.verdict))
            for verdict, number in count.items():
                if number > MOST_ROWS:
                    cells.append((f"... {number - MOST_ROWS} more: {verdict}",))
            yield f"{kind.kind}s", (kind.kind, *parts[0].facts(), "verdict"), cells

    def _notes(self) -> list[str]:
        notes = [
            f"{name} requires a gradient, but is not a Parameter, so parameters() does not list it "
            f"and no optimiser gets it from there: make it an nn.Parameter."
            for name in self.strays
        ]
        if self.outside:
            notes.append(
                f"The loss also depends on {counted(self.outside, 'tensor')} outside of the model "
                f"that {'requires' if self.outside == 1 else 'require'} a gradient. Parameters are "
                f"found in attributes that are Parameters, Modules, or lists, tuples and dicts of "
                f"these; an optimiser does not get others."
            )
        if not math.isfinite(self.loss) and all(row.state != "not finite" for row in self.rows):
            notes.append(f"The loss is {self.loss}: {_REMEDIES['not finite']}.")
        return notes
