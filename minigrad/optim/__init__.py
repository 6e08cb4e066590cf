"""Optimisers, learning rate schedulers, gradient clipping, and averages of weights (EMA)."""

from typing import TYPE_CHECKING

from minigrad import renamed
from minigrad.optim import clip, descent, schedulers
from minigrad.optim.clip import *
from minigrad.optim.descent import *
from minigrad.optim.ema import EMA
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedulers import *

__all__ = ["EMA", "Optimizer"]
__all__ += descent.__all__ + schedulers.__all__ + clip.__all__

if not TYPE_CHECKING:
    __getattr__, __dir__ = renamed.getattr_of(__name__), renamed.dir_of(__name__)
