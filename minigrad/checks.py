"""Checks of arguments that many functions have, with one message for each kind of mistake."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import gt, is_
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

REAL = float, numbers.Real
"""The types of real numbers; asking for floats first is faster than asking the abstract class."""

LONGEST_LINE, MOST_LINES = 1000, 20
"""The largest number of characters of a line in a message, and the largest number of lines."""


def python_number(value: Any) -> Any:
    """Return a scalar of numpy as a number of Python, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def python_numbers(value: Any) -> Any:
    """Return a value with all scalars of numpy as numbers of Python, also in tuples and lists."""
    if type(value) in (tuple, list):
        return type(value)(map(python_numbers, value))
    return python_number(value)


def check_integer(name: str, value: Any) -> int:
    """Return `value` as an integer of Python, which cannot overflow; a TypeError for others."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is an integer, not {value!r:.60}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """Return `value` as a float; a TypeError if it is not a real number.

    An integer that is too large for a float becomes infinite.
    """
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name} must be a number, not {value!r:.60}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if gt(value, 0) else -math.inf


def check_above_0(name: str, value: Any) -> None:
    """Raise an error unless `value` is a number above 0; it may be infinite."""
    try:
        is_number, is_above = not isinstance(value, bool), bool(value > 0)
    except (TypeError, ValueError):  # a ValueError for an array of several numbers
        is_number = is_above = False
    if not is_number:
        raise TypeError(f"{name} must be a number, not {value!r:.60}")
    if not is_above:
        raise ValueError(f"{name} must be positive, not {value!r}")


def check_positive(name: str, value: Any) -> int:
    """Return `value` as an integer of Python; a ValueError unless it is one of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r:.60}")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r:.60}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if not isinstance(value, str) or value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{name} is {', '.join(most)} or {last}, not {value!r:.60}")


def check_count(name: str, value: Any) -> int:
    """Return `value` as an integer of Python; a ValueError unless it is one of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be an integer of at least 0, not {value!r:.60}")
    return int(value)


def for_each_axis(name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """Return an integer for each axis; `value` is one number for all axes, or one for each.

    Raises:
        ValueError: if the number of values is wrong, or a value is not an integer below 2**31 and
            of at least `least`, which is 0 or 1.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        several = f", or {axes} of them" if axes > 1 else ""
        raise ValueError(f"{name} is one number{several}, not {value!r:.60}")
    for each in values:
        (check_positive if least else check_count)(name, each)
        if each >= 2**31:  # so that positions in an image fit in 64 bits
            raise ValueError(f"{name} must be below 2**31, not {each!r:.60}")
    return tuple(map(int, values))


def check_range(name: str, value: Any, low: float, high: float, *, open_end: bool = False) -> None:
    """Raise an error unless low <= value <= high (or < high) and `value` is a finite number."""
    number = check_number(name, value)
    open_end = open_end or high == np.inf
    if number == -np.inf or not (low <= number < high if open_end else low <= number <= high):
        start, end = "(" if low == -np.inf else "[", ")" if open_end else "]"
        raise ValueError(f"{name} must be in {start}{low}, {high}{end}, not {value!r}")


def check_probability(name: str, p: float) -> None:
    """Raise a ValueError unless `p` is in [0, 1], or a TypeError if it is not a number."""
    if isinstance(p, bool) or not isinstance(p, REAL):
        raise TypeError(f"{name} is a probability, not {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is a probability, not {p!r}")


def check_state(owner: str, state: Any, keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise a ValueError unless `state`, a state of `owner`, is a dict with these keys.

    Of other keys, it may have only the `optional` ones.
    """
    wanted = f"load_state_dict: a state of {owner} is a dict of {sorted(keys)!s:.300}"
    if not isinstance(state, Mapping):
        raise ValueError(f"{wanted}, not {state!r:.60}")
    missing = sorted(set(keys) - set(state))
    unknown = sorted(set(state) - {*keys, *optional}, key=str)
    if missing or unknown:
        raise ValueError(f"{wanted}; it lacks {missing} and has unknown {unknown}")


def can_store(dtype: np.dtype[Any], values: NDArray[Any]) -> bool:
    """Return whether a dtype can store the values; every float dtype can."""
    if dtype.kind == "f" or values.dtype == dtype:
        return True
    with np.errstate(invalid="ignore"):
        return np.array_equal(values.astype(dtype), values)


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return a dtype of numpy; raise a TypeError if `dtype` does not name one."""
    try:
        return np.dtype(dtype)
    except TypeError:
        known = "'float32', numpy.float32 or another one of numpy"
        raise TypeError(f"a dtype is {known}, not {dtype!r:.60}") from None


def native_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return a dtype in native byte order, as the object that numpy's own arrays have.

    `newbyteorder` makes another object, and the engine compares dtypes by identity.
    """
    return np.dtype(as_dtype(dtype).newbyteorder("=").str)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a message: the known name most similar to `name`; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_problems(what: str, problems: Sequence[str]) -> None:
    """If there are problems, raise a ValueError with one line for each of them.

    If there are very many, only the first ones are listed. Very long lines are shortened.
    """
    if problems:
        lines = [shortened(problem, LONGEST_LINE) for problem in problems[:MOST_LINES]]
        left = len(problems) - len(lines)
        lines += [f"and {left:,} more"] if left else []
        raise ValueError("\n  ".join([f"{what}:", *lines]))


def shown(value: Any) -> str:
    """Describe a wrong argument in a line: a tensor or an array by its shape, others as printed."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {kind} of shape {tuple(shape)}"
    text = repr(value)
    return f"a value of class {kind}" if "\n" in text else f"{text:.60}"


def shortened(text: str, length: int) -> str:
    """Return a text; if it is longer than `length`, return its beginning and its length."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def are_same(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether two sequences contain the same objects, compared by identity."""
    return len(values) == len(others) and all(map(is_, values, others))
