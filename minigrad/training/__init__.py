"""Training loops: `Trainer`, the records that it keeps, and the files from which a run goes on."""

from minigrad.training.history import History
from minigrad.training.trainer import Trainer

__all__ = ["History", "Trainer"]
