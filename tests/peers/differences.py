"""How far two arrays are apart."""

import numpy as np


def relative(ours, theirs, floor=1e-6):
    """The largest |x - y| / max(|x|, |y|) of two arrays; nan is nan, and inf is inf.

    Elements that are far smaller than 1 and than the largest one are what cancellation left of it,
    and count relative to `floor` times that.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    x, y = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    size = np.maximum(np.abs(x), np.abs(y))
    largest = np.max(size, initial=1.0, where=np.isfinite(size))
    with np.errstate(invalid="ignore"):
        differences = np.abs(x - y) / np.maximum(size, floor * largest)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return float(np.max(np.nan_to_num(differences, nan=np.inf), initial=0.0, where=~same))
