"""The two groups of rows: one to pretrain on, and a new one to adapt to.

By default the task is to complete handwritten digits, 1,797 images that scikit-learn ships: predict
the 32 grey levels of the lower half from those of the upper half. Pretraining sees nine digits and
never a seven. The upper half of a seven might belong to a two, a three or a nine, so the network
completes it to one of those, until it is shown some sevens.

With a CSV file the task is to predict one column from the others, and the new group are the rows in
which some column is above its median.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from minigrad.data import Standardizer, read_csv, train_test_split

Array = NDArray[Any]
Pair = tuple[Array, Array]

HELD_OUT_DIGIT = 7
FEWEST_ROWS = 20  # of a group: below that, a part of it has too few rows to judge by
MOST_TO_ADAPT = 80  # rows of the new group, half of them for validation: adapting is for small data


@dataclass(frozen=True)
class Task:
    """What to predict from what, and which rows pretraining does not see."""

    x: Array  # (rows, features)
    y: Array  # (rows, outputs)
    is_new: Array  # (rows,), boolean
    old_group: str
    new_group: str
    unit: str
    images: bool = False  # then all of x, and all of y, are in one unit


@dataclass(frozen=True)
class Parts:
    """One group, standardised: pairs of features and target."""

    train: Pair
    validation: Pair
    test: Pair


@dataclass(frozen=True)
class Split:
    """Both groups, and the way back to the units they came in."""

    old: Parts
    new: Parts
    features: Standardizer
    target: Standardizer


def chosen_task(csv: str | Path | None, target: str | None, shift_by: str | None) -> Task:
    """The digits, or columns of a CSV file."""
    if csv is None:
        if target is not None or shift_by is not None:
            raise ValueError("--target and --shift-by name columns of a file: give --csv FILE too")
        return digits()
    if target is None:
        raise ValueError("--csv needs --target COLUMN, the name of the column to predict")
    return from_csv(csv, target, shift_by)


def digits() -> Task:
    """The lower halves of handwritten digits from their upper halves; sevens are new."""
    data = load_digits()
    upper, lower = np.split(data.data.astype(np.float32), 2, axis=1)  # (1797, 32) each
    is_new = data.target == HELD_OUT_DIGIT
    return Task(upper, lower, is_new, "the other digits", "sevens", "grey levels, 0 to 16", True)


def from_csv(path: str | Path, target: str, shift_by: str | None = None) -> Task:
    """The column `target` from the others; rows with `shift_by` above its median are new.

    Without `shift_by` it is the column that correlates most with the target: a shift that matters.
    Where no row is above the median, as in a column of zeros and more ones, the border is lower.

    Raises:
        ValueError: if the file is no table of numbers, a column is missing, or a group too small.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}; --csv takes a table with a header line")
    table = read_csv(path, target)
    if shift_by is None:
        shift_by = table.features[_most_correlated(table.x, table.y[:, 0])]
    if shift_by not in table.features:
        raise ValueError(f"--shift-by {shift_by!r} is none of the features {list(table.features)}")
    column = table.x[:, table.features.index(shift_by)]
    if np.ptp(column) == 0:
        raise ValueError(f"{shift_by!r} is constant; name another column with --shift-by")
    border = np.median(column)
    if border == column.max():
        border = column[column < border].max()
    is_new = column > border
    old_group, new_group = f"{shift_by} up to {border:.4g}", f"{shift_by} above {border:.4g}"
    for rows, group in ((is_new, new_group), (~is_new, old_group)):
        if rows.sum() < FEWEST_ROWS:
            raise ValueError(
                f"{rows.sum()} rows have {group}, and at least {FEWEST_ROWS} are needed: add "
                f"rows, or name another column with --shift-by"
            )
        if np.ptp(table.y[rows]) == 0:
            raise ValueError(f"{target!r} is constant in rows with {group}: nothing to predict")
    # Pretraining learns nothing from a column that it sees constant, such as a sex to shift by.
    known = np.ptp(table.x[~is_new], axis=0) > 0
    if not known.any():
        raise ValueError(f"all features are constant in rows with {old_group}")
    return Task(table.x[:, known], table.y, is_new, old_group, new_group, target)


def split(task: Task, rng: np.random.Generator) -> Split:
    """Split each group in three at random, and standardise by the rows of pretraining."""
    x, y, is_new = task.x, task.y, task.is_new
    old = _three_parts(x[~is_new], y[~is_new], 0.2, 0.15, rng)
    to_test = max(0.55, 1 - MOST_TO_ADAPT / is_new.sum())
    new = _three_parts(x[is_new], y[is_new], to_test, 0.5, rng)
    x_train, y_train = old.train
    # Pixels share one mean and scale: else one that is rarely grey would be the largest of all.
    features = Standardizer.fit(x_train.reshape(-1, 1) if task.images else x_train)
    target = Standardizer.fit(y_train.reshape(-1, 1))

    def standardised(group: Parts) -> Parts:
        pairs = (group.train, group.validation, group.test)
        return Parts(*((features.transform(x), target.transform(y)) for x, y in pairs))

    return Split(standardised(old), standardised(new), features, target)


def _three_parts(
    x: Array, y: Array, test: float, validation: float, rng: np.random.Generator
) -> Parts:
    """A share for the test, and of the rest a share for validation."""
    x_rest, x_test, y_rest, y_test = train_test_split(x, y, test_size=test, rng=rng)
    parts = train_test_split(x_rest, y_rest, test_size=validation, rng=rng)
    x_train, x_validation, y_train, y_validation = parts
    return Parts((x_train, y_train), (x_validation, y_validation), (x_test, y_test))


def _most_correlated(x: Array, y: Array) -> int:
    """The column of x that correlates most with y; a constant one does not."""
    standard = Standardizer.fit(x).transform(x)
    return int(np.argmax(np.abs(standard.T @ (y - y.mean()))))
