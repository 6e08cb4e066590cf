"""Checks of a saved state of a training run, before any part of it is loaded.

A checkpoint may be damaged, or come from somebody else. Parts such as the optimiser check their own
state. This module checks the state of the Trainer itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad.checks import check_count, check_range
from minigrad.training import checkpoint_file
from minigrad.training.history import Record
from minigrad.training.training_data import Items

# The errors that a part may raise if its state has values of wrong types or sizes.
MISFITS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

PARTS = {"classes", "model", "best", "optimizer", "scheduler", "ema", "generators", "best_loss"}
PARTS |= {"epochs_since_best", "steps", "epochs", "pass"}
RECORDED = {"epoch", "loss", "lr", "grad_norm", "seconds"}
RESERVED = RECORDED | {"step"}  # names that no metric can have


@dataclass
class UnfinishedEpoch:
    """An epoch that has begun: the order of its items, how many are done, and the counts."""

    order: Items
    position: int = 0  # the number of items that are done
    counts: list[float] = field(default_factory=list)  # the count of the loss in each step


def check_records(records: Sequence[Any], names: set[str]) -> None:
    """Raise a ValueError unless each record has exactly these names, and only numbers."""
    for record in records:
        values = record.values() if isinstance(record, Mapping) and names <= set(record) else [None]
        if not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"a record has numbers for {sorted(names)}, not {record!r:.100}")


def unfinished_epoch(state: Any, steps: Sequence[Record]) -> UnfinishedEpoch | None:
    """Return the epoch in a state; raise an error if it does not fit the records of the steps."""
    if state is None:
        return None
    order, position, counts = np.array(state["order"]), state["position"], list(state["counts"])
    check_count("position", position)
    for count in counts:
        check_range("what a step counted", count, 0, math.inf)
    is_order = order.ndim == 1 and order.dtype.kind == "i" and len(order) > 0
    if not is_order or not np.array_equal(np.sort(order), np.arange(len(order))):
        raise ValueError("the order of the unfinished epoch is not a permutation of its items")
    if position > len(order) or bool(position) != bool(counts) or not all(counts):
        raise ValueError("the position in the unfinished epoch does not go with its counts")
    if len(counts) > min(len(steps), position):
        raise ValueError("the unfinished epoch has counts of more steps than were made")
    return UnfinishedEpoch(order, int(position), counts)


def check_generators(states: Sequence[Any], own: Sequence[np.random.BitGenerator]) -> None:
    """Raise an error unless the states are possible for these generators.

    numpy does not check a state completely: with a wrong position it would read beyond the end.
    """
    kinds = [saved["bit_generator"] for saved in states]
    own_kinds = [bits.state["bit_generator"] for bits in own]
    if kinds != own_kinds:
        raise ValueError(f"it has random generators {kinds}, and this trainer {own_kinds}")
    for saved, bits in zip(states, own, strict=True):
        duplicate = copy.deepcopy(bits)
        duplicate.state = saved
        taken = duplicate.state
        possible = 0 <= taken["state"].get("pos", 0) <= 624 and 0 <= taken.get("buffer_pos", 0) <= 4
        if not possible or checkpoint_file.as_json(taken) != checkpoint_file.as_json(saved):
            raise ValueError(f"it has an impossible state of a {saved['bit_generator']}")
