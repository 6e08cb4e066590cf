"""Optimisers, learning rate schedulers, gradient clipping, and averages of weights (EMA)."""

from minigrad import renamed
from minigrad.optim import clip, descent, schedulers
from minigrad.optim.clip import *
from minigrad.optim.descent import *
from minigrad.optim.ema import EMA
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedulers import *

__all__ = ["EMA", "Optimizer"]
__all__ += descent.__all__ + schedulers.__all__ + clip.__all__

renamed.hint_names(__name__)
