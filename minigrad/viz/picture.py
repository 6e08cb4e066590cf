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

FEW = 16  # numbers, up to which they are shown themselves
LARGEST = 24  # cells of a heat map, up and across

# One letter for each cell: 0 is in the middle, the largest magnitude at both ends.
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+"
_MIDDLE = len(LETTERS) // 2
NOT_FINITE = "!"


@dataclass
class Album:
    """Pictures of arrays, each once, however often it is shown.

    Attributes:
        side: how many cells a heat map has at most, up and across.
        pictures: what there is so far, ready to be written as JSON.
    """

    side: int = LARGEST
    pictures: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)
    _seen: dict[int, tuple[Any, int]] = field(default_factory=dict)  # by id, of what is held here

    def add(self, value: Any) -> int:
        """The index of a picture of `value`, an array or a number."""
        if id(value) not in self._seen:
            picture = picture_of(np.asarray(value), self.side)
            index = self._known.setdefault(json.dumps(picture), len(self.pictures))
            if index == len(self.pictures):
                self.pictures.append(picture)
            self._seen[id(value)] = value, index
        return self._seen[id(value)][1]


def picture_of(array: Array, side: int = LARGEST) -> dict[str, Any]:
    """What a page needs to know of an array.

    Returns:
        `shape` and `dtype`; of few numbers `numbers`, in row-major order; of more `low`, `high`,
        `rms`, how many are not `finite`, and a heat map: `rows`, `columns` and `cells`, one letter
        each, of which `scale` is the largest magnitude.
    """
    picture: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    if array.size <= FEW:
        picture["numbers"] = [exact(x) for x in array.ravel()]
        return picture
    wide = array.astype(np.float64)
    finite = np.isfinite(wide)
    known = wide[finite]
    if known.size < wide.size:
        picture["broken"] = int(wide.size - known.size)
    if known.size:
        picture["low"], picture["high"] = exact(array[finite].min()), exact(array[finite].max())
        largest = float(np.abs(known).max())
        rms = largest * math.sqrt(float(np.mean((known / largest) ** 2))) if largest else 0.0
        picture["rms"] = float(f"{rms:.4g}")
    cells = _blocks(_as_matrix(wide), side)
    scale = float(np.nanmax(np.abs(cells), initial=0.0))
    picture["rows"], picture["columns"] = cells.shape
    picture["scale"] = float(f"{scale:.4g}")
    picture["cells"] = _lettered(cells.ravel(), scale)
    return picture


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
            starts = np.arange(count) * size // count
            lengths = np.diff(np.append(starts, size))
            shape = (-1, 1) if axis == 0 else (1, -1)
            matrix = np.add.reduceat(matrix, starts, axis) / lengths.reshape(shape)
    return np.where(np.isfinite(matrix), matrix, np.nan)


def _lettered(cells: Array, scale: float) -> str:
    """A letter for each cell."""
    index = np.round(_MIDDLE * np.nan_to_num(cells) / (scale or 1.0)).astype(np.int64) + _MIDDLE
    letters = np.array(list(LETTERS))[index]
    return "".join(np.where(np.isnan(cells), NOT_FINITE, letters))
