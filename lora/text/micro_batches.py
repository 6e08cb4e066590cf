"""Micro-batches of rows, and which of their tokens are the inputs and the targets of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.text.data import Row
from minigrad.checks import check_positive, shown
from minigrad.random import Rng, generator

Batch = tuple[NDArray[np.int64], NDArray[np.bool_], list[int] | None]
"""Ids, marks which of them count, and lengths: the arguments of `LanguageModel.loss`."""

Ids = NDArray[np.integer[Any]]


def micro_batches(rows: Sequence[Row], batch_size: int, rng: Rng = None) -> list[Batch]:
    """Group rows of similar length into micro-batches, without padding.

    Rows of one length become an array `(batch_size, length)`; other rows stand behind each other in
    one row, with their lengths. Tokens behind the last one that counts in a row, such as the end of
    a chat template, are left out, because no loss depends on them. `rng` shuffles the order of the
    micro-batches, and of rows with equal length.
    """
    check_positive("batch_size", batch_size)
    drawn = generator(rng)
    order = sorted(drawn.permutation(len(rows)).tolist(), key=lambda i: len(rows[i].ids))
    made: list[Batch] = []
    for start in range(0, len(order), batch_size):
        chosen = [rows[i] for i in order[start : start + batch_size]]
        lengths = [int(np.flatnonzero(row.counted)[-1]) + 1 for row in chosen]
        pairs = list(zip(chosen, lengths, strict=True))
        ids = np.concatenate([row.ids[:length] for row, length in pairs])
        counts = np.concatenate([row.counted[:length] for row, length in pairs])
        is_even = len(set(lengths)) == 1
        shape = (len(chosen) if is_even else 1, -1)
        made.append((ids.reshape(shape), counts.reshape(shape), None if is_even else lengths))
    return [made[i] for i in drawn.permutation(len(made))]


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
