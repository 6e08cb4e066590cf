"""The report of a gradcheck, to read in a terminal or to look at in a notebook."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import check_probability
from minigrad.diagnostics.gradient_check.checked_function import largest_of

LISTED = 5  # entries of a kind that a repr lists
MOST = 32  # cells along a side of a picture; in a larger matrix each shows a block's extreme
SIDE = 160  # pixels of a picture

Verdict = Literal["agree", "disagree", "cannot tell"]
Scale = Literal["signed", "logarithmic", "doubt"]
COLOURS: dict[Scale, list[tuple[int, int, int]]] = {
    "signed": [(33, 102, 172), (247, 247, 247), (178, 24, 43)],  # blue, white, red
    "logarithmic": [(247, 247, 247), (253, 141, 60), (128, 0, 38)],
    "doubt": [(126, 188, 137), (242, 204, 96), (207, 34, 46)],  # green, yellow, red
}


@dataclass(frozen=True)
class Judgement:
    """The answer of difference quotients about one derivative, which VJPs computed too."""

    verdict: Verdict  # whether it is right
    numeric: float  # what differences say; nan if they say nothing
    error: float  # the error bar of `numeric`
    reason: str = ""  # why they cannot tell, or what else is to be said
    kink: bool = False  # whether the slopes on both sides differ
    analytic: float = math.nan  # what the VJPs say
    order: int = 1  # 1 for the gradient, 2 for the gradient of the gradient
    operand: str = ""  # the input, parameter or cotangent that was moved
    index: tuple[int, ...] | None = None  # of the element; None for a move of many at once
    dtype: str = "float64"  # in which the VJPs computed

    @property
    def relative_difference(self) -> float:
        """The difference, |analytic - numeric|, over the larger of the two."""
        scale = max(abs(self.analytic), abs(self.numeric))
        if not math.isfinite(scale):
            return math.inf
        return abs(self.analytic - self.numeric) / scale if scale else 0.0

    def __str__(self) -> str:
        name = f"order {self.order}, {self.operand}{list(self.index) if self.index else ''}"
        if math.isnan(self.analytic) and math.isnan(self.numeric):
            return f"{name}: {self.reason}"
        name += "" if self.dtype == "float64" else f" in {self.dtype}"
        numbers = f"analytic {self.analytic:.9g}, numeric {self.numeric:.9g} +- {self.error:.1g}"
        relative = f", relative difference {self.relative_difference:.2g}"
        return f"{name}: {numbers}{f'; {self.reason}' if self.reason else relative}"


@dataclass(frozen=True, eq=False)
class GradientComparison:
    """The gradient by one operand, computed by VJPs and by differences."""

    order: int  # 1 for the gradient, 2 for the gradient of the gradient
    operand: str
    dtype: str  # in which the VJPs computed
    analytic: NDArray[np.float64]  # what the VJPs say, an array shaped like the operand
    numeric: NDArray[np.float64]  # what differences say; nan if they were not taken or say nothing
    doubt: NDArray[np.float64]  # 0: both agree, 1: undecided, 2: they disagree, nan: not compared


@dataclass(repr=False, eq=False)
class GradcheckReport:
    """The findings of a gradcheck. A report is true only if all that was compared agrees.

    Attributes:
        function: the name of the function.
        compared: how many elements were compared.
        total: how many there are; more than were compared if entries were sampled.
        tolerance: the allowed relative difference; larger than asked for outside of float64.
        wrong: the entries that differ by more, worst first.
        undecided: the entries that differences cannot judge, each with the reason.
        reason: why nothing at all can be said.
        comparisons: the gradients by each operand, with all elements.
        directions: in how many random directions all elements of each sampled operand were moved.
        fewest: the least number of entries that were sampled of an operand; inf if all were taken.
        others: how many tensors f depends on that require a gradient, but were not passed in.
        dtype: that differences were taken in.
        checker: the function that made the report.
    """

    function: str
    tolerance: float
    compared: int = 0
    total: int = 0
    wrong: list[Judgement] = field(default_factory=list)
    undecided: list[Judgement] = field(default_factory=list)
    reason: str = ""
    comparisons: list[GradientComparison] = field(default_factory=list)
    directions: int = 0
    fewest: float = math.inf
    others: int = 0
    dtype: str = "float64"
    checker: str = "gradcheck"

    @property
    def verdict(self) -> Verdict:
        """One of "agree", "disagree" and "cannot tell"."""
        if self.reason:
            return "cannot tell"
        if self.wrong:
            return "disagree"
        return "cannot tell" if self.undecided else "agree"

    def __bool__(self) -> bool:
        return self.verdict == "agree"

    def missed(self, share: float) -> float:
        """The probability that sampling has overlooked that a share of some operand is wrong.

        If this share of the entries of an operand is wrong, each of n sampled entries misses it
        with probability 1 - share. (Random directions, in which all entries move at once, are sure
        to see a fault that changes all of the gradient by more than the tolerance; they are left
        out here.) The result is 0 if all entries were compared.

        Raises:
            ValueError: if `share` is not between 0 and 1.
        """
        check_probability("missed: the share of wrong entries", share)
        return 0.0 if math.isinf(self.fewest) else float((1 - share) ** self.fewest)

    @property
    def headline(self) -> str:
        """The verdict and the counts, in one line."""
        compared = f"{self.compared:,} {'entry' if self.compared == 1 else 'entries'} compared"
        if self.total > self.compared:
            compared = f"{self.compared:,} of {self.total:,} entries compared"
        return (
            f"{self.checker} of {self.function}: {self.verdict} ({compared}, "
            f"{len(self.wrong)} wrong, {len(self.undecided)} undecided, "
            f"tolerance {self.tolerance:g})"
        )

    @property
    def remarks(self) -> list[str]:
        """All else there is to say, a sentence each."""
        found = [self.reason] if self.reason else []
        if self.total > self.compared and not math.isinf(self.fewest):
            found.append(
                f"sampled: if 1 % of the entries of an operand were wrong, those compared would "
                f"miss it with probability {self.missed(0.01):.2g}; the slopes in "
                f"{self.directions} random directions were compared besides"
            )
        if self.dtype != "float64":
            found.append(
                f"computed in {self.dtype}, in which differences can show relative errors of more "
                f"than {self.tolerance:.2g}, and no smaller ones"
            )
        if self.others:
            found.append(
                f"not checked: {self.others} more tensor{'s' * (self.others > 1)} that f depends "
                f"on and that require a gradient; hand them in as inputs, or the Module itself as f"
            )
        return found

    def _lines(self) -> list[str]:
        """Return the remarks and the first entries of each kind."""
        lines = self.remarks
        for title, entries in (("wrong", self.wrong), ("undecided", self.undecided)):
            lines += [f"{title}: {entry}" for entry in entries[:LISTED]]
            if len(entries) > LISTED:
                lines.append(f"... and {len(entries) - LISTED} more {title}")
        return lines

    def __repr__(self) -> str:
        return "\n  ".join([self.headline, *self._lines()])

    def _repr_html_(self) -> str:
        colour = {"agree": "#1a7f37", "disagree": "#cf222e", "cannot tell": "#9a6700"}[self.verdict]
        headline = f'<p><b style="color:{colour}">{escape(self.headline)}</b></p>'
        notes = "".join(f"<p>{escape(line)}</p>" for line in self._lines())
        heads = ("operand", "analytic", "numeric", "difference / largest", "verdict")
        rows = ["".join(f"<th>{name}</th>" for name in heads)]
        for c in self.comparisons:
            if not c.analytic.size:
                continue
            largest = largest_of([c.analytic, c.numeric])
            with np.errstate(all="ignore"):
                difference = np.abs(c.analytic - c.numeric) / (largest or 1.0)
            cells = [
                f"{c.operand}<br><small>order {c.order}, {c.dtype}, {c.analytic.shape}</small>",
                _heatmap(c.analytic, -largest, largest, "signed"),
                _heatmap(c.numeric, -largest, largest, "signed"),
                _heatmap(difference, 1e-12, 1.0, "logarithmic"),
                _heatmap(c.doubt, 0.0, 2.0, "doubt"),
            ]
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
        table = f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
        table = table if len(rows) > 1 else ""
        return f'<div style="font-family:sans-serif">{headline}{notes}{table}</div>'


def _heatmap(values: NDArray[Any], low: float, high: float, scale: Scale) -> str:
    """Draw an array as an `<svg>`, where all axes but the last are rows; nan is grey.

    The colours of the scale go from `low` to `high`, evenly in the values or in their logarithms.
    """
    matrix = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    cells = _blocks(matrix)
    scaled = np.log if scale == "logarithmic" else np.asarray
    shares = np.full(cells.shape, 0.5)
    if high > low:
        first, last = scaled([low, high])
        shares = (scaled(np.clip(cells, low, high)) - first) / (last - first)
    stops = np.linspace(0, 1, len(COLOURS[scale]))
    channels = [np.interp(shares, stops, channel) for channel in zip(*COLOURS[scale], strict=True)]
    mixed = np.where(np.isnan(cells), 0xD0, np.round(channels)).astype(np.uint8)
    rows, columns = cells.shape
    size = max(2, min(16, SIDE // max(rows, columns)))
    parts = [
        f'<rect x="{j * size}" y="{i * size}" width="{size}" height="{size}" '
        f'fill="#{mixed[:, i, j].tobytes().hex()}"><title>{value:.6g}</title></rect>'
        for (i, j), value in np.ndenumerate(cells)
    ]
    label = escape(f"{matrix.shape[0]} x {matrix.shape[1]} numbers")
    return (
        f'<svg width="{columns * size}" height="{rows * size}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _blocks(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the value that is furthest from 0 in each of at most MOST x MOST blocks."""
    starts = [np.arange(min(n, MOST)) * n // min(n, MOST) for n in matrix.shape]
    least, most = (  # nan only where there is nothing else
        pick.reduceat(pick.reduceat(matrix, starts[0], 0), starts[1], 1)
        for pick in (np.fmin, np.fmax)
    )
    return np.where(-least >= most, least, most) + 0.0  # which turns -0 into 0
