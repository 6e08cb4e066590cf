"""Receipts side by side, such as those of one model that is trained in full and by LoRA."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from minigrad.diagnostics.receipt.report import Receipt
from minigrad.tables import aligned, as_html, in_bytes, in_flops


class _Line(NamedTuple):
    """A row of the comparison: a figure of a receipt, or of one step if it grows with each step."""

    title: str
    attribute: str
    text: Callable[[float], str]
    of_a_step: bool = False


def _count(value: float) -> str:
    return f"{value:,.0f}"


_LINES = (
    _Line("FLOPs forward", "forward_flops", in_flops, True),
    _Line("FLOPs recomputed", "recomputed_flops", in_flops, True),
    _Line("FLOPs backward", "backward_flops", in_flops, True),
    _Line("FLOPs of the optimiser", "optimizer_flops", in_flops, True),
    _Line("FLOPs in all", "flops", in_flops, True),
    _Line("products not done, no gradient needed", "skipped_flops", in_flops, True),
    _Line("saved for backward, at the peak", "peak_saved_bytes", in_bytes),
    _Line("gradients", "gradient_bytes", in_bytes),
    _Line("optimiser state", "optimizer_bytes", in_bytes),
    _Line("parameters trained", "trained", _count),
)


@dataclass(frozen=True, repr=False, eq=False)
class ReceiptComparison:
    """Receipts side by side, with ratios to the first one.

    Attributes:
        receipts: the receipts by name.
    """

    receipts: Mapping[str, Receipt]

    def value(self, name: str, attribute: str) -> float:
        """Return a figure of the receipt `name`; FLOPs are those of one step, or of one pass."""
        receipt = self.receipts[name]
        total: int = getattr(receipt, attribute)
        of_a_step = any(line.of_a_step for line in _LINES if line.attribute == attribute)
        return total / (receipt.steps or receipt.passes or 1) if of_a_step else total

    def ratio(self, name: str, attribute: str) -> float:
        """Return a figure of `name` divided by that of the first; nan if that is 0."""
        first = self.value(next(iter(self.receipts)), attribute)
        return self.value(name, attribute) / first if first else float("nan")

    def sentence(self, name: str) -> str:
        """Say in words what `name` costs and saves."""
        first = next(iter(self.receipts))
        kept = ("gradient_bytes", "optimizer_bytes")
        before, after = (sum(self.value(n, line) for line in kept) for n in (first, name))
        parts = {"forward": "forward_flops", "backward": "backward_flops"}
        shares = {part: self.ratio(name, attribute) for part, attribute in parts.items()}
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
        for line in _LINES:
            values = [self.value(name, line.attribute) for name in self.receipts]
            ratios = [self.ratio(name, line.attribute) for name in others]
            if any(values):
                shown = [f"{ratio:.3f}" if ratio == ratio else "-" for ratio in ratios]
                rows.append([line.title, *map(line.text, values), *shown])
        return ["", *self.receipts, *(f"{name} / {first}" for name in others)], rows

    def __repr__(self) -> str:
        sentences = [self.sentence(name) for name in list(self.receipts)[1:]]
        return "\n".join([*aligned(*self._cells(), left=1), *sentences])

    def _repr_html_(self) -> str:
        sentences = [html.escape(self.sentence(name)) for name in list(self.receipts)[1:]]
        return as_html("of one step", *self._cells()) + f"<p>{'<br>'.join(sentences)}</p>"


def _change(ratio: float) -> str:
    return f"{100 * abs(1 - ratio):.0f} % {'fewer' if ratio <= 1 else 'more'}"


def compare(receipts: Mapping[str, Receipt]) -> ReceiptComparison:
    """Compare receipts: `compare({"full": a, "LoRA": b})`.

    Ratios are to the first. FLOPs are those of one step of the optimiser, or of one backward pass
    where there was no step.

    Raises:
        TypeError: if it is not a dict of receipts.
        ValueError: if there are fewer than two, or nothing ran in one.
    """
    if not isinstance(receipts, Mapping):
        raise TypeError(f"compare takes a dict of receipts by name, not {receipts!r:.80}")
    for name, receipt in receipts.items():
        if not isinstance(receipt, Receipt):
            raise TypeError(f"compare: {name!r} must be a Receipt, not {receipt!r:.60}")
        if not receipt.flops:
            raise ValueError(f"compare: nothing was counted in {name!r}; run a step in its block")
    if len(receipts) < 2:
        raise ValueError(f"compare takes two receipts or more, not {len(receipts)}")
    return ReceiptComparison(dict(receipts))
