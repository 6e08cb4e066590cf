"""Blocked summation, which keeps rounding errors small.

Along the axis with the smallest steps in memory, `np.add.reduce` adds in a tree. Along any other
axis, it adds one element after the other: the gradient of a bias, summed over a million rows in
float32, would be wrong by a percent. Here, blocks of rows are summed, then blocks of these sums,
and so on. float16 is summed in float32. A kernel adds up large rows of float32, in a quarter of
numpy's time and with errors as small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minigrad import kernels

# Any, because numpy's type stubs accept only a literal for `keepdims`.
_reduce: Any = np.add.reduce

_HALF, _SINGLE = np.dtype(np.float16), np.dtype(np.float32)

_LARGE = 8192  # the number of elements from which a kernel is worth its call
_LONG = 1024  # the number of rows from which blocks are worth their cost
_BLOCK = 64


def sum_over(x: Any, axis: Any, keepdims: bool = False) -> Any:
    """Return the sum over `axis`: an int, a tuple of ints, or None for all."""
    if x.__class__ is not np.ndarray:
        return _reduce(x, axis=axis, keepdims=keepdims)
    if x.dtype == _HALF:
        return _reduce(x, axis=axis, keepdims=keepdims, dtype=_SINGLE).astype(_HALF)
    if x.size < _LONG or x.dtype != _SINGLE:
        return _reduce(x, axis=axis, keepdims=keepdims)
    axes = sorted(normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim))
    first = x.ndim - len(axes)
    if x.size >= _LARGE and x.flags.c_contiguous and axes and axes[0] == first:  # the last axes
        kept = x.shape[:first]
        sums = kernels.reduction.sum_rows(x.reshape(math.prod(kept), -1))
        if sums is not None:
            return sums.reshape(kept + (1,) * len(axes) if keepdims else kept)
    if not _LONG <= math.prod(x.shape[i] for i in axes) < x.size:
        return _reduce(x, axis=axis, keepdims=keepdims)
    # The last axis, with those before it that form one axis with it, and then the other axes.
    first = last = axes.pop()
    while axes and axes[-1] == first - 1 and x.flags.c_contiguous:
        first = axes.pop()
    run = tuple(range(first, last + 1))
    if axes:
        return sum_over(sum_over(x, run, keepdims), tuple(axes), keepdims)
    # If another axis has steps as small, numpy may add along that one in its inner loop.
    others = [abs(s) for i, s in enumerate(x.strides) if i not in run and x.shape[i] > 1]
    if x.shape[last] > 1 and x.strides[last] == x.itemsize < min(others):
        return _reduce(x, axis=run, keepdims=keepdims)
    before, after = x.shape[:first], x.shape[last + 1 :]
    rows = np.moveaxis(x.reshape(*before, -1, *after), first, 0)
    while len(rows) > _BLOCK:
        complete = len(rows) // _BLOCK * _BLOCK
        blocks = _reduce(rows[:complete].reshape(-1, _BLOCK, *rows.shape[1:]), axis=1)
        rest = _reduce(rows[complete:], axis=0, keepdims=True)
        rows = np.concatenate([blocks, rest])
    total = _reduce(rows, axis=0)
    return np.expand_dims(total, run) if keepdims else total
