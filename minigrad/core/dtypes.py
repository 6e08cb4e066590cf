"""Arrays from the data that users pass, and the dtype in which several arrays compute together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


def as_array(data: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return `data` as an array in native byte order, without a copy where it is one already.

    Python's floats become float32, its ints int64 and bools bool; arrays and numpy's scalars keep
    their dtype.

    Raises:
        TypeError: if it is not made of numbers (text, objects, None, complex numbers).
        ValueError: if it is ragged.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("a tensor has no mask; fill the array in first, with .filled(value)")
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    else:
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"cannot make a tensor of {data!r:.80}: {error}") from None
        element = data
        while isinstance(element, (list, tuple)) and element:
            element = element[0]
        if dtype is None and not hasattr(element, "__array__"):
            usual = {"f": np.float32, "i": np.int64}.get(array.dtype.kind, array.dtype)
            array = array.astype(usual, copy=False)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a tensor holds booleans, integers or floats, not {array.dtype}: {data!r:.80}"
        )
    if dtype is not None or not array.dtype.isnative:
        array = array.astype(dtype or array.dtype.newbyteorder("="), copy=False)
    return array


def common_float(arrays: Sequence[Any]) -> np.dtype[Any] | None:
    """Return the float dtype in which arrays compute together, or None if none has floats.

    Those with dimensions decide; 0-d arrays do only where there are no others.
    """
    floats = [x for x in arrays if x.dtype.kind == "f"]
    dtypes = {x.dtype for x in floats if x.ndim} or {x.dtype for x in floats}
    return np.result_type(*dtypes) if dtypes else None
