"""What `liveness` found, as rows, as a table to print, and as one sentence."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minigrad.diagnostics.source_line import Origin

State = Literal["live", "zero by construction", "zero", "not finite", "cut", "unused", "frozen"]

MOST_ROWS = 12  # of one state, or one verdict, that are printed
MOST_FROZEN = 3

_REMEDIES: dict[State, str] = {
    "zero": "change what makes it zero, or freeze it with requires_grad_(False)",
    "not finite": "run the step under minigrad.detect_anomaly(), which names the op that made it",
    "cut": "let the gradient through there, or freeze it with requires_grad_(False)",
    "unused": "let the forward pass use it, or freeze it with requires_grad_(False)",
}


@dataclass(frozen=True)
class ParameterRow:
    """What a step does to one parameter.

    Attributes:
        name: from `named_parameters`.
        shape: its shape.
        size: how many numbers it holds.
        state: see `liveness`.
        norm: the Euclidean norm of its gradient; None where it gets none.
        reason: why the state is what it is, in words; empty for what is live or frozen.
        op: the op or method where the way to the loss, or the gradient's way back, ends; or None.
        origin: the user's line that called it, or None.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    state: State
    norm: float | None = None
    reason: str = ""
    op: str | None = None
    origin: Origin | None = None

    @property
    def trains(self) -> bool:
        """Whether training changes the parameter, at once or after a step."""
        return self.state in ("live", "zero by construction")

    @property
    def why(self) -> str:
        """The reason, with the line."""
        return f"{self.reason}, at {self.origin}" if self.origin else self.reason


@dataclass(frozen=True)
class AdapterRow:
    """What a step does to one LoRA adapter.

    Attributes:
        name: of its layer, from `named_modules`; empty for the model itself. Where several are
            active in a layer, with the adapter's own after it.
        rank_a: the numerical rank of A, `(rank, d_in)`; None if a number is not finite.
        rank_b: that of B, `(d_out, rank)`.
        rank_ba: that of the update B A.
        trains: whether training changes the update.
        verdict: that in words, with the reason.
    """

    name: str
    rank_a: int | None
    rank_b: int | None
    rank_ba: int | None
    trains: bool
    verdict: str


