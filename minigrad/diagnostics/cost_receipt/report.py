"""A receipt as numbers and as a table, and several receipts side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from minigrad.checks import check_positive
from minigrad.tables import aligned, as_html, counted, in_bytes, in_flops, paragraph

Phase = Literal["forward", "recomputed", "backward", "not done", "optimizer", "dropped"]
_PHASES: tuple[Phase, ...] = ("forward", "recomputed", "backward", "optimizer", "not done")
_HEAD = ("phase", "op", "input", "calls", "FLOPs")
_BARS = " ▁▂▃▄▅▆▇█"


class ReceiptRow(NamedTuple):
    """A line of a receipt."""

    # "recomputed": by a checkpoint in a backward pass. "not done": products for the gradients of
    # inputs that need no gradient, which are frozen weights or data.
    phase: Phase
    op: str  # an op or an optimiser; "sum of gradients" where several meet in one tensor
    input: str  # the input of a VJP; "shared" for work for several inputs; empty for a forward
    calls: int  # how many calls or VJPs
    flops: int  # the FLOPs of all of them, by the conventions in `costs`


class Moment(NamedTuple):
    """A change of the memory that is saved for backward passes."""

    phase: Phase  # or "dropped" if a part of the graph was deleted without a backward pass
    op: str  # the op that was called or freed
    saved_bytes: int  # the saved bytes after it


@dataclass(repr=False, eq=False)
class Receipt:
    """The work and the memory of a `receipt()` block.

    Attributes:
        steps: steps of the optimiser; if there were several optimisers, of the one with most steps.
        passes: backward passes, without passes inside another pass.
        saved_bytes: bytes that the graph saved for backward passes, each block of memory counted
            once; without parameters and the model's inputs, which exist anyway.
        freed_bytes: how many of the saved bytes were freed by the end.
        input_bytes: the most bytes that the graph also referred to in arrays that no op had made:
            parameters, inputs, or for example a mask made by numpy.
        gradient_bytes: bytes of the gradients of all leaves that backward passes reached.
        trained: how many elements these leaves have.
        optimizer_bytes: bytes of the state of the optimisers that made a step.
        timeline: the bytes saved for backward, after every change.
        uncounted: the calls and VJPs that are in no sum, with their number, such as those of a
            kernel without a cost.
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

    def count(
        self,
        phase: Phase,
        op: str,
        input: str,
        flops: int | None,
        calls: int = 1,
        *,
        what: str = "",
    ) -> None:
        """Add FLOPs to a row; if they are not known, add `what` to `uncounted`."""
        if flops is None:
            self.uncounted[what] = self.uncounted.get(what, 0) + 1
            return
        known_calls, known = self._counts.get((phase, op, input), (0, 0))
        self._counts[phase, op, input] = known_calls + calls, known + flops

    @property
    def rows(self) -> tuple[ReceiptRow, ...]:
        """One row for each phase, op and input; in each phase the most FLOPs first."""
        rows = [ReceiptRow(*key, *counts) for key, counts in self._counts.items()]
        return tuple(sorted(rows, key=lambda row: (_PHASES.index(row.phase), -row.flops)))

    def flops_of(self, phase: Phase) -> int:
        """Return the FLOPs of one phase: "forward", "recomputed", "backward", "optimizer", ..."""
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
        """FLOPs of the products that backward passes did not need: for frozen inputs and data."""
        return self.flops_of("not done")

    @property
    def flops(self) -> int:
        """FLOPs of all phases, without the products that were not done."""
        return sum(row.flops for row in self.rows if row.phase != "not done")

    @property
    def peak(self) -> Moment | None:
        """The moment at which the most bytes were saved for backward; None if none were saved."""
        return max(self.timeline, key=lambda moment: moment.saved_bytes, default=None)

    @property
    def peak_saved_bytes(self) -> int:
        """The most bytes that were saved for backward at the same time."""
        return 0 if self.peak is None else self.peak.saved_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes that were still saved for backward at the end, as with `retain_graph=True`."""
        return self.saved_bytes - self.freed_bytes

    def chart(self, width: int = 64) -> str:
        """Draw the bytes saved for backward, change by change, in one line of text.

        Raises:
            ValueError: if `width`, the largest number of characters, is not a positive integer.
        """
        check_positive("width", width)
        if self.peak is None:
            return ""
        values = [moment.saved_bytes for moment in self.timeline]
        width = min(width, len(values))
        edges = [i * len(values) // width for i in range(width + 1)]
        highest = [max(values[a:b]) for a, b in pairwise(edges)]
        return "".join(_BARS[-(-8 * value // self.peak.saved_bytes)] for value in highest)

    def __repr__(self) -> str:
        cells = self._cells()
        table = aligned(_HEAD, cells, left=3) if cells else []
        return "\n".join([self._title, *table, *self._facts()])

    def _repr_html_(self) -> str:
        if not self._counts and not self.uncounted:
            return paragraph([self._title])
        return as_html(self._title, _HEAD, self._cells()) + paragraph(self._facts())

    @property
    def _title(self) -> str:
        ended = f" (the block ended with {self.interrupted_by}; this is up to there)"
        ended = ended if self.interrupted_by else ""
        if not self._counts and not self.uncounted:
            return f"receipt: nothing ran inside the block{ended}"
        counts = [counted(self.steps, "step")] if self.steps else []
        if self.passes or not self.steps:
            counts.append(f"{self.passes} backward pass{'es' * (self.passes != 1)}")
        return f"receipt of {', '.join(counts)}{ended}"

    def _cells(self) -> list[tuple[str, ...]]:
        cells: list[tuple[str, ...]] = []
        for phase in _PHASES:
            rows = [row for row in self.rows if row.phase == phase and row.flops]
            cells += [(phase, r.op, r.input, f"{r.calls:,}", in_flops(r.flops)) for r in rows]
            if len(rows) > 1:
                cells.append((phase, "in all", "", "", in_flops(self.flops_of(phase))))
        return cells

    def _facts(self) -> list[str]:
        if not self._counts and not self.uncounted:
            return []
        saved = ["saved for backward: nothing"]
        if self.peak is not None:
            text = f"saved for backward: {in_bytes(self.saved_bytes)}; "
            text += f"{in_bytes(self.peak_saved_bytes)} at the peak, {self.peak.phase}, at "
            text += f"{self.peak.op}; {in_bytes(self.kept_bytes)} at the end"
            saved = [text, f"over time: {self.chart()}"]
        return [
            *saved,
            f"parameters and inputs saved as well: {in_bytes(self.input_bytes)}",
            f"gradients: {in_bytes(self.gradient_bytes)}, of {self.trained:,} parameters",
            f"optimiser state: {in_bytes(self.optimizer_bytes)}",
            *(f"not counted: {count} x {what}" for what, count in self.uncounted.items()),
        ]


# The lines of a comparison: a title, an attribute of receipts, and a function that formats it.
_LINES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("FLOPs forward", "forward_flops", in_flops),
    ("FLOPs recomputed", "recomputed_flops", in_flops),
    ("FLOPs backward", "backward_flops", in_flops),
    ("FLOPs of the optimiser", "optimizer_flops", in_flops),
    ("FLOPs in all", "flops", in_flops),
    ("products not done, no gradient needed", "skipped_flops", in_flops),
    ("saved for backward, at the peak", "peak_saved_bytes", in_bytes),
    ("gradients", "gradient_bytes", in_bytes),
    ("optimiser state", "optimizer_bytes", in_bytes),
    ("parameters trained", "trained", "{:,.0f}".format),
)


@dataclass(frozen=True, repr=False, eq=False)
class ReceiptComparison:
    """Several receipts side by side, with ratios to the first one."""

    receipts: Mapping[str, Receipt]

    def value(self, name: str, attribute: str) -> float:
        """Return a number of the receipt `name`; FLOPs are per step, or else per backward pass."""
        receipt = self.receipts[name]
        total: int = getattr(receipt, attribute)
        of_a_step = attribute.endswith("flops")
        return total / (receipt.steps or receipt.passes or 1) if of_a_step else total

    def ratio(self, name: str, attribute: str) -> float:
        """Return a number of `name` divided by that of the first receipt; nan if that is 0."""
        first = self.value(next(iter(self.receipts)), attribute)
        return self.value(name, attribute) / first if first else float("nan")

    def sentence(self, name: str) -> str:
        """Say in words what `name` costs and saves."""
        first = next(iter(self.receipts))
        kept = ("gradient_bytes", "optimizer_bytes")
        before, after = (sum(self.value(n, line) for line in kept) for n in (first, name))
        shares = {part: self.ratio(name, f"{part}_flops") for part in ("forward", "backward")}
        known = ", ".join(f"{part} {share:.2f}" for part, share in shares.items() if share == share)
        text = f"{name} does {self.ratio(name, 'flops'):.2f} of the FLOPs of {first}"
        text += f" ({known})" if known else ""
        if before:
            text += f", with {_change(after / before)} bytes of gradients and optimiser state"
        saved = self.ratio(name, "peak_saved_bytes")
        return text + (f" and {_change(saved)} saved for backward." if saved == saved else ".")

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        first, *others = self.receipts
        rows = []
        for title, attribute, text in _LINES:
            values = [self.value(name, attribute) for name in self.receipts]
            ratios = [self.ratio(name, attribute) for name in others]
            if any(values):
                shown = [f"{ratio:.3f}" if ratio == ratio else "-" for ratio in ratios]
                rows.append([title, *map(text, values), *shown])
        return ["", *self.receipts, *(f"{name} / {first}" for name in others)], rows

    def __repr__(self) -> str:
        return "\n".join([*aligned(*self._cells(), left=1), *self._sentences()])

    def _repr_html_(self) -> str:
        return as_html("of one step", *self._cells()) + paragraph(self._sentences())

    def _sentences(self) -> list[str]:
        return [self.sentence(name) for name in list(self.receipts)[1:]]


def _change(ratio: float) -> str:
    return f"{100 * abs(1 - ratio):.0f} % {'fewer' if ratio <= 1 else 'more'}"


def compare(receipts: Mapping[str, Receipt]) -> ReceiptComparison:
    """Compare receipts: `compare({"full": a, "LoRA": b})`.

    Ratios are to the first receipt. FLOPs are per step, or per backward pass if there was no step.

    Raises:
        TypeError: if `receipts` is not a dict of receipts with names as keys.
        ValueError: if there are fewer than two receipts, or nothing ran in one of them.
    """
    if not isinstance(receipts, Mapping):
        raise TypeError(f"compare takes a dict of receipts by name, not {receipts!r:.80}")
    for name, receipt in receipts.items():
        if not isinstance(name, str):
            raise TypeError(f"compare: the name of a receipt is a string, not {name!r:.60}")
        if not isinstance(receipt, Receipt):
            raise TypeError(f"compare: {name!r} must be a Receipt, not {receipt!r:.60}")
        if not receipt.flops:
            raise ValueError(f"compare: nothing was counted in {name!r}; run a step in its block")
    if len(receipts) < 2:
        raise ValueError(f"compare takes two receipts or more, not {len(receipts)}")
    return ReceiptComparison(dict(receipts))
