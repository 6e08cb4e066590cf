"""Arrays as a page needs them: a few numbers with all digits, or a small heat map."""

from __future__ import annotations

import json
import math
import string
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Json = dict[str, Any]

FEW = 16  # the most numbers that are written out
LARGEST = 24  # the most rows and columns of a heat map

# A cell is one letter: the middle letter is 0, and the first and last are the largest magnitude.
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+"
_MIDDLE = len(LETTERS) // 2
_CODES = np.frombuffer(LETTERS.encode(), np.uint8)
NOT_FINITE = "!"


class Previews:
    """Previews of arrays, each stored only once, in a form for JSON.

    A heat map has at most `side` rows and columns, and up to `few` numbers are written out.
    """

    def __init__(self, side: int = LARGEST, few: int = FEW) -> None:
        # `[shape, dtype, rows, columns]`: kinds of arrays, with the size of their heat map.
        self.kinds: list[list[Any]] = []
        # For at most one number `[kind, numbers]`; for few `[kind, numbers, cells]`; for more
        # `[kind, cells, low, high, rms]`, and the count of elements that are not finite, if any.
        self.pictures: list[list[Any]] = []
        self._side, self._few = side, few
        self._known: dict[str, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}  # by id; the values are kept alive

    def add(self, value: Any) -> int | None:
        """Return the index of a preview of `value`, an array or a number; None for None."""
        if value is None:
            return None
        if id(value) not in self._seen:
            array = np.asarray(value)
            kind: list[Any] = [list(array.shape), array.dtype.name]
            content: list[Any] = []
            if array.size <= self._few:
                content.append([exact(x) for x in array.ravel()])
            if array.size > 1:
                cells, letters = heat_map_of(array, self._side)
                kind += cells
                content.append(letters)
                if array.size > self._few:
                    *known, broken = range_of(array)
                    content += [rounded(x) for x in known]
                    content += [broken] if broken else []
            written = [self._index(self.kinds, kind), *content]
            self._seen[id(value)] = value, self._index(self.pictures, written)
        return self._seen[id(value)][1]

    def _index(self, entries: list[list[Any]], entry: list[Any]) -> int:
        """Return the index of an entry among the others; a new one is added at the end."""
        index = self._known.setdefault(f"{len(entry)} {json.dumps(entry)}", len(entries))
        if index == len(entries):
            entries.append(entry)
        return index


def range_of(array: Array) -> tuple[float, float, float, int]:
    """Return the least and the largest number, the root of the mean square, and a count.

    Elements that are not finite are left out and counted. If no element is finite, the three
    numbers are nan.
    """
    wide = array.astype(np.float64)
    known = wide[np.isfinite(wide)]
    low = high = rms = math.nan
    if known.size:
        low, high = float(known.min()), float(known.max())
        largest = max(-low, high)
        rms = largest * math.sqrt(float(np.mean((known / largest) ** 2))) if largest else 0.0
    return low, high, rms, wide.size - known.size


def heat_map_of(array: Array, side: int = LARGEST) -> tuple[tuple[int, int], str]:
    """Draw the heat map of an array, with at most `side` rows and columns.

    The rows of the array run along its last axis. A cell shows the mean of a block as a letter,
    from the most negative to the most positive, or as a mark if an element is not finite. Return
    the numbers of rows and columns, and the letters.
    """
    wide = array.astype(np.float64)
    _, power = np.frexp(np.abs(wide, where=np.isfinite(wide), out=np.zeros_like(wide)).max())
    # Scaled below 1, so that no sum overflows; a power of two changes no digit.
    cells = _block_means(np.ldexp(wide, -power).reshape(-1, array.shape[-1]), side)
    broken = np.isnan(cells)
    known = np.where(broken, 0.0, cells)
    scale = float(np.abs(known).max()) or 1.0
    letters = _CODES[np.round(_MIDDLE * known / scale).astype(np.int64) + _MIDDLE]
    letters[broken] = ord(NOT_FINITE)
    return (len(cells), cells.shape[1]), letters.tobytes().decode()


def _block_means(matrix: Array, side: int) -> Array:
    """Compute the means of at most `side` x `side` blocks, or twice as many columns for one row.

    The mean of a block with an element that is not finite is NaN.
    """
    across = side if len(matrix) > 1 else 2 * side
    with np.errstate(invalid="ignore"):
        for axis, (size, most) in enumerate(zip(matrix.shape, (side, across), strict=True)):
            count = min(size, most)
            starts = np.arange(count) * size // count
            lengths = np.diff(np.append(starts, size))
            matrix = np.add.reduceat(matrix, starts, axis) / np.expand_dims(lengths, 1 - axis)
    return np.where(np.isfinite(matrix), matrix, np.nan)


def rounded(x: float, digits: int = 4) -> Any:
    """Return a number for JSON: some digits, or all where those would round it to infinity."""
    shorter = float(f"{x:.{digits}g}")
    return exact(shorter if math.isfinite(shorter) else x)


def exact(x: Any) -> Any:
    """Return a number for JSON: the shortest digits that give the same number in its dtype."""
    if isinstance(x, (np.bool_, np.integer)):
        return x.item()
    return float(str(x)) if math.isfinite(x) else str(float(x))
