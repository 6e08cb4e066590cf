"""Layers and models, all of them subclasses of `Module`, and the initialisation of weights.

In every layer with parameters, `dtype` is the dtype of the parameters. `rng` is the random
generator of their initial values and of the layer's dropout.
"""

from minigrad import renamed
from minigrad.nn import init
from minigrad.nn.activations import *
from minigrad.nn.attention import *
from minigrad.nn.convolution import *
from minigrad.nn.layers import *
from minigrad.nn.losses import *
from minigrad.nn.module import *
from minigrad.nn.normalization import *
from minigrad.nn.pooling import *
from minigrad.nn.recurrent import *

# All classes, because the modules above export nothing else.
__all__ = ["init", *(name for name, value in vars().items() if isinstance(value, type))]

renamed.hint_names(__name__)
