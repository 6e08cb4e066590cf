"""Layers and models, all of them made of `Module`, and the initial values of weights."""

from minigrad.nn import activations, attention, init, layers, losses, module
from minigrad.nn.activations import *
from minigrad.nn.attention import *
from minigrad.nn.layers import *
from minigrad.nn.losses import *
from minigrad.nn.module import *

__all__ = ["init"]
__all__ += activations.__all__ + attention.__all__ + layers.__all__
__all__ += losses.__all__ + module.__all__
