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
class Album:
    """Pictures of arrays, each once, however often it is shown; ready to be written as JSON.

    Attributes:
        side: how many cells a heat map has at most, up and across.
        few: how many numbers are written out.
        kinds: `[shape, dtype, rows, columns]` of the arrays; of few numbers without the last two.
        pictures: of few numbers `[kind, numbers]`; of more `[kind, cells, low, high, rms, broken]`,
            as `HeatMap` has them.
    """

    side: int = LARGEST
    few: int = FEW
    kinds: list[list[Any]] = field(default_factory=list)
    pictures: list[list[Any]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)
    _seen: dict[int, tuple[Any, int]] = field(default_factory=dict)  # by id, of what is held here

    def add(self, value: Any) -> int:
        """The index of a picture of `value`, an array or a number."""
        if id(value) not in self._seen:
            array = np.asarray(value)
            kind: list[Any] = [list(array.shape), array.dtype.name]
            if array.size <= self.few:
                content: list[Any] = [[exact(x) for x in array.ravel()]]
            else:
                heat_map = heat_map_of(array, self.side)
                kind += [heat_map.rows, heat_map.columns]
                known = (heat_map.low, heat_map.high, heat_map.rms)
                content = [heat_map.cells, *(exact(np.float64(f"{x:.4g}")) for x in known)]
                content += [heat_map.broken] if heat_map.broken else []
            written = [self._index(self.kinds, kind), *content]
            self._seen[id(value)] = value, self._index(self.pictures, written)
        return self._seen[id(value)][1]

    def _index(self, entries: list[list[Any]], entry: list[Any]) -> int:
        """Where an entry is among the others, the last if it is a new one."""
        index = self._known.setdefault(f"{len(entry)} {json.dumps(entry)}", len(entries))
        if index == len(entries):
            entries.append(entry)
        return index


@dataclass(frozen=True)
class HeatMap:
    """A heat map.

    Attributes:
        rows: how many cells it has from top to bottom.
        columns: how many across.
        cells: a letter for each: the mean of a block, from the most negative to the most positive.
        low: the least number; nan if none is finite.
        high: the largest.
        rms: the root of the mean square.
        broken: how many are not finite.
    """

    rows: int
    columns: int
    cells: str
    low: float
    high: float
    rms: float
    broken: int


def heat_map_of(array: Array, side: int = LARGEST) -> HeatMap:
    """The heat map of an array, with at most `side` cells up and across."""
    wide = array.astype(np.float64)
    known = wide[np.isfinite(wide)]
    low = high = rms = math.nan
    if known.size:
        low, high = float(known.min()), float(known.max())
        largest = max(-low, high)
        rms = largest * math.sqrt(float(np.mean((known / largest) ** 2))) if largest else 0.0
    cells = _blocks(_as_matrix(wide), side)
    rows, columns = cells.shape
    broken = wide.size - known.size
    return HeatMap(rows, columns, _lettered(cells.ravel()), low, high, rms, broken)


def exact(x: Any) -> Any:
    """A number as JSON can hold it: its shortest digits that give the same number in its dtype."""
    if isinstance(x, np.bool_):
        return bool(x)
    if isinstance(x, np.integer):
        return int(x)
    return float(str(x)) if math.isfinite(x) else str(float(x))


def _as_matrix(array: Array) -> Array:
    """The rows along the last axis below each other."""
    return array.reshape(-1, array.shape[-1])


def _blocks(matrix: Array, side: int) -> Array:
    """The means of blocks, of which there are at most `side` up and across; a row has twice.

    A block with a number that is not finite is NaN.
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


def _lettered(cells: Array) -> str:
    """A letter for each cell."""
    broken = np.isnan(cells)
    known = np.where(broken, 0.0, cells)
    scale = float(np.abs(known).max()) or 1.0
    letters = _CODES[np.round(_MIDDLE * known / scale).astype(np.int64) + _MIDDLE]
    letters[broken] = ord(NOT_FINITE)
    return letters.tobytes().decode()
