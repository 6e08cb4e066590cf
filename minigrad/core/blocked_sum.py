"""Blocked summation, which keeps rounding errors small.

Along the last axis, `np.add.reduce` adds in a tree. Along any other axis, it adds one element after
the other: the gradient of a bias, summed over a million rows in float32, would be wrong by a
percent. Here, blocks of rows are summed, then blocks of these sums, and so on. float16 is summed in
float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

# Any, because numpy's type stubs accept only a literal for `keepdims`.
_reduce: Any = np.add.reduce

_HALF, _SINGLE = np.dtype(np.float16), np.dtype(np.float32)

_LONG = 1024  # the number of rows from which blocks are worth their cost
_BLOCK = 64


def sum_over(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the sum over `axis`: an int, a tuple of ints, or None for all."""
    if x.__class__ is not np.ndarray:
        return _reduce(x, axis=axis, keepdims=keepdims)
    if x.dtype == _HALF:
        return _reduce(x, axis=axis, keepdims=keepdims, dtype=_SINGLE).astype(_HALF)
    if x.size < _LONG or x.dtype != _SINGLE or axis is None:
        return _reduce(x, axis=axis, keepdims=keepdims)
    axes = normalize_axis_tuple(axis, x.ndim)
    first, last = (min(axes), max(axes)) if axes else (0, -1)
    count, width = math.prod(x.shape[first : last + 1]), math.prod(x.shape[last + 1 :])
    if last - first + 1 != len(axes) or count < _LONG or width == 1 or not x.flags.c_contiguous:
        return _reduce(x, axis=axis, keepdims=keepdims)
    rows = x.reshape(-1, count, width)
    while count > _BLOCK:
        complete = count // _BLOCK * _BLOCK
        blocks = _reduce(rows[:, :complete].reshape(len(rows), -1, _BLOCK, width), axis=2)
        rest = _reduce(rows[:, complete:], axis=1, keepdims=True)
        rows = np.concatenate([blocks, rest], axis=1)
        count = rows.shape[1]
    reduced = (1,) * len(axes) if keepdims else ()
    return _reduce(rows, axis=1).reshape(x.shape[:first] + reduced + x.shape[last + 1 :])
