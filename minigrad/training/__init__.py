"""The training loop: `Trainer`, its history, and checkpoint files to resume a run."""

from minigrad.training.history import History
from minigrad.training.trainer import Trainer

__all__ = ["History", "Trainer"]
