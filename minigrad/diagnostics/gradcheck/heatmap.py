"""A matrix of numbers as a small picture in SVG, which needs no plotting library."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST = 32  # cells along a side; of larger matrices, each cell shows the extreme of a block
SIDE = 160  # pixels

Scale = Literal["signed", "logarithmic", "doubt"]
Colour = tuple[int, int, int]

_ENDS: dict[str, list[Colour]] = {
    "signed": [(33, 102, 172), (247, 247, 247), (178, 24, 43)],  # blue, white, red
    "logarithmic": [(247, 247, 247), (253, 141, 60), (128, 0, 38)],
    "doubt": [(126, 188, 137), (242, 204, 96), (207, 34, 46)],  # green, yellow, red
}
_NOTHING = "#d0d0d0"  # for nan


def heatmap(values: NDArray[Any], low: float, high: float, scale: Scale) -> str:
    """An `<svg>` of an array, of which all axes but the last are rows.

    Args:
        values: the numbers; nan is grey.
        low: the number with the first colour; for "logarithmic" above 0.
        high: the number with the last one.
        scale: the colours, and whether they follow the numbers or their logarithms.
    """
    matrix = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    cells = _blocks(matrix)
    rows, columns = cells.shape
    size = max(2, min(16, SIDE // max(rows, columns)))
    parts = [
        f'<rect x="{j * size}" y="{i * size}" width="{size}" height="{size}" '
        f'fill="{_colour(cells[i, j], low, high, scale)}"><title>{cells[i, j]:.6g}</title></rect>'
        for i in range(rows)
        for j in range(columns)
    ]
    label = escape(f"{matrix.shape[0]} x {matrix.shape[1]} numbers")
    return (
        f'<svg width="{columns * size}" height="{rows * size}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _blocks(matrix: NDArray[Any]) -> NDArray[Any]:
    """The number that is furthest from 0 in each block of a matrix of at most MOST x MOST."""
    starts = [np.arange(min(n, MOST)) * n // min(n, MOST) for n in matrix.shape]
    size = np.where(np.isnan(matrix), -1.0, np.abs(matrix))  # nan only where there is nothing else
    most = np.maximum.reduceat(np.maximum.reduceat(size, starts[0], 0), starts[1], 1)
    negative = np.where(np.isnan(matrix) | (matrix > 0), -1.0, -matrix)
    below = np.maximum.reduceat(np.maximum.reduceat(negative, starts[0], 0), starts[1], 1)
    return np.where(most < 0, np.nan, np.where((below == most) & (below > 0), -most, most))


def _colour(value: float, low: float, high: float, scale: Scale) -> str:
    if math.isnan(value):
        return _NOTHING
    if scale == "logarithmic":
        value, low, high = (math.log(max(x, low)) for x in (value, low, high))
    share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
    colours = _ENDS[scale]
    at = share * (len(colours) - 1)
    first = min(int(at), len(colours) - 2)
    mixed = (
        round(a + (b - a) * (at - first))
        for a, b in zip(colours[first], colours[first + 1], strict=True)
    )
    return "#" + "".join(f"{x:02x}" for x in mixed)
