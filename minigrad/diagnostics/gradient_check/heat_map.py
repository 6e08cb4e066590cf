"""Arrays as heat maps in HTML, with indices at the sides and a scale below.

The labels have the colour of the text around the map: dark on a light page, and light on a dark
page. A number in a cell is black or white, so that it can be read on the colour of the cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from minigrad.diagnostics.gradient_check.checked_function import Array, largest_of

MOST = 32  # the most cells along a side; in a larger matrix, a cell shows a block of elements
ROWS, COLUMNS = 16, 6  # the largest matrix whose cells have their numbers in them
SIDE, LEAST, LARGEST = 200, 6, 16  # pixels of a map without numbers, and of its cells
LABELLED = 4  # rows and columns of a map without numbers that have their index beside them
RING = ";box-shadow:inset 0 0 0 2px #fff;outline-offset:-1px;outline:2px"  # seen on all colours
FRAMES = {1.0: f"{RING} dotted #000", 2.0: f"{RING} solid #000"}  # undecided, wrong


@dataclass(frozen=True)
class Scale:
    """Which colours represent which numbers, and how the numbers are written."""

    colours: tuple[str, ...]  # from lowest to highest; for colour-blind readers, by lightness
    ticks: dict[float, str]  # the labels of the legend by number, from lowest to highest
    written: str = "{:.4g}"  # the format of a number in its cell
    logarithmic: bool = False  # whether the colours are evenly spaced in the logarithm of numbers
    width: int = 62  # the width of a cell with a number, in pixels

    def mixed(self, values: Array) -> Array:
        """Return red, green and blue for each value, along the last axis."""
        scaled = np.log if self.logarithmic else np.asarray
        low, *_, high = self.ticks
        first, last = scaled([low, high])
        shares = (scaled(np.clip(values, low, high)) - first) / (last - first)
        stops = np.linspace(0, 1, len(self.colours))
        channels = zip(*(bytes.fromhex(colour[1:]) for colour in self.colours), strict=True)
        mixed = np.stack([np.interp(shares, stops, channel) for channel in channels], -1)
        return np.asarray(np.nan_to_num(mixed).round(), np.uint8)


COLOURS = {"agree": "#56B4E9", "cannot tell": "#F0E442", "disagree": "#D55E00"}
STEPS = tuple(colour for colour in COLOURS.values() for _ in range(20))
VERDICTS = {0.0: "agrees", 1.0: "dots: undecided", 2.0: "frame: wrong"}
VERDICT = Scale(STEPS, VERDICTS, "", width=22)
DIFFERENCES = {1e-12: "1e-12", 1e-6: "1e-6", 1.0: "1"}
DIFFERENCE = Scale(("#00224E", "#575D6D", "#A59C74", "#FEE838"), DIFFERENCES, "{:.1g}", True)


def signed(largest: float) -> Scale:
    """Return a scale from -largest to largest: dark blue, grey at 0, light yellow."""
    ticks = {-largest: f"{-largest:.3g}", 0.0: "0", largest: f"{largest:.3g}"}
    return Scale(("#00213F", "#0072B2", "#A6A6A6", "#F2BE4A", "#FFF6D0"), ticks)


def layout(shape: tuple[int, ...]) -> list[str]:
    """Explain in words how a heat map shows an array of this shape."""
    said, axes, down = [f"shape {shape}"], list(range(len(shape))), _axes_down(shape)
    rows, columns = (-(-n // MOST) for n in _matrix(np.zeros(shape)).shape)
    if len(shape) > 2:
        said.append(f"axes {axes[:down]} down, {axes[down:]} across")
    if max(rows, columns) > 1:
        said.append(f"a cell: the number furthest from 0 of up to {rows} x {columns}")
    return said


MAPS = "analytic", "numeric", "difference / largest", "verdict"


def heat_maps(operand: str, analytic: Array, numeric: Array, doubt: Array) -> list[str]:
    """Draw the four `MAPS` of the gradient by an operand; `doubt` is as in `GradientComparison`."""
    largest = largest_of([analytic, numeric]) or 1.0
    with np.errstate(all="ignore"):
        difference = np.abs(analytic - numeric) / largest
    arrays = (analytic, numeric, difference, doubt)
    scales = (signed(largest), signed(largest), DIFFERENCE, VERDICT)
    drawn = zip(arrays, scales, MAPS, strict=True)
    return [heat_map(array, doubt, scale, f"{operand}: {name}") for array, scale, name in drawn]


def heat_map(values: Array, doubt: Array, scale: Scale, label: str) -> str:
    """Draw an array: nan is grey, and what is wrong or undecided in `doubt` has a frame."""
    matrix, down = _matrix(values), _axes_down(values.shape)
    (cells, starts), (doubts, _) = _blocks(matrix), _blocks(_matrix(doubt))
    colours, (rows, columns) = scale.mixed(cells), cells.shape
    numbers = rows <= ROWS and columns <= COLUMNS
    size = min(LARGEST, max(LEAST, SIDE // max(rows, columns)))
    width, height = (scale.width, 22) if numbers else (size, size)
    steps = [1 if numbers else -(-n // LABELLED) for n in (rows, columns)]
    spans = [[""] * (columns + 1) for _ in range(rows + 1)]
    for (i, j), value in np.ndenumerate(cells):
        at = int(starts[0][i] * matrix.shape[1] + starts[1][j])
        if at >= values.size:
            continue  # a vector in several rows may not fill the last row
        index = [int(k) for k in np.unravel_index(at, values.shape)]
        if j == 0 and i % steps[0] == 0:
            spans[i + 1][0] = ",".join(map(str, index[:down]))
        if i == 0 and j % steps[1] == 0:
            spans[0][j + 1] = ",".join(map(str, index[down:])) or f"+{j}" * (j > 0)
        ink = "#000" if colours[i, j] @ (0.3, 0.6, 0.1) > 128 else "#fff"
        style = f"background:#{colours[i, j].tobytes().hex()};color:{ink}"
        style = "background:#8883" if math.isnan(value) else style
        style += FRAMES.get(float(doubts[i, j]), "")
        text = scale.written.format(value) if numbers else ""
        spans[i + 1][j + 1] = f'<span style="{style}" title="{index} {value:.6g}">{text}</span>'
    grid = f"{max(14, height)}px repeat({rows},{height}px)/auto repeat({columns},{width}px)"
    drawn = (s if s[:1] == "<" else f"<span>{s}&nbsp;</span>" for line in spans for s in line)
    legend = (
        f"height:8px;margin-top:6px;background:linear-gradient(90deg,{','.join(scale.colours)})"
    )
    ticks = "".join(f"<span>{tick}</span>" for tick in scale.ticks.values())
    style = "font-size:11px;text-align:center;white-space:nowrap"
    return (
        f'<div role="img" aria-label="{escape(label)}" style="{style}">'
        f'<div style="display:inline-grid;grid-template:{grid};gap:1px;line-height:{height}px">'
        f'{"".join(drawn)}</div><div style="{legend}"></div>'
        f'<div style="display:flex;justify-content:space-between;gap:12px">{ticks}</div></div>'
    )


def _axes_down(shape: tuple[int, ...]) -> int:
    """Return how many axes run down; the others run across."""
    return (len(shape) + 1) // 2


def _matrix(values: Array) -> Array:
    """Return an array as a matrix; a short vector runs down, and a long one fills many rows."""
    if values.ndim > 1:
        return values.reshape(math.prod(values.shape[: _axes_down(values.shape)]), -1)
    width = 1 if values.size <= ROWS else MOST
    matrix = np.full((-(-values.size // width), width), np.nan)
    matrix.flat[: values.size] = values
    return matrix


def _blocks(matrix: Array) -> tuple[Array, list[Array]]:
    """Return the value furthest from 0 in each block, and the first rows and columns of blocks."""
    starts = [np.arange(min(n, MOST)) * n // min(n, MOST) for n in matrix.shape]
    least, most = (  # nan only if the whole block is nan
        pick.reduceat(pick.reduceat(matrix, starts[0], 0), starts[1], 1)
        for pick in (np.fmin, np.fmax)
    )
    return np.where(-least >= most, least, most) + 0.0, starts  # which turns -0 into 0
