"""The report of a gradcheck, to read in a terminal or to look at in a notebook.

In a notebook, each gradient is a heat map: blue is negative, white is 0, orange is positive.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import check_probability
from minigrad.diagnostics.gradient_check.checked_function import Array, largest_of
from minigrad.io.atomic import write_atomically
from minigrad.tables import paragraph

LISTED = 5  # the most entries of each kind that a repr lists
COLOURS = {"agree": "#56B4E9", "cannot tell": "#F0E442", "disagree": "#D55E00"}

MOST = 32  # the most cells along a side; in a larger matrix, a cell shows a block of elements
LABELLED = 4  # rows and columns of a map without numbers that have their index beside them
ROWS, COLUMNS = 16, 6  # the largest matrix whose cells have their numbers in them
FRAMES = {1.0: ";outline:2px dotted", 2.0: ";outline:2px solid"}  # undecided, wrong

Verdict = Literal["agree", "disagree", "cannot tell"]


@dataclass(frozen=True)
class Judgement:
    """The verdict of difference quotients on a derivative that VJPs computed."""

    verdict: Verdict  # whether the derivative is right
    numeric: float  # the derivative from differences; nan if they give none
    error: float  # the error bar of `numeric`
    reason: str = ""  # why differences cannot tell, or another remark
    kink: bool = False  # whether the slopes on both sides differ
    slack: float = 0.0  # if both agree: the difference up to which they count as equal
    analytic: float = math.nan  # the derivative from the VJPs
    order: int = 1  # 1 for the gradient, 2 for the gradient of the gradient
    operand: str = ""  # the input, parameter or cotangent that was moved
    index: tuple[int, ...] | None = None  # the index of the element; None if many moved at once
    dtype: str = "float64"  # the dtype in which the VJPs computed

    @property
    def relative_difference(self) -> float:
        """The difference |analytic - numeric|, divided by the larger of the two."""
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
    dtype: str  # the dtype in which the VJPs computed
    analytic: NDArray[np.float64]  # from the VJPs, with the shape of the operand
    numeric: NDArray[np.float64]  # from differences; nan where there are none
    doubt: NDArray[np.float64]  # 0: both agree, 1: undecided, 2: they disagree, nan: not compared


@dataclass(repr=False, eq=False)
class GradcheckReport:
    """The findings of a gradcheck. A report is true only if all compared entries agree.

    Attributes:
        function: the name of the function.
        compared: how many elements were compared.
        total: how many elements there are; larger than `compared` if entries were sampled.
        tolerance: the allowed relative difference; outside of float64, larger than requested.
        wrong: the entries that differ by more, worst first; each once, from float64 if possible.
        undecided: the entries that differences cannot judge, each with the reason.
        reason: why no verdict at all is possible; otherwise empty.
        comparisons: the gradients by each operand, with all elements.
        directions: the number of random directions in which all elements of a sampled operand move.
        fewest: the least number of entries sampled from an operand; inf if all were compared.
        others: how many tensors f depends on that require a gradient, but were not passed in.
        dtype: the dtype of the differences.
        slack: the largest error that an entry which agrees may have.
        unsteady: whether two calls may differ, as `nondet_tol` allows.
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
    slack: float = 0.0
    unsteady: bool = False
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
        """Return the probability that sampling overlooks it if this share of entries is wrong.

        If this share of the entries is wrong, each of n sampled entries is right with probability
        1 - share. (Random directions, in which all entries move at once, always show a fault that
        changes the whole gradient by more than the tolerance; they are not counted here.) The
        result is 0 if all entries were compared.

        Raises:
            ValueError: if `share` is not in [0, 1].
            TypeError: if `share` is not a number.
        """
        check_probability("missed: the share of wrong entries", share)
        return 0.0 if math.isinf(self.fewest) else float((1 - share) ** self.fewest)

    @property
    def headline(self) -> str:
        """The verdict and the counts in one line."""
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
        """All other remarks, a sentence each."""
        found = [self.reason] if self.reason else []
        if self.total > self.compared and not math.isinf(self.fewest):
            found.append(
                f"sampled: if 1 % of the entries of an operand were wrong, those compared would "
                f"miss it with probability {self.missed(0.01):.2g}; the slopes in "
                f"{self.directions} random directions were compared besides"
            )
        if self.dtype != "float64":
            how = "computed in"
            if self.unsteady:
                how = "numbers may differ from call to call, so judged as in"
            found.append(
                f"{how} {self.dtype}, in which differences can show relative errors of more "
                f"than {self.tolerance:.2g}, and no smaller ones"
            )
            if self.slack:
                largest = largest_of([c.numeric for c in self.comparisons])
                found[-1] += (
                    f"; an entry that agrees may be off by {self.slack:.2g}, and the largest is "
                    f"{largest:.2g}"
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
        names = "operand", "analytic", "numeric", "difference"
        rows = ["".join(f"<th>{name}</th>" for name in names)]
        for c in self.comparisons:
            if not c.analytic.size:
                continue
            facts = [f"order {c.order}, {c.dtype}", *layout(c.analytic.shape)]
            largest = largest_of([c.analytic, c.numeric]) or 1.0
            facts.append(f"full colour: {largest:.3g}")
            facts += ["grey: not compared"] if np.isnan(c.doubt).any() else []
            cells = [f"<b>{escape(c.operand)}</b><br><small>{'<br>'.join(facts)}</small>"]
            with np.errstate(invalid="ignore"):  # both may be infinite
                maps = c.analytic, c.numeric, c.analytic - c.numeric
            cells += [
                _heat_map(array, c.doubt, largest, f"{c.operand}: {name}")
                for name, array in zip(names[1:], maps, strict=True)
            ]
            style = "text-align:left;vertical-align:top"
            rows.append("".join(f'<td style="{style}">{cell}</td>' for cell in cells))
        table = "".join(f"<tr>{row}</tr>" for row in rows) if len(rows) > 1 else ""
        key = "frame: wrong; dots: undecided; orange: above 0; blue: below 0"
        headline = f'<b style="border-left:8px solid {COLOURS[self.verdict]};padding-left:6px">'
        headline += f"{escape(self.headline)}</b>{paragraph([*self._lines(), key])}"
        return f'<div style="font-family:sans-serif">{headline}<table>{table}</table></div>'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to an .html file.

        Raises:
            ValueError: if the name of the file has another ending.
            OSError: if the file cannot be written; an old file is not changed then.
        """
        if Path(path).suffix.lower() != ".html":
            raise ValueError(f"a report is saved as .html, not as {os.fspath(path)!r}")
        head = '<!doctype html><meta charset="utf-8">'
        head += '<meta name="color-scheme" content="light dark"><title>gradcheck</title>'
        write_atomically(path, f"{head}{self._repr_html_()}".encode())


def layout(shape: tuple[int, ...]) -> list[str]:
    """Explain in words how a heat map shows an array of this shape."""
    said, axes, down = [f"shape {shape}"], list(range(len(shape))), _axes_down(shape)
    rows, columns = (-(-n // MOST) for n in _matrix(np.zeros(shape)).shape)
    if len(shape) > 2:
        said.append(f"axes {axes[:down]} down, {axes[down:]} across")
    if max(rows, columns) > 1:
        said.append(f"a cell: the number furthest from 0 of up to {rows} x {columns}")
    return said


def _heat_map(values: Array, doubt: Array, largest: float, label: str) -> str:
    """Draw an array whose numbers are at most `largest`; `doubt` is as in `GradientComparison`."""
    matrix, down = _matrix(values), _axes_down(values.shape)
    (cells, starts), (doubts, _) = _blocks(matrix), _blocks(_matrix(doubt))
    rows, columns = cells.shape
    has_numbers = rows <= ROWS and columns <= COLUMNS
    height, width = (22, 62) if has_numbers else (8, 8)
    steps = [1 if has_numbers else -(-n // LABELLED) for n in (rows, columns)]
    spans = [["<span></span>"] * (columns + 1) for _ in range(rows + 1)]
    for (i, j), value in np.ndenumerate(cells):
        at = int(starts[0][i] * matrix.shape[1] + starts[1][j])
        if at >= values.size:
            continue  # a vector in several rows may not fill the last row
        index = [int(k) for k in np.unravel_index(at, values.shape)]
        if j == 0 and i % steps[0] == 0:
            spans[i + 1][0] = f"<span>{','.join(map(str, index[:down]))}&nbsp;</span>"
        if i == 0 and j % steps[1] == 0:
            across = ",".join(map(str, index[down:])) or f"+{j}" * (j > 0)
            spans[0][j + 1] = f"<span>{across}</span>"
        share = 100 * min(1.0, abs(value) / largest)
        style = f"color-mix(in srgb,{'#E69F00' if value > 0 else '#56B4E9'} {share:.0f}%,#fff)"
        style = "#8883" if math.isnan(value) else style
        text = f"{value:.4g}" if has_numbers else ""
        frame = FRAMES.get(float(doubts[i, j]), "")
        style = f"background:{style}{frame}"
        spans[i + 1][j + 1] = f'<span style="{style}" title="{index} {value:.6g}">{text}</span>'
    # The background is white on a dark page too, where a black frame could not be seen.
    style = "display:inline-grid;gap:3px;padding:3px;background:#fff;color:#000;font-size:11px"
    style += f";text-align:center;line-height:{height}px"
    style += f";grid-template:22px repeat({rows},{height}px)/auto repeat({columns},{width}px)"
    drawn = "".join(span for line in spans for span in line)
    return f'<div role="img" aria-label="{escape(label)}" style="{style}">{drawn}</div>'


def _axes_down(shape: tuple[int, ...]) -> int:
    """Return how many axes run down; the others run across."""
    return (len(shape) + 1) // 2


def _matrix(values: Array) -> Array:
    """Return an array as a matrix; a short vector runs down, and a long one fills many rows."""
    if values.ndim > 1:
        return values.reshape(math.prod(values.shape[: _axes_down(values.shape)]), -1)
    width = 1 if values.size <= ROWS else MOST
    unused = 0, -values.size % width
    return np.pad(values.ravel(), unused, constant_values=np.nan).reshape(-1, width)


def _blocks(matrix: Array) -> tuple[Array, list[Array]]:
    """Return the value furthest from 0 in each block, and the first rows and columns of blocks."""
    starts = [np.arange(min(n, MOST)) * n // min(n, MOST) for n in matrix.shape]
    least, most = (  # nan only if the whole block is nan
        pick.reduceat(pick.reduceat(matrix, starts[0], 0), starts[1], 1)
        for pick in (np.fmin, np.fmax)
    )
    return np.where(-least >= most, least, most) + 0.0, starts  # which turns -0 into 0
