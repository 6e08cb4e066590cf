"""Data: CSV files, train-test splits, standardisation, and mini-batches in random order."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import check_flag, check_number, check_positive
from minigrad.core.tensor import Tensor, as_array
from minigrad.errors import named_errors
from minigrad.random import Rng, generator
from minigrad.renamed import hint_names

__all__ = ["CSVTable", "Standardizer", "batches", "read_csv", "train_test_split"]

Arrays = NDArray[Any]


@dataclass(frozen=True)
class CSVTable:
    """The features and the target in a CSV file, with their names.

    Attributes:
        x: `(rows, features)`, float32.
        y: `(rows, 1)`, float32.
        features: the names of the columns of x.
        target: the name of y.
    """

    x: Arrays
    y: Arrays
    features: tuple[str, ...]
    target: str


@named_errors
def read_csv(path: str | os.PathLike[str], target: str) -> CSVTable:
    """Read a CSV file of numbers with a header line; the column `target` becomes y.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if there is no column `target` or no other column, a name of a column occurs
            twice, there are no rows, rows have different lengths, or a value is missing, not a
            number, or not finite in float32; the message names line and column. Also if the file is
            not in UTF-8, or a field is too long for Python's csv module.
    """
    name = os.fspath(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: the file is not UTF-8 text: {error}") from None
    except csv.Error as error:
        raise ValueError(
            f"{name}, line {reader.line_num}: the line cannot be read: {error}; a table of numbers "
            f"has short fields, so a quotation mark may be missing, or the file is not CSV"
        ) from None
    if not lines:
        raise ValueError(f"{name}: the file is empty; a header line and rows of numbers are needed")
    header = [column.strip() for column in lines[0][1]]
    if len(set(header)) != len(header):
        raise ValueError(f"{name}: a column name occurs twice in {header!r:.1000}")
    if target not in header:
        raise ValueError(f"{name}: there is no column {target!r}; the columns are {header!r:.1000}")
    if len(header) < 2:
        raise ValueError(f"{name}: there is no column besides the target {target!r}")
    parsed = []
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(f"{name}, line {line}: {len(row)} values for {len(header)} columns")
        parsed.append(
            [_number(text, name, line, col) for text, col in zip(row, header, strict=True)]
        )
    if not parsed:
        raise ValueError(f"{name}: there are no rows below the header")
    values = np.array(parsed, np.float32)
    at = header.index(target)
    features = (*header[:at], *header[at + 1 :])
    return CSVTable(np.delete(values, at, axis=1), values[:, [at]], features, target)


def _number(text: str, name: str, line: int, column: str) -> float:
    shown = f"{text!r:.100}"
    where = f"{name}, line {line}, column {column!r:.200}"
    if not text.strip():
        raise ValueError(f"{where}: the value is missing; fill it in, or leave the row out")
    try:
        value = float(text.replace("_", "?"))  # float() would accept 1_000
    except ValueError:
        raise ValueError(
            f"{where}: {shown} is not a number; encode text columns as numbers, or leave them out"
        ) from None
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(np.float32(value))
    if not is_finite:
        raise ValueError(
            f"{where}: {shown} is not finite in float32; fill it in, scale it, or leave it out"
        )
    return value


@named_errors
def train_test_split(*arrays: Any, test_size: float = 0.25, rng: Rng = None) -> list[Arrays]:
    """Split arrays of equal length at random: `x_train, x_test, y_train, y_test`.

    Args:
        arrays: arrays with the same number of rows.
        test_size: the share of the rows in the test set.
        rng: the random generator of the order.

    Raises:
        ValueError: if the lengths differ, there are no arrays or no rows, `test_size` is not
            between 0 and 1, or one of the two sets would be empty.
        TypeError: if an array does not contain numbers, `test_size` is not a number, or `rng` is
            not a generator.
    """
    converted = [as_array(array) for array in arrays]
    n = _common_length(converted)
    test_size = check_number("test_size", test_size)  # a float16 could not hold a number of rows
    if not 0 < test_size < 1:
        raise ValueError(f"test_size is a share of the rows, between 0 and 1, not {test_size!r}")
    n_test = round(n * test_size)
    if not 0 < n_test < n:
        raise ValueError(f"test_size={test_size!r} of {n} rows leaves a part empty")
    order = generator(rng).permutation(n)
    return [part for a in converted for part in (a[order[n_test:]], a[order[:n_test]])]


@dataclass(frozen=True)
class Standardizer:
    """Standardise columns, (x - mean) / scale, and convert back; fit on the training rows only.

    Attributes:
        mean: the mean of each column, in float64.
        scale: the standard deviation of each column, in float64; 1 where the column is constant.
    """

    mean: Arrays
    scale: Arrays

    @classmethod
    def fit(cls, x: Any) -> Standardizer:
        """Make the standardiser of the columns of `x`, an array `(rows, ...)` of numbers.

        If `x` has no columns, as an array `(rows,)`, all elements share one mean and scale, and
        `transform` and `inverse` take arrays of any shape.

        Raises:
            ValueError: if there are no rows, a value is not finite, or the standard deviation
                overflows, or underflows to 0.
            TypeError: if `x` does not contain numbers.
        """
        values = as_array(x, np.float64, "Standardizer.fit()")
        _common_length([values])
        if not np.isfinite(values).all():
            raise ValueError("the data have values that are not finite; fill them in first")
        # A constant column is found by comparison with its first row. Its computed deviation may
        # be tiny instead of 0, because the mean is rounded; later values would become huge.
        constant = (values == values[0]).all(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(constant, values[0], values.mean(axis=0))
            scale = np.where(constant, 1.0, values.std(axis=0))
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                "the data have values whose squares overflow in float64, or underflow to 0; scale "
                "them"
            )
        return cls(mean, scale)

    def transform(self, x: Any) -> Arrays:
        """Return (x - mean) / scale, in the dtype of x, or in float64 if x contains integers.

        `x` is an array of rows, or one row.

        Raises:
            ValueError: if the columns are not those of `fit`.
        """
        return self._mapped("transform", x, lambda rows: (rows - self.mean) / self.scale)

    def inverse(self, z: Any) -> Arrays:
        """Return z scale + mean: the inverse of `transform`, with the same errors."""
        return self._mapped("inverse", z, lambda rows: rows * self.scale + self.mean)

    def _mapped(self, name: str, x: Any, function: Callable[[Arrays], Arrays]) -> Arrays:
        """Apply a function to x, rows or one row, in float64; return floats in the dtype of x."""
        values, row = as_array(x, how=f"Standardizer.{name}()"), np.shape(self.mean)
        if row and row not in (values.shape, values.shape[1:]):
            raise ValueError(
                f"Standardizer.{name}: a row has the shape {row}, as in fit, and the array has the "
                f"shape {values.shape}"
            )
        result = function(values.astype(np.float64))
        return result.astype(values.dtype) if values.dtype.kind == "f" else result


def batches(
    arrays: Sequence[Arrays], batch_size: int, *, shuffle: bool = True, rng: Rng = None
) -> Iterator[list[Arrays]]:
    """Yield the rows of several arrays in batches of `batch_size`; the last may be smaller.

    Args:
        arrays: a list of arrays or Tensors with the same number of rows.
        batch_size: the number of rows of a batch.
        shuffle: whether the rows are in random order, another one in each call.
        rng: the random generator of the order; None for the default one.

    Yields:
        A list with a part of each array, in the order of `arrays`: a Tensor of a Tensor, and
        otherwise an array.

    Raises:
        ValueError: when the first batch is taken, as for all errors, if the lengths differ or are
            0, there are no arrays, or the batch size is not a positive integer.
        TypeError: if `arrays` is a single array or a dict, not a sequence of arrays, a list in it
            does not contain numbers, `shuffle` is not True or False, or `rng` is not a generator.
    """
    is_one = isinstance(arrays, (np.ndarray, Tensor))
    if is_one or not isinstance(arrays, Iterable) or isinstance(arrays, (str, Mapping)):
        found = f"one of shape {np.shape(arrays)}" if is_one else f"{arrays!r:.60}"
        raise TypeError(f"batches takes a list of arrays, not {found}; write batches([x], ...)")
    check_flag("batches: shuffle", shuffle)
    batch_size = check_positive("batch_size", batch_size)
    arrays = [_by_position(each) for each in arrays]
    n = _common_length(arrays)
    order = generator(rng).permutation(n) if shuffle else np.arange(n)
    for start in range(0, n, batch_size):
        rows = order[start : start + batch_size]
        yield [array[rows] for array in arrays]


def _by_position(data: Any) -> Any:
    """Return data as an array or a Tensor; others, such as a Series, may be indexed by labels."""
    if isinstance(data, (np.ndarray, Tensor)):
        return data
    return np.asarray(data) if hasattr(data, "__array__") else as_array(data)


def _common_length(arrays: Sequence[Arrays]) -> int:
    """Return the number of rows, after checking that all arrays have the same, and not 0."""
    if not arrays:
        raise ValueError("there are no arrays")
    if any(array.ndim == 0 for array in arrays):
        raise ValueError("data must have an axis of rows; a single number has none")
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"the arrays have different numbers of rows: {sorted(lengths)}")
    (n,) = lengths
    if n == 0:
        raise ValueError("the data are empty: there are no rows")
    return n


hint_names(__name__, lists_all=True)
