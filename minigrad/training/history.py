"""The history of a training run: records of steps and of epochs, to print, plot and save."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from minigrad.checks import check_choice
from minigrad.io import write_atomically
from minigrad.tables import counted
from minigrad.viz import plot_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, float]

RESERVED = {"step", "epoch", "loss", "lr", "grad_norm", "seconds"}
"""Names in the records that no metric can have."""


@dataclass
class History:
    """The records of a run: `history["loss"]` is a column of the epochs; iterate over the epochs.

    Attributes:
        steps: a record for each step of the optimiser: its number, epoch, loss, learning rate (of
            the first group), gradient norm and seconds. If there was a validation after the step,
            also its results.
        epochs: a record for each epoch: its number, the mean loss over the training rows, the
            learning rate of its last step, the mean gradient norm, seconds, and the metrics. With
            validation data, also their loss and metrics, as "validation_...".
    """

    steps: list[Record] = field(default_factory=list)
    epochs: list[Record] = field(default_factory=list)

    def __getitem__(self, name: str) -> list[float]:
        """Return one column of the epochs, such as "loss".

        Epochs without it are left out, as for a metric that was added later.

        Raises:
            KeyError: if no epoch has the column; the message lists the known columns.
        """
        if name not in self:
            known = ", ".join(self.keys()) or "nothing yet"
            raise KeyError(f"the epochs have no {name!r}, only {known}")
        return [record[name] for record in self.epochs if name in record]

    def keys(self) -> list[str]:
        """Return the names of all columns of the epochs."""
        return list(dict.fromkeys(key for record in self.epochs for key in record))

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records of the epochs."""
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs yet)"
        last = ", ".join(f"{key}={value:.4g}" for key, value in self.epochs[-1].items())
        epochs, steps = counted(len(self.epochs), "epoch"), counted(len(self.steps), "step")
        return f"History({epochs}, {steps}; last: {last})"

    def to_csv(self, path: str | os.PathLike[str], by: Literal["epoch", "step"] = "epoch") -> None:
        """Write the records of all epochs, or of all steps, with a header line.

        Raises:
            ValueError: if `by` is not "epoch" or "step".
            OSError: if the file cannot be written; an old file is not changed then.
        """
        check_choice("by", by, ("epoch", "step"))
        records = self.epochs if by == "epoch" else self.steps
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(key for record in records for key in record))
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(records)
        write_atomically(path, text.getvalue().encode())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the records with `minigrad.viz.plot_history`; save the figure if `path` is given.

        Raises:
            ImportError, ValueError, OSError: as in `plot_history`.
        """
        return plot_history(self, path)


def as_record(values: dict[str, Any]) -> Record:
    """Convert all numbers to Python's int and float, which JSON stores exactly."""
    return {key: value if isinstance(value, int) else float(value) for key, value in values.items()}
