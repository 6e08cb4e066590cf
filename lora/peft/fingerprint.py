"""Fingerprints: which matrix an update was made on, whatever dtype it is kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted import AdaptedLayer
from lora.weight import Weight, strips
from minigrad.core.tensor import Tensor

Array = NDArray[Any]


def fingerprint(matrix: Array) -> str:
    """A sha256 of the numbers in a matrix, the same in every dtype that has them.

    Of the shape, as in "(768, 64)", and the rows as float32 in C order, little-endian; or as
    float64, where float32 does not have all of them.
    """
    return fingerprint_of_rows(
        matrix.shape, lambda: (matrix[rows] for rows in strips(matrix.shape))
    )


def fingerprint_of_rows(shape: tuple[int, ...], strips: Callable[[], Iterable[Array]]) -> str:
    """The same of a matrix whose rows come in parts.

    Args:
        shape: of the matrix.
        strips: a function that gives all parts anew, in order.
    """
    narrow = all(_is_narrow(part) for part in strips())
    found = hashlib.sha256(str(tuple(map(int, shape))).encode())
    for part in strips():
        found.update(np.ascontiguousarray(part, "<f4" if narrow else "<f8").data)
    return found.hexdigest()


def _is_narrow(part: Array) -> bool:
    """Whether float32 has all the numbers."""
    if part.dtype.itemsize <= 4:
        return True
    with np.errstate(over="ignore"):
        return bool((part == part.astype(np.float32)).all())


def fingerprint_of(layer: AdaptedLayer) -> str:
    """Of the matrix of a layer as it is stored; of one in four bits, of what these stand for."""
    if isinstance(layer.base_weight, Tensor):
        return fingerprint(layer.base_weight._data)
    weight = layer.weight
    return fingerprint_of_rows(weight.shape, lambda: _rows(weight))


def _rows(weight: Weight) -> Iterable[Array]:
    return (weight.rows(strip) for strip in weight.strips())
