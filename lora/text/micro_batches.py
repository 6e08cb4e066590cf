"""Micro-batches of rows, and which of their tokens are the inputs and the targets of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.text.data import Row
from minigrad.checks import check_positive, shown
from minigrad.random import Rng, generator

Batch = tuple[NDArray[np.int64], NDArray[np.bool_]]
Ids = NDArray[np.integer[Any]]


def micro_batches(rows: Sequence[Row], batch_size: int, rng: Rng = None) -> list[Batch]:
    """Group rows of similar length into micro-batches, padded at the end to the longest row.

    A micro-batch has the tokens and the marks which of them count, both `(batch_size, length)`.
    `rng` shuffles the order of the micro-batches, and of rows with equal length.
    """
    check_positive("batch_size", batch_size)
    drawn = generator(rng)
    order = sorted(drawn.permutation(len(rows)).tolist(), key=lambda i: len(rows[i].ids))
    made: list[Batch] = []
    for start in range(0, len(order), batch_size):
        chosen = [rows[i] for i in order[start : start + batch_size]]
        ids = np.zeros((len(chosen), len(chosen[-1].ids)), np.int64)
        counts = np.zeros(ids.shape, np.bool_)
        for number, row in enumerate(chosen):
            ids[number, : len(row.ids)] = row.ids
            counts[number, : len(row.ids)] = row.counted
        made.append((ids, counts))
    return [made[i] for i in drawn.permutation(len(made))]


def without_padding(
    ids: NDArray[np.int64], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[int] | None]:
    """Return a micro-batch without the tokens behind the last one that counts in each row.

    No loss depends on these tokens, which are padding, or the end of a chat template.

    Returns:
        The arguments of `LanguageModel.loss`: a shorter array of rows; or if their lengths differ,
        the rows behind each other in one row, and their lengths. If no token counts, nothing is
        changed.
    """
    lengths = (counted * np.arange(1, counted.shape[1] + 1)).max(1)
    lengths[lengths <= 1] = 0  # the first token of a row does not count
    kept = np.arange(counted.shape[1]) < lengths[:, None]
    different = np.unique(lengths[lengths > 0])
    if not len(different):
        return ids, counted, None
    shape = (-1, different[0]) if len(different) == 1 else (1, -1)
    divided = None if len(different) == 1 else lengths[lengths > 0].tolist()
    return ids[kept].reshape(shape), counted[kept].reshape(shape), divided


def predicted(
    ids: Ids, counted: NDArray[np.bool_], lengths: Sequence[int] | None
) -> tuple[Ids, Ids, Ids, float]:
    """Return the inputs and targets of a model if only the predictions of some tokens count.

    Returns:
        The inputs, which are the tokens without the last of each text, or all tokens if no text has
        two; the rows of the outputs that count; their targets; and the number by which to divide
        the sum of their losses.

    A text is a row, or with `lengths` a part of the only row. A ValueError is raised if the
    arguments are no arrays of rows with the same shape, or the lengths do not divide the row.
    """
    shapes = [getattr(x, "shape", ()) for x in (ids, counted)]  # a list has none
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise ValueError(
            f"ids and counted are arrays (batch, length), not {shown(ids)} and {shown(counted)}"
        )
    inputs, targets, marks = ids[:, :-1], ids[:, 1:], counted[:, 1:]
    if lengths is not None:
        if np.shape(ids) != (1, sum(lengths)) or min(lengths) < 1:
            raise ValueError(f"ids are one row with texts of lengths {lengths}, not {shown(ids)}")
        ends = np.cumsum(lengths)
        inputs = np.delete(ids, ends - 1, 1)
        targets, marks = np.delete(ids, ends - lengths, 1), np.delete(counted, ends - lengths, 1)
    rows = np.flatnonzero(marks)
    targets = targets.reshape(-1)[rows]
    return inputs if inputs.size else ids, rows, targets, float(max(len(rows), 1))
