"""Layers and models, all of them subclasses of `Module`, and the initialisation of weights.

In every layer with parameters, `dtype` is the dtype of the parameters. `rng` is the random
generator of their initial values and of the layer's dropout.
"""

import sys
from typing import TYPE_CHECKING, Any

from minigrad import renamed
from minigrad.nn import (
    activations,
    attention,
    convolution,
    init,
    layers,
    losses,
    module,
    normalization,
    pooling,
    recurrent,
)
from minigrad.nn.activations import *
from minigrad.nn.attention import *
from minigrad.nn.convolution import *
from minigrad.nn.layers import *
from minigrad.nn.losses import *
from minigrad.nn.module import *
from minigrad.nn.normalization import *
from minigrad.nn.pooling import *
from minigrad.nn.recurrent import *

__all__ = ["init"]
__all__ += activations.__all__ + attention.__all__ + convolution.__all__ + layers.__all__
__all__ += losses.__all__ + module.__all__ + normalization.__all__ + pooling.__all__
__all__ += recurrent.__all__

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Raise an error that says what to use instead of the name."""
        raise renamed.missing(__name__, name, sys.modules[__name__])
