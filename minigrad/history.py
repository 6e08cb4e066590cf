"""What happened in a training run, by step and by epoch: to look at, to plot, to keep."""

from __future__ import annotations

import csv
import io
import operator
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from minigrad.io import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, float]


@dataclass
class History:
    """The records of a run.

    Attributes:
        steps: for each step of the optimiser its number, epoch, loss, learning rate (of the first
            group), gradient norm and seconds.
        epochs: for each epoch its number, the mean loss over the training rows, the learning rate
            of its last step, the mean gradient norm, seconds, the metrics, and with validation data
            their loss and metrics as "validation_...".
    """

    steps: list[Record] = field(default_factory=list)
    epochs: list[Record] = field(default_factory=list)

    def __getitem__(self, name: str) -> list[float]:
        """One column of the epochs, such as "loss" or "validation_loss".

        Raises:
            KeyError: if no epoch has it, with the names there are.
        """
        names = list(dict.fromkeys(key for record in self.epochs for key in record))
        if name not in names:
            raise KeyError(f"the epochs have no {name!r}, only {', '.join(names) or 'nothing yet'}")
        return [record[name] for record in self.epochs if name in record]

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs yet)"
        last = ", ".join(f"{key}={value:.4g}" for key, value in self.epochs[-1].items())
        return f"History({len(self.epochs)} epochs, {len(self.steps)} steps; last: {last})"

    def to_csv(self, path: str | os.PathLike[str], by: Literal["epoch", "step"] = "epoch") -> None:
        """Write the records of all epochs, or of all steps, with a header line."""
        records = {"epoch": self.epochs, "step": self.steps}.get(by)
        if records is None:
            raise ValueError(f"by is 'epoch' or 'step', not {by!r}")
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(key for record in records for key in record))
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(records)
        write_atomically(path, text.getvalue().encode())

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the losses, and the gradient norm below; save the figure if `path` is given.

        Raises:
            ValueError: if there are no epochs yet.
        """
        from matplotlib.figure import Figure

        if not self.epochs:
            raise ValueError("there are no epochs to plot yet")
        figure = Figure(figsize=(7, 5), layout="constrained")
        losses, norms = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        epochs = self["epoch"]
        losses.plot(epochs, self["loss"], "-", label="training loss")
        judged = [r for r in self.epochs if "validation_loss" in r]
        if judged:
            at, validation = ([r[key] for r in judged] for key in ("epoch", "validation_loss"))
            losses.plot(at, validation, "--", label="validation loss")
            best = min(judged, key=operator.itemgetter("validation_loss"))
            losses.plot(
                best["epoch"], best["validation_loss"], "o", color="black", label="best validation"
            )
            title = f"Best validation loss {best['validation_loss']:.4g} at epoch {best['epoch']}"
        else:
            title = f"Training loss {self['loss'][0]:.4g} to {self['loss'][-1]:.4g}"
        losses.set(title=title, ylabel="loss")
        if min(self["loss"]) > 0:
            losses.set_yscale("log")
        losses.legend()
        norms.plot(epochs, self["grad_norm"], color="black")
        norms.set(xlabel="epoch", ylabel="gradient norm")
        for axes in (losses, norms):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def as_record(values: dict[str, Any]) -> Record:
    """Numbers of any kind as Python's own, which JSON keeps to the bit."""
    return {key: value if isinstance(value, int) else float(value) for key, value in values.items()}
