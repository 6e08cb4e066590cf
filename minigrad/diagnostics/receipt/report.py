"""The contents of a receipt, as numbers and as a table."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from minigrad.tables import aligned, as_html, in_bytes, in_flops

Phase = Literal["forward", "recomputed", "backward", "not done", "optimizer", "dropped"]
_PHASES: tuple[Phase, ...] = ("forward", "recomputed", "backward", "optimizer", "not done")


class ReceiptRow(NamedTuple):
    """A line of a receipt.

    Attributes:
        phase: "forward", "recomputed" (what a checkpoint runs again in a backward pass),
            "backward", "optimizer", or "not done" for the products of inputs that need no gradient,
            frozen weights or data.
        op: the name of an op or an optimiser; "sum of gradients" where several meet in one tensor.
        input: the input whose gradient it is, "shared" for work that serves several of them; empty
            in a forward pass.
        calls: how many calls or VJPs.
        flops: how many FLOPs they took, by the conventions in `receipt/sketch.py`.
    """

    phase: Phase
    op: str
    input: str
    calls: int
    flops: int


class Moment(NamedTuple):
    """A change of the memory that is saved for backward passes.

    Attributes:
        phase: "forward", "recomputed" or "backward", or "dropped" if a part of the graph was
            deleted without a backward pass.
        op: the op that was called or freed.
        saved_bytes: the saved bytes after it.
    """

    phase: Phase
    op: str
    saved_bytes: int


@dataclass(repr=False, eq=False)
class Receipt:
    """The work and the memory of a `receipt()` block.

    Attributes:
        steps: steps of the optimiser, of the busiest one if there were several.
        passes: backward passes, without those inside another one.
        saved_bytes: bytes that the graph saved for backward passes, each block of memory counted
            once; without those of parameters and of the model's inputs, which exist anyway.
        freed_bytes: how many of them were freed at the end.
        input_bytes: the most bytes of parameters, inputs and other arrays that no op had made, such
            as a mask made by numpy, that the graph referred to as well.
        gradient_bytes: bytes of the gradients of all leaves that backward passes reached.
        trained: how many elements these leaves have.
        optimizer_bytes: bytes of the state of the optimisers that made a step.
        timeline: the bytes saved for backward, after every change.
        uncounted: calls and VJPs that are in no sum, and how many, such as those of a kernel
            without a cost.
        interrupted_by: the name of the error that ended the block, or None.
    """

    steps: int = 0
    passes: int = 0
    saved_bytes: int = 0
    freed_bytes: int = 0
    input_bytes: int = 0
    gradient_bytes: int = 0
    trained: int = 0
    optimizer_bytes: int = 0
    timeline: list[Moment] = field(default_factory=list)
    uncounted: dict[str, int] = field(default_factory=dict)
    interrupted_by: str | None = None
    _counts: dict[tuple[Phase, str, str], tuple[int, int]] = field(default_factory=dict)

    def count(self, phase: Phase, op: str, input: str, flops: int, calls: int = 1) -> None:
        """Add to a row; used by the observer that fills the receipt."""
        known_calls, known = self._counts.get((phase, op, input), (0, 0))
        self._counts[phase, op, input] = known_calls + calls, known + flops

    @property
    def rows(self) -> tuple[ReceiptRow, ...]:
        """One row for each phase, op and input; in each phase the most FLOPs first."""
        rows = [ReceiptRow(*key, *counts) for key, counts in self._counts.items()]
        return tuple(sorted(rows, key=lambda row: (_PHASES.index(row.phase), -row.flops)))

    def flops_of(self, phase: Phase) -> int:
        """The FLOPs of one phase."""
        return sum(row.flops for row in self.rows if row.phase == phase)

    @property
    def forward_flops(self) -> int:
        """FLOPs of forward passes."""
        return self.flops_of("forward")

    @property
    def recomputed_flops(self) -> int:
        """FLOPs of what checkpoints ran again in backward passes."""
        return self.flops_of("recomputed")

    @property
    def backward_flops(self) -> int:
        """FLOPs of the VJPs in backward passes, and of the sums of their results."""
        return self.flops_of("backward")

    @property
    def optimizer_flops(self) -> int:
        """FLOPs of the steps of optimisers."""
        return self.flops_of("optimizer")

    @property
    def skipped_flops(self) -> int:
        """FLOPs of the products that passes did not need: for frozen inputs, and for data."""
        return self.flops_of("not done")

    @property
    def flops(self) -> int:
        """FLOPs of all phases, without products that were not done."""
        return sum(row.flops for row in self.rows if row.phase != "not done")

    @property
    def peak(self) -> Moment | None:
        """The moment at which the most bytes were saved for backward; None if none ever were."""
        return max(self.timeline, key=lambda moment: moment.saved_bytes, default=None)

    @property
    def peak_saved_bytes(self) -> int:
        """The most bytes that were saved for backward at once."""
        return 0 if self.peak is None else self.peak.saved_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes that were still saved for backward at the end, as with `retain_graph=True`."""
        return self.saved_bytes - self.freed_bytes

    def chart(self, width: int = 64) -> str:
        """Draw the bytes saved for backward, change by change, in one line of text."""
        if self.peak is None:
            return ""
        values = [moment.saved_bytes for moment in self.timeline]
        width = min(width, len(values))
        edges = [i * len(values) // width for i in range(width + 1)]
        highest = [max(values[a:b]) for a, b in pairwise(edges)]
        return "".join(_BARS[-(-8 * value // self.peak.saved_bytes)] for value in highest)

    def __repr__(self) -> str:
        if not self._counts and not self.uncounted:
            return f"receipt: nothing ran inside the block{self._interruption()}"
        lines = [f"receipt of {_steps(self)}{self._interruption()}"]
        cells = self._cells()
        lines += aligned(_HEAD, cells, left=3) if cells else []
        lines += [f"{title}: {text}" for title, text in self._facts()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if not self._counts and not self.uncounted:
            return f"<p>{html.escape(repr(self))}</p>"
        facts = "".join(f"<br>{html.escape(f'{title}: {text}')}" for title, text in self._facts())
        caption = f"receipt of {_steps(self)}{self._interruption()}"
        return f"{as_html(caption, _HEAD, self._cells())}<p>{facts.removeprefix('<br>')}</p>"

    def _interruption(self) -> str:
        ended = f"the block ended with {self.interrupted_by}"
        return f" ({ended}; this is up to there)" if self.interrupted_by else ""

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = []
        for phase in _PHASES:
            rows = [row for row in self.rows if row.phase == phase and row.flops]
            cells += [(phase, r.op, r.input, f"{r.calls:,}", in_flops(r.flops)) for r in rows]
            if len(rows) > 1:
                cells.append((phase, "in all", "", "", in_flops(self.flops_of(phase))))
        return cells

    def _facts(self) -> list[tuple[str, str]]:
        saved, over_time = "nothing", []
        if self.peak is not None:
            saved = (
                f"{in_bytes(self.saved_bytes)}; {in_bytes(self.peak_saved_bytes)} at the peak, "
                f"{self.peak.phase}, at {self.peak.op}; {in_bytes(self.kept_bytes)} at the end"
            )
            over_time = [("over time", self.chart())]
        return [
            ("saved for backward", saved),
            *over_time,
            ("parameters and inputs saved as well", in_bytes(self.input_bytes)),
            ("gradients", f"{in_bytes(self.gradient_bytes)}, of {self.trained:,} parameters"),
            ("optimiser state", in_bytes(self.optimizer_bytes)),
            *(("not counted", f"{count} x {what}") for what, count in self.uncounted.items()),
        ]


_HEAD = ("phase", "op", "input", "calls", "FLOPs")
_BARS = " ▁▂▃▄▅▆▇█"


def _steps(receipt: Receipt) -> str:
    counts = [(receipt.steps, "step"), (receipt.passes, "backward pass")]
    counts = [(n, name) for n, name in counts if n] or [(0, "backward pass")]
    plural = {"step": "steps", "backward pass": "backward passes"}
    return ", ".join(f"{n} {name if n == 1 else plural[name]}" for n, name in counts)
