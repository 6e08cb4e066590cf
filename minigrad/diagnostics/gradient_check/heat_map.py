"""Gradients as heat maps in HTML: blue is negative, white is 0, orange is positive, nan is grey."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from minigrad.diagnostics.gradient_check.checked_function import Array, largest_of

MOST = 32  # the most cells along a side; in a larger matrix, a cell shows a block of elements
ROWS, COLUMNS = 16, 6  # the largest matrix whose cells have their numbers in them
FRAMES = {1.0: ";outline:2px dotted", 2.0: ";outline:2px solid"}  # undecided, wrong


def layout(shape: tuple[int, ...]) -> list[str]:
    """Explain in words how a heat map shows an array of this shape."""
    said, axes, down = [f"shape {shape}"], list(range(len(shape))), _axes_down(shape)
    rows, columns = (-(-n // MOST) for n in _matrix(np.zeros(shape)).shape)
    if len(shape) > 2:
        said.append(f"axes {axes[:down]} down, {axes[down:]} across")
    if max(rows, columns) > 1:
        said.append(f"a cell: the number furthest from 0 of up to {rows} x {columns}")
    return said


def heat_maps(operand: str, analytic: Array, numeric: Array, doubt: Array) -> list[str]:
    """Draw the gradients by an operand on one scale; `doubt` is as in `GradientComparison`."""
    largest = largest_of([analytic, numeric]) or 1.0
    named = {"analytic": analytic, "numeric": numeric}.items()
    return [_heat_map(array, doubt, largest, f"{operand}: {name}") for name, array in named]


def _heat_map(values: Array, doubt: Array, largest: float, label: str) -> str:
    """Draw an array whose numbers are at most `largest`, with a frame where it is in doubt."""
    matrix = _matrix(values)
    (cells, starts), (doubts, _) = _blocks(matrix), _blocks(_matrix(doubt))
    rows, columns = cells.shape
    has_numbers = rows <= ROWS and columns <= COLUMNS
    size = "repeat({},22px)/repeat({},62px)" if has_numbers else "repeat({},8px)/repeat({},8px)"
    drawn = []
    for (i, j), value in np.ndenumerate(cells):
        at = int(starts[0][i] * matrix.shape[1] + starts[1][j])
        if at >= values.size:
            continue  # a vector in several rows may not fill the last row
        index = [int(k) for k in np.unravel_index(at, values.shape)]
        share = 100 * min(1.0, abs(value) / largest)
        style = f"color-mix(in srgb,{'#E69F00' if value > 0 else '#56B4E9'} {share:.0f}%,#fff)"
        style = "#8883" if math.isnan(value) else style
        text = f"{value:.4g}" if has_numbers else ""
        frame = FRAMES.get(float(doubts[i, j]), "")
        title = f"{index} {value:.6g}"
        drawn.append(f'<span style="background:{style}{frame}" title="{title}">{text}</span>')
    style = "display:inline-grid;gap:3px;color:#000;font-size:11px;line-height:22px"
    style += f";text-align:center;grid-template:{size.format(rows, columns)}"
    return f'<div role="img" aria-label="{escape(label)}" style="{style}">{"".join(drawn)}</div>'


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
