"""Arrays as a page shows them: a few numbers to the last digit, more as a small heat map."""

from __future__ import annotations

import json
import math
import string
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FEW = 16  # numbers, up to which they are written out
LARGEST = 24  # cells of a heat map, up and across

# One letter for each cell: 0 is in the middle, the largest magnitude at both ends.
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+"
_MIDDLE = len(LETTERS) // 2
_CODES = np.frombuffer(LETTERS.encode(), np.uint8)
NOT_FINITE = "!"


@dataclass
class Previews:
    """Previews of arrays, each once, however often it is shown; ready to be written as JSON.

    Attributes:
        side: how many cells a heat map has at most, up and across.
        few: how many numbers are written out.
        kinds: `[shape, dtype, rows, columns]`: what arrays are like, and how large their heat map.
        pictures: of one number or none `[kind, numbers]`; of few `[kind, numbers, cells]`; of more
            `[kind, cells, low, high, rms, broken]`, as `HeatMap` has them.
    """

    side: int = LARGEST
    few: int = FEW
    kinds: list[list[Any]] = field(default_factory=list)
    pictures: list[list[Any]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)
    _seen: dict[int, tuple[Any, int]] = field(default_factory=dict)  # by id, of values kept alive

    def add(self, value: Any) -> int:
        """Return the index of a preview of `value`, an array or a number."""
        if id(value) not in self._seen:
            array = np.asarray(value)
            content: list[Any] = []
            if array.size <= self.few:
                content.append([exact(x) for x in array.ravel()])
            heat_map = heat_map_of(array, self.side) if array.size > 1 else None
            kind: list[Any] = [list(array.shape), array.dtype.name]
            if heat_map is not None:
                kind += [heat_map.rows, heat_map.columns]
                content.append(heat_map.cells)
                if array.size > self.few:
                    known = (heat_map.low, heat_map.high, heat_map.rms)
                    content += [exact(np.float64(f"{x:.4g}")) for x in known]
                    content += [heat_map.broken] if heat_map.broken else []
            written = [self._index(self.kinds, kind), *content]
            self._seen[id(value)] = value, self._index(self.pictures, written)
        return self._seen[id(value)][1]

    def _index(self, entries: list[list[Any]], entry: list[Any]) -> int:
        """Return the index of an entry among the others; a new one is added at the end."""
        index = self._known.setdefault(f"{len(entry)} {json.dumps(entry)}", len(entries))
        if index == len(entries):
            entries.append(entry)
        return index


@dataclass(frozen=True)
class HeatMap:
    """A heat map.

    Attributes:
        rows: how many cells it has from top to bottom.
        columns: how many cells it has across.
        cells: a letter for each: the mean of a block, from the most negative to the most positive.
        low: the least number; nan if none is finite.
        high: the largest number.
        rms: the root of the mean square.
        broken: how many elements are not finite.
    """

    rows: int
    columns: int
    cells: str
    low: float
    high: float
    rms: float
    broken: int


def heat_map_of(array: Array, side: int = LARGEST) -> HeatMap:
    """Draw the heat map of an array, with at most `side` cells up and across.

    Its rows are those along the last axis, below each other. A cell is the mean of a block; a block
    with an element that is not finite is marked.
    """
    wide = array.astype(np.float64)
    known = wide[np.isfinite(wide)]
    low = high = rms = math.nan
    if known.size:
        low, high = float(known.min()), float(known.max())
        largest = max(-low, high)
        rms = largest * math.sqrt(float(np.mean((known / largest) ** 2))) if largest else 0.0
    cells = _block_means(wide.reshape(-1, wide.shape[-1]), side)
    rows, columns = cells.shape
    return HeatMap(rows, columns, _letters(cells), low, high, rms, wide.size - known.size)


def exact(x: Any) -> Any:
    """Return a number for JSON: the shortest digits that give the same number in its dtype."""
    if isinstance(x, np.bool_):
        return bool(x)
    if isinstance(x, np.integer):
        return int(x)
    return float(str(x)) if math.isfinite(x) else str(float(x))


def _block_means(matrix: Array, side: int) -> Array:
    """Compute the means of at most `side` x `side` blocks; of a single row, twice as many across.

    The mean of a block with an element that is not finite is NaN.
    """
    rows, columns = matrix.shape
    across = min(columns, side if rows > 1 else 2 * side)
    up = min(rows, side)
    with np.errstate(invalid="ignore", over="ignore"):
        for axis, count in ((0, up), (1, across)):
            size = matrix.shape[axis]
            if size == count:
                continue
            starts = np.arange(count) * size // count
            lengths = np.diff(np.append(starts, size))
            shape = (-1, 1) if axis == 0 else (1, -1)
            matrix = np.add.reduceat(matrix, starts, axis) / lengths.reshape(shape)
    return np.where(np.isfinite(matrix), matrix, np.nan)


def _letters(cells: Array) -> str:
    """Write a letter for each cell."""
    broken = np.isnan(cells)
    known = np.where(broken, 0.0, cells)
    scale = float(np.abs(known).max()) or 1.0
    letters = _CODES[np.round(_MIDDLE * known / scale).astype(np.int64) + _MIDDLE]
    letters[broken] = ord(NOT_FINITE)
    return letters.tobytes().decode()