@dataclass(frozen=True, repr=False)
class LivenessReport:
    """Which parameters a step trains. It is true only if that is all that require a gradient.

    Attributes:
        loss: the value of the loss.
        rows: one for each parameter, in the order of `named_parameters`.
        adapters: one for each LoRA adapter.
        strays: names of attributes that require a gradient and are Tensors, but no Parameters, so
            that they have no row.
    """

    loss: float
    rows: tuple[ParameterRow, ...]
    adapters: tuple[AdapterRow, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether every parameter that requires a gradient trains, and there is one."""
        required = [row for row in self.rows if row.state != "frozen"]
        return bool(required) and all(row.trains for row in required)

    def __bool__(self) -> bool:
        return self.trains

    def __getitem__(self, name: str) -> ParameterRow:
        """The row of the parameter of this name.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no parameter {name!r}; there are {', '.join(r.name for r in self.rows)}")

    @property
    def verdict(self) -> str:
        """One sentence: that it trains, or why not and what to do."""
        what = "This adapter" if len(self.adapters) == 1 else "This model"
        if len(self.adapters) > 1:
            what = f"This model, with {len(self.adapters)} adapters,"
        required = [row for row in self.rows if row.state != "frozen"]
        if not required:
            those = "those that are to train, or model.freeze(False)"
            if self.adapters:  # their bases are to stay frozen
                those = "lora_a and lora_b of each adapter that is to train"
            return (
                f"{what} does not train: no parameter requires a gradient; call requires_grad_() "
                f"on {those}."
            )
        dead = [row for row in required if not row.trains]
        if not dead:
            later = sum(row.state != "live" for row in required)
            text = f"{what} trains: {_count(len(required) - later, 'gets', 'get')} a gradient"
            return f"{text}, and {later} more will after a step." if later else f"{text}."
        first = dead[0]
        of_it = first.state in ("zero", "not finite")
        subject = f"The gradient of {first.name}" if of_it else first.name
        remedy = "" if ": " in first.reason else f"; {_REMEDIES[first.state]}"
        return (
            f"{what} does not train: {len(dead)} of {len(required)} parameters that require a "
            f"gradient get none that moves them. {subject} is {first.state}: "
            f"{first.why}{remedy}."
        )

    def __repr__(self) -> str:
        lines = [f"liveness: loss {self.loss:.6g}", *_lines(self._parameter_table())]
        if self.adapters:
            lines += ["", *_lines(self._adapter_table())]
        return "\n".join([*lines, "", self.verdict, *self._notes()])

    def _repr_html_(self) -> str:
        tables = [self._parameter_table()]
        tables += [self._adapter_table()] if self.adapters else []
        parts = [f"<p>liveness: loss {self.loss:.6g}</p>", *map(_html, tables)]
        text = "<br>".join(html.escape(line) for line in (self.verdict, *self._notes()))
        return "\n".join([*parts, f"<p>{text}</p>"])

    def _notes(self) -> list[str]:
        return [
            f"{name} requires a gradient, but is no Parameter, so parameters() does not list it "
            f"and no optimiser gets it from there: make it an nn.Parameter."
            for name in self.strays
        ]

    def _parameter_table(self) -> list[tuple[str, ...]]:
        """The rows as text, with what is alike and long cut short."""
        table: list[tuple[str, ...]] = [("parameter", "shape", "state", "|gradient|", "why")]
        shown: dict[str, int] = {}
        for row in self.rows:
            shown[row.state] = shown.get(row.state, 0) + 1
        limits = {
            state: (count if count <= MOST_FROZEN else 0) if state == "frozen" else MOST_ROWS
            for state, count in shown.items()
        }
        left: dict[str, list[ParameterRow]] = {}
        line: Origin | None = None  # of the row before: it is not repeated
        for row in self.rows:
            if limits[row.state] == 0:
                left.setdefault(row.state, []).append(row)
                continue
            limits[row.state] -= 1
            norm = "" if row.norm is None else f"{row.norm:.3g}"
            table.append((row.name, str(row.shape), row.state, norm, row.reason))
            if row.origin and not row.trains and row.origin != line:
                table.append(("", "", "", "", f"  {row.origin}"))
            line = row.origin
        for state, rows in left.items():
            numbers = sum(row.size for row in rows)
            more = "" if state == "frozen" else "more "
            table.append((f"... {len(rows)} {more}{state}, {numbers:,} numbers",))
        return table

    def _adapter_table(self) -> list[tuple[str, ...]]:
        """The adapters as text, cut short where many have one verdict."""
        ranks = ("rank A", "rank B", "rank BA")
        table: list[tuple[str, ...]] = [("adapter", *ranks, "verdict")]
        kinds: dict[str, int] = {}
        for a in self.adapters:
            found = ("?" if r is None else str(r) for r in (a.rank_a, a.rank_b, a.rank_ba))
            kinds[a.verdict] = kinds.get(a.verdict, 0) + 1
            if kinds[a.verdict] <= MOST_ROWS:
                table.append((a.name or "(the model)", *found, a.verdict))
        for verdict, count in kinds.items():
            if count > MOST_ROWS:
                table.append((f"... {count - MOST_ROWS} more: {verdict}",))
        return table


def _count(number: int, one: str, many: str) -> str:
    return f"1 parameter {one}" if number == 1 else f"{number} parameters {many}"


def _lines(table: Sequence[tuple[str, ...]]) -> list[str]:
    """The table with aligned columns; a row of one cell runs over all of them."""
    full = [row for row in table if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return [
        row[0]
        if len(row) == 1
        else "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _html(table: Sequence[tuple[str, ...]]) -> str:
    head, *body = table
    lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>"]
    for row in body:
        span = f' colspan="{len(head)}"' if len(row) == 1 else ""
        lines.append("<tr>" + "".join(f"<td{span}>{html.escape(c)}</td>" for c in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
