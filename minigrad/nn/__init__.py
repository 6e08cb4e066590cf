"""Layers and models: `Module`, what is made of it, and how weights begin."""

from minigrad.nn import init
from minigrad.nn.activations import GELU, ReLU, Sigmoid, Softmax, Tanh
from minigrad.nn.layers import MLP, Dropout, Linear, Sequential
from minigrad.nn.losses import CrossEntropyLoss, L1Loss, MSELoss
from minigrad.nn.module import Module, Parameter

__all__ = [
    "GELU",
    "MLP",
    "CrossEntropyLoss",
    "Dropout",
    "L1Loss",
    "Linear",
    "MSELoss",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "init",
]
